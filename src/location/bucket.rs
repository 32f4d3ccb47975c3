//! Places in object stores, as typed: `s3://BUCKET/PREFIX?endpoint=…` and `s3+raw://BUCKET/KEY`. Pure.

use std::fmt;

use crate::error::Result;

use super::{refuse, unknown};

const HINT: &str =
    "write s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path_style=true&allow_http=true";
/// The longest key or prefix, in bytes: with what regions put below it, within what S3 allows.
const KEY_BYTES_MAX: usize = 512;

/// A bucket of an object store and a key or prefix in it. Its text is a URL.
///
/// Everything but the bucket may be left to the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, a
/// profile); it is a part of the name where it is given. Credentials never are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BucketAddress {
    /// Whether it is one plain object (`s3+raw://`) and not a region.
    pub plain: bool,
    /// The bucket's name.
    pub bucket: String,
    /// The key of the plain object, or the region's prefix, which may be empty: no slash at either
    /// end.
    pub key: String,
    /// Where the service is: `https://HOST[:PORT]`, or `http://…` with `allow_http`.
    pub endpoint: Option<String>,
    /// The service's region.
    pub region: Option<String>,
    /// Whether the bucket is named in the path of a request (`true`) or in its host name.
    pub path_style: Option<bool>,
    /// Whether an endpoint without TLS will do.
    pub allow_http: bool,
    /// Whether heads in the state folder decide in the store's stead: `fencing=none`, for a store
    /// that ignores conditional writes and one daemon that alone writes there.
    pub unfenced: bool,
}

impl BucketAddress {
    /// Reads `s3://BUCKET[/PREFIX][?…]` or `s3+raw://BUCKET/KEY[?…]`, the words behind `?` in any
    /// order.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = super::scheme(text).ok_or_else(|| refuse(text, HINT))?;
        let plain = match scheme {
            "s3" => false,
            "s3+raw" => true,
            other => return Err(unknown(text, other)),
        };
        let (path, words) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if !is_bucket(bucket) {
            let hint = "a bucket's name has 3 to 63 letters, digits, '.', '_' and '-'";
            return Err(refuse(text, hint));
        }
        // A region may have no prefix, and then no slash either.
        if !is_key(key) && (plain || !key.is_empty() || path.ends_with('/')) {
            return Err(refuse(text, KEY_HINT));
        }
        let mut address = Self {
            plain,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            unfenced: false,
        };
        if rest.contains('?') {
            for word in words.split('&') {
                address.take(word).ok_or_else(|| refuse(text, HINT))?;
            }
        }
        address.checked(text)
    }

    /// Takes one word of those behind `?`, each of which comes once.
    fn take(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=')?;
        match name {
            "endpoint" if self.endpoint.is_none() && is_endpoint(value) => {
                self.endpoint = Some(value.to_owned());
            }
            "region" if self.region.is_none() && is_name(value) => {
                self.region = Some(value.to_owned());
            }
            "path_style" if self.path_style.is_none() => self.path_style = Some(flag(value)?),
            // Only `true`: what is not asked for has one spelling, none.
            "allow_http" if !self.allow_http && flag(value)? => self.allow_http = true,
            "fencing" if !self.unfenced && !self.plain && value == "none" => self.unfenced = true,
            _ => return None,
        }
        Some(())
    }

    fn checked(self, text: &str) -> Result<Self> {
        if !self.allow_http && self.endpoint.as_deref().is_some_and(|at| at.starts_with("http:")) {
            return Err(refuse(text, "add allow_http=true to do without TLS"));
        }
        Ok(self)
    }

    /// The same place with another key or prefix.
    pub(super) fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// Whether both are in one bucket of one service, as far as their texts tell.
    pub fn shares_bucket(&self, other: &Self) -> bool {
        let bucket = |of: &Self| Self { plain: false, unfenced: false, ..of.with_key("") };
        bucket(self) == bucket(other)
    }

    /// The text before `?`, and from there on.
    pub(super) fn parts(&self) -> (String, String) {
        let scheme = if self.plain { "s3+raw" } else { "s3" };
        let slash = if self.key.is_empty() { "" } else { "/" };
        let place = format!("{scheme}://{}{slash}{}", self.bucket, self.key);
        let path_style = self.path_style.map(|on| on.to_string());
        let allow_http = self.allow_http.then(|| "true".to_owned());
        let fencing = self.unfenced.then(|| "none".to_owned());
        let words = [
            ("endpoint", &self.endpoint),
            ("region", &self.region),
            ("path_style", &path_style),
            ("allow_http", &allow_http),
            ("fencing", &fencing),
        ];
        let mut query = String::new();
        for (name, value) in words {
            if let Some(value) = value {
                query.push(if query.is_empty() { '?' } else { '&' });
                query.push_str(&format!("{name}={value}"));
            }
        }
        (place, query)
    }
}

