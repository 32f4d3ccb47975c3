//! One run of one job: the main path, from plan to commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chunk::Written;
use crate::engine::fan::{Fans, Hand};
use crate::engine::gate::Gates;
use crate::engine::lane::Todo;
use crate::engine::ledger::Ledger;
use crate::engine::memory::{Enrolled, Holding, Memory, Room, Share};
use crate::engine::pool::Pool;
use crate::engine::progress::Counters;
use crate::engine::verify::{self, Findings};
use crate::engine::{checkpoint, lane, offload};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, to_u64};
use crate::job::{JobSpec, Receipt, Verified};
use crate::manifest::Manifest;
use crate::options::Verify;
use crate::plan::{Plan, Planner};
use crate::region::{Base, Capabilities, Outcome, Restored, Source, Target};
use crate::sabotage;

/// How often a chunk that does not verify is written again.
const REWRITE_COUNT_MAX: u32 = 3;
/// How many chunks the remote lane has under way, memory permitting.
const WINDOW_CHUNKS: u64 = 16;
/// Where both ends are on this host, legs of a fan-out hand chunks over only if the memory budget
/// holds so many. With less they wait for each other for longer than reading once more takes:
/// `benches/fan.rs`.
const LOCAL_CHUNKS_MIN: u64 = 32;

/// What a run works with, before it has begun.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) spec: JobSpec,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) capabilities: Capabilities,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gates: Gates,
    /// Cancelled when the run is to stop: suspended or cancelled.
    pub(crate) stop: CancellationToken,
    pub(crate) pool: Arc<Pool>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) fans: Arc<Fans>,
    /// How many copies of the image are started together.
    pub(crate) legs: u32,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) checkpoint_interval: Duration,
    /// Whether the target may share extents with the source.
    pub(crate) share_extents: bool,
    /// Whether what is durable leaves the page cache.
    pub(crate) drop_behind: bool,
}

/// A run under way: what its lanes, checkpoints and verification share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) spec: JobSpec,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) ledger: Ledger,
    pub(crate) gates: Gates,
    /// Whose turn it is to pass the gates: shares of the lanes stay even.
    pub(crate) gates_turn: tokio::sync::Mutex<()>,
    /// Cancelled when no more work is to be begun: on a stop, or after a failure.
    pub(crate) halt: CancellationToken,
    pub(crate) pool: Arc<Pool>,
    memory: Arc<Memory>,
    share: Arc<Share>,
    fans: Arc<Fans>,
    legs: u32,
    /// It has been one of the legs: once.
    joined: AtomicBool,
    capabilities: Capabilities,
    /// Whether the target reads as zeros wherever this run has not written.
    blank: AtomicBool,
    /// Whether the target shares all its bytes with the source.
    shared: AtomicBool,
    base: Option<Arc<dyn Base>>,
    /// What did not verify is being written again.
    rewriting: AtomicBool,
    /// Whether the target may share extents with the source, or with its base.
    pub(crate) share_extents: bool,
    stop: CancellationToken,
    checkpoint_interval: Duration,
    pub(crate) drop_behind: bool,
    began: Instant,
    resumed_bytes: u64,
    restored_runs: Vec<ChunkRun>,
}

/// How a run ended without error.
#[derive(Debug)]
pub(crate) enum End {
    Committed(Box<Receipt>),
    /// It was asked to stop, and everything that it had written is on record.
    Stopped,
    /// A cancel was decided before the commit.
    Cancelled,
}

