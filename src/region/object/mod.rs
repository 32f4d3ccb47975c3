//! A prefix of an object store as a region: chunks as objects, one small head an image decides.
//!
//! What is where is told in [`rules`] (the protocol of heads) and in the manual's page on
//! [formats](crate::manual::formats). In short: an image is a *head*, a manifest, and one immutable
//! object a chunk; the head is changed only by swaps that fail if anybody else has changed it; and
//! the swap that leaves `Active` decides between commit and cancel, for every daemon that ever
//! comes. No file of the daemon that began a copy is needed to go on with it.

mod alike;
mod answers;
mod chunks;
mod claim;
mod decide;
#[cfg_attr(not(feature = "encrypt"), path = "unencrypted.rs")]
mod encrypted;
pub(crate) mod gather;
pub mod head;
mod household;
pub(crate) mod image;
mod keep;
mod local_heads;
pub(crate) mod names;
pub(crate) mod notes;
mod pulse;
mod register;
pub mod rules;
mod settle;
mod source;
mod stage;
mod sweep;
mod target;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::compress::Packer;
use crate::error::Result;
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Source, StagedJob, Target,
    Vote, Wish,
};
use crate::store::{Fencing, Store};

use encrypted::Keys;
use household::Household;
use local_heads::LocalHeads;
use pulse::Watch;
use register::Register;

pub use sweep::Swept;

/// How a region in an object store is used.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ObjectOptions {
    /// Whether chunks are packed where that pays; those that do not shrink are stored as they are.
    pub compress: bool,
    /// How often an owner shows that it lives.
    pub beat: Duration,
    /// Whoever has not moved for this long is taken for dead, and may be taken over.
    pub silence: Duration,
}

impl Default for ObjectOptions {
    fn default() -> Self {
        Self { compress: true, beat: Duration::from_secs(1), silence: Duration::from_secs(15) }
    }
}

/// A prefix of an object store as a region.
#[derive(Debug)]
pub struct ObjectRegion {
    shared: Arc<Shared>,
}

/// What a region, its sources and its targets share.
#[derive(Clone, Debug)]
struct Shared {
    store: Arc<dyn Store>,
    register: Arc<Register>,
    household: Arc<Household>,
    watch: Arc<Watch>,
    options: ObjectOptions,
    /// Idle ones; they keep libzstd's tables from chunk to chunk.
    packers: Arc<Mutex<Vec<Packer>>>,
    /// Without any, images are neither encrypted nor read where they are.
    keys: Keys,
}

impl ObjectRegion {
    /// Opens the region. Nothing is asked of the store yet: what it can be relied on for is found
    /// out, with real requests, when something is to be decided there for the first time. That
    /// fails as `Unsupported` when it ignores conditions, because then nothing keeps two daemons
    /// from deciding differently about one image, or when its listings lag behind.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when no random number can be drawn.
    pub fn open(store: Arc<dyn Store>, options: ObjectOptions) -> Result<Self> {
        let register = Register::new(store.clone(), None);
        Ok(Self::shared(store, register, options, Household::of_process()?))
    }

    /// Opens the region without a probe: the caller knows what the store has proven.
    ///
    /// # Errors
    /// As [`ObjectRegion::open`].
    pub fn with_fencing(
        store: Arc<dyn Store>,
        fencing: Fencing,
        options: ObjectOptions,
    ) -> Result<Self> {
        let register = Register::new(store.clone(), Some(fencing));
        Ok(Self::shared(store, register, options, Household::of_process()?))
    }

    /// Opens a region in a store that fences nothing, for a daemon that is the only one to write
    /// there: heads in `folder`, which is made where it is missing, decide in the store's stead.
    ///
    /// Nothing notices two daemons that decide at the same moment. What a second one has written is
    /// noticed later, and refused as [`ErrorKind::Fenced`](crate::ErrorKind::Fenced). Where others
    /// keep heads at the store, whatever is asked of the region is refused as `Unsupported`.
    ///
    /// # Errors
    /// Those of the folder.
    pub fn unfenced(
        store: Arc<dyn Store>,
        folder: impl AsRef<Path>,
        options: ObjectOptions,
    ) -> Result<Self> {
        let register = Register::decided_here(store.clone(), LocalHeads::open(folder.as_ref())?);
        Ok(Self::shared(store, register, options, Household::of_process()?))
    }

    /// The same, as another process would open it: who owns what in this one is not known to it.
    ///
    /// # Errors
    /// As [`ObjectRegion::with_fencing`].
    #[cfg(feature = "testing")]
    pub fn as_another_process(
        store: Arc<dyn Store>,
        fencing: Fencing,
        options: ObjectOptions,
    ) -> Result<Self> {
        let register = Register::new(store.clone(), Some(fencing));
        Ok(Self::shared(store, register, options, Household::new()?))
    }

    fn shared(
        store: Arc<dyn Store>,
        register: Register,
        options: ObjectOptions,
        household: Arc<Household>,
    ) -> Self {
        let (watch, packers, keys) = Default::default();
        let register = Arc::new(register);
        let shared = Shared { store, register, household, watch, options, packers, keys };
        Self { shared: Arc::new(shared) }
    }

    /// How two daemons are kept from deciding differently here; finds it out if need be.
    ///
    /// # Errors
    /// `Unsupported` when they are not kept from it; otherwise the store's own failure.
    ///
    /// # Cancel safety
    /// Restartable: a probe's objects may be left.
    pub async fn fencing(&self) -> Result<Fencing> {
        self.shared.register.fencing().await
    }

    /// What nobody wants any more: objects that an attempt wrote late, after it was fenced or its
    /// job cleaned, and what speaks of jobs that there are not. No reader sees any of it.
    ///
    /// Only what is older than `grace`, by the store's own clock. Removed if `apply`, else told.
    ///
    /// # Errors
    /// The store's own failure; `Corrupt` when a head or manifest that decides cannot be read.
    ///
    /// # Cancel safety
    /// Restartable: some may be gone.
    pub async fn sweep(&self, apply: bool, grace: Duration) -> Result<Vec<Swept>> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.shared.sweep(apply, grace_ms).await
    }
}

impl Shared {
    fn location(&self) -> String {
        self.store.location()
    }

    fn location_of(&self, image: &ImageId) -> String {
        format!("{}/{image}", self.store.location())
    }

    fn packers(&self) -> MutexGuard<'_, Vec<Packer>> {
        self.packers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObjectRegion {
    fn at<'a, T: Send + 'a>(
        &'a self,
        work: impl Future<Output = Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move { work.await.map_err(|error| error.within(self.shared.location())) })
    }
}

impl Region for ObjectRegion {
    fn location(&self) -> String {
        self.shared.location()
    }

    fn capabilities(&self) -> Capabilities {
        // What the store has acknowledged is on record: its listing says so.
        let encrypts = self.shared.keys.are_here();
        Capabilities { checkpoints_itself: true, encrypts, ..Capabilities::staged() }
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.at(self.shared.open(image))
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.at(self.shared.own(spec, false))
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.at(self.shared.own(spec, true))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.at(self.shared.list())
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.at(self.shared.remove(image))
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.at(self.shared.locate(image))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.at(self.shared.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.at(self.shared.told(job, false))
    }

    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        self.at(self.shared.cancel(job, image))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        self.at(self.shared.wish(job, wish))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.at(self.shared.recover(only))
    }
}
