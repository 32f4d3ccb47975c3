//! Chunk indexes, chunk sizes and byte ranges: the only place that multiplies index by size. Pure.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// The largest image, in bytes: 64 TiB.
pub const IMAGE_BYTES_MAX: u64 = 64 << 40;
/// The most chunks an image may have.
pub const CHUNK_COUNT_MAX: u32 = 1 << 20;

const _: () = assert!(ChunkSize::MAX.bytes() * (CHUNK_COUNT_MAX as u64) == IMAGE_BYTES_MAX);

/// The number of a chunk, counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(u32);

impl ChunkIndex {
    /// The chunk of that number.
    pub fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number, to index a slice with.
    pub fn slot(self) -> usize {
        to_usize(u64::from(self.0))
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The length of every chunk but the last: a power of two between 64 KiB and 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize(u8);

impl ChunkSize {
    /// 64 KiB.
    pub const MIN: Self = Self(16);
    /// 4 MiB: used when nobody asks for another.
    pub const DEFAULT: Self = Self(22);
    /// 64 MiB.
    pub const MAX: Self = Self(26);

    /// The chunk size of that many bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless `bytes` is a power of two from 64 KiB to 64 MiB.
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        if !bytes.is_power_of_two() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("use {bytes} bytes as chunk size: it is not a power of two"),
            )
            .hint("give a power of two from 64KiB to 64MiB"));
        }
        u8::try_from(bytes.trailing_zeros()).map_err(|_| ()).and_then(Self::from_shift).map_err(
            |()| {
                Error::new(ErrorKind::Invalid, format!("use {bytes} bytes as chunk size"))
                    .hint("give a power of two from 64KiB to 64MiB")
            },
        )
    }

    /// The chunk size of `2^shift` bytes.
    ///
    /// # Errors
    /// Unit, when that is out of range: the caller knows what it was reading.
    pub(crate) fn from_shift(shift: u8) -> std::result::Result<Self, ()> {
        let size = Self(shift);
        if (Self::MIN..=Self::MAX).contains(&size) { Ok(size) } else { Err(()) }
    }

    /// The base-two logarithm.
    pub(crate) fn shift(self) -> u8 {
        self.0
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            shift @ 20.. => write!(f, "{}MiB", 1_u64 << (shift - 20)),
            shift => write!(f, "{}KiB", 1_u64 << (shift - 10)),
        }
    }
}

/// A run of bytes of an image: `len` bytes from `offset`, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Bytes from the start of the image.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// `len` bytes from `offset`.
    pub fn new(offset: u64, len: u64) -> Self {
        debug_assert!(offset.checked_add(len).is_some(), "range past the end of u64");
        Self { offset, len }
    }

    /// The first byte past it.
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// What both ranges share; empty where they share nothing.
    pub fn intersect(self, other: Self) -> Self {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        Self { offset, len: end.saturating_sub(offset) }
    }
}

/// A run of neighbouring chunks: `count` chunks from `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRun {
    /// The first chunk.
    pub first: ChunkIndex,
    /// How many chunks.
    pub count: u32,
}

impl ChunkRun {
    /// `count` chunks from `first`.
    pub fn new(first: ChunkIndex, count: u32) -> Self {
        debug_assert!(first.get().checked_add(count).is_some(), "run past the end of u32");
        Self { first, count }
    }

    /// The number of the first chunk past it.
    pub fn end(self) -> u32 {
        self.first.get() + self.count
    }

    /// Its chunks, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = ChunkIndex> {
        (self.first.get()..self.end()).map(ChunkIndex)
    }
}

/// How an image is cut: its size and the size of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    image_bytes: u64,
    chunk_size: ChunkSize,
}

