//! The states of a job and the table of legal moves. Pure.

use std::fmt;

/// Where a job stands.
///
/// ```text
/// Queued → Copying → Committing → Committed
///    │  ⇅ Suspended  │ (cancel wins, or loses, here)
///    ▼        ▼      ▼
///  Cancelling ─────────→ RolledBack          Failed{resumable} → resume → Queued
///    │ clean-up cannot finish now                └ cancel → Cancelling
///    └→ RollbackPending → (retried at every open and on a timer) → RolledBack
///
/// A cancel that finds the commit decided already ends there: Cancelling → Committed.
/// A copy whose source changed is rolled back too: Cancelling → Failed{resumable: false}.
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// Accepted and durable; waits for its turn.
    Queued,
    /// Bytes move.
    Copying,
    /// Stopped on request or by shutdown; can be resumed.
    Suspended,
    /// Every byte is durable; the image is being made visible.
    Committing,
    /// The image is visible, complete and durable. Final.
    Committed,
    /// The job can never commit again; what it staged is being removed.
    Cancelling,
    /// As `Cancelling`, but the clean-up could not finish; it is tried again.
    RollbackPending,
    /// The job is undone and nothing of it is left. Final.
    RolledBack,
    /// The job stopped on an error.
    Failed {
        /// Whether its stage was kept, so that `resume` can go on. If not, nothing of it is left.
        resumable: bool,
    },
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Copying,
        Self::Suspended,
        Self::Committing,
        Self::Committed,
        Self::Cancelling,
        Self::RollbackPending,
        Self::RolledBack,
        Self::Failed { resumable: true },
        Self::Failed { resumable: false },
    ];

    /// Whether a job in this state may go to `next`. The one table of legal moves.
    pub fn may_become(self, next: Self) -> bool {
        use JobState as S;
        match self {
            S::Queued => {
                matches!(next, S::Copying | S::Suspended | S::Cancelling | S::Failed { .. })
            }
            S::Copying => {
                matches!(next, S::Committing | S::Suspended | S::Cancelling | S::Failed { .. })
            }
            S::Committing => matches!(next, S::Committed | S::Cancelling | S::Failed { .. }),
            S::Suspended | S::Failed { resumable: true } => {
                matches!(next, S::Queued | S::Cancelling)
            }
            S::Cancelling => {
                let undone = S::Failed { resumable: false };
                matches!(next, S::RolledBack | S::RollbackPending | S::Committed) || next == undone
            }
            S::RollbackPending => matches!(next, S::RolledBack),
            S::Committed | S::RolledBack | S::Failed { resumable: false } => false,
        }
    }

    /// Whether nothing can happen to the job any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack | Self::Failed { resumable: false })
    }

    /// Whether a process that died in this state left work for `recover` or `resume`.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Queued | Self::Copying | Self::Committing | Self::Cancelling)
    }

    /// The stable name, as in the command line's JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Copying => "copying",
            Self::Suspended => "suspended",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Cancelling => "cancelling",
            Self::RollbackPending => "rollback_pending",
            Self::RolledBack => "rolled_back",
            Self::Failed { resumable: true } => "failed_resumable",
            Self::Failed { resumable: false } => "failed",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Queued => 1,
            Self::Copying => 2,
            Self::Suspended => 3,
            Self::Committing => 4,
            Self::Committed => 5,
            Self::Cancelling => 6,
            Self::RollbackPending => 7,
            Self::RolledBack => 8,
            Self::Failed { resumable: true } => 9,
            Self::Failed { resumable: false } => 10,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::JobState as S;

    #[test]
    fn every_pair_of_states_is_as_drawn() {
        let failed = S::Failed { resumable: true };
        let dead = S::Failed { resumable: false };
        let drawn = [
            (S::Queued, vec![S::Copying, S::Suspended, S::Cancelling, failed, dead]),
            (S::Copying, vec![S::Suspended, S::Committing, S::Cancelling, failed, dead]),
            (S::Suspended, vec![S::Queued, S::Cancelling]),
            (S::Committing, vec![S::Committed, S::Cancelling, failed, dead]),
            (S::Committed, vec![]),
            (S::Cancelling, vec![S::RollbackPending, S::RolledBack, S::Committed, dead]),
            (S::RollbackPending, vec![S::RolledBack]),
            (S::RolledBack, vec![]),
            (failed, vec![S::Queued, S::Cancelling]),
            (dead, vec![]),
        ];
        assert_eq!(drawn.len(), S::ALL.len());
        for (from, to) in drawn {
            for next in S::ALL {
                assert_eq!(from.may_become(next), to.contains(&next), "{from} -> {next}");
            }
            assert_eq!(from.is_final(), to.is_empty());
        }
    }

    #[test]
    fn codes_and_names_are_one_to_one() {
        for state in S::ALL {
            assert_eq!(S::from_code(state.code()), Some(state));
            assert_eq!(S::ALL.iter().filter(|other| other.name() == state.name()).count(), 1);
            assert_eq!(state.to_string(), state.name());
        }
        assert_eq!(S::from_code(0), None);
    }

    #[test]
    fn a_job_runs_in_the_states_that_a_process_moves_on_from_by_itself() {
        let running = [S::Queued, S::Copying, S::Committing, S::Cancelling];
        for state in S::ALL {
            assert_eq!(state.is_running(), running.contains(&state), "{state}");
            assert!(!state.is_running() || !state.is_final(), "{state}");
        }
    }
}
