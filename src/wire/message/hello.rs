//! Hello: versions, features and windows, and what two of them agree on. Pure.

use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::VERSION;

/// Chunks may travel as zstd.
pub const FEATURE_ZSTD: u64 = 1;
/// Chunks that a base holds already need not travel.
pub const FEATURE_DELTA: u64 = 2;

/// What a side can do. Its layout never changes: later versions may only append to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The first version it speaks.
    pub version_min: u16,
    /// The last version it speaks.
    pub version_max: u16,
    /// The longest chunk that it takes or sends, in bytes.
    pub chunk_bytes_max: u32,
    /// What it can do, one bit each. Unknown bits are not agreed on.
    pub features: u64,
}

/// What two hellos have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version of every frame from here on.
    pub version: u16,
    /// The longest chunk, in bytes.
    pub chunk_bytes_max: u32,
    /// What both can do.
    pub features: u64,
}

impl Hello {
    /// What this crate speaks, with chunks of at most `chunk_bytes_max` bytes.
    pub fn new(chunk_bytes_max: u32) -> Self {
        Self {
            version_min: VERSION,
            version_max: VERSION,
            chunk_bytes_max,
            features: FEATURE_ZSTD | FEATURE_DELTA,
        }
    }

    /// What both sides can do; the same whichever of them asks.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when they have no version in common.
    pub fn agree(self, other: Self) -> Result<Agreed> {
        let version = self.version_max.min(other.version_max);
        if version < self.version_min.max(other.version_min) {
            let action = format!(
                "agree on a version: one side speaks {} to {}, the other {} to {}",
                self.version_min, self.version_max, other.version_min, other.version_max
            );
            return Err(Error::new(ErrorKind::Unsupported, action).hint("upgrade the older one"));
        }
        Ok(Agreed {
            version,
            chunk_bytes_max: self.chunk_bytes_max.min(other.chunk_bytes_max),
            features: self.features & other.features,
        })
    }

    pub(super) fn encode(&self, out: &mut Encoder) {
        out.u16(self.version_min).u16(self.version_max);
        out.u32(self.chunk_bytes_max).u64(self.features);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let hello = Self {
            version_min: from.u16()?,
            version_max: from.u16()?,
            chunk_bytes_max: from.u32()?,
            features: from.u64()?,
        };
        if hello.version_min == 0 || hello.version_min > hello.version_max {
            return Err(from.corrupt("its versions are out of order"));
        }
        // What a later version has to say beyond this is not for us.
        if hello.version_max > VERSION {
            from.raw(from.remaining())?;
        }
        Ok(hello)
    }
}
