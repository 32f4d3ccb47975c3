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

pub(crate) mod base;
mod buffers;
mod device;
pub(crate) mod dir;
#[cfg_attr(not(feature = "encrypt"), path = "unencrypted.rs")]
pub(crate) mod encrypted;
mod file;
mod journals;
mod local;
pub(crate) mod memory;
#[cfg(feature = "object")]
pub mod object;
#[cfg(feature = "object")]
mod object_plain;
#[cfg(feature = "peer")]
pub(crate) mod peer;
mod stage;
mod values;

use std::fmt::Debug;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::disk::{File, FileSystem};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun};
use crate::host;
use crate::id::{ImageId, JobId, KeyId};
use crate::job::{Fingerprint, JobSpec, Progress};
use crate::manifest::{Manifest, TableBuilder};
use crate::plan::Extent;

pub(crate) use encrypted::{CELL_BYTES, ChunkOpener, ChunkSealer, EncryptedFile};

pub use dir::DirRegion;
pub use file::FileRegion;
pub use memory::MemoryRegion;
#[cfg(feature = "object")]
pub use object_plain::PlainObjectRegion;
#[cfg(feature = "peer")]
pub use peer::{PeerOptions, PeerRegion, Verification};
pub use values::{
    Capabilities, ImageInfo, Located, Outcome, Recovered, Restored, Settled, StagedJob, Vote, Wish,
    Wishes,
};

/// A boxed future, as every method of a region returns one.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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
    ///
    /// # Cancel safety
    /// Safe: a source that nobody takes is dropped.
    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>>;

    /// Stages a new image for the job, or reopens what the job has staged, and owns it.
    ///
    /// # Errors
    /// `Busy` while the job has another owner, or another job has the image staged; `Exists` when
    /// the image is there. Where the job names a base and is not staged yet: `NotFound` when it is
    /// missing, `Invalid` when it is cut in chunks of another size, `Unsupported` when it, or the
    /// new image, is encrypted.
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
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>>;

    /// Removes a committed image.
    ///
    /// # Errors
    /// `NotFound` where there is none; `Unsupported` where images cannot be removed.
    ///
    /// # Durability
    /// The image is gone for good when this returns.
    ///
    /// # Cancel safety
    /// Restartable: a half removed image is no image any more; the same call again removes the
    /// rest.
    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>>;

    /// What is under that id.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>>;

    /// The jobs staged here, in no particular order.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>>;

    /// The staged job of that number.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>>;

    /// Decides that the job shall not commit, unless it has, and cleans up unless a live owner is
    /// about to.
    ///
    /// # Errors
    /// `Busy` while somebody else has been deciding for half a minute; otherwise the region's own
    /// failure: then nothing was decided, or it was and the clean-up could not finish. Ask again.
    ///
    /// # Durability
    /// A vote other than `Unknown` survives power loss.
    ///
    /// # Cancel safety
    /// Restartable: it may have been decided; the same call again tells, and completes it.
    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>>;

    /// Puts a wish before the owner of the stage; `false` when there is no such stage.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Durability
    /// A wish for other ceilings survives power loss when this returns, and holds after a resume.
    ///
    /// # Cancel safety
    /// Restartable: the wish may be on record.
    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>>;

    /// Settles every staged job that no live process owns, or just the one. Idempotent, also when
    /// it is interrupted.
    ///
    /// # Errors
    /// The region's own failure to look; what fails for one job is told in its `Settled::Failed`.
    ///
    /// # Durability
    /// What is reported as settled survives power loss when this returns.
    ///
    /// # Cancel safety
    /// Restartable: what was decided stays decided; the same call again completes it.
    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>>;
}

/// A read-only view of one committed image. There is no way to write through it.
pub trait Source: Debug + Send + Sync {
    /// Where it is, for messages.
    fn location(&self) -> String;

    /// Size of the image in bytes, as it was when it was opened.
    fn size_bytes(&self) -> u64;

    /// What the image looks like now: facts that change when its bytes may have changed.
    ///
    /// # Errors
    /// `SourceChanged` when the image can no longer be found where it was.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>>;

    /// Which bytes are claimed to be zero: neighbouring extents that cover at least the start of
    /// `range`, at most 1,024 of them. Only a claim that the region vouches for may be `Zero`.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>>;

    /// The digests of the image, where the region has them and vouches for them.
    fn manifest(&self) -> Option<Arc<Manifest>>;

    /// The key under which the image is encrypted where it lies; `None` for one that is not, as far
    /// as this side knows. Reads give its bytes in clear all the same.
    fn key(&self) -> Option<KeyId>;

    /// Reads exactly that range of bytes, which must lie within the image.
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
    ///
    /// # Errors
    /// `Corrupt` when what is staged does not fit its records; `Invalid` on a second call.
    ///
    /// # Cancel safety
    /// Restartable in a new target: the attempt may be on record, which costs nothing.
    fn begin(&self) -> BoxFuture<'_, Result<Restored>>;

    /// Writes one chunk at its place; again is fine.
    ///
    /// # Errors
    /// `NoSpace`, or the region's own failure, retryable where the same call may succeed.
    ///
    /// # Cancel safety
    /// Restartable: some bytes may be written, and may still be being written.
    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>>;

    /// Makes a run of chunks read as zeros.
    ///
    /// # Errors
    /// As [`Target::write`].
    ///
    /// # Cancel safety
    /// Restartable: some bytes may be zero already.
    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>>;

