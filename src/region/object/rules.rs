//! The protocol of a head, as tables: what is found → what is done. Pure.
//!
//! Every image of the region has one small record, its *head*. It is changed in one way only: by a
//! swap that succeeds if nobody else has changed it since it was read. So the swap that leaves
//! [`Phase::Active`] is the decision between commit and cancel, whoever makes it:
//!
//! ```text
//!             claim               begin: epoch + 1
//!   nothing ────────▶ Active(job) ◀──────────────┐ take over: another owner
//!      ▲                │  │  └──────────────────┘
//!      │      commit    │  │ cancel
//!      │       ┌────────┘  └────────▶ Aborting ──── nothing of it is left ───▶ Aborted ─┐
//!      │       ▼                                                                        │
//!      │   Committed ──── remove ───▶ Removing ──── nothing of it is left ───▶ Removed ─┤
//!      └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The head of a committed image is also swapped when its data key is wrapped anew: for itself,
//! with another key named.
//!
//! A head is never deleted: `Aborted` and `Removed` are tombstones, and as good as nothing for the
//! next claim. Epochs count attempts at the *image*, over all jobs, so that no key of a chunk is
//! ever used a second time: a late write or delete of an attempt that was fenced hits nobody else.
//!
//! Whether an owner lives is a guess that costs time when it is wrong, and nothing else: one that
//! was taken for dead has lost its head, and every swap of its own fails.

use crate::id::JobId;
use crate::region::Outcome;

/// What makes one write of a head different from every other: 128 random bits.
pub type Txn = [u8; 16];

/// Who holds the claim: a process, and which of its claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Drawn once by each process.
    pub process: [u8; 16],
    /// Drawn once for each claim.
    pub claim: [u8; 16],
}

/// Where an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// A job has it staged.
    Active,
    /// It is visible.
    Committed,
    /// Its job was cancelled; what it wrote is being removed.
    Aborting,
    /// Its job was cancelled, and nothing of it is left.
    Aborted,
    /// It was removed, and so is being what it is made of.
    Removing,
    /// It was removed, and nothing of it is left.
    Removed,
}

/// What the rules look at in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sight {
    /// Counts the heads of the image, from 1.
    pub seq: u64,
    /// This write of it.
    pub txn: Txn,
    /// The write that it replaced; zeros in the first.
    pub prev: Txn,
    /// The job that has it staged, or was the last to.
    pub job: JobId,
    /// Who runs that job, or was the last to.
    pub owner: Owner,
    /// Attempts at the image so far, by all jobs.
    pub epoch: u32,
    /// How many of them were made before this job.
    pub base: u32,
    /// Where it stands.
    pub phase: Phase,
    /// The job before this one, and how it was decided.
    pub past: Option<(JobId, Outcome)>,
}

impl Sight {
    /// A new job claims the image.
    pub fn claimed(from: Option<&Self>, job: JobId, owner: Owner, txn: Txn) -> Self {
        let epoch = from.map_or(0, |from| from.epoch);
        Self {
            seq: from.map_or(0, |from| from.seq).saturating_add(1),
            txn,
            prev: from.map_or([0; 16], |from| from.txn),
            job,
            owner,
            epoch,
            base: epoch,
            phase: Phase::Active,
            past: from.and_then(|from| from.decided().map(|how| (from.job, how))),
        }
    }

    /// Another owner takes the job over: the one before is fenced.
    #[must_use]
    pub fn taken_over(&self, owner: Owner, txn: Txn) -> Self {
        Self { owner, ..self.followed(txn) }
    }

    /// Its owner begins the next attempt.
    #[must_use]
    pub fn begun(&self, txn: Txn) -> Self {
        Self { epoch: self.epoch.saturating_add(1), ..self.followed(txn) }
    }

    /// It comes to stand elsewhere.
    #[must_use]
    pub fn moved(&self, phase: Phase, txn: Txn) -> Self {
        debug_assert!(self.phase.may_become(phase), "{:?} becomes {phase:?}", self.phase);
        Self { phase, ..self.followed(txn) }
    }

    /// Only what is said of the image is another: the key that wraps its data key.
    #[must_use]
    pub fn reworded(&self, txn: Txn) -> Self {
        self.followed(txn)
    }

