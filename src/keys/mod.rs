//! Keys that wrap the data keys of encrypted images: who holds them, behind one trait.

mod file;
mod memory;
pub(crate) mod ring;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use zeroize::Zeroizing;

use crate::error::Result;
use crate::host;
use crate::id::KeyId;

pub use file::FileKeyring;
pub use memory::MemoryKeyring;
pub use ring::KeyInfo;

/// A boxed future, as every method of a key provider returns one.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The most bytes of a wrapped data key.
pub const WRAPPED_LEN_MAX: usize = 8192;

/// Who wraps and unwraps the data keys of encrypted images: a keyring, or a cloud's key service.
///
/// A data key is made for each copy and never leaves this process except wrapped. The key that
/// wraps it need not leave its provider at all. A key has one id and, over time, several versions:
/// a provider wraps under the newest, and unwraps under whichever it was.
///
/// A call that has not answered after 15 seconds is dropped: it counts as `Unavailable`.
pub trait KeyProvider: fmt::Debug + Send + Sync {
    /// Wraps a data key under the newest version of that key, bound to `context`: at most
    /// [`WRAPPED_LEN_MAX`] bytes, which tell [`KeyProvider::unwrap_key`] all it needs but `key` and
    /// `context`.
    ///
    /// `context` is not secret, and at most 512 bytes long. It must be authenticated: additional
    /// data, or an encryption context.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown key, `Denied` for one that may not
    /// be used, `Unavailable` when the provider does not answer.
    ///
    /// # Cancel safety
    /// Safe: a wrapped key that nobody takes is of no use to anybody.
    fn wrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        data_key: &'a DataKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>>>;

    /// Unwraps what [`KeyProvider::wrap_key`] gave for that key and context.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown key or version, `Denied` when key,
    /// bytes and context do not belong together, `Unavailable` when the provider does not answer.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn unwrap_key<'a>(
        &'a self,
        key: &'a KeyId,
        wrapped: &'a [u8],
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<DataKey>>;
}

/// A secret of 32 bytes that encrypts one image. Wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Zeroizing<[u8; Self::LEN]>);

impl DataKey {
    /// How many bytes it has.
    pub const LEN: usize = 32;

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes: to be given to nobody but the one who wraps them.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// A new one, that nobody can guess.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        host::fill_random(&mut bytes[..])?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(secret)")
    }
}