impl fmt::Display for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, query) = self.parts();
        write!(f, "{place}{query}")
    }
}

const KEY_HINT: &str = "a key has parts of letters, digits, space and ._-+=@,: between single \
                        slashes, none of them . or .., and at most 512 bytes";

fn flag(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn is_bucket(bucket: &str) -> bool {
    // No upper case: host names have none, and neither have buckets of today.
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = bucket.as_bytes();
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(named)
        && ends(bytes.first())
        && ends(bytes.last())
        && !bucket.contains("..")
}

fn is_key(key: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@,: ".contains(&byte);
    let part = |part: &str| {
        (1..=255).contains(&part.len()) && !matches!(part, "." | "..") && part.bytes().all(known)
    };
    key.len() <= KEY_BYTES_MAX && key.split('/').all(part)
}

fn is_name(value: &str) -> bool {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&value.len()) && value.bytes().all(named)
}

/// `http://HOST[:PORT]` or `https://HOST[:PORT]`, nothing behind it and nobody before it.
fn is_endpoint(value: &str) -> bool {
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let Some(host) = host else { return false };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let spelt = |port: &str| {
        port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port)
    };
    super::is_host(name) && port.is_none_or(spelt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn buckets_are_read_as_written() {
        for text in [
            "s3://bucket",
            "s3://bucket/a/b c",
            "s3://my.bucket-1/prefix?region=eu-1",
            "s3://bucket/p?endpoint=https://[::1]:9000&region=garage&path_style=true",
            "s3://bucket/p?endpoint=http://127.0.0.1:9000&path_style=false&allow_http=true",
            "s3://bucket/p?region=r&fencing=none",
            "s3+raw://bucket/dir/disk.raw?endpoint=https://s3.example",
        ] {
            assert_eq!(BucketAddress::parse(text).unwrap().to_string(), text);
        }
        let any_order = "s3://bucket?allow_http=true&region=r&endpoint=http://h";
        assert_eq!(
            BucketAddress::parse(any_order).unwrap().to_string(),
            "s3://bucket?endpoint=http://h&region=r&allow_http=true"
        );
    }

    #[test]
    fn hostile_buckets_are_refused() {
        for text in [
            "s3://",
            "s3:///key",
            "s3://ab/key",
            "s3://-bucket/key",
            "s3://bu..cket/key",
            "s3://user@bucket/key",
            "s3://bucket/",
            "s3://bucket//a",
            "s3://bucket/a/../b",
            "s3://bucket/a?",
            "s3://bucket/a?x=y",
            "s3://bucket/a?region=",
            "s3://bucket/a?region=r&region=r",
            "s3://bucket/a?endpoint=http://h",
            "s3://bucket/a?endpoint=https://h/path",
            "s3://bucket/a?endpoint=https://me:secret@h",
            "s3://bucket/a?endpoint=https://h:0",
            "s3://bucket/a?endpoint=ftp://h",
            "s3://bucket/a?allow_http=false",
            "s3://bucket/a?path_style=1",
            "s3://bucket/a?fencing=swap",
            "s3+raw://bucket/a?fencing=none",
            "s3://bucket/a%2e",
            "s3+raw://bucket",
            "s3+raw://bucket/",
            "s3+raw://bucket/a/",
        ] {
            let error = BucketAddress::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
    }
}