    fn followed(&self, txn: Txn) -> Self {
        Self { seq: self.seq.saturating_add(1), txn, prev: self.txn, ..*self }
    }

    /// How its job was decided, if it is.
    pub fn decided(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Active => None,
            Phase::Committed | Phase::Removing | Phase::Removed => Some(Outcome::Committed),
            Phase::Aborting | Phase::Aborted => Some(Outcome::Cancelled),
        }
    }

    /// How that job was decided, as far as this head remembers.
    fn outcome_of(&self, job: JobId) -> Option<Outcome> {
        if self.job == job {
            return self.decided();
        }
        self.past.filter(|(past, _)| *past == job).map(|(_, how)| how)
    }

    /// Whether an attempt of that number may have been one of this head's job.
    pub fn holds_epoch(&self, epoch: u32) -> bool {
        self.base < epoch && epoch <= self.epoch
    }
}

impl Phase {
    /// The legal moves of one job: see the drawing.
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Active, Self::Committed | Self::Aborting)
                | (Self::Aborting, Self::Aborted)
                | (Self::Committed, Self::Removing)
                | (Self::Removing, Self::Removed)
        )
    }
}

/// Whether the owner of a claim lives, as far as can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// It has shown itself lately.
    Alive,
    /// It has not shown itself for long, or has let go.
    Dead,
    /// It has not been watched for long enough.
    Unsure,
}

/// What who stages an image does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Claims it.
    Claim,
    /// Takes the job over from an owner that is gone.
    TakeOver,
    /// Looks whether its owner lives, and asks again.
    Watch,
    /// Removes what a cancelled job has left, and asks again.
    Clean,
    /// Removes what a removed image has left, and asks again.
    Remove,
    /// Nothing: another job has it staged, or this one has another owner.
    Busy,
    /// Nothing: the image is there.
    Exists,
}

/// The table of staging.
pub fn start(found: Option<&Sight>, job: JobId, life: Life) -> Start {
    let Some(found) = found else { return Start::Claim };
    match (found.phase, life) {
        (Phase::Aborted | Phase::Removed, _) => Start::Claim,
        (Phase::Committed, _) => Start::Exists,
        (Phase::Removing, _) => Start::Remove,
        (Phase::Active, _) if found.job != job => Start::Busy,
        (Phase::Active | Phase::Aborting, Life::Alive) => Start::Busy,
        (Phase::Active | Phase::Aborting, Life::Unsure) => Start::Watch,
        (Phase::Active, Life::Dead) => Start::TakeOver,
        (Phase::Aborting, Life::Dead) => Start::Clean,
    }
}

/// What who cancels a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Decides it: swaps the head to [`Phase::Aborting`].
    Decide,
    /// It was decided before.
    Decided,
    /// Nothing: it has committed.
    Committed,
    /// Nothing: there is no such job here.
    Unknown,
}

/// The table of cancelling.
pub fn cancel(found: Option<&Sight>, job: JobId) -> Cancel {
    match found.filter(|found| found.job == job).map(|found| found.phase) {
        Some(Phase::Active) => Cancel::Decide,
        Some(Phase::Aborting) => Cancel::Decided,
        Some(Phase::Committed) => Cancel::Committed,
        _ => Cancel::Unknown,
    }
}

/// What the owner of a stage does that wants it decided, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decide {
    /// Swaps the head.
    Swap,
    /// It is decided.
    Decided(Outcome),
    /// Nothing, ever again: somebody has taken over.
    Fenced,
}

/// The table of commit and discard.
pub fn decide(found: Option<&Sight>, job: JobId, owner: Owner) -> Decide {
    let Some(found) = found else { return Decide::Fenced };
    match found.outcome_of(job) {
        Some(outcome) => Decide::Decided(outcome),
        None if found.job == job && found.owner == owner => Decide::Swap,
        None => Decide::Fenced,
    }
}

/// What recovery does about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Nothing: its owner lives.
    Running,
    /// Looks whether its owner lives, and asks again.
    Watch,
    /// Nothing: it waits for resume or cancel.
    Keep,
    /// Removes what only its stage needed.
    Finish,
    /// Removes everything of it, then writes the tombstone.
    Clean,
    /// There is no such job: what speaks of it is a leftover.
    Stray,
}

