//! Drives one job: waits for its turn, runs it, attends to wishes, and brings it to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::Inner;
use crate::engine::entry::{Entry, JobOutcome, Stop};
use crate::engine::gate::{Gate, Gates};
use crate::engine::index::JobRecord;
use crate::engine::run::{End, Start, copy};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobState, Receipt};
use crate::options::Limits;
use crate::region::{Located, Outcome, Region, Source, Target, Vote};

/// How often the owner looks for wishes: a cancel from another process is noticed within 100 ms.
const ATTEND_INTERVAL: Duration = Duration::from_millis(80);
/// How often one that waits for its turn looks: a thousand of them must not wear the disk out.
const ATTEND_INTERVAL_QUEUED: Duration = Duration::from_millis(400);
/// How often it tells others how far it is.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Delays between attempts at a rollback that could not finish.
const ROLLBACK_DELAY_FIRST: Duration = Duration::from_secs(1);
const ROLLBACK_DELAY_MAX: Duration = Duration::from_secs(60);

/// Both ends of a job, open.
pub(crate) struct Ends {
    pub(crate) target_region: Arc<dyn Region>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) target: Arc<dyn Target>,
    /// The gates of both regions.
    pub(crate) gates: Vec<Gate>,
    /// How many copies of the image are started together.
    pub(crate) legs: u32,
}

/// Brings a job to its end. Dropping the engine ends it as a crash would.
pub(crate) async fn drive(engine: Arc<Inner>, entry: Arc<Entry>, ends: Ends) {
    let crash = engine.crash.clone();
    let _fallen = Fallen { engine: engine.clone(), entry: entry.clone() };
    tokio::select! {
        biased;
        () = live(&engine, &entry, ends) => {}
        () = crash.cancelled() => {}
    }
}

/// Ends the job when its task stops short: its engine or its runtime was dropped, or it panicked.
struct Fallen {
    engine: Arc<Inner>,
    entry: Arc<Entry>,
}

impl Drop for Fallen {
    fn drop(&mut self) {
        if self.entry.outcome().is_some() {
            return;
        }
        // Handles of the job may live on: they must not keep the stage, nor wait for ever.
        self.entry.let_go();
        self.engine.retire(self.entry.spec.job);
        let error = Error::new(ErrorKind::Unavailable, "go on with the copy")
            .within(self.entry.spec.target.to_string())
            .hint("its engine was dropped, or it panicked; resume the job");
        self.entry.end(JobOutcome::Failed { error: Arc::new(error), resumable: true });
    }
}

async fn live(engine: &Arc<Inner>, entry: &Arc<Entry>, ends: Ends) {
    let ended = accounted(run(engine, entry, &ends).await, entry.counters.balance());
    entry.refresh();
    let outcome = match (ended, entry.asked()) {
        (Ok(End::Committed(receipt)), _) => commit(engine, entry, &ends, *receipt).await,
        (Ok(End::Cancelled), _) | (Ok(End::Stopped), Some(Stop::Cancel)) => {
            roll_back(engine, entry, &ends, Why::Cancelled(None)).await
        }
        (Ok(End::Stopped), _) => suspend(engine, entry, &ends).await,
        (Err(error), Some(Stop::Cancel)) => {
            roll_back(engine, entry, &ends, Why::Cancelled(Some(error))).await
        }
        (Err(error), _) if error.kind() == ErrorKind::SourceChanged => {
            // What is staged mixes two versions of the source: it is of no use to anybody.
            roll_back(engine, entry, &ends, Why::Failed(error)).await
        }
        (Err(error), _)
            if error.kind() == ErrorKind::Fenced && is_committed_elsewhere(entry, &ends).await =>
        {
            if entry.state() == JobState::Copying {
                entry.enter(JobState::Committing);
            }
            find_committed(engine, entry, &ends).await
        }
        (Err(error), _) => fail(engine, entry, &ends, error).await,
    };
    // The stage is let go before anybody is told: a resume may follow at once.
    entry.let_go();
    drop(ends);
    engine.retire(entry.spec.job);
    entry.end(outcome);
}

