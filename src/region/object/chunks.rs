//! One chunk as one object: packed and encrypted on its way there, and back.

use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::{Digest, Sealed};
use crate::compress::{self, Packer};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, Geometry, to_u64, to_usize};
use crate::host;
use crate::manifest::Manifest;
use crate::store::Store;

use super::Shared;
use super::encrypted::{ADDED_LEN, Lock, SealedChunk};
use super::image::{Epochs, Salt, Writes};
use super::names::{self, Mark, Part};

/// How hard chunks are packed: the level that is worth a network.
const PACK_LEVEL: i32 = 1;

/// What is needed to read a chunk of an encrypted image.
#[derive(Clone, Debug)]
pub(super) struct Cover {
    pub(super) lock: Arc<Lock>,
    pub(super) epoch: u32,
    pub(super) mark: Mark,
}

/// Who has written each chunk of an image, and what opens them if they are encrypted.
#[derive(Debug)]
pub(super) enum Parts {
    Plain(Epochs),
    Sealed(Writes, Arc<Lock>),
}

impl Parts {
    /// Whether the image with that manifest is made of that part of that attempt.
    pub(super) fn name(&self, epoch: u32, part: &Part, manifest: &Manifest) -> bool {
        match (self, part) {
            (Self::Plain(epochs), Part::Chunk { index, digest }) => {
                epochs.name(epoch, *index, digest, manifest)
            }
            (Self::Sealed(writes, _), Part::Sealed { index, mark }) => {
                writes.name(epoch, *index, mark)
            }
            _ => false,
        }
    }

    /// Where the chunk with that digest is, in the folder of an attempt that `attempt` names;
    /// `None`: nobody has written it.
    pub(super) fn place(
        &self,
        attempt: impl Fn(u32) -> String,
        index: ChunkIndex,
        digest: &Digest,
    ) -> Result<Option<(String, Option<Cover>)>> {
        Ok(match self {
            Self::Plain(epochs) => {
                epochs.of(index).map(|epoch| (names::chunk(&attempt(epoch), index, digest), None))
            }
            Self::Sealed(writes, lock) => {
                let Some((epoch, salt)) = writes.of(index) else { return Ok(None) };
                let mark = lock.mark(index, epoch, &salt, digest)?;
                let key = names::sealed_chunk(&attempt(epoch), index, &mark);
                Some((key, Some(Cover { lock: lock.clone(), epoch, mark })))
            }
        })
    }
}

/// A chunk as it is put into the store.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) bytes: Bytes,
    /// Of one that is encrypted.
    pub(super) salt: Option<Salt>,
}

impl Shared {
    /// The chunk as it is stored in the folder of that attempt: one zstd frame where that pays,
    /// else as it is; then encrypted, if the image is.
    pub(super) async fn stored(
        self: &Arc<Self>,
        (prefix, epoch): (&str, u32),
        lock: Option<&Arc<Lock>>,
        chunk: &Sealed,
    ) -> Result<Stored> {
        let (index, digest) = (chunk.index(), chunk.digest());
        let plain = |bytes| Stored { key: names::chunk(prefix, index, &digest), bytes, salt: None };
        if !self.options.compress && lock.is_none() {
            return Ok(plain(chunk.data().clone()));
        }
        let (shared, lock, data) = (self.clone(), lock.cloned(), chunk.data().clone());
        let working = host::spawn_blocking(move || -> Result<Result<SealedChunk, Bytes>> {
            let packed = shared.packed(&data)?;
            let Some(lock) = lock else { return Ok(Err(packed.unwrap_or(data))) };
            lock.seal(index, epoch, &digest, (packed, &data)).map(Ok)
        });
        let worked = working.await;
        match worked.map_err(|error| Error::new(ErrorKind::Io, "pack chunk").because(error))?? {
            Err(bytes) => Ok(plain(bytes)),
            Ok((salt, mark, bytes)) => {
                let key = names::sealed_chunk(prefix, index, &mark);
                Ok(Stored { key, bytes, salt: Some(salt) })
            }
        }
    }

    /// In fewer bytes; `None` where that does not pay.
    fn packed(&self, chunk: &Bytes) -> Result<Option<Bytes>> {
        if !self.options.compress {
            return Ok(None);
        }
        let idle = self.packers().pop();
        let mut packer = match idle {
            Some(packer) => packer,
            None => Packer::new(PACK_LEVEL)?,
        };
        let packed = packer.pack(chunk)?;
        self.packers().push(packer);
        Ok(packed)
    }
}

/// A chunk out of the store: decrypted if it is covered; raw where it has its whole length, else
/// one zstd frame; `None` where there is none. Its digest is not looked at.
pub(super) async fn read_chunk(
    store: &dyn Store,
    key: &str,
    geometry: Geometry,
    index: ChunkIndex,
    cover: Option<Cover>,
) -> Result<Option<Bytes>> {
    let len = geometry.range(index).len;
    let limit = len + if cover.is_some() { ADDED_LEN } else { 0 };
    let Some(object) = store.get(key, limit).await? else { return Ok(None) };
    if to_u64(object.bytes.len()) == len && cover.is_none() {
        return Ok(Some(object.bytes));
    }
    let unpacked = host::spawn_blocking(move || {
        let bytes = match cover {
            None => object.bytes,
            Some(Cover { lock, epoch, mark }) => lock.open(index, epoch, &mark, object.bytes)?,
        };
        if to_u64(bytes.len()) == len {
            return Ok(bytes);
        }
        let mut chunk = vec![0; to_usize(len)];
        compress::unpack(&bytes, &mut chunk).map(|()| Bytes::from(chunk))
    });
    let unpacked =
        unpacked.await.map_err(|error| Error::new(ErrorKind::Io, "unpack chunk").because(error))?;
    unpacked.map(Some)
}
