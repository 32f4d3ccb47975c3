//! A chunk under way in the local lane: read, looked through for zeros, hashed and passed on to be
//! written, piece by piece.

use tokio::time::Instant;

use crate::chunk::{Digest, Sealed, Written};
use crate::engine::pool::PIECE_BYTES;
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::job::Stall;
use crate::region::{CELL_BYTES, ChunkOpener, ChunkSealer};
use crate::seal::{ChunkHasher, is_zero};

use super::check_vouched;
use super::gather::{Gather, Sealing};
use super::local::{Ends, Segment};

/// A chunk of which some bytes are dealt with.
pub(super) struct OpenChunk {
    index: ChunkIndex,
    range: ByteRange,
    /// The next byte to deal with.
    at: u64,
    /// All its bytes with their digest, where another has read and hashed them.
    given: Option<Sealed>,
    /// Whether anything but zeros has come: a chunk of zeros is not hashed.
    has_data: bool,
    /// `None` while there is nothing to hash.
    hasher: Option<ChunkHasher>,
    /// `None` while nothing was to be written, or the target is not encrypted.
    sealer: Option<ChunkSealer>,
    data_bytes: u32,
}

impl OpenChunk {
    pub(super) fn new(geometry: Geometry, index: ChunkIndex) -> Self {
        let range = geometry.range(index);
        Self {
            index,
            range,
            at: range.offset,
            given: None,
            has_data: false,
            hasher: None,
            sealer: None,
            data_bytes: 0,
        }
    }

    /// A chunk that is in memory, and only has to be written.
    pub(super) fn given(geometry: Geometry, sealed: Sealed) -> Self {
        Self { given: Some(sealed.clone()), ..Self::new(geometry, sealed.index()) }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == self.range.end()
    }

    /// Deals with one piece or one hole; returns how many bytes it read.
    pub(super) fn step(
        &mut self,
        ends: &Ends,
        gather: &mut Gather<'_>,
        segment: Segment,
        budget: u64,
        source_chunk: &mut Option<ChunkOpener>,
    ) -> Result<u64> {
        let len = segment.end.min(self.range.end()) - self.at;
        if !segment.is_data {
            self.zeros(ends, gather, len, segment.end)?;
            return Ok(0);
        }
        let len = to_usize(len.min(budget)).min(PIECE_BYTES);
        gather.make_space(len, segment.end)?;
        let piece = gather.space(len);
        match &self.given {
            Some(sealed) => {
                let from = to_usize(self.at - self.range.offset);
                piece.copy_from_slice(&sealed.data()[from..from + len]);
            }
            None => ends.read(self.at, piece, source_chunk)?,
        }
        let began = Instant::now();
        let all_zero = is_zero(piece);
        ends.counters.stalled(Stall::Seal, began.elapsed());
        if all_zero {
            self.zeros(ends, gather, to_u64(len), segment.end)?;
        } else {
            self.data(ends, gather, len, segment.end)?;
        }
        Ok(to_u64(len))
    }

    /// The next `len` bytes are zero.
    fn zeros(
        &mut self,
        ends: &Ends,
        gather: &mut Gather<'_>,
        len: u64,
        data_end: u64,
    ) -> Result<()> {
        let range = ByteRange::new(self.at, len);
        self.at += len;
        if ends.blank {
            gather.skip(range, data_end)?;
        }
        // Zeros before the first data are hashed, and written where they must be, once data comes.
        if !self.has_data {
            return Ok(());
        }
        if let Some(hasher) = &mut self.hasher {
            let began = Instant::now();
            hasher.zeroes(len);
            ends.counters.stalled(Stall::Seal, began.elapsed());
        }
        if ends.blank { Ok(()) } else { gather.write_zeroes(range) }
    }

    /// The next bytes, those just read, are not all zero.
    fn data(
        &mut self,
        ends: &Ends,
        gather: &mut Gather<'_>,
        len: usize,
        data_end: u64,
    ) -> Result<()> {
        if let Some(encrypted) = ends.encrypted.as_ref().filter(|_| self.sealer.is_none()) {
            self.sealer =
                Some(encrypted.sealer(self.index).map_err(|error| ends.at_target(error))?);
        }
        let ahead = ByteRange::new(self.range.offset, self.at - self.range.offset);
        let is_first = !std::mem::replace(&mut self.has_data, true);
        if self.given.is_none() {
            let began = Instant::now();
            let hasher = self.hasher.get_or_insert_with(|| {
                let mut hasher = ChunkHasher::new(ends.geometry, self.index);
                hasher.zeroes(ahead.len);
                hasher
            });
            hasher.update(gather.space(len));
            ends.counters.stalled(Stall::Seal, began.elapsed());
        }
        if is_first && !ends.blank && !ahead.is_empty() {
            gather.write_zeroes(ahead)?;
        }
        // Order: hashed in clear, then encrypted where it lies, and only then written.
        let sealing = self.sealer.as_mut().map(|sealer| Sealing {
            sealer,
            first: to_usize(self.at - self.range.offset) / CELL_BYTES,
        });
        self.data_bytes += gather.keep(self.at, len, data_end, sealing)?;
        self.at += to_u64(len);
        Ok(())
    }

    /// What the chunk turned out to hold. Its bytes may still wait in the gather.
    pub(super) fn finish(self, ends: &Ends, gather: &mut Gather<'_>) -> Result<Written> {
        let given = self.given.as_ref().map(Sealed::digest);
        let digest: Option<Digest> = given.or_else(|| self.hasher.map(ChunkHasher::finish));
        if let Some(vouched) = &ends.vouched {
            check_vouched(digest, vouched.table().digest(self.index))
                .map_err(|error| ends.at_source(error, self.range.offset))?;
        }
        match digest {
            Some(digest) => {
                if let (Some(encrypted), Some(sealer)) = (&ends.encrypted, self.sealer) {
                    let began = Instant::now();
                    let finished = encrypted.finish(sealer, digest);
                    finished.map_err(|error| ends.at_target(error))?;
                    ends.counters.stalled(Stall::Write, began.elapsed());
                }
                Ok(Written::data(self.index, digest, self.data_bytes))
            }
            None => {
                if !ends.blank {
                    if let Some(encrypted) = &ends.encrypted {
                        let run = ChunkRun::new(self.index, 1);
                        encrypted.forget(run).map_err(|error| ends.at_target(error))?;
                    }
                    gather.write_zeroes(self.range)?;
                }
                Ok(Written::zeroes(ChunkRun::new(self.index, 1)))
            }
        }
    }
}