/// The table of recovery.
pub fn settle(found: Option<&Sight>, job: JobId, life: Life) -> Settle {
    let Some(found) = found.filter(|found| found.job == job) else { return Settle::Stray };
    match (found.phase, life) {
        (Phase::Aborted | Phase::Removing | Phase::Removed, _) => Settle::Stray,
        (_, Life::Alive) => Settle::Running,
        (_, Life::Unsure) => Settle::Watch,
        (Phase::Active, Life::Dead) => Settle::Keep,
        (Phase::Committed, Life::Dead) => Settle::Finish,
        (Phase::Aborting, Life::Dead) => Settle::Clean,
    }
}

/// Whether what an attempt has written is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    All,
    /// What the manifest of the image names.
    Named,
    /// Nothing.
    Nothing,
}

/// The table of sweeping. `found` was read *after* the listing that showed objects of that attempt:
/// then an attempt that this head does not speak of is over, and its number is never used again.
pub fn wanted(found: Option<&Sight>, job: JobId, epoch: u32) -> Wanted {
    let Some(found) = found.filter(|found| found.job == job && found.holds_epoch(epoch)) else {
        return Wanted::Nothing;
    };
    match found.phase {
        // What is cancelled or removed is cleaned by those who know how: a head goes with it.
        Phase::Active | Phase::Aborting | Phase::Removing => Wanted::All,
        Phase::Committed => Wanted::Named,
        Phase::Aborted | Phase::Removed => Wanted::Nothing,
    }
}

/// What came of a swap that got no clear answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// It was carried out.
    Mine,
    /// It was carried out, and somebody has gone on from there.
    Passed,
    /// Not yet, if ever: the same swap may be sent again.
    Unchanged,
    /// Somebody else was first.
    Others,
}