/// Copies the image. `began` is shown the run, `committing` is called before the commit is tried.
///
/// This is the corridor: plan → (read → seal → throttle → write) in lanes, sync → journal in the
/// background, then verify, and one commit.
pub(crate) async fn copy(
    start: Start,
    began: impl FnOnce(&Arc<Run>),
    committing: impl FnOnce(),
) -> Result<End> {
    let start_shared = start.share_extents;
    let restored = start.target.begin().await?;
    let run = Arc::new(Run::new(start, restored));
    began(&run);
    if start_shared && run.is_fresh() {
        offload::share(&run).await?;
    }
    let mut plan = survey(&run).await?;
    // A target that is written in place is blanked at its head, and gets its first chunk last:
    // until then it is no image, neither the old one nor the new.
    let held = !run.capabilities.atomic_commit && plan.hold_back(ChunkIndex::new(0));
    if held {
        let first = ChunkRun::new(ChunkIndex::new(0), 1);
        let blanked: Written = run.target.write_zeroes(first).await?;
        debug_assert_eq!(blanked.run(), first);
        // Order: the old head is gone for good before anything else is written over.
        run.target.sync().await?;
    }
    let alike = lane::known_alike(&run, &mut plan);
    let todo = Todo { alike, plan };
    let mut verified = move_and_verify(&run, todo, &run.restored_runs).await?;
    if held && !run.stop.is_cancelled() {
        run.ledger.reopen();
        let first = Plan::only(run.spec.geometry, [ChunkIndex::new(0)]);
        verified = add(verified, move_and_verify(&run, first.into(), &[]).await?);
    }
    if run.stop.is_cancelled() {
        return Ok(End::Stopped);
    }
    check_source(&run).await?;
    run.counters.all_succeeded()?;
    let manifest = run.manifest()?;
    check_root(&run, &manifest)?;
    committing();
    match run.target.commit(&manifest).await? {
        Outcome::Cancelled => Ok(End::Cancelled),
        Outcome::Committed => Ok(End::Committed(Box::new(run.receipt(&manifest, verified)))),
    }
}

/// Each chunk that was read has been compared with what the source vouches for. A hole was not
/// read: its file system may have lost what was there.
fn check_root(run: &Run, manifest: &Manifest) -> Result<()> {
    match run.vouched() {
        Some(vouched) if vouched.root() != manifest.root() => {
            Err(Error::new(ErrorKind::Corrupt, "copy: the image does not match its manifest")
                .within(run.source.location())
                .hint("it has holes where it had data; nothing was committed"))
        }
        _ => Ok(()),
    }
}

/// What is still to be moved: all that neither a durable record nor a hole covers.
async fn survey(run: &Run) -> Result<Plan> {
    let geometry = run.spec.geometry;
    let mut planner = Planner::new(geometry);
    if !sabotage::is("D6") {
        run.restored_runs.iter().for_each(|chunks| planner.durable(*chunks));
    }
    let mut offset = 0;
    while offset < geometry.image_bytes() && !run.stop.is_cancelled() {
        let rest = ByteRange::new(offset, geometry.image_bytes() - offset);
        let extents = run.source.extents(rest).await?;
        // A region that gets no further is told so by `finish`: it must not keep us here.
        let Some(end) = extents.last().map(|last| last.range.end()).filter(|end| *end > offset)
        else {
            break;
        };
        offset = end;
        for extent in extents {
            planner
                .extent(extent)
                .map_err(|error| error.at(run.source.location(), extent.range.offset))?;
        }
    }
    if run.stop.is_cancelled() {
        return Ok(Plan::only(geometry, []));
    }
    let plan = planner.finish().map_err(|error| error.within(run.source.location()))?;
    Counters::add(&run.counters.planned_bytes, plan.remaining_bytes());
    Ok(plan)
}

/// Moves what is planned, with checkpoints beside it, and reads back as much as was asked for.
/// Chunks that do not verify are written again, a few times. `earlier` are chunks that earlier runs
/// made durable, and that are still to be verified.
async fn move_and_verify(run: &Arc<Run>, todo: Todo, earlier: &[ChunkRun]) -> Result<Verified> {
    let mode = run.spec.verify;
    let mut verified = Verified { mode, ..Verified::default() };
    let mut todo = todo;
    let mut earlier = earlier;
    for _ in 0..=REWRITE_COUNT_MAX {
        let findings = move_once(run, todo, mode, earlier).await?;
        verified = add(verified, findings.verified);
        if findings.failed.is_empty() || run.stop.is_cancelled() {
            return Ok(verified);
        }
        let failed = u32::try_from(findings.failed.len()).unwrap_or(u32::MAX);
        verified.rewritten_chunks = verified.rewritten_chunks.saturating_add(failed);
        // The target holds wrong bytes there, so zeros must be written too, and nothing is shared,
        // neither with the source nor with the base.
        run.blank.store(false, Relaxed);
        run.shared.store(false, Relaxed);
        run.rewriting.store(true, Relaxed);
        run.ledger.reopen();
        earlier = &[];
        todo = Plan::only(run.spec.geometry, findings.failed).into();
    }
    Err(Error::new(ErrorKind::Corrupt, "verify the target: chunks read back wrong three times")
        .within(run.target.location())
        .hint("the destination's device does not keep what is written; nothing was committed"))
}

