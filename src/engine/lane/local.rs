//! The local lane: a worker thread takes a strip of chunks from read to write, in pieces that stay
//! in its cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::chunk::{Content, Sealed, Written};
use crate::engine::pool::{PIECE_BYTES, Scratch};
use crate::engine::progress::Counters;
use crate::engine::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_u64};
use crate::job::Stall;
use crate::manifest::Manifest;
use crate::region::{Base, CELL_BYTES, ChunkOpener, EncryptedFile, LocalFile, Target};
use crate::sabotage;

use super::base::{self, Runs};
use super::fused::OpenChunk;
use super::gather::{Gather, Room, Sink};
use super::writer::Writer;
use super::{enter, pass_throttle};

/// A piece that takes longer comes from a device: half a GiB/s, a fraction of what the page cache
/// gives.
const COLD_PIECE_TIME: Duration = Duration::from_micros(500);

/// Both ends of a copy on this host.
#[derive(Debug)]
pub(super) struct Ends {
    source: LocalFile,
    source_place: String,
    writer: Writer,
    target_place: String,
    pub(super) geometry: Geometry,
    /// What else there is of a target that is encrypted.
    pub(super) encrypted: Option<Arc<EncryptedFile>>,
    /// Either end is encrypted: what is read and written are whole cells.
    cells: bool,
    /// The target reads as zeros wherever nothing was written.
    pub(super) blank: bool,
    /// The source's digests, where they are cut as we cut.
    pub(super) vouched: Option<Arc<Manifest>>,
    pub(super) counters: Arc<Counters>,
    /// The bytes are in the target already, shared with the source: they are hashed only.
    shared: bool,
    /// Keeps the stage owned until the last write under way has ended, also after a crash: nobody
    /// may take a stage over while somebody still writes to it.
    _owner: Arc<dyn Target>,
    /// The last piece was slow to read: what comes next is asked for ahead.
    is_cold: AtomicBool,
}

impl Ends {
    /// The ends, when both are open files on this host.
    pub(super) fn of(run: &Run, shared: bool) -> Option<Self> {
        let (source, target) = (run.source.local()?, run.target.local()?);
        let encrypted = target.encrypted.clone();
        Some(Self {
            cells: source.encrypted.is_some() || encrypted.is_some(),
            source,
            source_place: run.source.location(),
            encrypted,
            writer: Writer::new(target, run.pool.threads()),
            target_place: run.target.location(),
            geometry: run.spec.geometry,
            blank: shared || run.is_blank() || sabotage::is("D4"),
            vouched: run.vouched(),
            counters: run.counters.clone(),
            shared,
            _owner: run.target.clone(),
            is_cold: AtomicBool::new(false),
        })
    }

    /// Names the source and a place in it.
    pub(super) fn at_source(&self, error: Error, offset: u64) -> Error {
        error.at(&self.source_place, offset)
    }

    /// Names the target.
    pub(super) fn at_target(&self, error: Error) -> Error {
        error.within(&self.target_place)
    }

