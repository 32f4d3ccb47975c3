//! Access keys: their secrets, which are never shown, and what they may touch. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::service::Caller;

/// A secret of an access key. It is in no `Debug`, no error and no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret behind that text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKey {
    /// Its secret.
    pub secret: Secret,
    /// Who comes with it: [`Caller::key`] is its id.
    pub caller: Caller,
}

/// All access keys, by their ids.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<String, Arc<AccessKey>>);

impl Keys {
    /// The most bytes of an id.
    pub const ID_LEN_MAX: usize = 128;

    /// No key: nobody may do anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key.
    ///
    /// # Errors
    /// `Invalid` for an empty or long id, an empty secret or project; `Exists` for an id that is
    /// there.
    pub fn add(&mut self, key: AccessKey) -> Result<()> {
        let id = key.caller.key.clone();
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/,;=\"".contains(&byte);
        if id.is_empty() || id.len() > Self::ID_LEN_MAX || !id.bytes().all(plain) {
            return Err(Error::new(ErrorKind::Invalid, "use that access key's id")
                .hint("an id has 1 to 128 plain characters"));
        }
        let named = |what: &str| format!("use access key {id} without {what}");
        if key.secret.as_str().is_empty() {
            return Err(Error::new(ErrorKind::Invalid, named("a secret")));
        }
        if key.caller.project.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, named("a project")));
        }
        if self.0.insert(id.clone(), Arc::new(key)).is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("add access key {id} twice")));
        }
        Ok(())
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.0.get(id).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, secret: &str, project: &str) -> AccessKey {
        let caller = Caller { project: project.into(), key: id.into(), ..Caller::default() };
        AccessKey { secret: Secret::new(secret), caller }
    }

    #[test]
    fn a_key_has_an_id_a_secret_and_a_project_and_comes_once() {
        let mut keys = Keys::new();
        keys.add(key("AK1", "hush", "p")).unwrap();
        assert_eq!(keys.add(key("AK1", "x", "p")).unwrap_err().kind(), ErrorKind::Exists);
        for bad in [
            key("", "s", "p"),
            key("a b", "s", "p"),
            key("a/b", "s", "p"),
            key("A", "", "p"),
            key("A", "s", ""),
        ] {
            assert_eq!(keys.add(bad).unwrap_err().kind(), ErrorKind::Invalid);
        }
        assert_eq!(keys.count(), 1);
        assert!(keys.find("AK1").is_some() && keys.find("ak1").is_none());
        assert!(!format!("{keys:?}").contains("hush"), "a secret is never shown");
    }
}
