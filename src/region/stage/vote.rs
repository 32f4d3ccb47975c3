//! What others do to a stage that is not theirs: look at it, ask something of its owner, cancel it.

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::journal::{Journal, Settlement, settle};
use crate::region::{StagedJob, Vote, Wish};
use crate::sabotage;

use super::{Layout, StageStore, read_manifest};

impl StageStore {
    /// Puts a wish before the owner; `None` when somebody else is doing so at this moment.
    pub(crate) fn try_wish(&self, job: JobId, wish: Wish) -> Result<Option<bool>> {
        let Some(stage) = self.find(job)? else { return Ok(Some(false)) };
        let Some(journal) = Journal::watch(&stage.dir, job)? else { return Ok(Some(false)) };
        put_wish(&journal, wish)
    }

    /// Decides to cancel unless the job has committed, and cleans up unless it has a live owner.
    ///
    /// `None`: somebody holds the decision at this moment; ask again.
    pub(crate) fn try_cancel(&self, job: JobId, image: &ImageId) -> Result<Option<Vote>> {
        let Some(stage) = self.find(job)? else {
            self.sync_removal()?;
            return self.vote_without_stage(job, image);
        };
        let Some(journal) = Journal::watch(&stage.dir, job)? else {
            // Nobody can publish a stage without header; it needs no decision, only a broom.
            let _claim = stage.parent.claim()?;
            if Journal::watch(&stage.dir, job)?.is_some() {
                // Its owner was just making it: it takes a decision after all.
                return Ok(None);
            }
            let held = self.holds_data(&stage)?;
            self.clean(&stage.parent, &stage.dir, job)?;
            if !held {
                // The last step of an ending may have been cut short: others tell which it was.
                return self.vote_without_stage(job, image);
            }
            return Ok(Some(Vote::Cancelled { first: true, clean: true }));
        };
        // The id that a token gives comes again once its job is forgotten: that job may have made
        // this image, and be copying another now.
        if self.layout == Layout::Images && journal.header().name != image.as_str() {
            return self.vote_without_stage(job, image);
        }
        let Some(decision) = journal.try_decide()? else { return Ok(None) };
        if !journal.is_still_in(&stage.dir)? {
            return Ok(None);
        }
        let first = match settle(self.found(&stage, &journal)?) {
            Settlement::FinishCommit => {
                drop(decision);
                sabotage::unless("D7", || self.sync_published(&stage))?;
                // Whoever owned it may have removed it, and somebody may have made another since.
                if journal.try_own()? && journal.is_still_in(&stage.dir)? {
                    self.remove(&stage.parent, &stage.dir, job)?;
                }
                return Ok(Some(Vote::Committed));
            }
            Settlement::FinishCancel => false,
            Settlement::Keep | Settlement::Lost | Settlement::Forget => true,
        };
        // Order: durable before it is told; who wrote it may have died before its sync.
        decision.cancel()?;
        drop(decision);
        let clean = journal.try_own()?;
        match clean && journal.is_still_in(&stage.dir)? {
            true => self.clean(&stage.parent, &stage.dir, job)?,
            // Whoever owned it has removed it, and may not have come to its sync.
            false if clean => self.sync_removal()?,
            false => {}
        }
        Ok(Some(Vote::Cancelled { first, clean }))
    }

    /// Whoever removes what stands under that name takes away what shows that its job has
    /// committed: not before that is on record.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while it is not.
    pub(crate) fn refuse_unsettled(&self, name: &str) -> Result<()> {
        match self.job_staging(name)? {
            Some(job) if self.has_published(job)? => {
                Err(Error::new(ErrorKind::Busy, format!("remove {name}: job {job} is just ending"))
                    .hint("ask again; if its process has died, recover the region first")
                    .retryable(true))
            }
            _ => Ok(()),
        }
    }

    /// Order: a stage that is gone is gone for good before anybody is told; whoever removed it may
    /// not have come to its sync.
    fn sync_removal(&self) -> Result<()> {
        sabotage::unless("M4", || match self.find_parent()? {
            Some(parent) => parent.sync(),
            None => Ok(()),
        })
    }

    /// The stage is gone: the job has committed if the image says so, and is unknown otherwise.
    fn vote_without_stage(&self, job: JobId, image: &ImageId) -> Result<Option<Vote>> {
        if self.layout == Layout::Files {
            return Ok(Some(Vote::Unknown));
        }
        let ours = match self.root.find_dir(image.as_str())? {
            Some(dir) => read_manifest(&dir)?.is_some_and(|described| described.job() == Some(job)),
            None => false,
        };
        if ours {
            sabotage::unless("D7", || self.root.sync())?;
        }
        Ok(Some(if ours { Vote::Committed } else { Vote::Unknown }))
    }
}

/// What a journal that is only watched tells of its job.
pub(crate) fn staged_job(journal: &Journal) -> Result<StagedJob> {
    let mut found = StagedJob::new(journal.header().spec.clone());
    let status = journal.status()?;
    found.epoch = status.as_ref().map_or(0, |status| status.epoch);
    found.owned = journal.is_owned_elsewhere()?;
    found.cancelled = journal.is_cancelled()?;
    found.limits = journal.control()?.limits.unwrap_or(found.limits);
    found.progress = status.map(|status| status.progress);
    Ok(found)
}

/// Puts a wish into the control slot; `None` when somebody else is doing so at this moment.
pub(crate) fn put_wish(journal: &Journal, wish: Wish) -> Result<Option<bool>> {
    let epoch = journal.status()?.map_or(0, |status| status.epoch);
    let set = journal.try_set_control(|control| match wish {
        Wish::Suspend => control.suspend_epoch = Some(epoch),
        Wish::Limit(limits) => control.limits = Some(limits),
    })?;
    Ok(set.then_some(true))
}