    /// Reads exactly those bytes of the source.
    pub(super) fn read(
        &self,
        offset: u64,
        piece: &mut [u8],
        last: &mut Option<ChunkOpener>,
    ) -> Result<()> {
        let began = Instant::now();
        if let Some(encrypted) = &self.source.encrypted {
            let read = encrypted.read(&self.source.file, offset, piece, last);
            self.counters.stalled(Stall::Read, began.elapsed());
            let read = read.map_err(|error| self.at_source(error, offset))?;
            Counters::add(&self.counters.read_bytes, read);
            return Ok(());
        }
        let read = self.source.file.read_at(offset, piece);
        let elapsed = began.elapsed();
        self.counters.stalled(Stall::Read, elapsed);
        self.is_cold.store(elapsed > COLD_PIECE_TIME, Relaxed);
        let count = to_u64(read.map_err(|error| self.at_source(error, offset))?);
        Counters::add(&self.counters.read_bytes, count);
        if count == to_u64(piece.len()) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::SourceChanged, "read source: it has become shorter");
        Err(self.at_source(error, offset + count))
    }

    /// The run of data or the hole that begins at `offset`, as far as `end`.
    fn segment_at(&self, offset: u64, end: u64) -> Result<Segment> {
        // Of an encrypted image a hole tells nothing: anybody can make one.
        if !self.source.file_system.trusts_holes() || self.source.encrypted.is_some() {
            return Ok(Segment { end, is_data: true });
        }
        let place = |error: Error| self.at_source(error, offset);
        let data = self.source.file.next_data(offset).map_err(place)?.unwrap_or(end).min(end);
        let hole_end = if data < end { self.cells_before(data) } else { end };
        if hole_end > offset {
            return Ok(Segment { end: hole_end, is_data: false });
        }
        let hole = self.source.file.next_hole(data).map_err(place)?.unwrap_or(end);
        // A file that changes under us may answer with a hole where we stand; reading tells.
        let hole = if hole > data { self.cells_after(hole).min(end) } else { end };
        Ok(Segment { end: hole, is_data: true })
    }

    /// Has the data between `at` and `end` read while we work on what comes before it: a thread
    /// would wait for one piece after the other, and a device likes to have more to do.
    fn prefetch(&self, mut at: u64, end: u64, mut segment: Segment) -> Result<()> {
        while at < end {
            if at >= segment.end {
                segment = self.segment_at(at, end)?;
            }
            let len = (segment.end.min(end) - at).min(to_u64(PIECE_BYTES));
            if segment.is_data {
                // Advice, no more: a read says what is wrong.
                self.source.file.prefetch(ByteRange::new(at, len)).ok();
                at += len;
            } else {
                at = segment.end;
            }
        }
        Ok(())
    }

    /// Where the last whole cell before that byte ends, where cells are asked for.
    fn cells_before(&self, offset: u64) -> u64 {
        if self.cells { offset - offset % to_u64(CELL_BYTES) } else { offset }
    }

    /// Where the cell that holds the byte before that one ends, where cells are asked for.
    fn cells_after(&self, offset: u64) -> u64 {
        if self.cells { offset.next_multiple_of(to_u64(CELL_BYTES)) } else { offset }
    }

    fn sink(&self, looks: bool) -> Sink<'_> {
        Sink {
            writer: (!self.shared && !looks).then_some(&self.writer),
            is_shared: self.shared,
            counters: &self.counters,
            place: &self.target_place,
            blank: self.blank,
        }
    }
}

/// Copies neighbouring chunks. Stops between grants of the throttle when the run is halted.
pub(super) async fn copy(
    run: &Arc<Run>,
    ends: &Arc<Ends>,
    chunks: ChunkRun,
    mixed: bool,
) -> Result<()> {
    let strip = Strip::new(ends.geometry, chunks, mixed);
    walk(run, ends, strip, |written| enter(run, written)).await
}

/// Hashes neighbouring chunks, and takes over what the base has alike; returns the others, which
/// are to be copied. The target is blank there.
pub(super) async fn compare(
    run: &Arc<Run>,
    ends: &Arc<Ends>,
    base: &dyn Base,
    chunks: ChunkRun,
    mixed: bool,
) -> Result<VecDeque<ChunkRun>> {
    let strip = Strip { looks: true, ..Strip::new(ends.geometry, chunks, mixed) };
    let (mut alike, mut others) = (Runs::new(ends.geometry), Runs::new(ends.geometry));
    let hashed = walk(run, ends, strip, |written| match written.content() {
        Content::Zero => enter(run, written),
        Content::Data { digest, .. } => {
            let index = written.run().first;
            let runs =
                if base::holds(base, index) == Some(digest) { &mut alike } else { &mut others };
            runs.push(index);
        }
    });
    hashed.await?;
    for chunks in alike.runs {
        others.runs.extend(base::take(run, base, chunks).await?);
    }
    Ok(others.runs)
}

/// Writes a chunk that is in memory.
pub(super) async fn put(run: &Arc<Run>, ends: &Arc<Ends>, sealed: Sealed) -> Result<()> {
    let ends = ends.clone();
    let written = run
        .pool
        .run(move |scratch| {
            let mut room = Room::default();
            let mut gather = Gather::new(ends.sink(false), scratch.window(), &mut room);
            let whole = Segment { end: sealed.range().end(), is_data: true };
            let mut chunk = OpenChunk::given(ends.geometry, sealed);
            while !chunk.is_done() {
                chunk.step(&ends, &mut gather, whole, u64::MAX, &mut None)?;
            }
            let written = chunk.finish(&ends, &mut gather)?;
            gather.finish()?;
            Ok(written)
        })
        .await?;
    enter(run, written?);
    Ok(())
}

