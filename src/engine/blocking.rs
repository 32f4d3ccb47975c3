//! Thin wrappers for callers without a tokio runtime: they bring one of their own.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::engine::{CancelReply, CopyRequest, JobInfo, JobOutcome, Shutdown};
use crate::error::{Error, Result};
use crate::id::{JobId, RegionName};
use crate::options::EngineOptions;
use crate::region::Region;

/// An [`Engine`](crate::engine::Engine) with a runtime of its own; every call blocks the caller's
/// thread.
///
/// It must not be used from within an async runtime.
#[derive(Debug)]
pub struct Engine {
    inner: crate::engine::Engine,
    runtime: Runtime,
}

/// A job of a blocking engine; see [`crate::engine::Job`].
#[derive(Clone, Debug)]
pub struct Job {
    inner: crate::engine::Job,
    handle: tokio::runtime::Handle,
}

impl Engine {
    /// Opens an engine and starts its runtime.
    ///
    /// # Errors
    /// As the async call; `Io` when the runtime cannot be started.
    pub fn open(options: EngineOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .map_err(|error| Error::io("start a runtime", error))?;
        let inner = runtime.block_on(crate::engine::Engine::open(options))?;
        Ok(Self { inner, runtime })
    }

    /// Makes a region known.
    ///
    /// # Errors
    /// As the async call.
    pub fn register(&self, name: RegionName, region: Arc<dyn Region>) -> Result<()> {
        self.runtime.block_on(self.inner.register(name, region))
    }

    /// Starts a copy.
    ///
    /// # Errors
    /// As the async call.
    pub fn copy(&self, request: CopyRequest) -> Result<Job> {
        self.runtime.block_on(self.inner.copy(request)).map(|inner| self.job(inner))
    }

    /// Goes on with a job.
    ///
    /// # Errors
    /// As the async call.
    pub fn resume(&self, job: JobId) -> Result<Job> {
        self.runtime.block_on(self.inner.resume(job)).map(|inner| self.job(inner))
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// As the async call.
    pub fn cancel(&self, job: JobId) -> Result<CancelReply> {
        self.runtime.block_on(self.inner.cancel(job))
    }

    /// All jobs of the index.
    ///
    /// # Errors
    /// As the async call.
    pub fn jobs(&self) -> Result<Vec<JobInfo>> {
        self.runtime.block_on(self.inner.jobs())
    }

    /// Stops all jobs in an orderly way.
    pub fn shutdown(&self, mode: Shutdown, deadline: Duration) -> Vec<JobId> {
        self.runtime.block_on(self.inner.shutdown(mode, deadline))
    }

    /// The async engine, for the calls that have no wrapper.
    pub fn inner(&self) -> &crate::engine::Engine {
        &self.inner
    }

    fn job(&self, inner: crate::engine::Job) -> Job {
        Job { inner, handle: self.runtime.handle().clone() }
    }
}

impl Job {
    /// The job's number.
    pub fn id(&self) -> JobId {
        self.inner.id()
    }

    /// Waits until it has ended or come to rest.
    pub fn wait(&self) -> JobOutcome {
        self.handle.block_on(self.inner.wait())
    }

    /// The async handle, for the calls that have no wrapper.
    pub fn inner(&self) -> &crate::engine::Job {
        &self.inner
    }
}
