//! The two ways in which S3 writes a moment, as milliseconds since 1970. Pure.

use std::time::Duration;

use chrono::DateTime;

/// `2026-11-26T22:10:42.000Z`, as in listings.
pub(super) fn iso_ms(text: &str) -> Option<u64> {
    DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis().try_into().ok()
}

/// `Thu, 26 Nov 2026 22:10:42 GMT`, as in headers.
pub(super) fn http_ms(text: &str) -> Option<u64> {
    DateTime::parse_from_rfc2822(text).ok()?.timestamp_millis().try_into().ok()
}

/// `Retry-After`: seconds, or a moment by the clock that wrote `date`.
pub(super) fn wait(text: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let until_ms = http_ms(text)?;
    Some(Duration::from_millis(until_ms.saturating_sub(http_ms(date?)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_says_how_long_to_wait_in_seconds_or_until_when() {
        let now = "Thu, 26 Nov 2026 22:10:42 GMT";
        let date = Some(now);
        assert_eq!(wait("120", None), Some(Duration::from_secs(120)));
        let until = "Thu, 26 Nov 2026 22:11:12 GMT";
        assert_eq!(wait(until, date), Some(Duration::from_secs(30)));
        assert_eq!(wait(now, Some(until)), Some(Duration::ZERO), "it is over");
        assert_eq!((wait(until, None), wait("soon", date), wait("-1", date)), (None, None, None));
    }

    #[test]
    fn both_spellings_mean_the_same() {
        assert_eq!(iso_ms("1970-01-01T00:00:01.500Z"), Some(1500));
        assert_eq!(iso_ms("2026-11-26T22:10:42.000Z"), http_ms("Thu, 26 Nov 2026 22:10:42 GMT"));
        for text in ["", "yesterday", "1969-12-31T23:59:59Z"] {
            assert_eq!((iso_ms(text), http_ms(text)), (None, None));
        }
    }
}
