//! `Sealed` → `Written` → `Durable`: the value that walks the corridor, so that no step can be
//! skipped. Pure.

use std::fmt;

use bytes::Bytes;

use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, to_u64};

/// 32 bytes of BLAKE3: of a chunk (its subtree chaining value), of an image's content, or the root
/// of its chunk table.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes (not a hash *over* them).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only zeros: no bytes travel and no digest is kept.
    Zero,
    /// Bytes with that digest, `data_bytes` of which were not known to be zero.
    Data {
        /// BLAKE3 subtree chaining value at the chunk's own offset.
        digest: Digest,
        /// How many bytes were written, that is, not skipped as zeros. At most the chunk's length.
        data_bytes: u32,
    },
}

/// A chunk whose bytes are hashed and ready for a target.
///
/// Made by [`seal`](crate::seal::seal) only, so its digest is that of its bytes.
#[derive(Clone, Debug)]
pub struct Sealed {
    index: ChunkIndex,
    range: ByteRange,
    digest: Digest,
    data: Bytes,
}

impl Sealed {
    pub(crate) fn new(index: ChunkIndex, range: ByteRange, digest: Digest, data: Bytes) -> Self {
        debug_assert_eq!(to_u64(data.len()), range.len, "sealed bytes are one whole chunk");
        Self { index, range, digest, data }
    }

    /// The chunk's number.
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// The bytes of the image that it holds.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// The digest of its bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its bytes: `range().len` of them.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The target accepted every byte.
    pub fn written(self) -> Written {
        Written::data(self.index, self.digest, u32::try_from(self.range.len).unwrap_or(u32::MAX))
    }
}

/// Chunks that a target accepted. They may still be lost by a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a chunk that is written but not recorded is copied again after a crash"]
pub struct Written {
    run: ChunkRun,
    content: Content,
}

impl Written {
    /// A run of zero chunks that now read as zeros at the target.
    pub fn zeroes(run: ChunkRun) -> Self {
        Self { run, content: Content::Zero }
    }

    /// One chunk whose bytes the local lane has put in place while it hashed them.
    pub(crate) fn data(index: ChunkIndex, digest: Digest, data_bytes: u32) -> Self {
        Self { run: ChunkRun::new(index, 1), content: Content::Data { digest, data_bytes } }
    }

    /// The chunks: one, or a run of zero chunks.
    pub fn run(&self) -> ChunkRun {
        self.run
    }

    /// What they hold.
    pub fn content(&self) -> Content {
        self.content
    }
}

/// Chunks taken for a sync that has not begun yet. Only a sync that begins after this value exists
/// proves them.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct AwaitingSync(Vec<Written>);

impl AwaitingSync {
    pub(crate) fn new(written: Vec<Written>) -> Self {
        Self(written)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A sync that began after `self` was taken has returned without error.
    pub(crate) fn synced(self) -> Vec<Durable> {
        self.0.into_iter().map(|chunk| Durable { run: chunk.run, content: chunk.content }).collect()
    }
}

/// Chunks that survive power loss: a sync began after they were written, and returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    run: ChunkRun,
    content: Content,
}

impl Durable {
    /// What a region reads back from a durable record that an earlier
    /// [`checkpoint`](crate::region::Target::checkpoint) made.
    pub fn recorded(run: ChunkRun, content: Content) -> Self {
        Self { run, content }
    }

    /// The chunks: one, or a run of zero chunks.
    pub fn run(&self) -> ChunkRun {
        self.run
    }

    /// What they hold.
    pub fn content(&self) -> Content {
        self.content
    }
}
