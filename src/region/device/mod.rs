//! A block device as a region of one image, written in place: nothing hides the copy while it runs.

mod owned;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::journal::{Found, Header, Journal, Open, Published, Settlement, settle};
use crate::region::journals::{Journals, Stage};
use crate::region::local::LocalSource;
use crate::region::stage::{open_restoring, until_decided};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Restored, Settled, Source,
    StagedJob, Target, Vote, Wish, blocking,
};

use owned::DeviceStage;

/// A block device. Its first chunk is written last, after everything else is durable; a rollback
/// writes zeros over the whole image. Neither gives back what the device held before.
#[derive(Debug)]
pub(super) struct DeviceRegion {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    location: String,
    journals: Journals,
}

impl DeviceRegion {
    pub(super) fn new(path: PathBuf, location: String, state_dir: &Path) -> Self {
        // It is UTF-8: that was checked when the region was opened.
        let journals = Journals::new(state_dir, path.to_str().unwrap_or_default());
        Self { shared: Arc::new(Shared { path, location, journals }) }
    }

    fn with<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let shared = self.shared.clone();
        blocking(move || work(&shared).map_err(|error| error.within(shared.location.clone())))
    }
}

impl Shared {
    fn stage(self: &Arc<Self>, spec: &JobSpec) -> Result<DeviceStage> {
        crate::region::refuse_key(spec)?;
        if !spec.destructive {
            return Err(Error::new(ErrorKind::Invalid, "overwrite a block device")
                .hint("its content will be lost: say --destructive if you mean it"));
        }
        let _claim = self.journals.claim()?;
        if let Some(stage) = self.journals.find_staged(spec.job)? {
            return self.take_over(stage, spec);
        }
        // Nothing was written to the device before a start was acknowledged.
        self.journals.forget_one(spec.job, &Stage::remove)?;
        self.journals
            .make_way("stage a block device", |stage, journal| self.settled(stage, journal))?;
        let device = self.open_device(spec)?;
        let stage = self.journals.make(spec.job)?;
        let header = Header { spec: spec.clone(), name: self.journals.name().to_owned() };
        let journal = Journal::create(&stage.dir, header)?;
        stage.dir.sync()?;
        Ok(DeviceStage::new(stage, journal, device, Restored::new(spec.geometry)))
    }

    fn take_over(self: &Arc<Self>, stage: Stage, spec: &JobSpec) -> Result<DeviceStage> {
        let (journal, restored) = open_restoring(&stage.dir, spec)?;
        let device = self.open_device(spec)?;
        journal.forget_suspend()?;
        Ok(DeviceStage::new(stage, journal, device, restored))
    }

    fn open_device(&self, spec: &JobSpec) -> Result<File> {
        let device = File::open_device(&self.path).map_err(|error| {
            error.hint("the device is mounted or in use, or you may not write it")
        })?;
        let (has, needs) = (device.len()?, spec.geometry.image_bytes());
        if has < needs {
            let what = format!("copy {needs} bytes to a device of {has}");
            return Err(Error::new(ErrorKind::NoSpace, what).hint("use a larger device"));
        }
        Ok(device)
    }

    fn try_cancel(self: &Arc<Self>, job: JobId) -> Result<Option<Vote>> {
        let Some((stage, watched)) = self.journals.watch(job)? else {
            self.journals.find_staged(job)?;
            // Order: gone for good before anybody is told; whoever removed it may not have come to
            // its sync.
            self.journals.sync()?;
            return Ok(Some(Vote::Unknown));
        };
        // The decision may be in the log, so it is read under the right to decide.
        let Some(decision) = watched.try_decide()? else { return Ok(None) };
        let opened = Journal::open(&stage.dir, job, &mut |_| {})?;
        let Some(Open::Valid(journal)) = opened else { return Ok(None) };
        let first = match settle(found(&journal)?) {
            Settlement::FinishCommit => {
                // Order: durable before it is told; its owner may have died before its sync.
                journal.sync()?;
                return Ok(Some(Vote::Committed));
            }
            Settlement::FinishCancel => false,
            Settlement::Keep | Settlement::Lost | Settlement::Forget => true,
        };
        // Order: durable before it is told; who wrote it may have died before its sync.
        decision.cancel()?;
        drop(decision);
        if !watched.try_own()? {
            return Ok(Some(Vote::Cancelled { first, clean: false }));
        }
        // Read anew: its owner may have begun to write since, and be gone only now.
        let journal = match Journal::open(&stage.dir, job, &mut |_| {})? {
            Some(Open::Valid(journal)) => journal,
            _ => return Ok(Some(Vote::Cancelled { first, clean: false })),
        };
        let clean = self.try_clean_up(&stage, &journal)?;
        Ok(Some(Vote::Cancelled { first, clean }))
    }