async fn move_once(
    run: &Arc<Run>,
    todo: Todo,
    mode: Verify,
    earlier: &[ChunkRun],
) -> Result<Findings> {
    let (durable, mut to_verify) = mpsc::unbounded_channel();
    for chunks in earlier {
        durable.send(*chunks).ok();
    }
    let halt_on_error = |failed: bool| {
        if failed {
            run.halt.cancel();
        }
    };
    let (moved, kept, findings) = tokio::join!(
        async {
            let moved = lane::run(run, todo).await;
            halt_on_error(moved.is_err());
            run.ledger.close();
            moved
        },
        async {
            let kept = checkpoint::keep(run, run.checkpoint_interval, &durable).await;
            halt_on_error(kept.is_err());
            drop(durable);
            kept
        },
        async {
            let findings = verify::follow(run, mode, &mut to_verify).await;
            halt_on_error(findings.is_err());
            findings
        },
    );
    // The lane fails first when its own work fails; otherwise it was only halted.
    moved.and(kept)?;
    findings
}

/// The source must be what it was when the job was accepted, to the last fact.
async fn check_source(run: &Run) -> Result<()> {
    let now = run.spec.facts_kept(run.source.fingerprint().await?);
    match run.spec.fingerprint.difference(&now) {
        None => Ok(()),
        Some(_) if sabotage::is("M18") => Ok(()),
        Some(what) => Err(Error::new(
            ErrorKind::SourceChanged,
            format!("commit the copy: the source changed meanwhile: {what}"),
        )
        .within(run.source.location())
        .hint("nothing was committed; copy again, from a snapshot if the image is in use")),
    }
}

fn add(one: Verified, other: Verified) -> Verified {
    Verified {
        mode: other.mode,
        chunks: one.chunks + other.chunks,
        bytes: one.bytes + other.bytes,
        rewritten_chunks: one.rewritten_chunks + other.rewritten_chunks,
    }
}

impl Run {
    pub(crate) fn new(start: Start, mut restored: Restored) -> Self {
        let geometry = start.spec.geometry;
        let base = restored.base.take();
        let resumed_bytes = restored.data_bytes;
        let restored_runs = held_runs(&restored, geometry.chunk_count());
        Self {
            spec: start.spec,
            source: start.source,
            target: start.target,
            counters: start.counters,
            ledger: Ledger::new(geometry, restored, start.checkpoint_bytes),
            gates: start.gates,
            gates_turn: tokio::sync::Mutex::default(),
            halt: start.stop.child_token(),
            pool: start.pool,
            share: Share::new(start.memory.clone(), start.legs),
            memory: start.memory,
            fans: start.fans,
            legs: start.legs,
            joined: AtomicBool::new(false),
            capabilities: start.capabilities,
            blank: AtomicBool::new(start.capabilities.blank_target),
            shared: AtomicBool::new(false),
            base,
            rewriting: AtomicBool::new(false),
            share_extents: start.share_extents,
            stop: start.stop,
            checkpoint_interval: start.checkpoint_interval,
            drop_behind: start.drop_behind,
            began: Instant::now(),
            resumed_bytes,
            restored_runs,
        }
    }

