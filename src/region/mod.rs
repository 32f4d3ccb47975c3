//! Places that hold images: the three traits a region implements, and the contract in prose.
//!
//! A [`Region`] opens committed images as [`Source`]s and stages new ones as [`Target`]s. The
//! engine knows nothing else of it. Third parties may write regions; one is done when
//! `testing::conformance` (feature `testing`) passes on it.
//!
//! # The contract
//!
//! * **A stage is invisible.** Until [`Target::commit`] decides, [`Region::open`], [`Region::list`]
//!   and [`Region::locate`] show nothing of it but the claim. A region that cannot hide a stage
//!   says so in [`Capabilities::atomic_commit`].
//! * **One stage per image.** While a job has an image staged, [`Region::stage`] for the same image
//!   by another job is [`Busy`](crate::ErrorKind::Busy); once the image is committed it is
//!   [`Exists`](crate::ErrorKind::Exists).
//! * **One owner per stage.** While a target is alive, [`Region::stage`] for its job is `Busy`, in
//!   every process.
//! * **One decision.** [`Target::commit`] and [`Region::cancel`] meet at one point, and exactly one
//!   of them wins, in every process and after every crash. Both may be called again and answer the
//!   same.
//! * **Durable means durable.** What [`Target::sync`] and [`Target::checkpoint`] have returned for
//!   survives power loss.
//! * **Dropping a target is a crash**: its stage stays and can be reopened.
//! * **Endings are idempotent**, because a crash between an ending and our note of it makes us call
//!   it again.
//! * **Nothing outside** the region's own place is ever opened, whatever the id.
//!
//! Methods return boxed futures so that regions can be used as trait objects; there are no default
//! methods, so that a wrapper that forgets one does not compile.

mod device;
pub(crate) mod dir;
mod file;
mod local;
pub(crate) mod memory;
mod stage;

use std::fmt::Debug;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::{Content, Digest, Durable, Sealed, Written};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, Geometry};
use crate::id::{ImageId, JobId};
use crate::job::{Fingerprint, JobSpec, Progress};
use crate::manifest::{Manifest, TableBuilder};
use crate::options::Limits;
use crate::plan::Extent;

pub use dir::DirRegion;
pub use file::FileRegion;
pub use memory::MemoryRegion;

/// A boxed future, as every method of a region returns one.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a region can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A stage is hidden, and commit shows the image at once. Otherwise the target is written in
    /// place, and its first chunk is written last.
    pub atomic_commit: bool,
    /// A new stage reads as zeros, so that zero chunks need no write.
    pub blank_target: bool,
    /// An image that was there before is kept when the copy is cancelled. Otherwise staging needs
    /// `destructive`.
    pub preserves_previous: bool,
}

impl Capabilities {
    /// A hidden, blank stage: what a directory or an object store gives.
    pub fn staged() -> Self {
        Self { atomic_commit: true, blank_target: true, preserves_previous: true }
    }

    /// Bytes are written where they stay: what a block device gives.
    pub fn in_place() -> Self {
        Self { atomic_commit: false, blank_target: false, preserves_previous: false }
    }
}

/// What is known of a committed image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its id.
    pub image: ImageId,
    /// Its size.
    pub image_bytes: u64,
    /// The root of its chunk table, where the region keeps manifests.
    pub root: Option<Digest>,
    /// The job that made it; `None` for an image that did not come from a copy.
    pub job: Option<JobId>,
}

impl ImageInfo {
    /// An image without manifest.
    pub fn new(image: ImageId, image_bytes: u64) -> Self {
        Self { image, image_bytes, root: None, job: None }
    }

    /// What its manifest says.
    pub fn of_manifest(image: ImageId, manifest: &Manifest) -> Self {
        Self {
            image,
            image_bytes: manifest.geometry().image_bytes(),
            root: Some(manifest.root()),
            job: manifest.job(),
        }
    }
}

/// What is under an image id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Located {
    /// Nothing.
    Absent,
    /// A copy that is neither committed nor cancelled.
    Staged(JobId),
    /// A committed image, and the job that made it if it came from a copy and the region knows.
    Committed(Option<JobId>),
}

/// A job found staged in a region.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StagedJob {
    /// What it is to do.
    pub spec: JobSpec,
    /// The number of its last attempt; 0 before the first.
    pub epoch: u32,
    /// Whether a live process owns it.
    pub owned: bool,
    /// Whether it was decided to cancel it.
    pub cancelled: bool,
    /// Its ceilings now.
    pub limits: Limits,
    /// What its owner last told of itself.
    pub progress: Option<Progress>,
}