    /// Rolls back unless somebody still has the device open; tells whether it did.
    fn try_clean_up(&self, stage: &Stage, journal: &Journal) -> Result<bool> {
        match self.open_device(&journal.header().spec) {
            Ok(device) => clean_up(stage, journal, &device).map(|()| true),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn recover(&self, only: Option<JobId>) -> Result<Vec<Recovered>> {
        self.journals.recover(only, &Stage::remove, |stage, journal| self.settled(stage, journal))
    }

    fn settled(&self, stage: &Stage, journal: &Journal) -> Result<Settled> {
        Ok(match settle(found(journal)?) {
            Settlement::FinishCommit => {
                stage.remove()?;
                Settled::Committed
            }
            Settlement::FinishCancel => match journal.try_decide()? {
                Some(decision) => {
                    decision.cancel()?;
                    clean_up(stage, journal, &self.open_device(&journal.header().spec)?)?;
                    Settled::RolledBack
                }
                None => Settled::Running,
            },
            Settlement::Keep | Settlement::Lost | Settlement::Forget => Settled::Kept,
        })
    }
}

/// In place, the `done` record is the decision; nothing is renamed.
fn found(journal: &Journal) -> Result<Found> {
    Ok(Found {
        acknowledged: true,
        cancelled: journal.is_cancelled()?,
        done: journal.is_done(),
        prepared: journal.prepared().is_some(),
        staged: true,
        published: Published::Nothing,
    })
}

/// Rolls back: zeros over the image if an attempt was ever begun, then the journal goes.
fn clean_up(stage: &Stage, journal: &Journal, device: &File) -> Result<()> {
    if journal.epoch() > 0 {
        device.write_zeroes(journal.header().spec.geometry.whole())?;
        device.sync_all()?;
    }
    stage.remove()
}

impl Region for DeviceRegion {
    fn location(&self) -> String {
        self.shared.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::in_place()
    }

    fn open<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.with(|shared| {
            let (path, location) = (shared.path.clone(), shared.location.clone());
            let source: Arc<dyn Source> = Arc::new(LocalSource::open_path(path, location)?);
            Ok(source)
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let spec = spec.clone();
        self.with(move |shared| shared.stage(&spec)?.into_target(shared.location.clone()))
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let spec = spec.clone();
        self.with(move |shared| {
            let stage = shared.journals.find_staged(spec.job)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("take over job {}", spec.job))
                    .hint("nothing of it is staged any more")
            })?;
            shared.take_over(stage, &spec)?.into_target(shared.location.clone())
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.with(|shared| {
            let image: ImageId = crate::location::FILE_IMAGE.parse()?;
            Ok(vec![ImageInfo::new(image, File::open_path(&shared.path)?.len()?)])
        })
    }

    fn remove<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.with(|_| Err(Error::new(ErrorKind::Unsupported, "remove a block device")))
    }

    fn locate<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.with(|shared| {
            let staged = shared.journals.jobs()?.first().map(|staged| staged.spec.job);
            Ok(staged.map_or(Located::Committed(None), Located::Staged))
        })
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.with(|shared| shared.journals.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.with(move |shared| shared.journals.job(job))
    }

    fn cancel<'a>(&'a self, job: JobId, _image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || {
            shared.try_cancel(job).map_err(|error| error.within(shared.location.clone()))
        }))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || shared.journals.try_wish(job, wish)))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.with(move |shared| shared.recover(only))
    }
}
