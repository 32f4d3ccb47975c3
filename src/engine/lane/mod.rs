//! Lanes: how chunks get from the source to the target and, as `Written` ones, into the ledger.

mod base;
mod fused;
mod gather;
mod local;
mod remote;
mod writer;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chunk::Written;
use crate::engine::fan::Hand;
use crate::engine::offload;
use crate::engine::progress::{Counters, MoveEnd};
use crate::engine::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::job::Stall;
use crate::plan::{Move, Plan};
use crate::sabotage;

pub(crate) use base::known_alike;

/// How many bytes the local lane takes from the plan at a time.
const STRIP_BYTES: u64 = 4 << 20;
/// How many bytes of zeros are written at a time where zeros must be written.
const ZERO_STRIP_BYTES: u64 = 256 << 20;

/// Whoever passes sooner has not waited for a limit, only for a lock.
const WAIT_MIN: Duration = Duration::from_micros(500);

/// What a lane is to do.
#[derive(Debug)]
pub(crate) struct Todo {
    /// Chunks that the base has as the source does.
    pub(crate) alike: VecDeque<ChunkRun>,
    pub(crate) plan: Plan,
}

impl From<Plan> for Todo {
    fn from(plan: Plan) -> Self {
        Self { alike: VecDeque::new(), plan }
    }
}

/// How a lane comes by bytes, and gets rid of them.
#[derive(Debug)]
struct Ways {
    /// Both ends, where they are open files on this host.
    ends: Option<Arc<local::Ends>>,
    /// Its part in a fan-out, where it has one.
    hand: Option<Hand>,
}

enum Next {
    Take(ChunkRun),
    Move(Move),
}

impl Todo {
    fn next(&mut self, take_bytes: u64) -> Option<Next> {
        let alike = self.alike.pop_front().map(Next::Take);
        alike.or_else(|| self.plan.next(take_bytes).map(Next::Move))
    }
}

/// Moves everything that is planned, or stops early and orderly when the run is halted.
pub(crate) async fn run(run: &Arc<Run>, todo: Todo) -> Result<()> {
    let (shared, shares_reads) = (run.is_shared(), run.may_share_reads());
    if let Some(manifest) = run.vouched().filter(|_| shared) {
        offload::carry(run, &manifest).await;
        return Ok(());
    }
    let ends = local::Ends::of(run, shared).map(Arc::new);
    // Order: all legs count before any of them holds what is another's part.
    let _counts = (shares_reads || ends.is_none()).then(|| run.enrol());
    let hand = if shares_reads { Some(run.join_fan(&todo.plan).await) } else { None };
    let ways = Arc::new(Ways { ends, hand });
    // Two strips in hand for each thread: the next is queued while one is being worked on.
    let (workers, take_bytes) = match &ways.ends {
        Some(_) => (run.pool.threads() * 2, STRIP_BYTES),
        None => (run.window(), 1),
    };
    let todo = Arc::new(Mutex::new(todo));
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(run.clone(), ways.clone(), todo.clone(), take_bytes));
    }
    let mut first = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended =
            ended.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, "run a lane").because(e)));
        if ended.is_err() {
            // The others drain what they have in hand; nothing is torn off.
            run.halt.cancel();
        }
        if sabotage::is("M27") && run.halt.is_cancelled() {
            tasks.detach_all();
        }
        first = first.and(ended);
    }
    first
}

async fn work(
    run: Arc<Run>,
    ways: Arc<Ways>,
    todo: Arc<Mutex<Todo>>,
    take_bytes: u64,
) -> Result<()> {
    loop {
        tokio::select! {
            biased;
            () = run.ledger.room() => {}
            () = run.halt.cancelled() => {}
        }
        if run.halt.is_cancelled() {
            break;
        }
        let next = todo.lock().unwrap_or_else(PoisonError::into_inner).next(take_bytes);
        let Some(next) = next else { break };
        run.counters.issued();
        let moved = match next {
            Next::Take(chunks) => take(&run, &ways, chunks).await,
            Next::Move(Move::Zero(chunks)) => zero(&run, chunks).await,
            Next::Move(Move::Copy { run: chunks, mixed }) => copy(&run, &ways, chunks, mixed).await,
        };
        run.counters.ended(match &moved {
            Err(_) => MoveEnd::Failed,
            Ok(()) if run.halt.is_cancelled() => MoveEnd::Cancelled,
            Ok(()) => MoveEnd::Succeeded,
        });
        moved?;
    }
    Ok(())
}

