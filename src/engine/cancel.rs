//! Cancel, from whatever process: who is asked, what is answered, and how long one waits for clean.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::entry::Stop;
use crate::engine::index::JobRecord;
use crate::engine::{Inner, drive, found_receipt};
use crate::error::Result;
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{JobSpec, JobState};
use crate::region::{Located, Region, Vote};

/// How long a cancel waits for clean.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(30);
const CLEAN_POLL: Duration = Duration::from_millis(10);

/// The answer to a cancel; the same on every repeat, from any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelAnswer {
    /// This call decided it: the job can never commit.
    Cancelled {
        /// Nothing of the job is left. If not, its clean-up goes on.
        clean: bool,
    },
    /// It had been decided before.
    AlreadyCancelled {
        /// Nothing of the job is left.
        clean: bool,
    },
    /// The job has committed: its image stays.
    AlreadyCommitted,
    /// There is no such job, and no such image.
    NotFound,
    /// The image there was not made by a copy.
    NotACopy,
    /// The job has ended in a failure that left nothing to cancel.
    NotCancellable,
}

impl CancelAnswer {
    /// The stable name, as in the command line's JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancelled { .. } => "cancelled",
            Self::AlreadyCancelled { .. } => "already_cancelled",
            Self::AlreadyCommitted => "already_committed",
            Self::NotFound => "not_found",
            Self::NotACopy => "not_a_copy",
            Self::NotCancellable => "not_cancellable",
        }
    }

    /// The job can never commit.
    pub fn is_decided(self) -> bool {
        matches!(self, Self::Cancelled { .. } | Self::AlreadyCancelled { .. })
    }

    /// The job can never commit, and nothing of it is left.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Cancelled { clean: true } | Self::AlreadyCancelled { clean: true })
    }
}

/// What a cancel found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CancelReply {
    /// The job, where one was found.
    pub job: Option<JobId>,
    /// The answer.
    pub answer: CancelAnswer,
    /// From the call until the region had decided it. None if this call neither decided it nor
    /// found it decided there.
    pub decided_after: Option<Duration>,
    /// From the call until it was seen that nothing of the job is left; as above, and None if the
    /// clean-up goes on.
    pub clean_after: Option<Duration>,
}

impl CancelReply {
    fn new(job: Option<JobId>, answer: CancelAnswer) -> Self {
        Self { job, answer, decided_after: None, clean_after: None }
    }
}

impl Inner {
    pub(super) async fn cancel(self: &Arc<Self>, job: JobId) -> Result<CancelReply> {
        self.cancel_since(Instant::now(), job).await
    }

    /// `began` is when the caller asked, for the times in the reply.
    async fn cancel_since(self: &Arc<Self>, began: Instant, job: JobId) -> Result<CancelReply> {
        let live = self.live().get(&job).map(|entry| entry.spec.clone());
        let record = self.index.read_usable(job).await?;
        let known = live.or_else(|| record.as_ref().map(|record| record.spec.clone()));
        let (region, spec) = match known {
            Some(spec) => match self.region(&spec.target.region) {
                Ok(region) => (region, spec),
                Err(error) => match record.as_ref().and_then(answer_of_record) {
                    Some(answer) => return Ok(CancelReply::new(Some(job), answer)),
                    None => return Err(error),
                },
            },
            None => match self.find_staged(job).await? {
                Some((region, staged)) => (region, staged.spec),
                None => return Ok(CancelReply::new(None, CancelAnswer::NotFound)),
            },
        };
        let (mut decided_after, mut clean_after) = (None, None);
        let answer = match region.cancel(job, &spec.target.image).await? {
            Vote::Cancelled { first, clean } => {
                decided_after = Some(began.elapsed());
                let clean = self.see_clean(&region, job, &spec.target.image, clean).await;
                clean_after = clean.then(|| began.elapsed());
                self.note_cancel(&region, &spec, clean).await;
                if first {
                    CancelAnswer::Cancelled { clean }
                } else {
                    CancelAnswer::AlreadyCancelled { clean }
                }
            }
            Vote::Committed => {
                self.note_commit(&*region, &spec).await;
                CancelAnswer::AlreadyCommitted
            }
            Vote::Unknown => {
                // Read anew: the job may have ended since; its record goes before its stage does.
                let record = self.index.read(job).await?;
                match record.as_ref().and_then(answer_of_record) {
                    Some(answer) => answer,
                    None if self.ended_unseen(&*region, &spec).await? == JobState::Committed => {
                        self.note_commit(&*region, &spec).await;
                        CancelAnswer::AlreadyCommitted
                    }
                    None => {
                        self.note_cancel(&region, &spec, true).await;
                        CancelAnswer::AlreadyCancelled { clean: true }
                    }
                }
            }
        };
        Ok(CancelReply { job: Some(job), answer, decided_after, clean_after })
    }

