//! What stands for an encrypted image where the crate is built without encryption: types that no
//! value has.

use std::io::Write;

use crate::chunk::{Digest, Durable, Sealed};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry};
use crate::id::{JobId, KeyId};
use crate::manifest::Manifest;

/// As where there is encryption: the lanes are cut alike.
pub(crate) const CELL_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) enum EncryptedFile {}
pub(crate) enum ChunkSealer {}
pub(crate) enum ChunkOpener {}
#[derive(Clone, Copy, Debug)]
pub(crate) enum Header {}

impl Header {
    pub(crate) fn geometry(&self) -> Geometry {
        match *self {}
    }

    pub(crate) fn job(&self) -> Option<JobId> {
        match *self {}
    }
}

impl ChunkSealer {
    pub(crate) fn seal_cell(&mut self, _cell: usize, _bytes: &mut [u8]) -> Result<()> {
        match *self {}
    }
}

impl EncryptedFile {
    pub(crate) fn key(&self) -> &KeyId {
        match *self {}
    }

    pub(crate) fn begin(&self, _epoch: u32) {
        match *self {}
    }

    pub(crate) fn sealer(&self, _index: ChunkIndex) -> Result<ChunkSealer> {
        match *self {}
    }

    pub(crate) fn forget(&self, _run: ChunkRun) -> Result<()> {
        match *self {}
    }

    pub(crate) fn finish(&self, sealer: ChunkSealer, _digest: Digest) -> Result<()> {
        match sealer {}
    }

    pub(crate) fn write_chunk(&self, _data: &File, _chunk: &Sealed) -> Result<()> {
        match *self {}
    }

    pub(crate) fn read(
        &self,
        _data: &File,
        _offset: u64,
        _buffer: &mut [u8],
        _last: &mut Option<ChunkOpener>,
    ) -> Result<u64> {
        match *self {}
    }

    pub(crate) fn read_range(&self, _data: &File, _range: ByteRange) -> Result<Vec<u8>> {
        match *self {}
    }

    pub(crate) fn evict(&self, _range: ByteRange) -> Result<()> {
        match *self {}
    }

    pub(crate) fn masked(&self, _chunks: &[Durable]) -> Result<Vec<Durable>> {
        match *self {}
    }

    pub(crate) fn blind(&self, _digest: &Digest) -> Result<Digest> {
        match *self {}
    }

    pub(crate) fn sync(&self) -> Result<()> {
        match *self {}
    }

    pub(crate) fn publish(&self, _mode: u32) -> Result<()> {
        match *self {}
    }

    pub(crate) fn write_manifest(&self, _manifest: &Manifest, _sink: &mut dyn Write) -> Result<()> {
        match *self {}
    }
}

/// An encrypted image's manifest is told from one that is damaged.
pub(crate) fn read_header(manifest: &File) -> Result<Option<Header>> {
    let mut bytes = [0; 8];
    manifest.read_at(0, &mut bytes)?;
    if bytes == *b"BFMANIC\0" {
        return Err(Error::new(ErrorKind::Unsupported, "read an encrypted image")
            .hint("this blockferry was built without the feature `encrypt`"));
    }
    Ok(None)
}