async fn copy(run: &Arc<Run>, ways: &Ways, chunks: ChunkRun, mixed: bool) -> Result<()> {
    let Some(ends) = &ways.ends else { return remote::copy(run, ways, chunks).await };
    if ways.hand.as_ref().is_some_and(|hand| !hand.goes_alone(chunks)) {
        // Whole chunks can be handed over, pieces cannot.
        return remote::copy(run, ways, chunks).await;
    }
    // What the source vouches for was compared before, and need not be hashed for that.
    let base = run.base().filter(|_| run.vouched().is_none() && run.gains_by_base());
    let base = base.filter(|_| ends.blank);
    let Some(base) = base else { return local::copy(run, ends, chunks, mixed).await };
    // Hashed first, for where the base has the same nothing is to be written.
    for other in local::compare(run, ends, &**base, chunks, mixed).await? {
        local::copy(run, ends, other, true).await?;
    }
    Ok(())
}

/// Chunks that the base has as the source does. What it turns out not to have is copied.
async fn take(run: &Arc<Run>, ways: &Ways, chunks: ChunkRun) -> Result<()> {
    let Some(base) = run.base() else { return copy(run, ways, chunks, true).await };
    for lost in base::take(run, &**base, chunks).await? {
        copy(run, ways, lost, true).await?;
    }
    Ok(())
}

/// Chunks that the source claims to be zero.
async fn zero(run: &Run, chunks: ChunkRun) -> Result<()> {
    if run.is_blank() || sabotage::is("D4") {
        run.ledger.accept(Written::zeroes(chunks));
        return Ok(());
    }
    let chunk_bytes = run.spec.geometry.chunk_size().bytes();
    let strip = u32::try_from((ZERO_STRIP_BYTES / chunk_bytes).max(1)).unwrap_or(1);
    let mut next = chunks.first.get();
    while next < chunks.end() && !run.halt.is_cancelled() {
        let count = strip.min(chunks.end() - next);
        let began = Instant::now();
        let part = ChunkRun::new(ChunkIndex::new(next), count);
        let written = run.target.write_zeroes(part).await?;
        run.counters.stalled(Stall::Write, began.elapsed());
        run.ledger.accept(written);
        next += count;
    }
    Ok(())
}

/// Waits until the limits let `bytes` pass; `false`: the run was halted first.
async fn pass_throttle(run: &Run, bytes: u64, ops: u64) -> bool {
    let began = Instant::now();
    let _turn = run.gates_turn.lock().await;
    let passed = run.gates.pass(bytes, ops, &run.halt).await;
    let waited = began.elapsed();
    if waited >= WAIT_MIN {
        run.counters.stalled(Stall::Throttle, waited);
    }
    passed
}

/// A source that vouches for its digests must give bytes that match them.
fn check_vouched(
    run_digest: Option<crate::chunk::Digest>,
    vouched: Option<crate::chunk::Digest>,
) -> Result<()> {
    if run_digest == vouched {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "read source: a chunk does not match the image's manifest")
        .hint("the image is damaged where it lies; nothing was committed"))
}

/// Counts the end of a chunk and enters it in the ledger.
fn enter(run: &Run, written: Written) {
    Counters::add(&run.counters.passed_bytes, run.spec.geometry.run_range(written.run()).len);
    match run.is_shared() {
        true => run.ledger.accept_shared(written),
        false => run.ledger.accept(written),
    }
}