    pub(super) async fn cancel_image(
        self: &Arc<Self>,
        name: &RegionName,
        image: &ImageId,
    ) -> Result<CancelReply> {
        let began = Instant::now();
        let region = self.region(name)?;
        match region.locate(image).await? {
            Located::Staged(job) => {
                let reply = self.cancel_since(began, job).await?;
                if reply.answer != CancelAnswer::NotFound {
                    return Ok(reply);
                }
                // Nothing is known of it but where it is staged.
                return self.cancel_unknown(began, &region, job, image).await;
            }
            Located::Committed(Some(job)) => {
                // Its commit may not be durable yet: the region sees to that before it answers.
                // A plain file whose owner has finished since is unknown; its commit is durable.
                let vote = region.cancel(job, image).await?;
                debug_assert!(matches!(vote, Vote::Committed | Vote::Unknown), "{vote:?}");
                return Ok(CancelReply::new(Some(job), CancelAnswer::AlreadyCommitted));
            }
            Located::Committed(None) => {
                // Regions without manifests do not know who made an image; the index may.
                let mut records = self.records_of(name, image).await?;
                // The wall clock may have been set back since: of all, the one that has committed.
                records.retain(|record| record.state == JobState::Committed);
                return Ok(match latest(records) {
                    Some(record) => {
                        CancelReply::new(Some(record.spec.job), CancelAnswer::AlreadyCommitted)
                    }
                    None => CancelReply::new(None, CancelAnswer::NotACopy),
                });
            }
            Located::Cancelled(job) => {
                // Its record, where there is one here, is put right; the region needs none.
                return match self.index.read_usable(job).await? {
                    Some(_) => self.cancel_since(began, job).await,
                    None => {
                        // Whoever cancelled it may have died before the last of it was gone, and
                        // somebody may have started it anew since.
                        let answer = match region.cancel(job, image).await? {
                            Vote::Cancelled { first: true, clean } => {
                                CancelAnswer::Cancelled { clean }
                            }
                            Vote::Cancelled { first: false, clean } => {
                                CancelAnswer::AlreadyCancelled { clean }
                            }
                            Vote::Committed => CancelAnswer::AlreadyCommitted,
                            Vote::Unknown => CancelAnswer::AlreadyCancelled { clean: true },
                        };
                        Ok(CancelReply::new(Some(job), answer))
                    }
                };
            }
            Located::Absent => {}
        }
        match latest(self.records_of(name, image).await?) {
            Some(record) => self.cancel_since(began, record.spec.job).await,
            None => Ok(CancelReply::new(None, CancelAnswer::NotFound)),
        }
    }

    pub(super) async fn records_of(
        &self,
        name: &RegionName,
        image: &ImageId,
    ) -> Result<Vec<JobRecord>> {
        let mut records = self.index.all().await?;
        records.retain(|r| r.spec.target.region == *name && r.spec.target.image == *image);
        Ok(records)
    }

    /// Cancels a job of which no record is left, neither here nor in its region.
    async fn cancel_unknown(
        &self,
        began: Instant,
        region: &Arc<dyn Region>,
        job: JobId,
        image: &ImageId,
    ) -> Result<CancelReply> {
        let (first, clean) = match region.cancel(job, image).await? {
            Vote::Cancelled { first, clean } => (first, clean),
            Vote::Committed => {
                return Ok(CancelReply::new(Some(job), CancelAnswer::AlreadyCommitted));
            }
            Vote::Unknown => return Ok(CancelReply::new(None, CancelAnswer::NotFound)),
        };
        let decided_after = Some(began.elapsed());
        let clean = self.see_clean(region, job, image, clean).await;
        let answer = match first {
            true => CancelAnswer::Cancelled { clean },
            false => CancelAnswer::AlreadyCancelled { clean },
        };
        let clean_after = clean.then(|| began.elapsed());
        Ok(CancelReply { job: Some(job), answer, decided_after, clean_after })
    }

    /// Waits until nothing of a cancelled job is left, at most 30 seconds.
    async fn see_clean(
        &self,
        region: &Arc<dyn Region>,
        job: JobId,
        image: &ImageId,
        clean: bool,
    ) -> bool {
        let live = self.live().get(&job).cloned();
        if let Some(entry) = &live {
            entry.ask(Stop::Cancel);
        }
        let deadline = Instant::now() + CLEAN_TIMEOUT;
        let mut clean = clean;
        while !clean && Instant::now() < deadline {
            if let Some(entry) = &live {
                tokio::select! {
                    biased;
                    _ended = entry.wait() => {}
                    () = sleep(CLEAN_TIMEOUT) => return false,
                }
            } else {
                sleep(CLEAN_POLL).await;
            }
            // Decided it is; a region that cannot clean now is asked again until the time is up.
            let vote = region.cancel(job, image).await;
            clean = matches!(vote, Ok(Vote::Cancelled { clean: true, .. } | Vote::Unknown));
            if live.is_some() && !clean {
                return false;
            }
        }
        clean
    }

    async fn note_cancel(self: &Arc<Self>, region: &Arc<dyn Region>, spec: &JobSpec, clean: bool) {
        let live = self.live().contains_key(&spec.job);
        if live {
            // Its own task writes the record.
            return;
        }
        let state = if clean { JobState::RolledBack } else { JobState::RollbackPending };
        // The region is the truth; an index that cannot be written now is rebuilt by `recover`.
        self.index.write_seen(JobRecord::new(spec.clone(), state)).await.ok();
        if !clean {
            drive::keep_rolling_back(self.clone(), spec.clone(), region.clone());
        }
    }

    async fn note_commit(&self, region: &dyn Region, spec: &JobSpec) {
        // The region is the truth; an index that cannot be read or written now is rebuilt by
        // `recover`.
        let Ok(known) = self.index.read_usable(spec.job).await else { return };
        if known.is_some_and(|record| record.state == JobState::Committed) {
            return;
        }
        let mut record = JobRecord::new(spec.clone(), JobState::Committed);
        record.receipt = found_receipt(region, spec).await.ok();
        self.index.write_seen(record).await.ok();
    }
}

fn latest(records: Vec<JobRecord>) -> Option<JobRecord> {
    records.into_iter().max_by_key(|record| record.spec.created_unix_ms)
}

/// What the index answers for a job whose stage is gone.
fn answer_of_record(record: &JobRecord) -> Option<CancelAnswer> {
    match record.state {
        JobState::Committed => Some(CancelAnswer::AlreadyCommitted),
        JobState::RolledBack => Some(CancelAnswer::AlreadyCancelled { clean: true }),
        JobState::Failed { resumable: false } => Some(CancelAnswer::NotCancellable),
        _ => None,
    }
}