    /// Makes everything written so far durable.
    ///
    /// # Durability
    /// What was written before this was called survives power loss when it returns. A failed sync
    /// is not tried again.
    ///
    /// # Errors
    /// The device's failure: nothing written since the last sync that returned may be taken as
    /// durable.
    ///
    /// # Cancel safety
    /// Safe, but proves nothing when dropped.
    fn sync(&self) -> BoxFuture<'_, Result<()>>;

    /// Records chunks as done, so that a resume does not move them again.
    ///
    /// # Durability
    /// The record survives power loss when this returns.
    ///
    /// # Errors
    /// The region's own failure: the job must be reopened before it is recorded in again.
    ///
    /// # Cancel safety
    /// Restartable in a new target: the record may be there or not.
    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>>;

    /// Reads staged bytes back, past caches where that can be had.
    ///
    /// # Errors
    /// The region's own failure. Fewer bytes than asked for are no error: they do not verify.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>>;

    /// Publishes the image, unless a cancel was decided first.
    ///
    /// # Errors
    /// `Exists` when a stranger took the name; `Busy` while somebody else has been deciding for
    /// half a minute; otherwise the region's own failure, after which the decision may have been
    /// taken.
    ///
    /// # Durability
    /// Either outcome survives power loss when this returns.
    ///
    /// # Cancel safety
    /// Restartable: the decision may have been taken; the same call again, or `recover`, tells.
    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>>;

    /// After `Committed`: removes what is left of the stage.
    ///
    /// # Errors
    /// The region's own failure; `recover` removes the rest.
    ///
    /// # Cancel safety
    /// Restartable.
    fn finish(&self) -> BoxFuture<'_, Result<()>>;

    /// Decides to cancel unless that was decided, and removes everything of the job.
    ///
    /// # Errors
    /// The region's own failure: what was decided stays decided, and `recover` completes it.
    ///
    /// # Durability
    /// After `Cancelled`, nothing of the job is left, also after power loss.
    ///
    /// # Cancel safety
    /// Restartable: the same call again, or `recover`, completes it.
    fn discard(&self) -> BoxFuture<'_, Result<Outcome>>;

    /// What others ask of the owner. A wish to suspend that was meant for an owner before it is
    /// forgotten.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>>;

    /// Tells others how far the job is. A label: it may be lost.
    ///
    /// # Errors
    /// The region's own failure.
    ///
    /// # Cancel safety
    /// Safe: at worst nobody is told.
    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>>;

    /// The open file on this host, where there is one: the local lane then writes it directly.
    fn local(&self) -> Option<LocalFile>;
}

/// A committed image of the same region, from which a stage takes over what both have alike.
///
/// A target gives it with what it begins with ([`Restored::base`]), where the job names one and the
/// region [can](Capabilities::takes_base).
pub trait Base: Debug + Send + Sync {
    /// What may be taken over, cut as the new image is: chunks of data only. A claim that the
    /// region vouches for, and that [`Base::take`] proves.
    fn table(&self) -> &TableBuilder;

    /// Puts these chunks into the stage as the base has them, and proves them: they are hashed once
    /// they are there, or on their way. `share`: they may share the base's extents, where the file
    /// system can; a region elsewhere decides that itself.
    ///
    /// The chunks are not on record, and nobody else writes them meanwhile. Those that it does not
    /// return read as zeros where the stage was blank: the base does not hold them, or not what
    /// [`Base::table`] says. They have to be written.
    ///
    /// # Errors
    /// As [`Target::write`].
    ///
    /// # Cancel safety
    /// Restartable: some bytes may be there, and may still be on their way.
    fn take(&self, run: ChunkRun, share: bool) -> BoxFuture<'_, Result<Vec<Written>>>;
}

/// An open file on this host, for the local lane.
#[derive(Clone, Debug)]
pub struct LocalFile {
    pub(crate) file: Arc<File>,
    pub(crate) file_system: FileSystem,
    /// What else there is of an image that is encrypted.
    pub(crate) encrypted: Option<Arc<EncryptedFile>>,
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
        let file_system = file.file_system()?;
        Ok(Self { file, file_system, encrypted: None })
    }
}

/// For a region that cannot encrypt: what is to be encrypted does not come there in clear.
pub(crate) fn refuse_key(spec: &JobSpec) -> Result<()> {
    if spec.key.is_none() { Ok(()) } else { Err(no_keys(spec)) }
}

pub(crate) fn no_keys(spec: &JobSpec) -> Error {
    let key = spec.key.as_ref().map_or("no key", KeyId::as_str);
    Error::new(ErrorKind::Unsupported, format!("stage an image encrypted under {key}")).hint(
        "only regions of folders and of object stores encrypt images, if they were given keys",
    )
}

/// An encrypted image takes nothing over from another: what lies in clear has no place in it, and
/// whether two images have chunks alike is not for anybody to see.
#[cfg(feature = "encrypt")]
pub(crate) fn refuse_base(spec: &JobSpec) -> Result<()> {
    if spec.base.is_none() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "stage an encrypted image with a base").hint(
        "copy without a base: every chunk of an encrypted image is written under its own key",
    ))
}

/// Runs blocking file work off the runtime's threads.
///
/// The work runs to its end even when the future is dropped: a write is never abandoned half way.
pub(crate) fn blocking<'a, T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> BoxFuture<'a, Result<T>> {
    Box::pin(async move {
        match host::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(Error::new(ErrorKind::Io, "run file work").because(error)),
        }
    })
}