impl StagedJob {
    /// A staged job that nobody runs and that has told nothing.
    pub fn new(spec: JobSpec) -> Self {
        let limits = spec.limits;
        Self { spec, epoch: 0, owned: false, cancelled: false, limits, progress: None }
    }
}

/// A region's answer to a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Vote {
    /// The job can never commit. `first`: this call decided it. `clean`: nothing of the job is
    /// left.
    Cancelled {
        /// Whether this call decided it; `false` when it had been decided before.
        first: bool,
        /// Whether nothing of it is left. If not, its owner is still draining: ask again.
        clean: bool,
    },
    /// The job has committed, and that is durable.
    Committed,
    /// There is no stage of this job and no image made by it.
    Unknown,
}

/// How a job was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The image is visible, complete and durable.
    Committed,
    /// A cancel came first: the image can never become visible.
    Cancelled,
}

/// What `recover` did about one staged job.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// The job.
    pub job: JobId,
    /// What it was to do, where that could be read.
    pub spec: Option<JobSpec>,
    /// What was done.
    pub settled: Settled,
}

impl Recovered {
    /// What was done about that job.
    pub fn new(job: JobId, spec: Option<JobSpec>, settled: Settled) -> Self {
        Self { job, spec, settled }
    }
}

/// What was done about a staged job.
#[derive(Debug)]
#[non_exhaustive]
pub enum Settled {
    /// A live process owns it: left alone.
    Running,
    /// Its commit had been decided and is finished.
    Committed,
    /// Its cancel had been decided and is finished: nothing of it is left.
    RolledBack,
    /// Its start had never been acknowledged: what there was is removed.
    Forgotten,
    /// It waits for resume or cancel.
    Kept,
    /// It could not be settled now.
    Failed(Error),
}

/// What a region remembers of the chunks that were durable when it was last heard of.
#[derive(Debug)]
pub struct Restored {
    /// The chunks and their digests.
    pub table: TableBuilder,
    /// How many of their bytes are data.
    pub data_bytes: u64,
}

impl Restored {
    /// Nothing is durable yet.
    pub fn new(geometry: Geometry) -> Self {
        Self { table: TableBuilder::new(geometry), data_bytes: 0 }
    }

    /// Takes in what a checkpoint recorded.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when it lies outside the image.
    pub fn record(&mut self, chunk: &Durable) -> Result<()> {
        let run = chunk.run();
        if run.count == 0 || !self.table.geometry().holds(run) {
            return Err(Error::new(ErrorKind::Corrupt, "restore chunks outside the image"));
        }
        if let Content::Data { data_bytes, .. } = chunk.content() {
            // A chunk that was written again after a failed verification is counted once.
            let counted = self.table.digest(run.first).is_some_and(|held| held.is_some());
            self.data_bytes += if counted { 0 } else { u64::from(data_bytes) };
        }
        self.table.put(run, chunk.content());
        Ok(())
    }
}

/// What others ask of the owner of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wishes {
    /// It was decided to cancel.
    pub cancelled: bool,
    /// Somebody wants this attempt to suspend.
    pub suspend: bool,
    /// New ceilings, once somebody has set any.
    pub limits: Option<Limits>,
}

/// A wish that is put before the owner of a stage, in whatever process it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wish {
    /// Suspend the attempt that runs now.
    Suspend,
    /// Use these ceilings from now on, also after a resume.
    Limit(Limits),
}

/// A place that holds images.
pub trait Region: Debug + Send + Sync {
    /// Where it is, for messages: a URL without a trailing slash.
    fn location(&self) -> String;

    /// What it can promise. Proven, not believed, where it takes a proof.
    fn capabilities(&self) -> Capabilities;

    /// Opens a committed image for reading.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) where there is none; `Corrupt` when its manifest
    /// does not verify.
    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>>;

    /// Stages a new image for the job, or reopens what the job has staged, and owns it.
    ///
    /// # Errors
    /// `Busy` while the job has another owner, or another job has the image staged; `Exists` when
    /// the image is there.
    ///
    /// # Durability
    /// A stage that was returned survives power loss, empty.
    ///
    /// # Cancel safety
    /// Restartable: a stage may have been made; the same call again takes it over.
    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>>;

    /// Reopens what the job has staged, and owns it.
    ///
    /// Unlike [`Region::stage`] it never stages anew: a job that was cancelled and cleaned in the
    /// meantime must not come back.
    ///
    /// # Errors
    /// `NotFound` when nothing of the job is staged; otherwise as [`Region::stage`].
    ///
    /// # Cancel safety
    /// Safe: a target that nobody takes is dropped.
    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>>;

    /// The committed images.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>>;

    /// Removes a committed image, for good; one that is not there is `NotFound`.
    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>>;

