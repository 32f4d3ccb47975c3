//! Names that come from outside, parsed once into types: images, jobs, keys, regions. Pure.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::sabotage;

/// The name of an image in its region: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(String);

impl ImageId {
    /// The most bytes an image id has.
    pub const LEN_MAX: usize = 128;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if sabotage::is("M25") {
            return Ok(Self(text.to_owned()));
        }
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts || text.len() > Self::LEN_MAX || !text.as_bytes().iter().all(plain) {
            return Err(Error::new(ErrorKind::Invalid, format!("use {} as image id", shown(text)))
                .hint(
                    "an image id has 1 to 128 letters, digits, '.', '_' and '-', \
                 the first a letter or digit",
                ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The number of a job: 128 bits, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId([u8; 16]);

impl JobId {
    /// The job of these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::new(ErrorKind::Invalid, format!("use {} as job id", shown(text)))
                .hint("a job id has 32 hexadecimal digits, as `blockferry jobs` prints it")
        };
        if text.len() != 32 {
            return Err(refuse());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            *byte =
                digit(pair[0]).zip(digit(pair[1])).map(|(h, l)| h << 4 | l).ok_or_else(refuse)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The name under which an engine knows a region: 1 to 4,096 bytes of text without control
/// characters.
///
/// A daemon chooses short ones (`cn-beijing`); the command line uses the region's location
/// (`dir:///srv/region-a`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName(String);

impl RegionName {
    /// The most bytes a region name has.
    pub const LEN_MAX: usize = 4096;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > Self::LEN_MAX || text.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("use {} as region name", shown(text)),
            )
            .hint("a region name has 1 to 4096 bytes and no control character"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a key that wraps data keys: `[A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,127}`, which holds the
/// key ids, aliases and resource names of the clouds. It is never part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// The most bytes a key id has.
    pub const LEN_MAX: usize = 128;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:/@+=-".contains(byte);
        let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts || text.len() > Self::LEN_MAX || !text.as_bytes().iter().all(plain) {
            return Err(Error::new(ErrorKind::Invalid, format!("use {} as key id", shown(text)))
                .hint(
                    "a key id has 1 to 128 letters, digits and of ._:/@+=- , the first a letter \
                     or digit",
                ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Text from outside, escaped and cut, fit for an error message.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

macro_rules! text_like {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self> {
                text.parse()
            }
        }
    )*};
}
text_like!(ImageId, JobId, KeyId, RegionName);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_image_ids_are_refused() {
        let long = "a".repeat(129);
        for text in [
            "", ".", "..", "../x", "a/b", "/a", "a\0b", "-a", "_a", ".hidden", "a b", "ä", "a\n",
            "%2e%2e", &long,
        ] {
            let error = text.parse::<ImageId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
        for text in ["a", "0", "m-1", "ubuntu_22.04-x86..64", &"a".repeat(128)] {
            assert_eq!(text.parse::<ImageId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn job_ids_have_one_spelling() {
        let job = JobId::from_bytes(*b"\x00\x01\xfe\xff456789abcdef");
        assert_eq!(job.to_string().parse::<JobId>().unwrap(), job);
        for text in ["", "0", &"A".repeat(32), &"g".repeat(32), &"0".repeat(33), &"ä".repeat(16)] {
            assert_eq!(text.parse::<JobId>().unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn key_ids_of_the_clouds_are_taken_and_others_refused() {
        for text in [
            "k1",
            "0e478b7a-4262-4802-b8cb-00d3fb408abc",
            "alias/images",
            "acs:kms:cn-hangzhou:1234:key/0e478b7a",
            &"k".repeat(128),
        ] {
            assert_eq!(text.parse::<KeyId>().unwrap().as_str(), text);
        }
        for text in ["", "-k", "/k", "a b", "a\n", "ä", "a\0", &"k".repeat(129)] {
            assert_eq!(text.parse::<KeyId>().unwrap_err().kind(), ErrorKind::Invalid, "{text:?}");
        }
    }

    #[test]
    fn messages_show_a_hostile_name_escaped_and_cut() {
        let error = format!("a\n{}", "b".repeat(10_000)).parse::<ImageId>().unwrap_err();
        assert!(error.to_string().len() < 300 && error.to_string().contains("a\\n"));
    }
}
