//! Jobs in whatever process they run: what is known of them, and what they are asked by way of
//! their region.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::entry::Stop;
use crate::engine::{Inner, JobInfo, JobRecord, found_receipt, unknown};
use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::{JobSpec, JobState};
use crate::options::Limits;
use crate::region::{Located, Recovered, Region, Settled, Wish};

impl Inner {
    /// Completes a record with what the job's region knows.
    pub(super) async fn info(&self, record: JobRecord) -> JobInfo {
        let mut info = JobInfo {
            state: record.state,
            running: false,
            progress: None,
            limits: record.spec.limits,
            error: record.error,
            receipt: record.receipt,
            spec: record.spec,
        };
        if let Some(entry) = self.live().get(&info.spec.job) {
            info.progress = Some(entry.progress());
            info.limits = entry.gate.limits();
            (info.state, info.running) = (entry.state(), true);
            return info;
        }
        if info.state.is_final() {
            return info;
        }
        let Ok(region) = self.region(&info.spec.target.region) else { return info };
        // What a region cannot tell now is left as the index has it.
        let Ok(staged) = region.job(info.spec.job).await else { return info };
        // Read anew: its owner may have ended it since, and writes the record before it lets go.
        if staged.as_ref().is_none_or(|staged| !staged.owned)
            && let Ok(Some(newer)) = self.index.read(info.spec.job).await
            && newer.state.is_final()
        {
            (info.state, info.error, info.receipt) = (newer.state, newer.error, newer.receipt);
            return info;
        }
        let Some(staged) = staged else {
            info.state = self.ended_unseen(&*region, &info.spec).await.unwrap_or(info.state);
            return info;
        };
        info.running = staged.owned;
        info.limits = staged.limits;
        if let Some(progress) = &staged.progress
            && staged.owned
        {
            info.state = progress.state;
        }
        if staged.cancelled {
            info.state = JobState::Cancelling;
        } else if !staged.owned && info.state.is_running() {
            // Its process is gone: it waits for a resume.
            info.state = JobState::Suspended;
        }
        info.progress = staged.progress;
        info
    }

    pub(super) async fn note_recovered(
        &self,
        region: &dyn Region,
        found: &Recovered,
    ) -> Result<()> {
        let Some(spec) = &found.spec else { return Ok(()) };
        let known = self.index.read_usable(found.job).await?;
        let state = match &found.settled {
            Settled::Committed => JobState::Committed,
            Settled::RolledBack => JobState::RolledBack,
            Settled::Kept => match &known {
                Some(record) if !record.state.is_running() => return Ok(()),
                _ => JobState::Suspended,
            },
            Settled::Running | Settled::Forgotten | Settled::Failed(_) => return Ok(()),
        };
        let mut record = JobRecord::new(spec.clone(), state);
        if state == JobState::Committed {
            let earlier = known.and_then(|record| record.receipt);
            record.receipt = match earlier {
                Some(receipt) => Some(receipt),
                None => found_receipt(region, spec).await.ok(),
            };
        }
        self.index.write_seen(record).await
    }

    pub(super) async fn limit(&self, job: JobId, limits: Limits) -> Result<()> {
        let live = self.live().get(&job).cloned();
        if let Some(entry) = &live {
            entry.gate.set_limits(limits);
        }
        let region = match (live, self.index.read(job).await?) {
            (Some(entry), _) => self.region(&entry.spec.target.region)?,
            (None, Some(record)) => self.region(&record.spec.target.region)?,
            (None, None) => self.find_staged(job).await?.ok_or_else(|| unknown(job))?.0,
        };
        if region.wish(job, Wish::Limit(limits)).await? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, format!("limit job {job}"))
            .hint("it is not staged: it has ended, or was never started"))
    }

    pub(super) async fn suspend(&self, job: JobId) -> Result<JobState> {
        const PATIENCE: Duration = Duration::from_secs(30);
        const POLL: Duration = Duration::from_millis(20);
        let live = self.live().get(&job).cloned();
        if let Some(entry) = live {
            entry.ask(Stop::Suspend);
            entry.wait().await;
            return Ok(entry.state());
        }
        let record = self.index.read(job).await?;
        let region = match &record {
            Some(record) if record.state.is_final() => {
                return Err(Error::new(ErrorKind::Invalid, format!("suspend job {job}"))
                    .hint(format!("it has ended: {}", record.state)));
            }
            Some(record) => self.region(&record.spec.target.region)?,
            None => self.find_staged(job).await?.ok_or_else(|| unknown(job))?.0,
        };
        let deadline = Instant::now() + PATIENCE;
        let mut wished = None;
        while let Some(staged) = region.job(job).await?.filter(|staged| staged.owned) {
            // A wish is for one attempt: one that had not begun yet must be asked again.
            if wished != Some(staged.epoch) {
                region.wish(job, Wish::Suspend).await?;
                wished = Some(staged.epoch);
            }
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Unavailable, format!("suspend job {job}"))
                    .hint("its process does not answer; the wish stays on record"));
            }
            tokio::time::sleep(POLL).await;
        }
        // A job whose process died is as good as suspended, whatever it last wrote.
        let state = self.index.read(job).await?.map(|record| record.state);
        Ok(state.filter(|state| !state.is_running()).unwrap_or(JobState::Suspended))
    }

    /// How a job ended whose stage is gone though its record does not say so: somebody has ended it
    /// by way of another index, or its end could not be written. In one index, the record of a
    /// commit is written before the stage goes.
    pub(super) async fn ended_unseen(
        &self,
        region: &dyn Region,
        spec: &JobSpec,
    ) -> Result<JobState> {
        let has_committed = match region.locate(&spec.target.image).await? {
            Located::Committed(Some(job)) => job == spec.job,
            Located::Committed(None) => {
                may_be_its_own(region, spec).await? && !self.is_of_a_later_job(spec).await?
            }
            _ => false,
        };
        Ok(if has_committed { JobState::Committed } else { JobState::RolledBack })
    }

    /// Whether what is at a job's destination was put there by one that came after it.
    async fn is_of_a_later_job(&self, spec: &JobSpec) -> Result<bool> {
        let records = self.records_of(&spec.target.region, &spec.target.image).await?;
        Ok(records.iter().any(|other| {
            other.spec.job != spec.job
                && other.state == JobState::Committed
                && other.spec.created_unix_ms >= spec.created_unix_ms
        }))
    }
}

/// A plain file does not tell who made it, but one of another size is a stranger's. A device is
/// always there, so it tells nothing.
async fn may_be_its_own(region: &dyn Region, spec: &JobSpec) -> Result<bool> {
    if !region.capabilities().atomic_commit {
        return Ok(false);
    }
    let there = region.open(&spec.target.image).await?;
    Ok(there.size_bytes() == spec.geometry.image_bytes())
}
