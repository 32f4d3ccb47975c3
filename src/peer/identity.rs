//! Who a peer is: one name, parsed once. Pure.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::id::shown;

/// Who a peer is: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}` as a certificate says it, or `uid:N` for a
/// user of this host at the other end of a Unix socket.
///
/// A certificate says it in the one URI among its alternative names that starts with `blockferry:`;
/// its common name and its host names count for nothing here. No certificate can say `uid:N`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

impl Identity {
    /// The most bytes a name in a certificate has.
    pub const LEN_MAX: usize = 128;

    /// The user of that number at the other end of a Unix socket, as the kernel tells it.
    pub fn of_user(uid: u32) -> Self {
        Self(format!("{USER_PREFIX}{uid}"))
    }

    /// The identity of a certificate with these URIs among its alternative names.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] unless exactly one of them starts with `blockferry:`, and the rest of
    /// it is a name.
    pub fn of_uris<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut ours = uris.into_iter().filter_map(|uri| uri.strip_prefix(URI_PREFIX));
        let refuse = |why: &'static str| {
            Error::new(ErrorKind::Denied, "take a certificate for an identity").hint(why)
        };
        let name = ours
            .next()
            .ok_or_else(|| refuse("it has no alternative name of the form URI:blockferry:NAME"))?;
        if ours.next().is_some() {
            return Err(refuse("it names two identities"));
        }
        if !is_name(name) {
            return Err(refuse("what follows blockferry: in it is no name"));
        }
        Ok(Self(name.to_owned()))
    }

    /// The URI that says so in a certificate.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a user of this host: no certificate can say that.
    pub fn uri(&self) -> Result<String> {
        if !is_name(&self.0) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("name {self} in a certificate: it is a user of this host"),
            ));
        }
        Ok(format!("{URI_PREFIX}{self}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // One spelling of a number, or a policy could name a user twice.
        let user = text.strip_prefix(USER_PREFIX).and_then(|uid| uid.parse::<u32>().ok());
        let is_user = user.is_some_and(|uid| Self::of_user(uid).0 == text);
        if !is_user && !is_name(text) {
            return Err(Error::new(ErrorKind::Invalid, format!("use {} as identity", shown(text)))
                .hint(
                    "an identity has 1 to 128 letters, digits, '.', '_' and '-', \
                     the first a letter or digit; or it is uid:N",
                ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    starts && text.len() <= Identity::LEN_MAX && text.as_bytes().iter().all(plain)
}

const URI_PREFIX: &str = "blockferry:";
const USER_PREFIX: &str = "uid:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_users_are_read_and_nonsense_is_refused() {
        let long = "a".repeat(128);
        for text in ["a", "0", "alpha", "eu-1.north_2", &long, "uid:0", "uid:4294967295"] {
            assert_eq!(text.parse::<Identity>().unwrap().as_str(), text);
        }
        let longer = "a".repeat(129);
        for text in [
            "",
            ".",
            "-a",
            "_a",
            "a b",
            "a/b",
            "a\0b",
            "ä",
            "a\n",
            "*",
            &longer,
            "uid:",
            "uid:-1",
            "uid:01",
            "uid:+1",
            "uid:4294967296",
            "uid:a",
            "UID:1",
            "blockferry:a",
        ] {
            let error = text.parse::<Identity>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text:?}");
        }
        assert_eq!(Identity::of_user(1000), "uid:1000".parse().unwrap());
    }

    #[test]
    fn a_certificate_names_exactly_one_identity() {
        let of = |uris: &[&str]| Identity::of_uris(uris.iter().copied());
        assert_eq!(of(&["blockferry:alpha"]).unwrap().as_str(), "alpha");
        assert_eq!(of(&["https://a.example", "blockferry:b"]).unwrap().as_str(), "b");
        for uris in [
            &[][..],
            &["alpha"],
            &["https://a.example"],
            &["Blockferry:alpha"],
            &["blockferry:"],
            &["blockferry:a b"],
            &["blockferry:a/../b"],
            // What the kernel alone may say.
            &["blockferry:uid:0"],
            &["blockferry:alpha", "blockferry:beta"],
            &["blockferry:alpha", "blockferry:alpha"],
        ] {
            assert_eq!(of(uris).unwrap_err().kind(), ErrorKind::Denied, "{uris:?}");
        }
    }

    #[test]
    fn the_uri_of_an_identity_leads_back_to_it() {
        let alpha: Identity = "alpha".parse().unwrap();
        let uri = alpha.uri().unwrap();
        assert_eq!(Identity::of_uris([uri.as_str()]).unwrap(), alpha);
        assert_eq!(Identity::of_user(0).uri().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
