//! Percent-encoding, query strings, hexadecimal digits, XML text: what all dialects spell alike.
//! Pure.

/// The most parameters of one request, in its query and its form together.
pub(crate) const PAIR_COUNT_MAX: usize = 256;

/// Every byte but RFC 3986's unreserved ones as `%XX`, in upper case.
pub(crate) fn encode(text: &str) -> String {
    encode_but(text, "")
}

/// As [`encode`], but the segments of a path stay apart.
pub(crate) fn encode_path(text: &str) -> String {
    encode_but(text, "/")
}

fn encode_but(text: &str, kept: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"-_.~".contains(&byte)
            || kept.as_bytes().contains(&byte)
        {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    out
}

/// The text behind percent-encoding; `None` for an escape that is none, and for what is not UTF-8.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => nibble(bytes.next()?)? << 4 | nibble(bytes.next()?)?,
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn nibble(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

/// The parameters of a query or a form, decoded, in their order; those without `=` have an empty
/// value. `None` when one is malformed, or when there are too many.
pub(crate) fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let mut pairs = Vec::new();
    for part in parts {
        if pairs.len() == PAIR_COUNT_MAX {
            return None;
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        pairs.push((decode(name, true)?, decode(value, true)?));
    }
    Some(pairs)
}

/// `name=value` with both encoded, sorted as encoded, joined with `&`: what all four schemes sign.
pub(crate) fn canonical_query<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut encoded: Vec<_> = pairs.map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort_unstable();
    let joined: Vec<_> = encoded.iter().map(|(name, value)| format!("{name}={value}")).collect();
    joined.join("&")
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

/// Text as the content of an XML element. Control characters, which XML has no words for, go.
pub(crate) fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for text in ["", "a b+c*~/%中'()", "\0\u{10ffff}", "-_.~"] {
            assert_eq!(decode(&encode(text), true).as_deref(), Some(text));
            assert_eq!(decode(&encode_path(text), true).as_deref(), Some(text));
        }
        assert_eq!(encode("a b+c*~/:中"), "a%20b%2Bc%2A~%2F%3A%E4%B8%AD");
        assert_eq!(encode_path("/a b/c"), "/a%20b/c");
    }

    #[test]
    fn malformed_escapes_are_refused() {
        for text in ["%", "%1", "%zz", "%-1", "a%2", "%ff", "%c3%28", "%+1"] {
            assert_eq!(decode(text, true), None, "{text}");
        }
        assert_eq!(decode("%2B+%2b", true).as_deref(), Some("+ +"));
        assert_eq!(decode("a+b", false).as_deref(), Some("a+b"));
    }

    #[test]
    fn blank_parameters_are_kept_and_their_number_is_bounded() {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(
            pairs("a=&b&c=d=e&&=x"),
            Some(owned(&[("a", ""), ("b", ""), ("c", "d=e"), ("", "x")]))
        );
        assert_eq!(pairs("a=%"), None);
        let most = vec!["a=b"; PAIR_COUNT_MAX].join("&");
        assert_eq!(pairs(&most).map(|pairs| pairs.len()), Some(PAIR_COUNT_MAX));
        assert_eq!(pairs(&format!("{most}&a=b")), None);
    }

    #[test]
    fn xml_cannot_be_broken_out_of() {
        assert_eq!(xml("<a b=\"c\">&\u{1}中\n"), "&lt;a b=&quot;c&quot;&gt;&amp;中\n");
    }
}
