//! Journals in the state folder: of copies to a place that cannot hold one itself.

use std::path::{Path, PathBuf};

use crate::disk::{Dir, DirClaim};
use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::journal::{JOURNAL, Journal, Open};
use crate::region::stage::{put_wish, staged_job};
use crate::region::{Recovered, Settled, StagedJob, Wish};

/// The folder of the state folder that holds a folder per job, each with its journal.
const IN_PLACE: &str = "in-place";

/// The journals of copies to one place.
#[derive(Debug)]
pub(crate) struct Journals {
    folder: PathBuf,
    /// The place, as journals name it.
    name: String,
}

/// One job's folder, open.
#[derive(Debug)]
pub(crate) struct Stage {
    parent: Dir,
    pub(crate) dir: Dir,
    pub(crate) job: JobId,
}

impl Stage {
    /// Removes the journal, and the folder, in which nothing else may be any more.
    pub(crate) fn remove(&self) -> Result<()> {
        self.dir.remove_file(JOURNAL)?;
        self.parent.remove_dir(&self.job.to_string())?;
        self.parent.sync()
    }
}

impl Journals {
    pub(crate) fn new(state_dir: &Path, name: &str) -> Self {
        Self { folder: state_dir.join(IN_PLACE), name: name.to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn parent(&self) -> Result<Dir> {
        Dir::open_or_create_path(&self.folder)
    }

    /// Keeps out everybody else who is about to make one.
    pub(crate) fn claim(&self) -> Result<DirClaim> {
        self.parent()?.claim()
    }

    /// Makes what was removed here gone for good.
    pub(crate) fn sync(&self) -> Result<()> {
        self.parent()?.sync()
    }

    /// Makes a job's folder, durable, without a journal yet.
    pub(crate) fn make(&self, job: JobId) -> Result<Stage> {
        let parent = self.parent()?;
        let dir = parent.make_dir(&job.to_string(), 0o700)?;
        parent.sync()?;
        Ok(Stage { parent, dir, job })
    }

    fn find(&self, job: JobId) -> Result<Option<Stage>> {
        let parent = self.parent()?;
        let dir = parent.find_dir(&job.to_string())?;
        Ok(dir.map(|dir| Stage { parent, dir, job }))
    }

    /// The stage of a job that copies to this place. That of a job to another place is none here:
    /// whoever acts on it would act on the wrong device.
    pub(crate) fn watch(&self, job: JobId) -> Result<Option<(Stage, Journal)>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        let journal = Journal::watch(&stage.dir, job)?;
        let ours = journal.filter(|journal| journal.header().name == self.name);
        Ok(ours.map(|journal| (stage, journal)))
    }

    /// The stage of a job that is to be ended or taken over at this place.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is staged for another place; [`ErrorKind::Corrupt`] when
    /// nobody can tell for which.
    pub(crate) fn find_staged(&self, job: JobId) -> Result<Option<Stage>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        let Some(journal) = Journal::watch(&stage.dir, job)? else {
            return self.refuse_damaged(&stage).map(|()| None);
        };
        let name = &journal.header().name;
        if *name == self.name {
            return Ok(Some(stage));
        }
        let what = format!("end or go on with job {job} at {}: it copies to {name}", self.name);
        Err(Error::new(ErrorKind::Invalid, what).hint("name that place as its destination"))
    }

