//! A block device as a region of one image, written in place: nothing hides the copy while it runs.

mod owned;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Dir, File};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::journal::{Found, Header, JOURNAL, Journal, Open, Published, Settlement, settle};
use crate::region::local::LocalSource;
use crate::region::stage::{open_restoring, put_wish, staged_job, until_decided};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Restored, Settled, Source,
    StagedJob, Target, Vote, Wish, blocking,
};

use owned::DeviceStage;

/// The folder of the state folder that holds a folder per job, each with its journal.
const IN_PLACE: &str = "in-place";

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
    journals: PathBuf,
}

impl DeviceRegion {
    pub(super) fn new(path: PathBuf, location: String, state_dir: &Path) -> Self {
        let journals = state_dir.join(IN_PLACE);
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

/// One job's folder, open.
#[derive(Debug)]
struct Stage {
    parent: Dir,
    dir: Dir,
    job: JobId,
}

impl Shared {
    fn stage(self: &Arc<Self>, spec: &JobSpec) -> Result<DeviceStage> {
        if !spec.destructive {
            return Err(Error::new(ErrorKind::Invalid, "overwrite a block device")
                .hint("its content will be lost: say --destructive if you mean it"));
        }
        let parent = Dir::open_or_create_path(&self.journals)?;
        let _claim = parent.claim()?;
        if let Some(stage) = self.find(spec.job)? {
            if Journal::watch(&stage.dir, stage.job)?.is_some() {
                return self.take_over(stage, spec);
            }
            // A start that was never acknowledged: nothing was written to the device yet.
            remove(&stage)?;
        }
        for job in jobs_in(&parent)? {
            if self.name_of(job)?.as_deref() == Some(self.name())
                && !matches!(self.settle(job)?.settled, Settled::RolledBack | Settled::Committed)
            {
                return Err(Error::new(ErrorKind::Busy, "stage a block device")
                    .hint(format!("job {job} copies to it: wait, resume or cancel that one")));
            }
        }
        let device = self.open_device(spec)?;
        let dir = parent.make_dir(&spec.job.to_string(), 0o700)?;
        parent.sync()?;
        let header = Header { spec: spec.clone(), name: self.name().to_owned() };
        let journal = Journal::create(&dir, header)?;
        dir.sync()?;
        let stage = Stage { parent, dir, job: spec.job };
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

    fn name(&self) -> &str {
        // Checked when the region was opened.
        self.path.to_str().unwrap_or_default()
    }

    fn find(&self, job: JobId) -> Result<Option<Stage>> {
        let parent = Dir::open_or_create_path(&self.journals)?;
        let dir = parent.find_dir(&job.to_string())?;
        Ok(dir.map(|dir| Stage { parent, dir, job }))
    }

    fn watch(&self, job: JobId) -> Result<Option<(Stage, Journal)>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        Ok(Journal::watch(&stage.dir, job)?.map(|journal| (stage, journal)))
    }

    fn name_of(&self, job: JobId) -> Result<Option<String>> {
        Ok(self.watch(job)?.map(|(_, journal)| journal.header().name.clone()))
    }

    /// The jobs staged for this device.
    fn jobs(&self) -> Result<Vec<StagedJob>> {
        let parent = Dir::open_or_create_path(&self.journals)?;
        let mut jobs = Vec::new();
        for job in jobs_in(&parent)? {
            if self.name_of(job)?.as_deref() == Some(self.name()) {
                jobs.extend(self.job(job)?);
            }
        }
        Ok(jobs)
    }

    fn job(&self, job: JobId) -> Result<Option<StagedJob>> {
        self.watch(job)?.map(|(_, journal)| staged_job(&journal)).transpose()
    }

    fn try_wish(&self, job: JobId, wish: Wish) -> Result<Option<bool>> {
        match self.watch(job)? {
            Some((_, journal)) => put_wish(&journal, wish),
            None => Ok(Some(false)),
        }
    }

    fn try_cancel(self: &Arc<Self>, job: JobId) -> Result<Option<Vote>> {
        let Some((stage, watched)) = self.watch(job)? else {
            // Order: gone for good before anybody is told; whoever removed it may not have come to
            // its sync.
            Dir::open_or_create_path(&self.journals)?.sync()?;
            return Ok(Some(Vote::Unknown));
        };
        // The decision may be in the log, so it is read under the right to decide.
        let Some(decision) = watched.try_decide()? else { return Ok(None) };
        let opened = match Journal::open(&stage.dir, job, &mut |_| {}) {
            // Its owner may have been appending while we read: only at rest is it damage.
            Err(error) if error.kind() == ErrorKind::Corrupt && watched.is_owned_elsewhere()? => {
                return Ok(None);
            }
            opened => opened?,
        };
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
        self.forget_unacknowledged()?;
        let mut all = self.jobs()?;
        all.retain(|staged| only.is_none_or(|only| only == staged.spec.job));
        let settle_one = |staged: StagedJob| {
            let job = staged.spec.job;
            self.settle(job).unwrap_or_else(|error| {
                Recovered::new(job, Some(staged.spec), Settled::Failed(error))
            })
        };
        Ok(all.into_iter().map(settle_one).collect())
    }

    /// Starts that nobody was told of left a folder without a header, and wrote nothing.
    fn forget_unacknowledged(&self) -> Result<()> {
        let parent = Dir::open_or_create_path(&self.journals)?;
        // The claim keeps out those who are just making one.
        let _claim = parent.claim()?;
        for job in jobs_in(&parent)? {
            if self.watch(job)?.is_none()
                && let Some(stage) = self.find(job)?
            {
                remove(&stage)?;
            }
        }
        Ok(())
    }

    fn settle(&self, job: JobId) -> Result<Recovered> {
        let Some(stage) = self.find(job)? else {
            return Ok(Recovered::new(job, None, Settled::Forgotten));
        };
        // Order: owned before it is read, or an append by its owner looks like damage.
        let journal = match Journal::take_over(&stage.dir, job, &mut |_| {}) {
            Ok(Some(Open::Valid(journal))) => journal,
            Err(error) if error.kind() != ErrorKind::Busy => return Err(error),
            Ok(_) | Err(_) => {
                let spec = self.job(job)?.map(|told| told.spec);
                return Ok(Recovered::new(job, spec, Settled::Running));
            }
        };
        let spec = journal.header().spec.clone();
        let settled = match settle(found(&journal)?) {
            Settlement::FinishCommit => {
                remove(&stage)?;
                Settled::Committed
            }
            Settlement::FinishCancel => match journal.try_decide()? {
                Some(decision) => {
                    decision.cancel()?;
                    clean_up(&stage, &journal, &self.open_device(&spec)?)?;
                    Settled::RolledBack
                }
                None => Settled::Running,
            },
            Settlement::Keep | Settlement::Lost | Settlement::Forget => Settled::Kept,
        };
        Ok(Recovered::new(job, Some(spec), settled))
    }
}

fn jobs_in(parent: &Dir) -> Result<Vec<JobId>> {
    let names = parent.names(|name| name.parse::<JobId>().is_ok())?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
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
    remove(stage)
}

fn remove(stage: &Stage) -> Result<()> {
    stage.dir.remove_file(JOURNAL)?;
    stage.parent.remove_dir(&stage.job.to_string())?;
    stage.parent.sync()
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
            let stage = shared.find(spec.job)?.ok_or_else(|| {
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
            let staged = shared.jobs()?.first().map(|staged| staged.spec.job);
            Ok(staged.map_or(Located::Committed(None), Located::Staged))
        })
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.with(|shared| shared.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.with(move |shared| shared.job(job))
    }

    fn cancel<'a>(&'a self, job: JobId, _image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || {
            shared.try_cancel(job).map_err(|error| error.within(shared.location.clone()))
        }))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || shared.try_wish(job, wish)))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.with(move |shared| shared.recover(only))
    }
}
