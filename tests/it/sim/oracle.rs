//! What may be seen and told: a destination holds nothing or exactly what was committed, and every
//! acknowledgement holds for ever.

use std::collections::BTreeMap;

use blockferry::engine::{CancelAnswer, CancelReply, JobOutcome};
use blockferry::id::JobId;
use blockferry::job::JobState;

use super::host::{DESTINATIONS, Host, Visible};

/// What was acknowledged of a job.
#[derive(Clone, Debug, Default)]
struct Known {
    destination: Option<usize>,
    /// Its start was acknowledged.
    started: bool,
    committed: bool,
    cancelled: bool,
    /// It was found that nothing of it is left, and that it did not commit.
    gone: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Every content that the source has had.
    versions: Vec<Vec<u8>>,
    jobs: BTreeMap<JobId, Known>,
    /// What was last seen at a destination, once a commit to it was acknowledged.
    held: [Option<Visible>; DESTINATIONS.len()],
    /// The wall clock has jumped: records of ended jobs may have come of age.
    pub(crate) may_forget: bool,
    /// The first contradiction.
    violation: Option<String>,
}

impl Oracle {
    pub(crate) fn knows_source(&mut self, bytes: Vec<u8>) {
        self.versions.push(bytes);
    }

    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn verdict(&self) -> Result<(), String> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    /// Jobs whose start was acknowledged.
    pub(crate) fn started(&self) -> Vec<(JobId, usize)> {
        let started = self.jobs.iter().filter(|(_, known)| known.started);
        started.map(|(job, known)| (*job, known.destination.unwrap())).collect()
    }

    fn known(&mut self, job: JobId) -> &mut Known {
        self.jobs.entry(job).or_default()
    }

    pub(crate) fn was_started(&mut self, job: JobId, destination: usize) {
        let known = self.known(job);
        (known.started, known.destination) = (true, Some(destination));
    }

    /// A job whose start was not acknowledged is there all the same.
    pub(crate) fn was_found(&mut self, job: JobId, destination: usize) {
        self.known(job).destination = Some(destination);
    }

    /// How a job ended, as its handle tells.
    pub(crate) fn was_told(&mut self, job: JobId, outcome: &JobOutcome) {
        match outcome {
            JobOutcome::Committed(_) => self.has_committed(job, "its handle"),
            JobOutcome::RolledBack { .. } => self.is_cancelled(job, "its handle"),
            JobOutcome::Failed { error, .. } if error.report().contains("panicked: ") => {
                self.violated(format!("job {job}: {}", error.report()));
            }
            JobOutcome::Failed { resumable: false, .. } => self.is_gone(job, "its handle"),
            _ => {}
        }
    }

    pub(crate) fn was_answered(&mut self, reply: &CancelReply) {
        let Some(job) = reply.job else { return };
        match reply.answer {
            CancelAnswer::Cancelled { .. } | CancelAnswer::AlreadyCancelled { .. } => {
                self.is_cancelled(job, "a cancel");
            }
            CancelAnswer::AlreadyCommitted => self.has_committed(job, "a cancel"),
            _ => {}
        }
    }

    pub(crate) fn was_shown(&mut self, job: JobId, state: JobState) {
        match state {
            JobState::Committed => self.has_committed(job, "the index"),
            JobState::RolledBack => self.is_gone(job, "the index"),
            JobState::Failed { resumable: false } => self.is_gone(job, "the index"),
            _ => {}
        }
    }

    fn has_committed(&mut self, job: JobId, by: &str) {
        let known = self.known(job);
        known.committed = true;
        if known.cancelled || known.gone {
            self.violated(format!("job {job} has committed, says {by}; it was cancelled before"));
        }
    }

    fn is_cancelled(&mut self, job: JobId, by: &str) {
        self.known(job).cancelled = true;
        self.is_gone(job, by);
    }

    fn is_gone(&mut self, job: JobId, by: &str) {
        let known = self.known(job);
        known.gone = true;
        if known.committed {
            self.violated(format!("job {job} is rolled back, says {by}; it had committed before"));
        }
    }

    /// Compares with what is visible now.
    pub(crate) fn look(&mut self, host: &Host) {
        for (n, name) in DESTINATIONS.iter().enumerate() {
            let seen = match host.visible(n) {
                Ok(seen) => seen,
                Err(what) => {
                    self.violated(what);
                    continue;
                }
            };
            let committed =
                self.jobs.values().any(|job| job.destination == Some(n) && job.committed);
            match (&seen, &self.held[n]) {
                (None, Some(_)) => self.violated(format!("{name}: a committed image is gone")),
                (Some(seen), Some(held)) if (&seen.bytes, seen.job) != (&held.bytes, held.job) => {
                    self.violated(format!("{name}: a committed image has changed"));
                }
                (None, None) if committed => {
                    self.violated(format!("{name}: its commit was told, and nothing is there"));
                }
                _ => {}
            }
            let Some(seen) = seen else { continue };
            if !self.versions.contains(&seen.bytes) {
                self.violated(format!("{name}: visible, and not what the source held"));
            }
            if let Some(job) = seen.job
                && self.jobs.get(&job).is_some_and(|known| known.gone)
            {
                self.violated(format!("{name}: made by job {job}, which was cancelled"));
            }
            let mut to_it = self.jobs.values().filter(|job| job.destination == Some(n)).peekable();
            if seen.job.is_none() && to_it.peek().is_some() && to_it.all(|job| job.gone) {
                self.violated(format!("{name}: visible, though all jobs to it were cancelled"));
            }
            if committed {
                self.held[n] = Some(seen);
            }
        }
    }
}