/// Whether somebody else, who has taken the job over, has committed it, and that is durable.
async fn is_committed_elsewhere(entry: &Entry, ends: &Ends) -> bool {
    let (job, image) = (entry.spec.job, &entry.spec.target.image);
    // Only of what tells its job: what has not committed must not be cancelled here.
    match ends.target_region.locate(image).await {
        Ok(Located::Committed(Some(found))) if found == job => {}
        _ => return false,
    }
    // Order: its commit may be seen and not durable yet; the region sees to that before it answers.
    let vote = ends.target_region.cancel(job, image).await;
    matches!(vote, Ok(Vote::Committed | Vote::Unknown))
}

/// However it ended, nothing of it is under way any more. What is decided stays so.
fn accounted(ended: Result<End>, balance: Result<()>) -> Result<End> {
    match (ended, balance) {
        (Err(first), Err(later)) => Err(first.and(later)),
        (Ok(End::Stopped), Err(later)) => Err(later),
        (ended, _) => ended,
    }
}

async fn run(engine: &Arc<Inner>, entry: &Arc<Entry>, ends: &Ends) -> Result<End> {
    // Order: ceilings that were set earlier hold before the first byte moves.
    heed(entry, ends, &mut None).await;
    let turn = tokio::select! {
        biased;
        turn = engine.turns.acquire() => turn,
        () = entry.stop.cancelled() => return Ok(End::Stopped),
        () = attend(entry, ends, ATTEND_INTERVAL_QUEUED) => return Ok(End::Stopped),
    };
    let _turn = turn.map_err(|e| Error::new(ErrorKind::Io, "wait for a turn").because(e))?;
    entry.enter(JobState::Copying);
    engine.index.write(JobRecord::new(entry.spec.clone(), JobState::Copying)).await?;
    // Order: from its own gate to that of all.
    let own = std::iter::once(entry.gate.clone());
    let gates = own.chain(ends.gates.iter().cloned()).chain([engine.gate.clone()]);
    let start = Start {
        spec: entry.spec.clone(),
        source: ends.source.clone(),
        target: ends.target.clone(),
        capabilities: ends.target_region.capabilities(),
        counters: entry.counters.clone(),
        gates: Gates::new(gates),
        stop: entry.stop.clone(),
        pool: engine.pool.clone(),
        memory: engine.memory.clone(),
        fans: engine.fans.clone(),
        // Those that wait for their turn are not waited for.
        legs: ends.legs.min(u32::try_from(engine.options.jobs_running_max).unwrap_or(u32::MAX)),
        checkpoint_bytes: engine.options.checkpoint_bytes,
        checkpoint_interval: engine.options.checkpoint_interval,
        share_extents: engine.options.share_extents,
        drop_behind: engine.options.drop_behind,
    };
    let committing = || entry.enter(JobState::Committing);
    tokio::select! {
        biased;
        ended = Box::pin(copy(start, |run| entry.begin(run), committing)) => ended,
        () = attend(entry, ends, ATTEND_INTERVAL) => Ok(End::Stopped),
    }
}

/// Passes wishes on to the job, and news of it to others, for as long as it is polled.
async fn attend(entry: &Entry, ends: &Ends, interval: Duration) {
    let mut reported = Instant::now();
    let mut limits = None;
    loop {
        sleep(interval).await;
        heed(entry, ends, &mut limits).await;
        let progress = entry.refresh();
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            // A label for others; it may be lost.
            ends.target.report(&progress).await.ok();
        }
    }
}

/// Looks once for what others ask of the job. `limits` are those that were heard before.
async fn heed(entry: &Entry, ends: &Ends, limits: &mut Option<Limits>) {
    // A look that fails is no loss: the next one comes soon, and the commit itself looks under
    // lock.
    let Ok(wishes) = ends.target.wishes().await else { return };
    if wishes.cancelled {
        entry.ask(Stop::Cancel);
    } else if wishes.suspend {
        entry.ask(Stop::Suspend);
    }
    if let Some(wished) = wishes.limits
        && *limits != Some(wished)
    {
        entry.gate.set_limits(wished);
        *limits = Some(wished);
    }
}

