//! What each cloud accepts as name, description, label and token, and what its image ids look like.
//! Pure.

use crate::error::Result;
use crate::id::ImageId;

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has to be there.
    Missing,
    /// It is too long, or too short.
    Length,
    /// It holds or begins with something that it may not.
    Content,
}

type Check = std::result::Result<(), Fault>;

/// Alibaba ECS: 2 to 128 characters; a letter first, then letters, digits, `.` `:` `_` `-`; not
/// `acs:` or `aliyun` first, no URL within. \[D\]
///
/// # Errors
/// What is wrong with it. An empty name is none.
pub fn alibaba_name(name: &str) -> Check {
    length(name, 2, 128)?;
    let inner = |c: char| is_letter(c) || c.is_ascii_digit() || ".:_-".contains(c);
    let starts = name.chars().next().is_some_and(is_letter);
    let reserved = ["acs:", "aliyun"].iter().any(|word| starts_with(name, word));
    content(starts && name.chars().all(inner) && !reserved && !has_url(name))
}

/// Alibaba ECS: 2 to 256 characters that do not begin with a URL's scheme. \[D\]
///
/// # Errors
/// What is wrong with it. An empty description is none.
pub fn alibaba_description(text: &str) -> Check {
    length(text, 2, 256)?;
    content(!starts_with(text, "http://") && !starts_with(text, "https://"))
}

/// Alibaba ECS: a label's key has 1 to 128 characters, not `aliyun` or `acs:` first, no URL. \[D\]
///
/// # Errors
/// What is wrong with it.
pub fn alibaba_tag_key(key: &str) -> Check {
    length(key, 1, 128)?;
    let reserved = ["acs:", "aliyun"].iter().any(|word| starts_with(key, word));
    content(!reserved && !has_url(key))
}

/// Alibaba ECS: a label's value has up to 128 characters, not `acs:` first, no URL. \[D\]
///
/// # Errors
/// What is wrong with it.
pub fn alibaba_tag_value(value: &str) -> Check {
    length(value, 0, 128)?;
    content(!starts_with(value, "acs:") && !has_url(value))
}

/// Alibaba ECS: a client token has 1 to 64 ASCII characters. \[D\]
///
/// # Errors
/// What is wrong with it.
pub fn alibaba_token(token: &str) -> Check {
    length(token, 1, 64)?;
    content(token.is_ascii())
}

/// Huawei IMS: 1 to 128 characters; letters, digits, `-` `.` `_` and spaces, none of these first or
/// last \[D\]. Chinese letters are letters \[C\].
///
/// # Errors
/// What is wrong with it.
pub fn huawei_name(name: &str) -> Check {
    if name.is_empty() {
        return Err(Fault::Missing);
    }
    length(name, 1, 128)?;
    let inner = |c: char| is_letter(c) || c.is_ascii_digit() || "-._ ".contains(c);
    content(name.chars().all(inner) && !name.starts_with(' ') && !name.ends_with(' '))
}

/// Huawei IMS: up to 1,024 characters, no `<`, `>` or carriage return \[D\]. Spaces may be \[C\].
///
/// # Errors
/// What is wrong with it.
pub fn huawei_description(text: &str) -> Check {
    length(text, 0, 1024)?;
    content(!text.contains(['<', '>', '\r']))
}

/// Baidu BCC: the page of remoteCopy lists no error for names, so nothing is enforced but a length
/// that can be stored: up to 1,024 characters. \[C\]
///
/// # Errors
/// What is wrong with it.
pub fn baidu_name(name: &str) -> Check {
    length(name, 0, 1024)
}

/// A new image's id in the shape that the cloud's clients expect, from random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdShape {
    /// Alibaba ECS: `m-` and 20 letters or digits.
    Alibaba,
    /// Baidu BCC: `m-` and 8 letters or digits. \[D\]
    Baidu,
    /// Huawei IMS: a UUID. \[D\]
    Huawei,
}

impl IdShape {
    /// The id that these random bytes make.
    ///
    /// # Errors
    /// None: what it makes is an image id.
    pub fn image_id(self, random: [u8; 16]) -> Result<ImageId> {
        const LOWER: &[u8; 32] = b"0123456789abcdefghijkmnpqrstuvwx";
        const MIXED: &[u8; 64] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzAa";
        let number = u128::from_le_bytes(random);
        let digits = |alphabet: &[u8], bits: u32, count: u32| {
            let mask = (1_u128 << bits) - 1;
            let digit = |at: u32| {
                let index = usize::try_from((number >> (at * bits)) & mask).unwrap_or(0);
                char::from(alphabet.get(index).copied().unwrap_or(b'0'))
            };
            (0..count).map(digit).collect::<String>()
        };
        match self {
            Self::Alibaba => format!("m-{}", digits(LOWER, 5, 20)),
            Self::Baidu => format!("m-{}", digits(MIXED, 6, 8)),
            Self::Huawei => uuid(random),
        }
        .parse()
    }
}

