//! Chunks, and what a receiver asks about an image. Pure.

use bytes::Bytes;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkIndex, IMAGE_BYTES_MAX, to_usize};
use crate::plan::{Extent, ExtentKind};
use crate::wire::frame::CHUNK_PREFIX_LEN;

/// The length of what stands before a chunk's bytes.
pub const CHUNK_PREFIX: usize = CHUNK_PREFIX_LEN as usize;

/// How the bytes of a chunk travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// As they are.
    Raw,
    /// As one zstd frame that states its content's size.
    Zstd,
}

/// One chunk on its way. What the other side claims of it is not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The chunk's number.
    pub index: ChunkIndex,
    /// How the bytes travel.
    pub codec: Codec,
    /// The claimed digest of the chunk.
    pub digest: Digest,
    /// The bytes as they travel.
    pub bytes: Bytes,
}

impl Chunk {
    pub(super) fn encode_prefix(&self, out: &mut Encoder) {
        let codec = match self.codec {
            Codec::Raw => CODEC_RAW,
            Codec::Zstd => CODEC_ZSTD,
        };
        out.u32(self.index.get()).u8(codec).raw(&[0; 3]).raw(self.digest.as_bytes());
    }

    pub(super) fn decode(body: &Bytes) -> Result<Self> {
        let mut from = Decoder::new(body, "chunk");
        let (index, codec, zeros) = (from.u32()?, from.u8()?, from.array::<3>()?);
        let digest = Digest::from_bytes(from.array()?);
        let codec = match codec {
            CODEC_RAW => Codec::Raw,
            CODEC_ZSTD => Codec::Zstd,
            _ => return Err(from.corrupt("its codec is unknown")),
        };
        if zeros != [0; 3] || from.remaining() == 0 {
            return Err(from.corrupt("it has no bytes, or unknown flags"));
        }
        let bytes = body.slice(CHUNK_PREFIX..);
        Ok(Self { index: ChunkIndex::new(index), codec, digest, bytes })
    }
}

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// What a receiver asks about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ask {
    /// Which bytes of that range are known to be zero? Answered by `Extents`.
    Extents(ByteRange),
    /// What does the source look like now? Answered by `Facts`.
    Facts,
}

impl Ask {
    pub(super) fn encode(self, out: &mut Encoder) {
        match self {
            Self::Extents(range) => {
                out.u8(ASK_EXTENTS).u64(range.offset).u64(range.len);
            }
            Self::Facts => {
                out.u8(ASK_FACTS);
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        match from.u8()? {
            ASK_EXTENTS => decode_range(from).map(Self::Extents),
            ASK_FACTS => Ok(Self::Facts),
            _ => Err(from.corrupt("it asks for what nobody knows")),
        }
    }
}

const ASK_EXTENTS: u8 = 0;
const ASK_FACTS: u8 = 1;

fn decode_range(from: &mut Decoder<'_>) -> Result<ByteRange> {
    let (offset, len) = (from.u64()?, from.u64()?);
    let fits = offset.checked_add(len).is_some_and(|end| end <= IMAGE_BYTES_MAX);
    if len == 0 || !fits {
        return Err(from.corrupt("a range is empty, or ends past any image"));
    }
    Ok(ByteRange::new(offset, len))
}

/// The most extents in one answer.
pub(crate) const EXTENTS_MAX: u16 = 1024;

pub(super) fn encode_extents(extents: &[Extent], out: &mut Encoder) {
    debug_assert!(extents.len() <= usize::from(EXTENTS_MAX), "{} extents", extents.len());
    out.u16(u16::try_from(extents.len()).unwrap_or(u16::MAX));
    for extent in extents {
        out.u8(u8::from(extent.kind == ExtentKind::Zero))
            .u64(extent.range.offset)
            .u64(extent.range.len);
    }
}

pub(super) fn decode_extents(from: &mut Decoder<'_>) -> Result<Vec<Extent>> {
    let count = from.u16()?;
    if count == 0 || count > EXTENTS_MAX {
        return Err(from.corrupt("it has no extents, or too many"));
    }
    let mut extents: Vec<Extent> = Vec::with_capacity(to_usize(u64::from(count)));
    for _ in 0..count {
        let kind = match from.u8()? {
            0 => ExtentKind::Data,
            1 => ExtentKind::Zero,
            _ => return Err(from.corrupt("a flag is neither 0 nor 1")),
        };
        let range = decode_range(from)?;
        if extents.last().is_some_and(|last| last.range.end() != range.offset) {
            return Err(from.corrupt("its extents are not neighbours"));
        }
        extents.push(Extent { range, kind });
    }
    Ok(extents)
}
