//! The engine: owns running jobs, and is the only room that knows all the others.

pub mod blocking;
mod cancel;
mod checkpoint;
mod clock;
mod control;
mod drive;
mod entry;
mod fan;
mod gate;
mod index;
mod lane;
mod ledger;
mod memory;
mod metrics;
mod offload;
mod patience;
mod pool;
mod progress;
mod retry;
mod run;
mod start;
mod verify;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::entry::{Entry as JobEntry, Stop};
use crate::engine::fan::Fans;
use crate::engine::gate::Gate;
use crate::engine::index::Index;
use crate::engine::memory::Memory;
use crate::engine::pool::Pool;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{JobSpec, JobState, Progress, Receipt};
use crate::options::{EngineOptions, Limits};
use crate::region::{ImageInfo, Recovered, Region};

pub use cancel::{CancelAnswer, CancelReply};
pub use entry::{Job, JobOutcome};
pub use index::JobRecord;
pub use metrics::{Metrics, RegionMetrics};
pub use progress::Moves;
pub use start::CopyRequest;

#[cfg(feature = "service")]
pub(crate) use clock::job_of_token;

/// Fewer threads than this leave a fast device idle while they hash, on however few cores.
const THREAD_COUNT_MIN: usize = 4;

/// Copies images between the regions that are registered with it.
///
/// The engine owns running jobs: a [`Job`] handle may be dropped. Dropping the engine equals a
/// crash: jobs stop where they are, and what is staged stays and can be resumed. For an orderly end
/// call [`Engine::shutdown`].
///
/// The caller brings the tokio runtime; [`blocking`] has wrappers for those who have none.
#[derive(Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    options: EngineOptions,
    index: Index,
    pool: Arc<Pool>,
    memory: Arc<Memory>,
    fans: Arc<Fans>,
    gate: Gate,
    /// Jobs that move bytes at once.
    turns: Semaphore,
    regions: Mutex<BTreeMap<RegionName, Registered>>,
    live: Mutex<BTreeMap<JobId, Arc<JobEntry>>>,
    /// Serialises starts and resumes, so that one job is never started twice.
    starting: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    /// No new jobs.
    closing: CancellationToken,
    /// Everything stops where it is.
    crash: CancellationToken,
}

#[derive(Debug)]
struct Registered {
    region: Arc<dyn Region>,
    gate: Gate,
    counts: RegionMetrics,
}

/// What is to become of running jobs at a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They are suspended, and can be resumed.
    Suspend,
    /// They are cancelled and rolled back.
    Cancel,
}

/// A job as the index and its region know it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobInfo {
    /// What it is to do.
    pub spec: JobSpec,
    /// Where it stands.
    pub state: JobState,
    /// Whether a live process runs it.
    pub running: bool,
    /// How far it is, where that is known.
    pub progress: Option<Progress>,
    /// Its ceilings now.
    pub limits: Limits,
    /// Why it stopped.
    pub error: Option<(ErrorKind, String)>,
    /// The account of a committed copy.
    pub receipt: Option<Receipt>,
}

impl Engine {
    /// Opens an engine: its index, its threads.
    ///
    /// # Errors
    /// Those of the state folder; `Io` when threads cannot be started.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(options: EngineOptions) -> Result<Self> {
        let index = Index::open(&options.state_dir).await?;
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let threads = match options.threads {
            0 => cores.max(THREAD_COUNT_MIN),
            asked => asked,
        };
        let inner = Inner {
            index,
            pool: Arc::new(Pool::start(threads)?),
            memory: Arc::new(Memory::new(options.memory_bytes_max)),
            fans: Arc::default(),
            gate: Gate::new(options.limits),
            turns: Semaphore::new(options.jobs_running_max),
            regions: Mutex::default(),
            live: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            crash: CancellationToken::new(),
            options,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes a region known under that name. Rollbacks that could not finish there are taken up
    /// again, in the background.
    ///
    /// # Errors
    /// `Exists` when the name is taken.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn register(&self, name: RegionName, region: Arc<dyn Region>) -> Result<()> {
        let registered = Registered {
            region: region.clone(),
            gate: Gate::new(Limits::NONE),
            counts: RegionMetrics::default(),
        };
        match self.inner.regions().entry(name.clone()) {
            Entry::Vacant(free) => free.insert(registered),
            Entry::Occupied(_) => {
                let error = Error::new(ErrorKind::Exists, "register region");
                return Err(error.within(name.to_string()));
            }
        };
        for record in self.inner.index.all().await? {
            let pending = matches!(record.state, JobState::RollbackPending | JobState::Cancelling);
            if pending && record.spec.target.region == name {
                drive::keep_rolling_back(self.inner.clone(), record.spec, region.clone());
            }
        }
        Ok(())
    }