/// A UUID of version 4 from random bytes, in lower case.
pub fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in random.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Whether a text has the shape of a UUID, in lower case.
pub fn is_uuid(text: &str) -> bool {
    let dash = |at| matches!(at, 8 | 13 | 18 | 23);
    let fits = |(at, byte): (usize, u8)| match byte {
        b'-' => dash(at),
        b'0'..=b'9' | b'a'..=b'f' => !dash(at),
        _ => false,
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn length(text: &str, least: usize, most: usize) -> Check {
    // A character has at most four bytes: what is longer need not be counted.
    let chars = if text.len() > 4 * most { usize::MAX } else { text.chars().count() };
    if (least..=most).contains(&chars) { Ok(()) } else { Err(Fault::Length) }
}

fn content(good: bool) -> Check {
    if good { Ok(()) } else { Err(Fault::Content) }
}

/// Latin and Chinese letters.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && c.is_alphabetic())
}

fn starts_with(text: &str, word: &str) -> bool {
    text.as_bytes()
        .get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
}

fn has_url(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    lower.contains("http://") || lower.contains("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_alibaba() {
        let long = "a".repeat(128);
        for name in ["ab", "镜像", "a.b:c_d-1", "Acs-1", &long, "xaliyun"] {
            assert_eq!(alibaba_name(name), Ok(()), "{name}");
        }
        let longer = "a".repeat(129);
        let huge = "a".repeat(1 << 20);
        for (name, fault) in [
            ("", Fault::Length),
            ("a", Fault::Length),
            (&*longer, Fault::Length),
            (&*huge, Fault::Length),
            ("1a", Fault::Content),
            (".a", Fault::Content),
            ("a b", Fault::Content),
            ("acs:x", Fault::Content),
            ("aliyunx", Fault::Content),
            ("ALIYUNx", Fault::Content),
            ("ahttp://", Fault::Content),
            ("a\n", Fault::Content),
        ] {
            assert_eq!(alibaba_name(name), Err(fault), "{name:.20}");
        }
        assert_eq!(alibaba_description("it's a <b> + c"), Ok(()));
        assert_eq!(alibaba_description("x"), Err(Fault::Length));
        assert_eq!(alibaba_description(&"d".repeat(257)), Err(Fault::Length));
        assert_eq!(alibaba_description("HTTPS://x"), Err(Fault::Content));
        assert_eq!(alibaba_description("see http://x"), Ok(()));
        assert_eq!(alibaba_tag_key(""), Err(Fault::Length));
        assert_eq!(alibaba_tag_key("acs:k"), Err(Fault::Content));
        assert_eq!(alibaba_tag_value(""), Ok(()));
        assert_eq!(alibaba_tag_value("acs:v"), Err(Fault::Content));
        assert_eq!(alibaba_tag_value("aliyun"), Ok(()));
        assert_eq!(alibaba_token(&"t".repeat(64)), Ok(()));
        assert_eq!(alibaba_token(&"t".repeat(65)), Err(Fault::Length));
        assert_eq!(alibaba_token("tä"), Err(Fault::Content));
    }

    #[test]
    fn names_of_huawei_and_baidu() {
        for name in ["a", "镜像 1", "a-b.c_d", &"a".repeat(128)] {
            assert_eq!(huawei_name(name), Ok(()), "{name}");
        }
        assert_eq!(huawei_name(""), Err(Fault::Missing));
        assert_eq!(huawei_name(&"a".repeat(129)), Err(Fault::Length));
        for name in [" a", "a ", "a/b", "a\tb", "a<b"] {
            assert_eq!(huawei_name(name), Err(Fault::Content), "{name:?}");
        }
        assert_eq!(huawei_description("a b"), Ok(()));
        assert_eq!(huawei_description(&"镜".repeat(1024)), Ok(()));
        assert_eq!(huawei_description(&"d".repeat(1025)), Err(Fault::Length));
        for text in ["a<b", "a>b", "a\rb"] {
            assert_eq!(huawei_description(text), Err(Fault::Content), "{text:?}");
        }
        assert_eq!(baidu_name("any thing / at all"), Ok(()));
        assert_eq!(baidu_name(&"a".repeat(1025)), Err(Fault::Length));
    }

    #[test]
    fn image_ids_have_the_shape_of_their_cloud() {
        let shapes = [(IdShape::Alibaba, 22), (IdShape::Baidu, 10), (IdShape::Huawei, 36)];
        for (shape, len) in shapes {
            for byte in [0, 0x5a, 0xff] {
                let id = shape.image_id([byte; 16]).unwrap();
                assert_eq!(id.as_str().len(), len, "{id}");
                assert_eq!(is_uuid(id.as_str()), shape == IdShape::Huawei, "{id}");
            }
            assert_ne!(shape.image_id([1; 16]).unwrap(), shape.image_id([2; 16]).unwrap());
        }
        for text in ["", "0", "00000000-0000-0000-0000-00000000000g", &"0".repeat(36)] {
            assert!(!is_uuid(text), "{text}");
        }
        assert!(!is_uuid("0000000-00000-0000-0000-000000000000"));
    }
}
