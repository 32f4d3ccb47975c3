//! What people and scripts type: locations, numbers of bytes, rates, shares.

use super::{Effort, assert_brief};
use crate::error::{Error, ErrorKind};
use crate::geometry::ChunkSize;
use crate::location::{BucketAddress, Location, PeerAddress, RegionLocation};
use crate::options::{Verify, parse_bytes, parse_rate};

const CWD: &str = "/home/me";

pub(super) fn check_location(bytes: &[u8], _: Effort) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Location::parse(text, CWD) {
        Err(error) => assert_invalid(&error),
        Ok(location) => check_image(text, &location),
    }
    match RegionLocation::parse(text, CWD) {
        Err(error) => assert_invalid(&error),
        Ok(region) => {
            match &region {
                RegionLocation::Files(path) | RegionLocation::Dir(path) => check_path(text, path),
                RegionLocation::Peer(address) => check_peer(address),
                RegionLocation::Object(address) => check_bucket(address),
            }
            if let Ok(name) = region.name() {
                assert!(!is_url(text) || name.as_str() == text);
            }
        }
    }
}

fn check_image(text: &str, location: &Location) {
    match location {
        Location::File(path) => check_path(text, path),
        Location::Dir { root, .. } => check_path(text, root),
        Location::Peer { address, .. } => check_peer(address),
        Location::Object { address, .. } | Location::PlainObject(address) => check_bucket(address),
    }
    if is_url(text) {
        assert_eq!(location.to_string(), text, "a URL has one spelling");
    }
    match location.endpoint() {
        Err(error) => assert_invalid(&error),
        Ok(end) => {
            let again = Location::of_endpoint(&end);
            assert!(again.is_ok_and(|again| again == *location), "{end} leads elsewhere");
        }
    }
}

/// A daemon's region is named by no path, and its socket by one that climbs nowhere.
fn check_peer(address: &PeerAddress) {
    assert!(!address.region().as_str().contains('/'), "{address}");
    match address {
        PeerAddress::Tcp { host, port, .. } => {
            assert!(*port > 0 && !host.contains('/'), "{address}");
        }
        PeerAddress::Unix { socket, .. } => {
            let plain = |part| !matches!(part, "" | "." | "..");
            assert!(socket.starts_with('/') && socket[1..].split('/').all(plain), "{address}");
        }
    }
}

/// A key climbs nowhere, and nothing in the URL is a secret.
fn check_bucket(address: &BucketAddress) {
    let climbs = |part| matches!(part, "" | "." | "..");
    assert!(address.key.is_empty() || !address.key.split('/').any(climbs), "{address}");
    let has_secret = address.endpoint.as_deref().is_some_and(|endpoint| endpoint.contains('@'));
    assert!(!has_secret && !address.bucket.contains('/'), "{address}");
    // Its words may come in any order, and leave in one.
    let again = BucketAddress::parse(&address.to_string());
    assert!(again.is_ok_and(|again| again == *address), "{address} leads elsewhere");
}

/// A path is absolute; that of a URL climbs nowhere, and a plain one is where the shell has it.
fn check_path(text: &str, path: &str) {
    assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
    if is_url(text) {
        assert!(path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
    } else {
        assert_eq!(std::path::Path::new(CWD).join(text), std::path::Path::new(path));
    }
}

fn is_url(text: &str) -> bool {
    let schemes = ["file://", "dir://", "ferrys://", "ferry+unix://"];
    schemes.iter().any(|scheme| text.starts_with(scheme))
}

pub(super) fn check_size(bytes: &[u8], _: Effort) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let told = parse_bytes(text);
    assert_eq!(told.as_ref().ok().copied(), bytes_of(text), "{text:?}");
    if let Ok(count) = told {
        let again = parse_bytes(&count.to_string());
        assert!(again.is_ok_and(|again| again == count), "{count}");
        assert!(parse_rate(&format!("{text}/s")).is_ok_and(|rate| rate == count));
        match ChunkSize::from_bytes(count) {
            Err(error) => assert_invalid(&error),
            Ok(size) => {
                assert!(parse_bytes(&size.to_string()).is_ok_and(|bytes| bytes == size.bytes()));
            }
        }
    }
    match parse_rate(text) {
        Err(error) => assert_invalid(&error),
        Ok(rate) => {
            let none = rate == 0 && matches!(text, "none" | "unlimited");
            assert!(none || bytes_of(text.strip_suffix("/s").unwrap_or(text)) == Some(rate));
        }
    }
    match Verify::parse(text) {
        Err(error) => assert_invalid(&error),
        Ok(verify) => {
            let again = Verify::parse(&verify.to_string());
            assert!(again.is_ok_and(|again| again == verify), "{verify}");
        }
    }
}

/// The number of bytes, digit by digit, as a schoolbook has it.
fn bytes_of(text: &str) -> Option<u64> {
    let number_len = text.bytes().take_while(|byte| b"0123456789.".contains(byte)).count();
    let (number, unit) = text.split_at(number_len);
    let binary = |power| Some(1024_u128.pow(power));
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => binary(0),
        "k" | "kib" => binary(1),
        "m" | "mib" => binary(2),
        "g" | "gib" => binary(3),
        "t" | "tib" => binary(4),
        decimal => {
            let power = ["", "kb", "mb", "gb", "tb"].iter().position(|known| *known == decimal)?;
            (power > 0).then(|| 1000_u128.pow(u32::try_from(power).unwrap_or(0)))
        }
    }?;
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !fits(whole) || fraction.is_some_and(|part| !fits(part) || part.len() > 6) {
        return None;
    }
    let (mut bytes, mut scaled) = (0_u128, unit);
    for digit in whole.bytes() {
        bytes = bytes.checked_mul(10)?.checked_add(u128::from(digit - b'0'))?;
    }
    u64::try_from(bytes).ok()?;
    bytes *= unit;
    // In millionths of a unit, so that nothing is lost before the end.
    let mut parts = 0;
    for digit in fraction.unwrap_or("").bytes().chain([b'0'; 6]).take(6) {
        parts = parts * 10 + u128::from(digit - b'0');
    }
    scaled *= parts;
    u64::try_from(bytes + scaled / 1_000_000).ok()
}

fn assert_invalid(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.report());
    assert_brief(error);
}

pub(super) fn location_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "disk.raw",
        "../a b",
        "/x/%20",
        "file:///x/y",
        "dir:///srv/region-a/m-1",
        "",
        "a\0b",
        "s4://x/y",
        "file://host/x",
        "file:///a/../b",
        "dir:///a//b",
        "dir:///a/./b",
        "dir:///m-1",
        "dir://",
        "dir:///srv/a/..",
        "dir:///srv/a/x\ny",
        "dir:///srv/a/",
        "file:///ä/b c",
        "://x",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

pub(super) fn size_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "0",
        "65536",
        "64KiB",
        "4m",
        "1.5GiB",
        "2TiB",
        "500MB",
        "18446744073709551615",
        "",
        "MiB",
        "-1",
        "1e3",
        "1.MiB",
        "1..2",
        "1 MiB",
        "16EiB",
        "99999999TiB",
        "½",
        "100MiB/s",
        "none",
        "unlimited",
        "full",
        "sample:5%",
        "sample:0.0001%",
        "sample:100%",
        "sample:101%",
        "0.9k",
        "18446744073709551615.999999k",
        "16777216tib",
        "16777215.999999tib",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
