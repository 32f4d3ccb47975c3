//! Days and times of UTC from and to seconds since 1970, as the clouds write them. Pure.

const DAY: i64 = 86_400;

/// `2026-11-21T20:25:11Z`.
pub(crate) fn iso(unix_ms: u64) -> String {
    let (year, month, day, second) = split(unix_ms);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-11-21T20:25:11.042Z`.
pub(crate) fn iso_ms(unix_ms: u64) -> String {
    let whole = iso(unix_ms);
    format!("{}.{:03}Z", whole.trim_end_matches('Z'), unix_ms % 1000)
}

/// Seconds since 1970 of `2026-11-21T20:25:11Z`.
pub(crate) fn parse_iso(text: &str) -> Option<i64> {
    let shape = b"0000-00-00T00:00:00Z";
    parse(text, shape, [0, 5, 8, 11, 14, 17])
}

/// Seconds since 1970 of `20261121T202511Z`.
pub(crate) fn parse_basic(text: &str) -> Option<i64> {
    parse(text, b"00000000T000000Z", [0, 4, 6, 9, 11, 13])
}

fn parse(text: &str, shape: &[u8], at: [usize; 6]) -> Option<i64> {
    let bytes = text.as_bytes();
    let fits = |(byte, wanted): (&u8, &u8)| match wanted {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    if bytes.len() != shape.len() || !bytes.iter().zip(shape).all(fits) {
        return None;
    }
    let number = |at: usize, len: usize| text.get(at..at + len)?.parse::<i64>().ok();
    let year = number(at[0], 4)?;
    let [month, day, hour, minute, second] = [
        number(at[1], 2)?,
        number(at[2], 2)?,
        number(at[3], 2)?,
        number(at[4], 2)?,
        number(at[5], 2)?,
    ];
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    // A leap second is taken as the second after.
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

/// Year, month, day, second of the day.
fn split(unix_ms: u64) -> (i64, i64, i64, i64) {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX / DAY);
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil_from_days(days);
    (year, month, day, second)
}

/// Days since 1970 of a day of the proleptic Gregorian calendar: years begin in March, so that the
/// leap day is their last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12 + 1;
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_one_spelling() {
        assert_eq!(iso(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso(1_795_292_711_042), "2026-11-21T20:25:11Z");
        assert_eq!(iso_ms(1_795_292_711_042), "2026-11-21T20:25:11.042Z");
        assert_eq!(parse_iso("2026-11-21T20:25:11Z"), Some(1_795_292_711));
        assert_eq!(parse_basic("20261121T202511Z"), Some(1_795_292_711));
        // Every day of four centuries and more, there and back.
        for day in 0..160_000_u64 {
            let unix = day * 86_400 + 12_345;
            let text = iso(unix * 1000);
            assert_eq!(parse_iso(&text), i64::try_from(unix).ok(), "{text}");
            let basic = text.replace(['-', ':'], "");
            assert_eq!(parse_basic(&basic), i64::try_from(unix).ok(), "{basic}");
        }
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T20:25:11",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01 00:00:00Z",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Zx",
            "２026-01-01T0:00:00Z",
        ] {
            assert_eq!(parse_iso(text), None, "{text}");
        }
        assert_eq!(parse_iso("2024-02-29T23:59:60Z"), Some(1_709_251_200));
        assert_eq!(parse_basic("2026112T1202511Z"), None);
    }
}