    /// The region of that name.
    ///
    /// # Errors
    /// `NotFound` when none is registered under it.
    pub fn region(&self, name: &RegionName) -> Result<Arc<dyn Region>> {
        self.inner.region(name)
    }

    /// Starts a copy. Answers when the job is durable, not when bytes have moved.
    ///
    /// # Errors
    /// `Invalid` for a request that can never succeed; `NotFound` for the source; `Exists` or
    /// `Busy` for the destination; otherwise the regions' own.
    ///
    /// # Durability
    /// A job that was returned survives power loss: it can be resumed or cancelled.
    ///
    /// # Cancel safety
    /// Restartable with the same token; without one a job may have been staged, which
    /// [`Engine::recover`] lists.
    pub async fn copy(&self, request: CopyRequest) -> Result<Job> {
        self.inner.copy(request).await
    }

    /// Goes on with a job that was suspended, failed, or lost its process. A job that has ended
    /// gives its outcome.
    ///
    /// # Errors
    /// `NotFound` for an unknown job, `Busy` while another process runs it, `SourceChanged` when
    /// the source is not what it was; `Corrupt` when its journal is damaged.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn resume(&self, job: JobId) -> Result<Job> {
        self.inner.resume(job).await
    }

    /// Suspends a job, in whatever process it runs, and waits up to 30 seconds for it to come to
    /// rest.
    ///
    /// # Errors
    /// `NotFound` for an unknown job, `Invalid` for one that has ended, `Unavailable` when its
    /// process does not answer.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn suspend(&self, job: JobId) -> Result<JobState> {
        self.inner.suspend(job).await
    }

    /// Cancels a job, in whatever process it runs, or while none does. The answer is the same on
    /// every repeat.
    ///
    /// `Cancelled` is *decided* when this returns: the job can never commit. It is *clean* when
    /// nothing of it is left; this waits up to 30 seconds for that.
    ///
    /// # Errors
    /// Those of the region, when nothing could be decided.
    ///
    /// # Durability
    /// The answer survives power loss.
    ///
    /// # Cancel safety
    /// Restartable: it may have been decided.
    pub async fn cancel(&self, job: JobId) -> Result<CancelReply> {
        self.inner.cancel(job).await
    }

    /// Cancels the copy to that destination: what the cloud calls pass.
    ///
    /// # Errors
    /// As [`Engine::cancel`].
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn cancel_image(&self, region: &RegionName, image: &ImageId) -> Result<CancelReply> {
        self.inner.cancel_image(region, image).await
    }

    /// The handle of a job that lives in this engine.
    pub fn job(&self, job: JobId) -> Option<Job> {
        let entry = self.inner.live().get(&job).cloned()?;
        Some(Job { engine: self.inner.clone(), entry })
    }

    /// All jobs of the index, with what their regions know of those that have not ended.
    ///
    /// # Errors
    /// Those of the state folder.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>> {
        let mut jobs = Vec::new();
        for record in self.inner.index.all().await? {
            jobs.push(self.inner.info(record).await);
        }
        jobs.sort_by_key(|info| (info.spec.created_unix_ms, info.spec.job));
        Ok(jobs)
    }

    /// What is known of one job: from the index, else from the regions.
    ///
    /// # Errors
    /// `NotFound` for an unknown job.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn show(&self, job: JobId) -> Result<JobInfo> {
        let record = match self.inner.index.read(job).await? {
            Some(record) => record,
            None => {
                let (_, staged) = self.inner.find_staged(job).await?.ok_or_else(|| unknown(job))?;
                JobRecord::new(staged.spec, JobState::Suspended)
            }
        };
        let mut record = record;
        self.inner.reveal(&mut record).await;
        Ok(self.inner.info(record).await)
    }

    /// Forgets a job that has ended; its image stays.
    ///
    /// # Errors
    /// `NotFound` for an unknown job, `Busy` for one that has not ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn forget(&self, job: JobId) -> Result<()> {
        let record = self.inner.index.read(job).await?.ok_or_else(|| unknown(job))?;
        if !record.state.is_final() {
            return Err(Error::new(ErrorKind::Busy, format!("forget job {job}"))
                .hint("it has not ended: cancel it first"));
        }
        self.inner.index.remove(job).await
    }

    /// Settles what is staged in a region and has no live process: finishes what was decided, lists
    /// what can be resumed, and brings the index up to date. Idempotent.
    ///
    /// # Errors
    /// `NotFound` for an unknown region, otherwise the region's own.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn recover(&self, region: &RegionName) -> Result<Vec<Recovered>> {
        let place = self.inner.region(region)?;
        let recovered = place.recover(None).await?;
        for found in &recovered {
            self.inner.note_recovered(&*place, found).await?;
        }
        Ok(recovered)
    }

    /// Changes a job's ceilings, in whatever process it runs; they also hold after a resume.
    ///
    /// # Errors
    /// `NotFound` when the job is not staged anywhere.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn limit(&self, job: JobId, limits: Limits) -> Result<()> {
        self.inner.limit(job, limits).await
    }

    /// Changes the ceilings of all jobs together, now.
    pub fn limit_engine(&self, limits: Limits) {
        self.inner.gate.set_limits(limits);
    }

    /// Changes the ceilings of all copies from and to a region, now.
    ///
    /// # Errors
    /// `NotFound` when no region is registered under that name.
    pub fn limit_region(&self, name: &RegionName, limits: Limits) -> Result<()> {
        let gate = self.inner.registered(name, |registered| registered.gate.clone())?;
        gate.set_limits(limits);
        Ok(())
    }

    /// The committed images of a region.
    ///
    /// # Errors
    /// `NotFound` for an unknown region, otherwise the region's own.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn images(&self, region: &RegionName) -> Result<Vec<ImageInfo>> {
        self.inner.region(region)?.list().await
    }

    /// Counters for the daemon's own exporter.
    pub fn metrics(&self) -> Metrics {
        self.inner.metrics()
    }

    /// Stops all jobs in an orderly way and waits for them, at most `deadline`. Returns those that
    /// had not come to rest by then; dropping the engine leaves them as a crash would. No job can
    /// be started afterwards.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn shutdown(&self, mode: Shutdown, deadline: Duration) -> Vec<JobId> {
        let deadline = Instant::now() + deadline;
        self.inner.closing.cancel();
        let live: Vec<_> = self.inner.live().values().cloned().collect();
        for entry in &live {
            match mode {
                Shutdown::Suspend => entry.ask(Stop::Suspend),
                Shutdown::Cancel => entry.ask(Stop::Cancel),
            }
        }
        let mut late = Vec::new();
        for entry in live {
            if timeout_at(deadline, entry.wait()).await.is_err() {
                late.push(entry.spec.job);
            }
        }
        self.inner.tasks.close();
        if late.is_empty() {
            timeout_at(deadline, self.inner.tasks.wait()).await.ok();
        }
        late
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // As a crash: nothing is torn down in order, so that there is one path to test, recovery.
        self.inner.pool.close();
        self.inner.crash.cancel();
    }
}