impl Geometry {
    /// An image of `image_bytes` bytes cut into chunks of exactly `chunk_size` (the last may be
    /// shorter).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the image is larger than 64 TiB, or would have more than 2^20
    /// chunks.
    pub fn new(image_bytes: u64, chunk_size: ChunkSize) -> Result<Self> {
        Self::check_size(image_bytes)?;
        if image_bytes.div_ceil(chunk_size.bytes()) > u64::from(CHUNK_COUNT_MAX) {
            let least = Self::grown(image_bytes, chunk_size)?.chunk_size;
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("cut an image of {image_bytes} bytes into chunks of {chunk_size}"),
            )
            .hint(format!("an image has at most 1048576 chunks: use at least {least}")));
        }
        Ok(Self { image_bytes, chunk_size })
    }

    /// Like [`Geometry::new`], but doubles the chunk size until the image has at most 2^20 chunks.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the image is larger than 64 TiB.
    pub fn grown(image_bytes: u64, at_least: ChunkSize) -> Result<Self> {
        Self::check_size(image_bytes)?;
        let mut chunk_size = at_least;
        while image_bytes.div_ceil(chunk_size.bytes()) > u64::from(CHUNK_COUNT_MAX) {
            chunk_size = ChunkSize(chunk_size.0 + 1);
        }
        Ok(Self { image_bytes, chunk_size })
    }

    fn check_size(image_bytes: u64) -> Result<()> {
        if image_bytes > IMAGE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Invalid, format!("copy {image_bytes} bytes"))
                .hint("an image has at most 64 TiB"));
        }
        Ok(())
    }

    /// The size of the image in bytes.
    pub fn image_bytes(self) -> u64 {
        self.image_bytes
    }

    /// The chunk size.
    pub fn chunk_size(self) -> ChunkSize {
        self.chunk_size
    }

    /// How many chunks the image has; none when it is empty.
    pub fn chunk_count(self) -> u32 {
        let count = self.image_bytes.div_ceil(self.chunk_size.bytes());
        debug_assert!(count <= u64::from(CHUNK_COUNT_MAX));
        u32::try_from(count).unwrap_or(CHUNK_COUNT_MAX)
    }

    /// All bytes of the image.
    pub fn whole(self) -> ByteRange {
        ByteRange::new(0, self.image_bytes)
    }

    /// All chunks of the image.
    pub fn chunks(self) -> ChunkRun {
        ChunkRun::new(ChunkIndex(0), self.chunk_count())
    }

    /// The bytes of that chunk: a full chunk, or what is left of the image.
    pub fn range(self, index: ChunkIndex) -> ByteRange {
        self.run_range(ChunkRun::new(index, 1))
    }

    /// The bytes of that run of chunks.
    pub fn run_range(self, run: ChunkRun) -> ByteRange {
        let offset = u64::from(run.first.0) * self.chunk_size.bytes();
        debug_assert!(offset <= self.image_bytes, "chunk {run:?} past the end");
        let end = (u64::from(run.end()) * self.chunk_size.bytes()).min(self.image_bytes);
        ByteRange::new(offset, end.saturating_sub(offset))
    }

    /// The chunk that holds the byte at `offset`.
    pub fn index_of(self, offset: u64) -> ChunkIndex {
        debug_assert!(offset < self.image_bytes, "offset {offset} past the end");
        ChunkIndex(u32::try_from(offset >> self.chunk_size.0).unwrap_or(u32::MAX))
    }

    /// Whether the run lies within the image.
    pub fn holds(self, run: ChunkRun) -> bool {
        run.first.get().checked_add(run.count).is_some_and(|end| end <= self.chunk_count())
    }
}

/// A length in memory as a 64-bit count.
pub(crate) fn to_u64(len: usize) -> u64 {
    len as u64
}

/// A bounded 64-bit count as a length in memory; saturates on targets with a smaller address space.
pub(crate) fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_size_is_a_power_of_two_in_range() {
        for bytes in [0, 1, 3, 32 << 10, (64 << 10) + 1, 3 << 20, 128 << 20, u64::MAX] {
            assert_eq!(ChunkSize::from_bytes(bytes).unwrap_err().kind(), ErrorKind::Invalid);
        }
        for shift in 16..=26 {
            assert_eq!(ChunkSize::from_bytes(1 << shift).unwrap().bytes(), 1 << shift);
        }
        assert_eq!(ChunkSize::MIN.to_string(), "64KiB");
        assert_eq!(ChunkSize::DEFAULT.to_string(), "4MiB");
    }

    #[test]
    fn ranges_tile_the_image() {
        for image_bytes in [0, 1, 65535, 65536, 65537, 1_000_003, 64 << 16] {
            let geometry = Geometry::new(image_bytes, ChunkSize::MIN).unwrap();
            let mut next = 0;
            for index in geometry.chunks().iter() {
                let range = geometry.range(index);
                assert_eq!(range.offset, next);
                assert!(range.len > 0 && range.len <= ChunkSize::MIN.bytes());
                assert_eq!(geometry.index_of(range.offset), index);
                assert_eq!(geometry.index_of(range.end() - 1), index);
                next = range.end();
            }
            assert_eq!(next, image_bytes);
        }
    }

    #[test]
    fn a_large_image_grows_its_chunks_and_too_small_ones_are_refused() {
        let grown = Geometry::grown(IMAGE_BYTES_MAX, ChunkSize::MIN).unwrap();
        assert_eq!(grown.chunk_size(), ChunkSize::MAX);
        assert_eq!(grown.chunk_count(), CHUNK_COUNT_MAX);
        let error = Geometry::new(1 << 40, ChunkSize::MIN).unwrap_err();
        assert!(error.to_string().contains("use at least 1MiB"), "{error}");
        assert!(Geometry::grown(IMAGE_BYTES_MAX + 1, ChunkSize::MAX).is_err());
    }

    #[test]
    fn intersections_are_what_both_hold() {
        let a = ByteRange::new(10, 10);
        assert_eq!(a.intersect(ByteRange::new(15, 100)), ByteRange::new(15, 5));
        assert!(a.intersect(ByteRange::new(20, 5)).is_empty());
        assert!(a.intersect(ByteRange::new(0, 10)).is_empty());
    }
}
