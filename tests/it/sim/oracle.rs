//! What may be seen and told: a destination holds nothing or exactly what was committed, and every
//! acknowledgement holds for ever.

use std::collections::BTreeMap;

use blockferry::engine::{CancelAnswer, CancelReply, JobOutcome};
use blockferry::id::JobId;
use blockferry::job::{JobState, Receipt};

use super::host::{DESTINATIONS, FILE, Host, Visible};

/// What was acknowledged of a job.
#[derive(Clone, Debug, Default)]
struct Known {
    destination: Option<usize>,
    /// Its start was acknowledged.
    started: bool,
    committed: bool,
    cancelled: bool,
    /// It was found that it did not commit, and never will.
    gone: bool,
    /// Nothing of it is left, and nothing may come back.
    clean: bool,
    /// Somebody has asked for its cancel, whatever came of it.
    asked: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Every content that the source has had.
    versions: Vec<Vec<u8>>,
    jobs: BTreeMap<JobId, Known>,
    /// What was last seen at a destination, once a commit to it was acknowledged.
    held: [Option<Visible>; DESTINATIONS.len()],
    /// Somebody has asked for a cancel of what goes there, whatever came of it.
    asked_to: [bool; DESTINATIONS.len()],
    /// What somebody else has put at the place of the plain file.
    stranger: Option<Vec<u8>>,
    /// The wall clock has jumped: records of ended jobs may have come of age.
    pub(crate) may_forget: bool,
    /// Calls fail with `EIO`: a stage that cannot be looked at keeps nobody out.
    pub(crate) may_overlook: bool,
    /// The first contradiction.
    violation: Option<String>,
}

impl Oracle {
    pub(crate) fn knows_source(&mut self, bytes: Vec<u8>) {
        self.versions.push(bytes);
    }

    pub(crate) fn knows_stranger(&mut self, bytes: Option<Vec<u8>>) {
        self.stranger = bytes.or(self.stranger.take());
    }

    /// Somebody asks for a cancel of that job.
    pub(crate) fn is_asked(&mut self, job: JobId) {
        self.known(job).asked = true;
    }

    /// Somebody asks for a cancel of whatever goes there.
    pub(crate) fn is_asked_at(&mut self, destination: usize) {
        self.asked_to[destination] = true;
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
        let may_be_anew = self.may_forget;
        let known = self.known(job);
        if may_be_anew && known.gone {
            // Its record has come of age: the same token begins the same job anew.
            *known = Known { asked: known.asked, ..Known::default() };
        }
        (known.started, known.destination) = (true, Some(destination));
    }

    /// A job whose start was not acknowledged is there all the same.
    pub(crate) fn was_found(&mut self, job: JobId, destination: usize) {
        self.known(job).destination = Some(destination);
    }

    /// How a job ended, as its handle tells.
    pub(crate) fn was_told(&mut self, job: JobId, outcome: &JobOutcome) {
        match outcome {
            JobOutcome::Committed(receipt) => {
                self.has_committed(job, "its handle");
                self.adds_up(job, receipt);
            }
            JobOutcome::RolledBack { clean } => {
                self.is_cancelled(job, "its handle");
                self.known(job).clean |= *clean;
            }
            JobOutcome::Failed { error, .. }
                if ["panicked: ", "account for moves"]
                    .iter()
                    .any(|bug| error.report().contains(bug)) =>
            {
                self.violated(format!("job {job}: {}", error.report()));
            }
            JobOutcome::Failed { resumable: false, .. } => self.is_gone(job, "its handle"),
            _ => {}
        }
    }

    /// What a resume found on record is not moved again, and the rest is moved once.
    fn adds_up(&mut self, job: JobId, receipt: &Receipt) {
        let moved = receipt.resumed_bytes + receipt.written_bytes + receipt.reused_bytes;
        let was_found = receipt.read_bytes == 0 && receipt.written_bytes == 0;
        if !was_found && receipt.verified.rewritten_chunks == 0 && moved != receipt.data_bytes {
            self.violated(format!("job {job}: {moved} bytes are moved or there, {receipt:?}"));
        }
    }

    /// A cancel by its id, of a job that was acknowledged, finds it.
    pub(crate) fn was_answered_of(&mut self, asked: JobId, reply: &CancelReply) {
        let is_lost = reply.job.is_none() && self.known(asked).started && !self.may_forget;
        if is_lost || reply.job.is_some_and(|job| job != asked) {
            self.violated(format!("job {asked}: a cancel of it is told {reply:?}"));
        }
        self.was_answered(reply);
    }

    pub(crate) fn was_answered(&mut self, reply: &CancelReply) {
        let Some(job) = reply.job else { return };
        match reply.answer {
            CancelAnswer::NotFound | CancelAnswer::NotACopy => {
                self.violated(format!("job {job}: a cancel of it is told {:?}", reply.answer));
            }
            CancelAnswer::Cancelled { .. } | CancelAnswer::AlreadyCancelled { .. } => {
                self.is_cancelled(job, "a cancel");
                self.known(job).clean |= reply.answer.is_clean();
            }
            CancelAnswer::AlreadyCommitted => self.has_committed(job, "a cancel"),
            _ => {}
        }
    }

    pub(crate) fn was_shown(&mut self, job: JobId, state: JobState) {
        match state {
            JobState::Committed => self.has_committed(job, "the index"),
            JobState::RolledBack | JobState::Failed { resumable: false } => {
                self.is_gone(job, "the index");
                self.known(job).clean = true;
                let known = self.known(job).clone();
                let asked = known.asked || known.destination.is_some_and(|to| self.asked_to[to]);
                // A job whose source has changed ends by itself.
                if known.started && !asked && self.versions.len() == 1 {
                    self.violated(format!("job {job} is rolled back, and nobody has asked for it"));
                }
            }
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
        self.look_at_stages(host);
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
            if let Some(stranger) = self.stranger.as_ref().filter(|_| n == FILE) {
                if committed || seen.is_none_or(|seen| seen.bytes != *stranger) {
                    self.violated(format!("{name}: what was there has been replaced"));
                }
                continue;
            }
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

    /// Of a job that is clean nothing is left; and of two jobs to one destination, one waits for
    /// the other to end.
    fn look_at_stages(&mut self, host: &Host) {
        let mut to = [None; DESTINATIONS.len()];
        for (job, holds_bytes) in host.staged() {
            let known = self.jobs.get(&job).cloned().unwrap_or_default();
            if known.clean {
                self.violated(format!("job {job} was told to be clean, and its stage is there"));
            }
            let Some(destination) = known.destination.filter(|_| known.started && holds_bytes)
            else {
                continue;
            };
            if let Some(rival) = to[destination].replace(job)
                && !self.may_overlook
            {
                let name = DESTINATIONS[destination];
                self.violated(format!("{name}: jobs {rival} and {job} are both staged"));
            }
        }
    }
}
