//! The two ways in which S3 writes a moment, as milliseconds since 1970. Pure.

use chrono::DateTime;

/// `2026-11-26T22:10:42.000Z`, as in listings.
pub(super) fn iso_ms(text: &str) -> Option<u64> {
    DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis().try_into().ok()
}

/// `Thu, 26 Nov 2026 22:10:42 GMT`, as in headers.
pub(super) fn http_ms(text: &str) -> Option<u64> {
    DateTime::parse_from_rfc2822(text).ok()?.timestamp_millis().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same() {
        assert_eq!(iso_ms("1970-01-01T00:00:01.500Z"), Some(1500));
        assert_eq!(iso_ms("2026-11-26T22:10:42.000Z"), http_ms("Thu, 26 Nov 2026 22:10:42 GMT"));
        for text in ["", "yesterday", "1969-12-31T23:59:59Z"] {
            assert_eq!((iso_ms(text), http_ms(text)), (None, None));
        }
    }
}
