//! How long a leg of a fan-out waits for others.

use std::time::Duration;

use tokio::time::Instant;

/// What a leg spends on waiting for those behind: so much, and that part of its time so far; and no
/// more than the former in one go.
pub(crate) const FIRST: Duration = Duration::from_secs(1);
const PART: u32 = 10;

/// Time that a leg has spent on waiting for others, counted once however many of its tasks wait.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    spent: Duration,
    waiting: u32,
    since: Option<Instant>,
}

impl Patience {
    /// Somebody begins to wait; returns for how long at most.
    pub(crate) fn begin(&mut self, joined: Instant, now: Instant) -> Duration {
        self.waiting += 1;
        let since = *self.since.get_or_insert(now);
        let allowed = FIRST + (now - joined) / PART;
        let left = allowed.saturating_sub(self.spent + (now - since));
        left.min(FIRST.saturating_sub(now - since))
    }

    pub(crate) fn end(&mut self, now: Instant) {
        self.waiting -= 1;
        if self.waiting == 0
            && let Some(since) = self.since.take()
        {
            self.spent += now - since;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_spent_once_however_many_wait() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(patience.begin(start, at(0)), FIRST);
        assert_eq!(patience.begin(start, at(500)), Duration::from_millis(500));
        patience.end(at(600));
        patience.end(at(800));
        assert_eq!(patience.begin(start, at(1000)), Duration::from_millis(1100 - 800));
        patience.end(at(1000));
        assert_eq!(patience.begin(start, at(3_600_000)), FIRST, "not all in one go");
    }
}