async fn commit(
    engine: &Arc<Inner>,
    entry: &Entry,
    ends: &Ends,
    mut receipt: Receipt,
) -> JobOutcome {
    let mut record = JobRecord::new(entry.spec.clone(), JobState::Committed);
    record.receipt = Some(receipt.clone());
    // Order: the receipt is on record before the stage that could rebuild it goes.
    let recorded = engine.index.write(record.clone()).await;
    let finished = match &recorded {
        Ok(()) => ends.target.finish().await,
        Err(_) => Ok(()),
    };
    // The image is committed whatever happens here; what went wrong is told in the receipt.
    receipt.warnings.extend(recorded.err().iter().chain(finished.err().iter()).map(Error::report));
    entry.enter(JobState::Committed);
    engine.count(entry, |counts| counts.committed += 1);
    JobOutcome::Committed(Arc::new(receipt))
}

async fn suspend(engine: &Arc<Inner>, entry: &Entry, ends: &Ends) -> JobOutcome {
    entry.enter(JobState::Suspended);
    ends.target.report(&entry.progress()).await.ok();
    let record = JobRecord::new(entry.spec.clone(), JobState::Suspended);
    match engine.index.write(record).await {
        Ok(()) => JobOutcome::Suspended,
        Err(error) => JobOutcome::Failed { error: Arc::new(error), resumable: true },
    }
}

async fn fail(engine: &Arc<Inner>, entry: &Entry, ends: &Ends, error: Error) -> JobOutcome {
    let state = JobState::Failed { resumable: true };
    entry.enter(state);
    ends.target.report(&entry.progress()).await.ok();
    let record = JobRecord::new(entry.spec.clone(), state).with_error(&error);
    let error = match engine.index.write(record).await {
        Ok(()) => error,
        Err(later) => error.and(later),
    };
    engine.count(entry, |counts| counts.failed += 1);
    JobOutcome::Failed { error: Arc::new(error), resumable: true }
}

/// Why a job is undone.
enum Why {
    /// It was cancelled; it may have failed at the same time.
    Cancelled(Option<Error>),
    /// It failed in a way that leaves nothing worth keeping.
    Failed(Error),
}

impl Why {
    /// The state that the job ends in once nothing of it is left.
    fn final_state(&self) -> JobState {
        match self {
            Self::Cancelled(_) => JobState::RolledBack,
            Self::Failed(_) => JobState::Failed { resumable: false },
        }
    }

    fn error(&self) -> Option<&Error> {
        match self {
            Self::Cancelled(error) => error.as_ref(),
            Self::Failed(error) => Some(error),
        }
    }

    /// What callers are told; `later` went wrong during the clean-up.
    fn outcome(self, clean: bool, later: Option<Error>) -> JobOutcome {
        match self {
            // The region is the truth: nothing of the job is left, whatever else went wrong.
            Self::Cancelled(_) => JobOutcome::RolledBack { clean },
            Self::Failed(error) => {
                let error = later.into_iter().fold(error, Error::and);
                JobOutcome::Failed { error: Arc::new(error), resumable: false }
            }
        }
    }

    /// What callers are told when not even the cancel is on record: nobody knows yet how it ends.
    fn undecided(self, later: Error) -> JobOutcome {
        let error = match self {
            Self::Cancelled(None) => later,
            Self::Cancelled(Some(error)) | Self::Failed(error) => error.and(later),
        };
        JobOutcome::Failed { error: Arc::new(error), resumable: true }
    }
}