    /// What is under that id.
    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>>;

    /// The jobs staged here, in no particular order.
    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>>;

    /// The staged job of that number.
    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>>;

    /// Decides that the job shall not commit, unless it has, and cleans up unless a live owner is
    /// about to.
    ///
    /// # Durability
    /// A vote other than `Unknown` survives power loss.
    ///
    /// # Cancel safety
    /// Restartable.
    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>>;

    /// Puts a wish before the owner of the stage; `false` when there is no such stage.
    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>>;

    /// Settles every staged job that no live process owns, or just the one. Idempotent, also when
    /// it is interrupted.
    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>>;
}

/// A read-only view of one committed image. There is no way to write through it.
pub trait Source: Debug + Send + Sync {
    /// Where it is, for messages.
    fn location(&self) -> String;

    /// Size of the image in bytes, as it was when it was opened.
    fn size_bytes(&self) -> u64;

    /// What the image looks like now: facts that change when its bytes may have changed.
    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>>;

    /// Which bytes are claimed to be zero: neighbouring extents that cover at least the start of
    /// `range`, at most 1,024 of them. Only a claim that the region vouches for may be `Zero`.
    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>>;

    /// The digests of the image, where the region has them and vouches for them.
    fn manifest(&self) -> Option<Arc<Manifest>>;

    /// Reads exactly that range.
    ///
    /// # Errors
    /// `SourceChanged` when the image has become shorter.
    ///
    /// # Cancel safety
    /// Safe: a dropped read has no effect.
    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>>;

    /// The open file on this host, where there is one: the local lane then reads it directly.
    fn local(&self) -> Option<LocalFile>;
}

/// A stage that nobody sees: one image being written by one owner.
pub trait Target: Debug + Send + Sync {
    /// Where the image will be, for messages.
    fn location(&self) -> String;

    /// Begins an attempt: fences earlier ones, and returns what they made durable.
    ///
    /// # Durability
    /// The attempt is on record when this returns.
    fn begin(&self) -> BoxFuture<'_, Result<Restored>>;

    /// Writes one chunk.
    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>>;

    /// Makes a run of chunks read as zeros.
    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>>;

    /// Makes everything written so far durable.
    ///
    /// # Durability
    /// What was written before this was called survives power loss when it returns. A failed sync
    /// is not tried again.
    fn sync(&self) -> BoxFuture<'_, Result<()>>;

    /// Records chunks as done, so that a resume does not move them again.
    ///
    /// # Durability
    /// The record survives power loss when this returns.
    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>>;

    /// Reads staged bytes back, past caches where that can be had.
    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>>;

    /// Publishes the image, unless a cancel was decided first.
    ///
    /// # Durability
    /// Either outcome survives power loss when this returns.
    ///
    /// # Cancel safety
    /// Restartable: the decision may have been taken; the same call again, or `recover`, tells.
    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>>;

    /// After `Committed`: removes what is left of the stage.
    fn finish(&self) -> BoxFuture<'_, Result<()>>;

    /// Decides to cancel unless that was decided, and removes everything of the job.
    ///
    /// # Durability
    /// After `Cancelled`, nothing of the job is left, also after power loss.
    ///
    /// # Cancel safety
    /// Restartable: the same call again, or `recover`, completes it.
    fn discard(&self) -> BoxFuture<'_, Result<Outcome>>;

    /// What others ask of the owner.
    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>>;

    /// Tells others how far the job is. A label: it may be lost.
    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>>;

    /// The open file on this host, where there is one: the local lane then writes it directly.
    fn local(&self) -> Option<LocalFile>;
}

/// An open file on this host, for the local lane.
#[derive(Clone, Debug)]
pub struct LocalFile {
    pub(crate) file: Arc<File>,
    /// Whether the file system's word on holes can be trusted.
    pub(crate) trusts_holes: bool,
}

impl LocalFile {
    /// Hands a file of the caller's over to the local lane: one opened for reading as a source, for
    /// writing as a target.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when its file system cannot be looked up.
    pub fn new(file: impl Into<OwnedFd>) -> Result<Self> {
        Self::of(Arc::new(File::of_fd(file.into())))
    }

    pub(crate) fn of(file: Arc<File>) -> Result<Self> {
        let trusts_holes = file.holes_are_trusted()?;
        Ok(Self { file, trusts_holes })
    }
}

/// Runs blocking file work off the runtime's threads.
///
/// The work runs to its end even when the future is dropped: a write is never abandoned half way.
pub(crate) fn blocking<'a, T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> BoxFuture<'a, Result<T>> {
    Box::pin(async move {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::new(ErrorKind::Io, "run file work").because(error)),
        }
    })
}