    /// Whether nothing was ever staged: no byte of an earlier run is there to be kept.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_blank() && self.restored_runs.is_empty()
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Relaxed)
    }

    pub(crate) fn set_shared(&self) {
        self.shared.store(true, Relaxed);
    }

    /// The base, while chunks may be taken over from it. Not where the source has given all.
    pub(crate) fn base(&self) -> Option<&Arc<dyn Base>> {
        let is_of_use = !self.rewriting.load(Relaxed) && !self.is_shared();
        self.base.as_ref().filter(|_| is_of_use)
    }

    /// Whether a chunk that was read is better taken over from the base than written: where it
    /// would have to travel, or would need room of its own.
    pub(crate) fn gains_by_base(&self) -> bool {
        match self.target.local() {
            Some(local) => self.share_extents && local.file_system.shares_extents(),
            None => true,
        }
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.blank.load(Relaxed)
    }

    pub(crate) fn resumed_bytes(&self) -> u64 {
        self.resumed_bytes
    }

    /// The source's own digests, where they are cut as we cut.
    pub(crate) fn vouched(&self) -> Option<Arc<Manifest>> {
        self.source.manifest().filter(|manifest| manifest.geometry() == self.spec.geometry)
    }

    /// How many chunks the memory budget holds; at least one.
    pub(crate) fn budget_chunks(&self) -> u64 {
        self.memory.chunk_count(self.spec.geometry.chunk_size().bytes())
    }

    /// How many chunks the remote lane has under way.
    pub(crate) fn window(&self) -> usize {
        usize::try_from(self.budget_chunks().min(WINDOW_CHUNKS)).unwrap_or(1)
    }

    /// Waits until this run may hold one more chunk in memory; `None`: halted first.
    pub(crate) async fn hold_chunk(&self) -> Option<Holding> {
        tokio::select! {
            biased;
            held = self.share.hold(self.chunk_bytes()) => Some(held),
            () = self.halt.cancelled() => None,
        }
    }

    /// Waits for room for one chunk in the engine's memory budget. One chunk always fits.
    pub(crate) async fn reserve_memory(&self) -> Result<Room> {
        self.memory.reserve(self.chunk_bytes()).await
    }

    /// Counts this run among those that hold chunks in memory.
    pub(crate) fn enrol(&self) -> Enrolled {
        self.share.enrol()
    }

    fn chunk_bytes(&self) -> u64 {
        self.spec.geometry.chunk_size().bytes().min(self.spec.geometry.image_bytes())
    }

    /// Whether this is a leg of a fan-out that can hand chunks over: what is copied of the image
    /// first, and not what is written again, or at the end. One that cannot lets the others know.
    pub(crate) fn may_share_reads(&self) -> bool {
        if self.legs <= 1 || self.rewriting.load(Relaxed) || self.joined.swap(true, Relaxed) {
            return false;
        }
        // An empty image has chunks of no bytes.
        let chunk_bytes = self.chunk_bytes().max(1);
        let hands_over = self.memory.may_keep(chunk_bytes)
            && !self.is_shared()
            && (!self.is_local() || self.memory.chunk_count(chunk_bytes) >= LOCAL_CHUNKS_MIN);
        if !hands_over {
            self.fans.pass(&self.spec, &self.memory, self.legs);
        }
        hands_over
    }

    /// Whether both ends are open files on this host.
    fn is_local(&self) -> bool {
        self.source.local().is_some() && self.target.local().is_some()
    }

    /// Joins the other legs of the fan-out, and waits a moment for those that are still to come.
    pub(crate) async fn join_fan(&self, plan: &Plan) -> Hand {
        let hand = self.fans.join(&self.spec, &self.memory, self.legs, plan.to_copy());
        if plan.remaining_bytes() > 0 {
            hand.gather(&self.halt).await;
        }
        hand
    }

    fn manifest(&self) -> Result<Manifest> {
        let table = self.ledger.take_table().ok_or_else(|| {
            Error::new(ErrorKind::Io, "commit the copy: chunks are missing")
                .within(self.target.location())
        })?;
        Manifest::new(table, Some(self.spec.job), self.spec.attributes.clone())
    }

    fn receipt(&self, manifest: &Manifest, verified: Verified) -> Receipt {
        let geometry = self.spec.geometry;
        let mut receipt = Receipt::found(
            manifest.root(),
            geometry.image_bytes(),
            manifest.table().zero_bytes(),
            geometry.chunk_count(),
        );
        (receipt.data_bytes, receipt.zero_bytes) = self.ledger.data_and_zero_bytes();
        receipt.fingerprint = self.spec.fingerprint.clone();
        receipt.read_bytes = self.counters.read_bytes.load(Relaxed);
        receipt.written_bytes = self.counters.written_bytes.load(Relaxed);
        receipt.resumed_bytes = self.resumed_bytes;
        receipt.reused_bytes = self.counters.reused_bytes.load(Relaxed);
        receipt.verified = verified;
        receipt.elapsed = self.began.elapsed();
        receipt.stalls = self.counters.stalls();
        receipt
    }
}

/// The runs of chunks that the restored table holds.
fn held_runs(restored: &Restored, chunk_count: u32) -> Vec<ChunkRun> {
    let mut held = Vec::new();
    let mut next = 0;
    let mut push = |from: u32, to: u32| {
        if to > from {
            held.push(ChunkRun::new(ChunkIndex::new(from), to - from));
        }
    };
    for missing in restored.table.missing_runs() {
        push(next, missing.first.get());
        next = missing.end();
    }
    push(next, chunk_count);
    debug_assert!(to_u64(held.len()) <= u64::from(chunk_count));
    held
}
