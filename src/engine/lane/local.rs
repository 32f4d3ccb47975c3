//! The local lane: a worker thread takes a chunk from read to write, in pieces that stay in its
//! cache.

use std::sync::Arc;
use std::time::Instant;

use crate::chunk::{Digest, Written};
use crate::engine::pool::{PIECE_BYTES, Scratch};
use crate::engine::progress::Counters;
use crate::engine::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::job::Stall;
use crate::manifest::Manifest;
use crate::region::{LocalFile, Target};
use crate::seal::{ChunkHasher, is_zero};

use super::{check_vouched, enter, pass_throttle};

/// Zeros within a data chunk are skipped in blocks of this many bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// Both ends of a copy on this host.
#[derive(Debug)]
pub(super) struct Ends {
    source: LocalFile,
    source_place: String,
    target: LocalFile,
    target_place: String,
    geometry: Geometry,
    /// The target reads as zeros wherever nothing was written.
    blank: bool,
    /// The source's digests, where they are cut as we cut.
    vouched: Option<Arc<Manifest>>,
    counters: Arc<Counters>,
    /// Keeps the stage owned until the last write under way has ended, also after a crash: nobody
    /// may take a stage over while somebody still writes to it.
    _owner: Arc<dyn Target>,
}

impl Ends {
    /// The ends, when both are open files on this host.
    pub(super) fn of(run: &Run) -> Option<Self> {
        Some(Self {
            source: run.source.local()?,
            source_place: run.source.location(),
            target: run.target.local()?,
            target_place: run.target.location(),
            geometry: run.spec.geometry,
            blank: run.is_blank(),
            vouched: run.vouched(),
            counters: run.counters.clone(),
            _owner: run.target.clone(),
        })
    }
}

/// Copies neighbouring chunks. Stops between grants of the throttle when the run is halted.
pub(super) async fn copy(
    run: &Arc<Run>,
    ends: &Arc<Ends>,
    chunks: ChunkRun,
    mixed: bool,
) -> Result<()> {
    let mut strip = Strip { chunks, next: chunks.first.get(), mixed, open: None };
    while strip.next < chunks.end() {
        let bytes = run.throttle.grant_bytes(strip.remaining_bytes(ends.geometry));
        let ops = bytes.div_ceil(to_u64(PIECE_BYTES));
        if !pass_throttle(run, bytes, ops).await {
            return Ok(());
        }
        let ends = ends.clone();
        let (back, advanced) = run
            .pool
            .run(move |scratch| {
                let advanced = strip.advance(&ends, scratch, bytes);
                (strip, advanced)
            })
            .await?;
        strip = back;
        let advanced = advanced?;
        run.throttle.give_back(bytes.saturating_sub(advanced.read_bytes));
        advanced.written.into_iter().for_each(|written| enter(run, written));
    }
    Ok(())
}

/// Neighbouring chunks under way, and where we are in them.
struct Strip {
    chunks: ChunkRun,
    next: u32,
    /// The source may have holes in them.
    mixed: bool,
    open: Option<OpenChunk>,
}

/// What one turn on a worker thread got done.
struct Advanced {
    written: Vec<Written>,
    read_bytes: u64,
}

impl Strip {
    fn remaining_bytes(&self, geometry: Geometry) -> u64 {
        let at = self
            .open
            .as_ref()
            .map_or_else(|| geometry.range(ChunkIndex::new(self.next)).offset, |open| open.at);
        geometry.run_range(self.chunks).end() - at
    }

    /// Reads, hashes and writes until about `budget` bytes are read or the strip is done.
    fn advance(&mut self, ends: &Ends, scratch: &mut Scratch, budget: u64) -> Result<Advanced> {
        let mut advanced = Advanced { written: Vec::new(), read_bytes: 0 };
        while self.next < self.chunks.end() && advanced.read_bytes < budget {
            let index = ChunkIndex::new(self.next);
            let mut chunk = match self.open.take() {
                Some(open) => open,
                None => OpenChunk::new(index, ends.geometry.range(index)),
            };
            let left = budget - advanced.read_bytes;
            advanced.read_bytes += chunk.step(ends, &mut scratch.piece, self.mixed, left)?;
            if chunk.at < chunk.range.end() {
                self.open = Some(chunk);
            } else {
                advanced.written.push(chunk.finish(ends)?);
                self.next += 1;
            }
        }
        Ok(advanced)
    }
}

/// A chunk under way.
struct OpenChunk {
    index: ChunkIndex,
    range: ByteRange,
    /// The next byte to deal with.
    at: u64,
    /// Up to where the run of data or hole that `at` lies in is known.
    segment: Segment,
    /// `None` while everything was zero: a chunk of zeros is not hashed.
    hasher: Option<ChunkHasher>,
    data_bytes: u32,
}

#[derive(Clone, Copy)]
struct Segment {
    end: u64,
    is_data: bool,
}

impl OpenChunk {
    fn new(index: ChunkIndex, range: ByteRange) -> Self {
        let segment = Segment { end: range.offset, is_data: false };
        Self { index, range, at: range.offset, segment, hasher: None, data_bytes: 0 }
    }