/// Reads an unclear answer: `from` is what the swap was to replace, `now` what is there since.
pub fn landed(from: Option<&Sight>, now: Option<&Sight>, mine: Txn) -> Landed {
    match now {
        Some(now) if now.txn == mine => Landed::Mine,
        Some(now) if now.prev == mine => Landed::Passed,
        _ if now.map(|now| now.txn) == from.map(|from| from.txn) => Landed::Unchanged,
        _ => Landed::Others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId::from_bytes([1; 16]);
    const OTHER: JobId = JobId::from_bytes([2; 16]);
    const PHASES: [Phase; 6] = [
        Phase::Active,
        Phase::Committed,
        Phase::Aborting,
        Phase::Aborted,
        Phase::Removing,
        Phase::Removed,
    ];
    const LIVES: [Life; 3] = [Life::Alive, Life::Dead, Life::Unsure];

    fn owner(n: u8) -> Owner {
        Owner { process: [n; 16], claim: [n; 16] }
    }

    fn at(phase: Phase) -> Sight {
        let active = Sight::claimed(None, JOB, owner(1), [1; 16]).begun([2; 16]);
        Sight { phase, ..active }
    }

    #[test]
    fn a_committed_image_is_never_claimed_and_never_cancelled() {
        for life in LIVES {
            for job in [JOB, OTHER] {
                assert_eq!(start(Some(&at(Phase::Committed)), job, life), Start::Exists);
            }
        }
        assert_eq!(cancel(Some(&at(Phase::Committed)), JOB), Cancel::Committed);
        let decided = Decide::Decided(Outcome::Committed);
        assert_eq!(decide(Some(&at(Phase::Committed)), JOB, owner(9)), decided);
    }

    #[test]
    fn only_the_owner_of_an_active_head_decides_and_anybody_may_cancel() {
        assert_eq!(decide(Some(&at(Phase::Active)), JOB, owner(1)), Decide::Swap);
        assert_eq!(decide(Some(&at(Phase::Active)), JOB, owner(2)), Decide::Fenced);
        assert_eq!(decide(Some(&at(Phase::Active)), OTHER, owner(1)), Decide::Fenced);
        assert_eq!(decide(None, JOB, owner(1)), Decide::Fenced);
        assert_eq!(cancel(Some(&at(Phase::Active)), JOB), Cancel::Decide);
        assert_eq!(cancel(Some(&at(Phase::Active)), OTHER), Cancel::Unknown);
    }

    #[test]
    fn a_cancelled_job_never_goes_on() {
        for phase in [Phase::Aborting, Phase::Aborted] {
            let cancelled = Decide::Decided(Outcome::Cancelled);
            assert_eq!(decide(Some(&at(phase)), JOB, owner(1)), cancelled, "{phase:?}");
            for life in LIVES {
                assert_ne!(settle(Some(&at(phase)), JOB, life), Settle::Keep);
                assert_ne!(start(Some(&at(phase)), JOB, life), Start::TakeOver);
            }
        }
    }

    #[test]
    fn nobody_touches_what_a_live_owner_holds() {
        for phase in [Phase::Active, Phase::Aborting] {
            for job in [JOB, OTHER] {
                assert_eq!(start(Some(&at(phase)), job, Life::Alive), Start::Busy, "{phase:?}");
            }
        }
        for phase in [Phase::Active, Phase::Aborting, Phase::Committed] {
            assert_eq!(settle(Some(&at(phase)), JOB, Life::Alive), Settle::Running, "{phase:?}");
            assert_eq!(settle(Some(&at(phase)), JOB, Life::Unsure), Settle::Watch, "{phase:?}");
        }
    }

    #[test]
    fn a_claim_counts_on_and_remembers_who_was_before() {
        let removed = at(Phase::Removed);
        let next = Sight::claimed(Some(&removed), OTHER, owner(2), [9; 16]);
        assert_eq!((next.seq, next.epoch, next.base), (removed.seq + 1, 1, 1));
        assert_eq!((next.prev, next.past), (removed.txn, Some((JOB, Outcome::Committed))));
        assert!(!next.holds_epoch(1) && next.begun([3; 16]).holds_epoch(2));
        let told = Decide::Decided(Outcome::Committed);
        assert_eq!(decide(Some(&next), JOB, owner(1)), told, "a late commit hears how it ended");
    }

    #[test]
    fn what_an_attempt_wrote_is_kept_as_long_as_its_head_may_want_it() {
        for phase in PHASES {
            let kept = wanted(Some(&at(phase)), JOB, 1);
            let over = matches!(phase, Phase::Aborted | Phase::Removed);
            assert_eq!(kept == Wanted::Nothing, over, "{phase:?}");
            assert_eq!(wanted(Some(&at(phase)), OTHER, 1), Wanted::Nothing);
            assert_eq!(wanted(Some(&at(phase)), JOB, 2), Wanted::Nothing);
        }
        assert_eq!(wanted(Some(&at(Phase::Committed)), JOB, 1), Wanted::Named);
        assert_eq!(wanted(None, JOB, 1), Wanted::Nothing);
    }

    #[test]
    fn an_unclear_answer_is_read_from_what_is_there_since() {
        let from = at(Phase::Active);
        let mine = from.moved(Phase::Committed, [7; 16]);
        let passed = mine.moved(Phase::Removing, [8; 16]);
        let others = from.moved(Phase::Aborting, [9; 16]);
        assert_eq!(landed(Some(&from), Some(&mine), [7; 16]), Landed::Mine);
        assert_eq!(landed(Some(&from), Some(&passed), [7; 16]), Landed::Passed);
        assert_eq!(landed(Some(&from), Some(&from), [7; 16]), Landed::Unchanged);
        assert_eq!(landed(Some(&from), Some(&others), [7; 16]), Landed::Others);
        assert_eq!(landed(None, None, [7; 16]), Landed::Unchanged);
        assert_eq!(landed(None, Some(&from), [7; 16]), Landed::Others);
    }

    #[test]
    fn moves_follow_the_drawing_and_nothing_comes_back_from_a_tombstone() {
        let mut legal = 0;
        for from in PHASES {
            for to in PHASES {
                legal += u32::from(from.may_become(to));
            }
        }
        assert_eq!(legal, 5);
        for phase in PHASES {
            assert!(!Phase::Aborted.may_become(phase) && !Phase::Removed.may_become(phase));
        }
    }
}
