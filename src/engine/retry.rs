//! Whether a failed call is made again, and after how long. Pure.

use std::time::Duration;

use crate::error::Error;

/// How often a call is made in all.
const ATTEMPT_COUNT_MAX: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The delay before the next attempt, after `attempt` (counted from 1) failed; `None`: give up.
pub(crate) fn retry_after(error: &Error, attempt: u32) -> Option<Duration> {
    if !error.is_retryable() || attempt >= ATTEMPT_COUNT_MAX {
        return None;
    }
    Some(FIRST_DELAY * 4_u32.pow(attempt.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        let passing = Error::new(ErrorKind::Unavailable, "read");
        let delays: Vec<_> = (1..=5).map(|attempt| retry_after(&passing, attempt)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(delays, [ms(50), ms(200), ms(800), None, None]);
        assert_eq!(retry_after(&Error::new(ErrorKind::Io, "read"), 1), None);
    }
}