    /// Deals with one piece or one hole; returns how many bytes it read.
    fn step(&mut self, ends: &Ends, piece: &mut [u8], mixed: bool, budget: u64) -> Result<u64> {
        if self.at >= self.segment.end {
            self.segment = self.next_segment(ends, mixed)?;
        }
        let len = self.segment.end - self.at;
        if !self.segment.is_data {
            self.zeros(ends, len)?;
            return Ok(0);
        }
        let piece = &mut piece[..to_usize(len.min(budget)).min(PIECE_BYTES)];
        self.read(ends, piece)?;
        let began = Instant::now();
        let all_zero = is_zero(piece);
        ends.counters.stalled(Stall::Seal, began.elapsed());
        if all_zero {
            self.zeros(ends, to_u64(piece.len()))?;
        } else {
            self.data(ends, piece)?;
        }
        Ok(to_u64(piece.len()))
    }

    fn next_segment(&self, ends: &Ends, mixed: bool) -> Result<Segment> {
        let end = self.range.end();
        if !mixed || !ends.source.trusts_holes {
            return Ok(Segment { end, is_data: true });
        }
        let place = |error: Error| error.at(&ends.source_place, self.at);
        let data = ends.source.file.next_data(self.at).map_err(place)?.unwrap_or(end).min(end);
        if data > self.at {
            return Ok(Segment { end: data, is_data: false });
        }
        let hole = ends.source.file.next_hole(self.at).map_err(place)?.unwrap_or(end);
        // A file that changes under us may answer with a hole where we stand; reading tells.
        let hole = if hole > self.at { hole.min(end) } else { end };
        Ok(Segment { end: hole, is_data: true })
    }

    fn read(&self, ends: &Ends, piece: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let read = ends.source.file.read_at(self.at, piece);
        ends.counters.stalled(Stall::Read, began.elapsed());
        let count = to_u64(read.map_err(|error| error.at(&ends.source_place, self.at))?);
        Counters::add(&ends.counters.read_bytes, count);
        if count == to_u64(piece.len()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::SourceChanged, "read source: it has become shorter")
            .at(&ends.source_place, self.at + count))
    }

    /// The next `len` bytes are zero.
    fn zeros(&mut self, ends: &Ends, len: u64) -> Result<()> {
        let range = ByteRange::new(self.at, len);
        self.at += len;
        // Zeros before the first data are hashed, and written where they must be, once data comes.
        let Some(hasher) = &mut self.hasher else { return Ok(()) };
        let began = Instant::now();
        hasher.zeroes(len);
        ends.counters.stalled(Stall::Seal, began.elapsed());
        if ends.blank { Ok(()) } else { write_zeroes(ends, range) }
    }

    /// The next bytes are not all zero.
    fn data(&mut self, ends: &Ends, piece: &[u8]) -> Result<()> {
        let ahead = ByteRange::new(self.range.offset, self.at - self.range.offset);
        let began = Instant::now();
        let (geometry, index) = (ends.geometry, self.index);
        let is_first = self.hasher.is_none();
        let hasher = self.hasher.get_or_insert_with(|| {
            let mut hasher = ChunkHasher::new(geometry, index);
            hasher.zeroes(ahead.len);
            hasher
        });
        hasher.update(piece);
        ends.counters.stalled(Stall::Seal, began.elapsed());
        if is_first && !ends.blank && !ahead.is_empty() {
            write_zeroes(ends, ahead)?;
        }
        let began = Instant::now();
        let written = self.write(ends, piece);
        ends.counters.stalled(Stall::Write, began.elapsed());
        let written = written.map_err(|error| error.at(&ends.target_place, self.at))?;
        Counters::add(&ends.counters.written_bytes, u64::from(written));
        self.data_bytes += written;
        self.at += to_u64(piece.len());
        Ok(())
    }

    /// Writes the blocks of the piece that are not zero, or all of it where zeros must be written.
    fn write(&self, ends: &Ends, piece: &[u8]) -> Result<u32> {
        let mut written = 0;
        let mut start = 0;
        while start < piece.len() {
            let block = |at: usize| &piece[at..(at + BLOCK_BYTES).min(piece.len())];
            let mut end = start;
            while end < piece.len() && (!ends.blank || !is_zero(block(end))) {
                end = (end + BLOCK_BYTES).min(piece.len());
            }
            if end > start {
                ends.target.file.write_at(self.at + to_u64(start), &piece[start..end])?;
                written += u32::try_from(end - start).unwrap_or(u32::MAX);
                start = end;
            } else {
                start += block(start).len();
            }
        }
        Ok(written)
    }

    fn finish(self, ends: &Ends) -> Result<Written> {
        let digest: Option<Digest> = self.hasher.map(ChunkHasher::finish);
        if let Some(vouched) = &ends.vouched {
            check_vouched(digest, vouched.table().digest(self.index))
                .map_err(|error| error.at(&ends.source_place, self.range.offset))?;
        }
        match digest {
            Some(digest) => Ok(Written::data(self.index, digest, self.data_bytes)),
            None => {
                if !ends.blank {
                    write_zeroes(ends, self.range)?;
                }
                Ok(Written::zeroes(ChunkRun::new(self.index, 1)))
            }
        }
    }
}

fn write_zeroes(ends: &Ends, range: ByteRange) -> Result<()> {
    let began = Instant::now();
    let written = ends.target.file.write_zeroes(range);
    ends.counters.stalled(Stall::Write, began.elapsed());
    written.map_err(|error| error.at(&ends.target_place, range.offset))
}
