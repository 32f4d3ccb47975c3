//! What stands for encrypted images where the crate is built without encryption: nothing encrypts,
//! and what is encrypted is told from what is damaged.

use bytes::Bytes;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, Geometry};
use crate::id::{ImageId, JobId, KeyId};
use crate::job::JobSpec;
use crate::manifest::Manifest;
use crate::region::refuse_key;

use super::head::MadeKey;
use super::image::{Salt, SealedImage, Writes};
use super::names::Mark;

pub(super) const ADDED_LEN: u64 = 16;

#[derive(Clone, Debug, Default)]
pub(super) struct Keys;

#[derive(Debug)]
pub(super) enum Lock {}

/// Salt, mark, and bytes as they are stored.
pub(super) type SealedChunk = (Salt, Mark, Bytes);

impl Keys {
    pub(super) fn are_here(&self) -> bool {
        false
    }

    pub(super) async fn make(&self, spec: &JobSpec) -> Result<Option<Lock>> {
        refuse_key(spec).map(|()| None)
    }

    pub(super) async fn open(
        &self,
        _wrapped: Bytes,
        (_image, _geometry, _job): (&ImageId, Geometry, JobId),
    ) -> Result<Lock> {
        Err(Error::new(ErrorKind::Unsupported, "read an encrypted image")
            .hint("this blockferry was built without the feature `encrypt`"))
    }
}

pub(super) fn key_around(_wrapped: &[u8]) -> Option<KeyId> {
    None
}

impl Lock {
    pub(super) fn key(&self) -> &KeyId {
        match *self {}
    }

    pub(super) fn wrapped(&self) -> &Bytes {
        match *self {}
    }

    pub(super) fn made_key(&self) -> MadeKey {
        match *self {}
    }

    pub(super) fn seal(
        &self,
        _index: ChunkIndex,
        _epoch: u32,
        _digest: &Digest,
        (_packed, _plain): (Option<Bytes>, &Bytes),
    ) -> Result<SealedChunk> {
        match *self {}
    }

    pub(super) fn open(
        &self,
        _index: ChunkIndex,
        _epoch: u32,
        _mark: &Mark,
        _stored: Bytes,
    ) -> Result<Bytes> {
        match *self {}
    }

    pub(super) fn mark(
        &self,
        _index: ChunkIndex,
        _epoch: u32,
        _salt: &Salt,
        _digest: &Digest,
    ) -> Result<Mark> {
        match *self {}
    }

    pub(super) fn read_mark(&self, _index: ChunkIndex, _epoch: u32, _: &Mark) -> Option<Digest> {
        match *self {}
    }

    pub(super) fn seal_note(&self, _epoch: u32, _number: u32, _text: &[u8]) -> Result<Vec<u8>> {
        match *self {}
    }

    pub(super) fn open_note(&self, _epoch: u32, _number: u32, _bytes: &[u8]) -> Result<Vec<u8>> {
        match *self {}
    }

    pub(super) fn blind(&self, _digest: &Digest) -> Result<Digest> {
        match *self {}
    }

    pub(super) fn seal_image(&self, _writes: &Writes, _manifest: &Manifest) -> Result<Vec<u8>> {
        match *self {}
    }

    pub(super) fn open_image(&self, sealed: &SealedImage, _job: JobId) -> Result<Manifest> {
        // Who decrypts reads these.
        let SealedImage { writes: _, sum: [..], body } = sealed;
        debug_assert!(body.is_empty(), "nobody has what opens it");
        match *self {}
    }
}

pub(super) fn key_is_gone(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: it is encrypted, and its wrapped key is gone"))
}
