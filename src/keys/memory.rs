//! A keyring in memory: for tests, and for daemons that get their keys from elsewhere.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::host;
use crate::id::KeyId;
use crate::keys::ring::Ring;
use crate::keys::{BoxFuture, DataKey, KeyInfo, KeyProvider};

/// Keys that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryKeyring {
    ring: Mutex<Ring>,
}

impl MemoryKeyring {
    /// Without any key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a key of that id.
    ///
    /// # Errors
    /// `Exists` when there is one.
    pub fn add(&self, key: &KeyId) -> Result<()> {
        self.insert(key, DataKey::random()?)
    }

    /// Takes in a key with that secret, as its first version.
    ///
    /// # Errors
    /// `Exists` when there is one.
    pub fn insert(&self, key: &KeyId, secret: DataKey) -> Result<()> {
        self.ring().add(key, secret, host::unix_ms())
    }

    /// Gives the key a new version, which wraps from now on; returns its number.
    ///
    /// # Errors
    /// `NotFound` for an unknown key.
    pub fn rotate(&self, key: &KeyId) -> Result<u32> {
        let secret = DataKey::random()?;
        self.ring().rotate(key, secret, host::unix_ms())
    }

    /// Removes a version, or all of a key. What they wrapped can never be read again.
    ///
    /// # Errors
    /// `NotFound` for an unknown key or version.
    pub fn remove(&self, key: &KeyId, version: Option<u32>) -> Result<()> {
        self.ring().remove(key, version)
    }

    /// Every version of every key.
    pub fn list(&self) -> Vec<KeyInfo> {
        self.ring().list()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyProvider for MemoryKeyring {
    fn wrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        data_key: &'a DataKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        let mut nonce = [0; 12];
        let wrapped = host::fill_random(&mut nonce)
            .and_then(|()| self.ring().wrap(key, data_key, context, nonce));
        Box::pin(std::future::ready(wrapped))
    }

    fn unwrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        wrapped: &'a [u8],
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<DataKey>> {
        let opened = self.ring().open(key, wrapped, context);
        Box::pin(std::future::ready(opened))
    }
}