/// Goes through a strip, and hands out its chunks as they are done.
async fn walk(
    run: &Arc<Run>,
    ends: &Arc<Ends>,
    mut strip: Strip,
    mut each: impl FnMut(Written),
) -> Result<()> {
    while strip.next < strip.chunks.end() {
        let left = strip.end - strip.at();
        let bytes = ends.cells_after(run.gates.grant_bytes(left)).min(left);
        let ops = bytes.div_ceil(to_u64(PIECE_BYTES));
        if !pass_throttle(run, bytes, ops).await {
            return Ok(());
        }
        let ends = ends.clone();
        let (back, advanced, ended) = run
            .pool
            .run(move |scratch| {
                let (advanced, ended) = strip.advance(&ends, scratch, bytes);
                (strip, advanced, ended)
            })
            .await?;
        strip = back;
        run.gates.give_back(bytes.saturating_sub(advanced.read_bytes));
        // Also after a failure: what was written before it need not be written again.
        advanced.written.into_iter().for_each(&mut each);
        ended?;
    }
    Ok(())
}

/// Neighbouring chunks under way, and where we are in them.
struct Strip {
    geometry: Geometry,
    chunks: ChunkRun,
    /// They are only looked at: nothing is written.
    looks: bool,
    /// Where in the image the strip ends.
    end: u64,
    next: u32,
    open: Option<OpenChunk>,
    /// Up to where the run of data or hole that we are in is known.
    segment: Segment,
    room: Room,
    /// What the strip holds was asked for ahead, or need not be: within one run of data the kernel
    /// does so by itself.
    prefetched: bool,
    /// The chunk of an encrypted source that was read from last.
    source_chunk: Option<ChunkOpener>,
}

/// What one turn on a worker thread got done.
struct Advanced {
    written: Vec<Written>,
    read_bytes: u64,
}

/// Bytes of one kind, as the source's file system has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) end: u64,
    pub(super) is_data: bool,
}

impl Strip {
    /// `mixed`: the source may have holes in them.
    fn new(geometry: Geometry, chunks: ChunkRun, mixed: bool) -> Self {
        let range = geometry.run_range(chunks);
        let known_end = if mixed { range.offset } else { range.end() };
        Self {
            geometry,
            chunks,
            looks: false,
            end: range.end(),
            next: chunks.first.get(),
            open: None,
            segment: Segment { end: known_end, is_data: true },
            room: Room::default(),
            prefetched: !mixed,
            source_chunk: None,
        }
    }

    /// The next byte to deal with.
    fn at(&self) -> u64 {
        match &self.open {
            Some(open) => open.at(),
            None if self.next < self.chunks.end() => {
                self.geometry.range(ChunkIndex::new(self.next)).offset
            }
            None => self.end,
        }
    }

    /// Reads, hashes and writes until about `budget` bytes are read or the strip is done; tells
    /// what was written, also when it fails half way.
    fn advance(
        &mut self,
        ends: &Ends,
        scratch: &mut Scratch,
        budget: u64,
    ) -> (Advanced, Result<()>) {
        let mut advanced = Advanced { written: Vec::new(), read_bytes: 0 };
        let mut room = std::mem::take(&mut self.room);
        let mut gather = Gather::new(ends.sink(self.looks), scratch.window(), &mut room);
        let mut ended = Ok(());
        if !self.prefetched && ends.is_cold.load(Relaxed) {
            self.prefetched = true;
            ended = ends.prefetch(self.at(), self.end, self.segment);
        }
        while ended.is_ok() && self.next < self.chunks.end() && advanced.read_bytes < budget {
            ended = self.step(ends, &mut gather, &mut advanced, budget);
        }
        // Order: what waits is written before its chunks are told as written.
        let waiting_from = gather.waiting_from();
        let ended = ended.and_then(|()| gather.finish());
        if let (Err(_), Some(from)) = (&ended, waiting_from) {
            let geometry = self.geometry;
            advanced.written.retain(|written| geometry.run_range(written.run()).end() <= from);
        }
        self.room = room;
        (advanced, ended)
    }

    /// Deals with one piece or one hole of the chunk under way.
    fn step(
        &mut self,
        ends: &Ends,
        gather: &mut Gather<'_>,
        advanced: &mut Advanced,
        budget: u64,
    ) -> Result<()> {
        let mut chunk = match self.open.take() {
            Some(open) => open,
            None => OpenChunk::new(ends.geometry, ChunkIndex::new(self.next)),
        };
        if chunk.at() >= self.segment.end {
            self.segment = ends.segment_at(chunk.at(), self.end)?;
        }
        let left = budget - advanced.read_bytes;
        let read = chunk.step(ends, gather, self.segment, left, &mut self.source_chunk)?;
        advanced.read_bytes += read;
        if chunk.is_done() {
            advanced.written.push(chunk.finish(ends, gather)?);
            self.next += 1;
        } else {
            self.open = Some(chunk);
        }
        Ok(())
    }
}