    /// Every job that has a folder here, whatever its place.
    fn all(&self) -> Result<Vec<JobId>> {
        let names = self.parent()?.names(|name| name.parse::<JobId>().is_ok())?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The jobs staged for this place.
    pub(crate) fn jobs(&self) -> Result<Vec<StagedJob>> {
        let mut jobs = Vec::new();
        for job in self.all()? {
            jobs.extend(self.job(job)?);
        }
        Ok(jobs)
    }

    pub(crate) fn job(&self, job: JobId) -> Result<Option<StagedJob>> {
        self.watch(job)?.map(|(_, journal)| staged_job(&journal)).transpose()
    }

    /// Puts a wish before the owner; `None` when somebody else is doing so at this moment.
    pub(crate) fn try_wish(&self, job: JobId, wish: Wish) -> Result<Option<bool>> {
        match self.watch(job)? {
            Some((_, journal)) => put_wish(&journal, wish),
            None => Ok(Some(false)),
        }
    }

    /// Settles all jobs staged for this place, or only one: `settle` decides about one whose
    /// journal is ours now, `remove` clears a start that nobody was told of.
    pub(crate) fn recover(
        &self,
        only: Option<JobId>,
        remove: &dyn Fn(&Stage) -> Result<()>,
        settle: impl Fn(&Stage, &Journal) -> Result<Settled>,
    ) -> Result<Vec<Recovered>> {
        let mut failed = self.forget_unacknowledged(only, remove)?;
        // Nobody may conclude that it has ended, where its place is only named wrongly.
        if let Some(job) = only
            && failed.is_empty()
            && let Err(error) = self.find_staged(job)
        {
            failed.push(Recovered::new(job, None, Settled::Failed(error)));
        }
        let mut all = self.jobs()?;
        all.retain(|staged| only.is_none_or(|only| only == staged.spec.job));
        let settle_one = |staged: StagedJob| {
            let job = staged.spec.job;
            self.settle(job, &settle).unwrap_or_else(|error| {
                Recovered::new(job, Some(staged.spec), Settled::Failed(error))
            })
        };
        Ok(failed.into_iter().chain(all.into_iter().map(settle_one)).collect())
    }

    /// Settles all jobs staged for this place.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`], about that action, when one of them still copies to it.
    pub(crate) fn make_way(
        &self,
        action: &'static str,
        settle: impl Fn(&Stage, &Journal) -> Result<Settled>,
    ) -> Result<()> {
        for staged in self.jobs()? {
            let job = staged.spec.job;
            let settled = self.settle(job, &settle)?.settled;
            if !matches!(settled, Settled::RolledBack | Settled::Committed) {
                return Err(Error::new(ErrorKind::Busy, action)
                    .hint(format!("job {job} copies to it: wait, resume or cancel that one")));
            }
        }
        Ok(())
    }

    fn settle(
        &self,
        job: JobId,
        settle: impl Fn(&Stage, &Journal) -> Result<Settled>,
    ) -> Result<Recovered> {
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
        let settled = settle(&stage, &journal)?;
        Ok(Recovered::new(job, Some(spec), settled))
    }

    /// Starts that nobody was told of left a folder without a header, and wrote nothing. Tells of
    /// those that are damaged instead: nobody knows any more where they copied to.
    fn forget_unacknowledged(
        &self,
        only: Option<JobId>,
        remove: &dyn Fn(&Stage) -> Result<()>,
    ) -> Result<Vec<Recovered>> {
        // The claim keeps out those who are just making one.
        let _claim = self.claim()?;
        let mut damaged = Vec::new();
        for job in self.all()?.into_iter().filter(|job| only.is_none_or(|only| only == *job)) {
            if let Err(error) = self.forget_one(job, remove) {
                damaged.push(Recovered::new(job, None, Settled::Failed(error)));
            }
        }
        Ok(damaged)
    }

    /// Removes what a start left that was never acknowledged, so that it may be made anew. Under
    /// the claim.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when records show that it was acknowledged, and its header is gone.
    pub(crate) fn forget_one(
        &self,
        job: JobId,
        remove: &dyn Fn(&Stage) -> Result<()>,
    ) -> Result<()> {
        let Some(stage) = self.find(job)? else { return Ok(()) };
        if Journal::watch(&stage.dir, job)?.is_some() {
            return Ok(());
        }
        self.refuse_damaged(&stage)?;
        remove(&stage)
    }

    /// A journal without a valid header is that of a start which nobody was told of, unless records
    /// show that the header was lost later.
    fn refuse_damaged(&self, stage: &Stage) -> Result<()> {
        let job = stage.job;
        match Journal::open(&stage.dir, job, &mut |_| {}) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let folder = self.folder.join(job.to_string());
                let what = format!("read the journal of job {job}: where it copied to is lost");
                Err(Error::new(ErrorKind::Corrupt, what)
                    .hint(format!("settle that by hand, then remove {}", folder.display()))
                    .because(error))
            }
            opened => opened.map(drop),
        }
    }
}