/// Undoes the job.
async fn roll_back(engine: &Arc<Inner>, entry: &Arc<Entry>, ends: &Ends, why: Why) -> JobOutcome {
    entry.enter(JobState::Cancelling);
    let record = |state| {
        let record = JobRecord::new(entry.spec.clone(), state);
        why.error().into_iter().fold(record, JobRecord::with_error)
    };
    match ends.target.discard().await {
        Ok(Outcome::Cancelled) => {
            let state = why.final_state();
            entry.enter(state);
            let recorded = engine.index.write(record(state)).await;
            engine.count(entry, |counts| match why {
                Why::Failed(_) => counts.failed += 1,
                Why::Cancelled(_) => counts.rolled_back += 1,
            });
            why.outcome(true, recorded.err())
        }
        Ok(Outcome::Committed) => find_committed(engine, entry, ends).await,
        Err(later) => {
            if later.kind() == ErrorKind::Fenced && matches!(why, Why::Failed(_)) {
                // It failed here only: the job is somebody else's now, and goes on. Nobody has
                // asked to cancel it.
                let state = why.final_state();
                entry.enter(state);
                let recorded = engine.index.write(record(state)).await;
                engine.count(entry, |counts| counts.failed += 1);
                let later = recorded.err().into_iter().fold(later, Error::and);
                return why.outcome(false, Some(later));
            }
            let (job, image) = (entry.spec.job, &entry.spec.target.image);
            // Only what the region has decided may be told as decided.
            let decided = match ends.target_region.cancel(job, image).await {
                Ok(Vote::Committed) => return find_committed(engine, entry, ends).await,
                Ok(Vote::Cancelled { .. } | Vote::Unknown) => true,
                Err(_) => false,
            };
            entry.enter(JobState::RollbackPending);
            let pending = record(JobState::RollbackPending);
            let pending = if why.error().is_some() { pending } else { pending.with_error(&later) };
            // The region is the truth; an index that cannot be written now is rebuilt by `recover`.
            engine.index.write(pending).await.ok();
            keep_rolling_back(engine.clone(), entry.spec.clone(), ends.target_region.clone());
            if decided { why.outcome(false, Some(later)) } else { why.undecided(later) }
        }
    }
}

/// A rollback that finds the commit decided after all: the image is what counts.
async fn find_committed(engine: &Arc<Inner>, entry: &Entry, ends: &Ends) -> JobOutcome {
    entry.enter(JobState::Committed);
    let found = crate::engine::found_receipt(&*ends.target_region, &entry.spec).await;
    let mut receipt = found.unwrap_or_else(|_| crate::engine::empty_receipt(&entry.spec));
    let mut record = JobRecord::new(entry.spec.clone(), JobState::Committed);
    record.receipt = Some(receipt.clone());
    let ended = match engine.index.write(record).await {
        Ok(()) => ends.target.finish().await,
        Err(error) => Err(error),
    };
    receipt.warnings.extend(ended.err().iter().map(Error::report));
    engine.count(entry, |counts| counts.committed += 1);
    JobOutcome::Committed(Arc::new(receipt))
}

/// Tries a pending rollback again and again, in the background, until it is done.
pub(crate) fn keep_rolling_back(
    engine: Arc<Inner>,
    spec: crate::job::JobSpec,
    region: Arc<dyn Region>,
) {
    let tracker = engine.tasks.clone();
    tracker.spawn(async move {
        let mut delay = ROLLBACK_DELAY_FIRST;
        loop {
            tokio::select! {
                biased;
                () = engine.crash.cancelled() => return,
                () = engine.closing.cancelled() => return,
                () = sleep(delay) => {}
            }
            // The id that a token gives comes again: what was begun since is not ours to end.
            let record = engine.index.read(spec.job).await.ok().flatten();
            let is_settled = |record: &JobRecord| {
                record.state.is_final() || record.spec.created_unix_ms != spec.created_unix_ms
            };
            if record.as_ref().is_some_and(is_settled) {
                return;
            }
            let ended = match region.cancel(spec.job, &spec.target.image).await {
                Ok(Vote::Cancelled { clean: true, .. } | Vote::Unknown) => JobState::RolledBack,
                // Nothing had been decided, and somebody else has committed it since.
                Ok(Vote::Committed) => JobState::Committed,
                Ok(Vote::Cancelled { clean: false, .. }) | Err(_) => {
                    delay = (delay * 2).min(ROLLBACK_DELAY_MAX);
                    continue;
                }
            };
            let mut record = JobRecord::new(spec.clone(), ended);
            if ended == JobState::Committed {
                record.receipt = crate::engine::found_receipt(&*region, &spec).await.ok();
            }
            // The region is the truth; an index that cannot be written now is rebuilt by `recover`.
            engine.index.write_seen(record).await.ok();
            return;
        }
    });
}