impl Inner {
    fn regions(&self) -> MutexGuard<'_, BTreeMap<RegionName, Registered>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<JobEntry>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registered<T>(&self, name: &RegionName, of: impl FnOnce(&mut Registered) -> T) -> Result<T> {
        self.regions().get_mut(name).map(of).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "find region")
                .within(name.to_string())
                .hint("register it with the engine")
        })
    }

    fn region(&self, name: &RegionName) -> Result<Arc<dyn Region>> {
        self.registered(name, |registered| registered.region.clone())
    }

    /// The staged job of that number, in whichever registered region it is, and by the name that
    /// this region has here: what another daemon pushed is on record by another.
    async fn find_staged(
        &self,
        job: JobId,
    ) -> Result<Option<(Arc<dyn Region>, crate::region::StagedJob)>> {
        let regions: Vec<_> =
            self.regions().iter().map(|(name, r)| (name.clone(), r.region.clone())).collect();
        for (name, region) in regions {
            if let Some(mut staged) = region.job(job).await? {
                if self.region(&staged.spec.target.region).is_err() {
                    staged.spec.target.region = name;
                }
                return Ok(Some((region, staged)));
            }
        }
        Ok(None)
    }
}

/// The receipt of an image found committed, from its manifest, or from its size where there is
/// none.
pub(crate) async fn found_receipt(region: &dyn Region, spec: &JobSpec) -> Result<Receipt> {
    let source = region.open(&spec.target.image).await?;
    let Some(manifest) = source.manifest() else { return Ok(empty_receipt(spec)) };
    Ok(Receipt::found(
        manifest.root(),
        manifest.geometry().image_bytes(),
        manifest.table().zero_bytes(),
        manifest.geometry().chunk_count(),
    ))
}

/// A receipt that claims no more than the request did.
pub(crate) fn empty_receipt(spec: &JobSpec) -> Receipt {
    let root = crate::chunk::Digest::from_bytes([0; 32]);
    Receipt::found(root, spec.geometry.image_bytes(), 0, spec.geometry.chunk_count())
}

fn unknown(job: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("find job {job}"))
        .hint("`blockferry jobs` lists the known ones")
}
