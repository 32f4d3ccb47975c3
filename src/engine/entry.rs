//! A job in this engine: its state, what it is asked, and the handle that callers hold.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::gate::Gate;
use crate::engine::progress::{Counters, Rate};
use crate::engine::run::Run;
use crate::engine::{CancelReply, Inner};
use crate::error::{Error, Result};
use crate::id::JobId;
use crate::job::{JobSpec, JobState, Progress, Receipt};
use crate::options::Limits;
use crate::sync;

/// How a job ended, or came to rest.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobOutcome {
    /// The image is visible, complete and durable.
    Committed(Arc<Receipt>),
    /// The job was cancelled.
    RolledBack {
        /// Whether nothing of it is left. If not, the clean-up is tried again until it is done.
        clean: bool,
    },
    /// The job was suspended, and can be resumed.
    Suspended,
    /// The job stopped on an error.
    Failed {
        /// What went wrong.
        error: Arc<Error>,
        /// Whether the job can be resumed. If not, it is rolled back, now or as soon as that can
        /// be.
        resumable: bool,
    },
}

/// What a running job was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Suspend,
    Cancel,
}

/// One attempt at a job in this engine.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) spec: JobSpec,
    pub(crate) counters: Arc<Counters>,
    pub(crate) gate: Gate,
    /// Cancelled as soon as the job is asked to stop.
    pub(crate) stop: CancellationToken,
    wish: sync::Mutex<Option<Stop>>,
    rate: Mutex<Rate>,
    progress: watch::Sender<Progress>,
    outcome: watch::Sender<Option<JobOutcome>>,
    /// The run, while there is one: it holds the stage, so it must go when the job comes to rest.
    run: Mutex<Option<Arc<Run>>>,
}

impl Entry {
    pub(crate) fn new(spec: JobSpec, limits: Limits) -> Self {
        let progress = Progress::new(JobState::Queued, spec.geometry.image_bytes());
        Self {
            spec,
            counters: Arc::default(),
            gate: Gate::new(limits),
            stop: CancellationToken::new(),
            wish: sync::Mutex::default(),
            rate: Mutex::default(),
            progress: watch::Sender::new(progress),
            outcome: watch::Sender::new(None),
            run: Mutex::default(),
        }
    }

    /// An attempt that ended before this engine was opened.
    pub(crate) fn ended(spec: JobSpec, state: JobState, outcome: JobOutcome) -> Self {
        let entry = Self::new(spec, Limits::NONE);
        entry.progress.send_modify(|progress| progress.state = state);
        entry.outcome.send_replace(Some(outcome));
        entry
    }

    /// Asks the job to stop. A wish to cancel stands over one to suspend.
    pub(crate) fn ask(&self, wish: Stop) {
        let mut asked = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        if *asked != Some(Stop::Cancel) {
            *asked = Some(wish);
        }
        drop(asked);
        self.stop.cancel();
    }

    pub(crate) fn asked(&self) -> Option<Stop> {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the entry what runs it.
    pub(crate) fn begin(&self, run: &Arc<Run>) {
        *self.run() = Some(run.clone());
    }

    /// Lets go of what ran it, and with it of the stage. Handles of the job may live on for long.
    pub(crate) fn let_go(&self) {
        *self.run() = None;
    }

    fn run(&self) -> MutexGuard<'_, Option<Arc<Run>>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> JobState {
        self.progress.borrow().state
    }

    /// Moves to another state; every move is one of the table's.
    pub(crate) fn enter(&self, next: JobState) {
        self.progress.send_modify(|progress| {
            let now = progress.state;
            debug_assert!(now.may_become(next), "illegal move: {now} -> {next}");
            progress.state = next;
        });
    }

    pub(crate) fn end(&self, outcome: JobOutcome) {
        self.outcome.send_replace(Some(outcome));
    }

    pub(crate) fn outcome(&self) -> Option<JobOutcome> {
        self.outcome.borrow().clone()
    }

