//! A wrapper that shows every operation of a region to a hook, which may fail it.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::error::Result;
use crate::geometry::{ByteRange, ChunkRun};
use crate::id::{ImageId, JobId, KeyId};
use crate::job::{Fingerprint, JobSpec, Progress};
use crate::manifest::Manifest;
use crate::plan::Extent;
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, LocalFile, Located, Outcome, Recovered, Region, Restored,
    Source, StagedJob, Target, Vote, Wish, Wishes,
};

/// A moment at which a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Point {
    /// Counts the calls of the hook, from 0, over the region and all its sources and targets.
    pub n: u64,
    /// On which side of the operation.
    pub when: When,
    /// The method's name, as `stage` or `write`.
    pub operation: &'static str,
}

/// On which side of an operation a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// The operation has not been made; a failure keeps it from being made.
    Before,
    /// The operation was made and succeeded; a failure loses its reply.
    After,
}

/// What is called at every point. A failure that it returns is the operation's.
pub type Hook = Arc<dyn Fn(Point) -> Result<()> + Send + Sync>;

/// A region whose every operation is shown to a hook, and with it those of its sources and targets.
///
/// It hides local files, so that the bytes walk the remote lane and every read and write is seen.
/// An operation that fails by itself keeps its failure, and the hook is not called after it.
#[derive(Clone, Debug)]
pub struct Hooked {
    inner: Arc<dyn Region>,
    calls: Calls,
}

#[derive(Clone)]
struct Calls {
    hook: Hook,
    count: Arc<AtomicU64>,
}

impl Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Hooked {
    /// That region, with every operation shown to `hook`.
    pub fn new(inner: Arc<dyn Region>, hook: Hook) -> Self {
        Self { inner, calls: Calls { hook, count: Arc::default() } }
    }

    /// How often the hook was called so far.
    pub fn count(&self) -> u64 {
        self.calls.count.load(Ordering::SeqCst)
    }
}

impl Calls {
    fn call(&self, when: When, operation: &'static str) -> Result<()> {
        let n = self.count.fetch_add(1, Ordering::SeqCst);
        (self.hook)(Point { n, when, operation })
    }

    /// Makes the operation between its two points. It is not even asked for when `Before` fails.
    fn around<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        make: impl FnOnce() -> BoxFuture<'a, Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            self.call(When::Before, operation)?;
            let made = make().await?;
            self.call(When::After, operation)?;
            Ok(made)
        })
    }
}

impl Region for Hooked {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.calls.around("open", move || {
            Box::pin(async move {
                let (inner, calls) = (self.inner.open(image).await?, self.calls.clone());
                let source: Arc<dyn Source> = Arc::new(HookedSource { inner, calls });
                Ok(source)
            })
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.calls.around("stage", move || {
            Box::pin(async move {
                let (inner, calls) = (self.inner.stage(spec).await?, self.calls.clone());
                let target: Arc<dyn Target> = Arc::new(HookedTarget { inner, calls });
                Ok(target)
            })
        })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.calls.around("reopen", move || {
            Box::pin(async move {
                let (inner, calls) = (self.inner.reopen(spec).await?, self.calls.clone());
                let target: Arc<dyn Target> = Arc::new(HookedTarget { inner, calls });
                Ok(target)
            })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.calls.around("list", || self.inner.list())
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.calls.around("remove", || self.inner.remove(image))
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.calls.around("locate", || self.inner.locate(image))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.calls.around("jobs", || self.inner.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.calls.around("job", move || self.inner.job(job))
    }

    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        self.calls.around("cancel", move || self.inner.cancel(job, image))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        self.calls.around("wish", move || self.inner.wish(job, wish))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.calls.around("recover", move || self.inner.recover(only))
    }
}

#[derive(Debug)]
struct HookedSource {
    inner: Arc<dyn Source>,
    calls: Calls,
}

impl Source for HookedSource {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        self.calls.around("fingerprint", || self.inner.fingerprint())
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        self.calls.around("extents", move || self.inner.extents(range))
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.inner.manifest()
    }

    fn key(&self) -> Option<KeyId> {
        self.inner.key()
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.calls.around("read_at", move || self.inner.read_at(range))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}

#[derive(Debug)]
struct HookedTarget {
    inner: Arc<dyn Target>,
    calls: Calls,
}

impl Target for HookedTarget {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        self.calls.around("begin", || self.inner.begin())
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        self.calls.around("write", || self.inner.write(chunk))
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        self.calls.around("write_zeroes", move || self.inner.write_zeroes(run))
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        self.calls.around("sync", || self.inner.sync())
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        self.calls.around("checkpoint", || self.inner.checkpoint(chunks))
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.calls.around("read_back", move || self.inner.read_back(range))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        self.calls.around("commit", || self.inner.commit(manifest))
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.calls.around("finish", || self.inner.finish())
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        self.calls.around("discard", || self.inner.discard())
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.calls.around("wishes", || self.inner.wishes())
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        self.calls.around("report", || self.inner.report(progress))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
