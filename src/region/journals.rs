//! Journals in the state folder: of copies to a place that cannot hold one itself.

use std::path::{Path, PathBuf};

use crate::disk::{Dir, DirClaim};
use crate::error::Result;
use crate::id::JobId;
use crate::journal::{JOURNAL, Journal};
use crate::region::stage::{put_wish, staged_job};
use crate::region::{StagedJob, Wish};

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

    pub(crate) fn find(&self, job: JobId) -> Result<Option<Stage>> {
        let parent = self.parent()?;
        let dir = parent.find_dir(&job.to_string())?;
        Ok(dir.map(|dir| Stage { parent, dir, job }))
    }

    pub(crate) fn watch(&self, job: JobId) -> Result<Option<(Stage, Journal)>> {
        let Some(stage) = self.find(job)? else { return Ok(None) };
        Ok(Journal::watch(&stage.dir, job)?.map(|journal| (stage, journal)))
    }

    /// The place that a job copies to.
    fn name_of(&self, job: JobId) -> Result<Option<String>> {
        Ok(self.watch(job)?.map(|(_, journal)| journal.header().name.clone()))
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
            if self.name_of(job)?.as_deref() == Some(self.name.as_str()) {
                jobs.extend(self.job(job)?);
            }
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

    /// Starts that nobody was told of left a folder without a header, and wrote nothing.
    pub(crate) fn forget_unacknowledged(
        &self,
        remove: &dyn Fn(&Stage) -> Result<()>,
    ) -> Result<()> {
        // The claim keeps out those who are just making one.
        let _claim = self.claim()?;
        for job in self.all()? {
            if self.watch(job)?.is_none()
                && let Some(stage) = self.find(job)?
            {
                remove(&stage)?;
            }
        }
        Ok(())
    }
}