    /// Waits until the job has ended or come to rest.
    pub(crate) async fn wait(&self) -> JobOutcome {
        let mut outcome = self.outcome.subscribe();
        loop {
            if let Some(ended) = outcome.borrow_and_update().clone() {
                return ended;
            }
            if outcome.changed().await.is_err() {
                // Unreachable: the sender lives in `self`. Waiting on is the answer that claims
                // nothing.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Brings the counters up to date for those who watch.
    pub(crate) fn refresh(&self) -> Progress {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.counters.passed_bytes.load(Relaxed);
        let per_sec = rate.sample(Instant::now(), passed);
        drop(rate);
        let remaining = self.counters.planned_bytes.load(Relaxed).saturating_sub(passed);
        self.progress.send_modify(|progress| {
            progress.read_bytes = self.counters.read_bytes.load(Relaxed);
            progress.written_bytes = self.counters.written_bytes.load(Relaxed);
            progress.reused_bytes = self.counters.reused_bytes.load(Relaxed);
            progress.remaining_bytes = remaining;
            progress.rate_bytes_per_sec = per_sec;
            progress.eta = (per_sec > 0).then(|| Duration::from_secs(remaining / per_sec.max(1)));
            progress.stalls = self.counters.stalls();
            if let Some(run) = self.run().clone() {
                (progress.data_bytes, progress.zero_bytes) = run.ledger.data_and_zero_bytes();
                progress.resumed_bytes = run.resumed_bytes();
            }
        });
        self.progress()
    }
}

/// A job of an engine. Clones are the same job; dropping them lets it go on.
#[derive(Clone, Debug)]
pub struct Job {
    pub(crate) engine: Arc<Inner>,
    pub(crate) entry: Arc<Entry>,
}

impl Job {
    /// The job's number.
    pub fn id(&self) -> JobId {
        self.entry.spec.job
    }

    /// What it is to do.
    pub fn spec(&self) -> &JobSpec {
        &self.entry.spec
    }

    /// Where it stands now.
    pub fn progress(&self) -> Progress {
        self.entry.progress()
    }

    /// Follows it: the receiver is told about ten times a second, and of every change of state.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.entry.progress.subscribe()
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&self) -> Option<JobOutcome> {
        self.entry.outcome()
    }

    /// Waits until it has ended or come to rest. When the engine is dropped meanwhile, that is
    /// [`JobOutcome::Failed`] and resumable.
    ///
    /// # Cancel safety
    /// Safe: a dropped wait has no effect on the job.
    pub async fn wait(&self) -> JobOutcome {
        self.entry.wait().await
    }

    /// Stops it so that it can be resumed, here or in another process, and waits for that.
    ///
    /// # Cancel safety
    /// Restartable: the job has been asked to stop.
    pub async fn suspend(&self) -> JobOutcome {
        self.entry.ask(Stop::Suspend);
        self.wait().await
    }

    /// Cancels it: see [`Engine::cancel`](crate::engine::Engine::cancel).
    ///
    /// # Errors
    /// As `Engine::cancel`.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn cancel(&self) -> Result<CancelReply> {
        self.engine.cancel(self.id()).await
    }

    /// Changes its ceilings now; they also hold after a resume.
    ///
    /// # Errors
    /// Those of the target's region, when the change could not be recorded there. It holds all the
    /// same.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn limit(&self, limits: Limits) -> Result<()> {
        self.engine.limit(self.id(), limits).await
    }
}

#[cfg(all(test, races))]
mod races {
    use super::*;
    use crate::job::sample_spec;
    use crate::sync::races::check;

    #[test]
    fn whoever_is_stopped_knows_why_and_a_cancel_stands_over_a_suspend() {
        check(10, || {
            let entry = Arc::new(Entry::new(sample_spec(), Limits::NONE));
            let ask = |wish| {
                let entry = entry.clone();
                shuttle::thread::spawn(move || entry.ask(wish))
            };
            let asked = [ask(Stop::Cancel), ask(Stop::Suspend)];
            let owner = entry.clone();
            let stopped = shuttle::future::spawn(async move {
                owner.enter(JobState::Copying);
                owner.stop.cancelled().await;
                owner.asked()
            });
            let first = shuttle::future::block_on(stopped).unwrap();
            assert!(first.is_some(), "stopped, and not told why");
            asked.into_iter().for_each(|asked| asked.join().unwrap());
            assert_eq!(entry.asked(), Some(Stop::Cancel));
            // As the driver does: what it heard at the end decides.
            entry.enter(match entry.asked() {
                Some(Stop::Cancel) => JobState::Cancelling,
                _ => JobState::Suspended,
            });
            assert_eq!(entry.state(), JobState::Cancelling);
        });
    }
}
