//! The recovery table: from what is found of a job to what is done about it. Pure.

/// What is found of a job whose process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// A valid header: somebody may have been told that the job exists.
    pub(crate) acknowledged: bool,
    /// The cancel slot is not empty. Somebody decided to cancel, or was about to: nobody may commit
    /// any more.
    pub(crate) cancelled: bool,
    /// The `done` record: a target that is written in place has committed, or what was published is
    /// durable under its name.
    pub(crate) done: bool,
    /// A `prepared` record: everything was durable and about to be published.
    pub(crate) prepared: bool,
    /// The stage still holds the thing that the `prepared` record names.
    pub(crate) staged: bool,
    /// What stands under the name to be published.
    pub(crate) published: Published,
}

/// What stands under the name that a job is to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// Nothing.
    Nothing,
    /// What this job staged: the rename has happened.
    Ours,
    /// Something else.
    Foreign,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Nobody was told of it: remove what there is.
    Forget,
    /// The decision was to commit: make both folders durable, then remove the stage.
    FinishCommit,
    /// The decision was to cancel: remove everything, then the stage.
    FinishCancel,
    /// Undecided, and the work so far is good: wait for resume or cancel.
    Keep,
    /// Prepared, but the thing is under neither name: the file system lost what it had
    /// acknowledged.
    Lost,
}

/// The table. The decision is the rename (or the `done` record), so it is looked for first; the
/// cancel slot comes second.
pub(crate) fn settle(found: Found) -> Settlement {
    match found {
        Found { acknowledged: false, .. } => Settlement::Forget,
        Found { done: true, .. } => Settlement::FinishCommit,
        Found { prepared: true, published: Published::Ours, .. } => Settlement::FinishCommit,
        Found { cancelled: true, .. } => Settlement::FinishCancel,
        Found { prepared: true, staged: false, .. } => Settlement::Lost,
        Found { .. } => Settlement::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_finding() -> Vec<Found> {
        let flags = [false, true];
        let mut all = Vec::new();
        for acknowledged in flags {
            for cancelled in flags {
                for done in flags {
                    for prepared in flags {
                        for staged in flags {
                            for published in
                                [Published::Nothing, Published::Ours, Published::Foreign]
                            {
                                let found = Found {
                                    acknowledged,
                                    cancelled,
                                    done,
                                    prepared,
                                    staged,
                                    published,
                                };
                                all.push(found);
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn a_decided_commit_is_never_undone_and_a_decided_cancel_never_resumes() {
        for found in every_finding().into_iter().filter(|found| found.acknowledged) {
            let decided = found.done || (found.prepared && found.published == Published::Ours);
            let settled = settle(found);
            assert_eq!(settled == Settlement::FinishCommit, decided, "{found:?}");
            if found.cancelled && !decided {
                assert_eq!(settled, Settlement::FinishCancel, "{found:?}");
            }
        }
    }

    #[test]
    fn only_what_nobody_was_told_of_is_forgotten() {
        for found in every_finding() {
            assert_eq!(settle(found) == Settlement::Forget, !found.acknowledged, "{found:?}");
        }
    }

    #[test]
    fn a_strangers_image_is_never_ours_and_a_lost_stage_is_never_committed() {
        let undecided = Found {
            acknowledged: true,
            cancelled: false,
            done: false,
            prepared: true,
            staged: true,
            published: Published::Foreign,
        };
        assert_eq!(settle(undecided), Settlement::Keep);
        let lost = Found { staged: false, ..undecided };
        assert_eq!(settle(lost), Settlement::Lost);
        let lost = Found { staged: false, published: Published::Nothing, ..undecided };
        assert_eq!(settle(lost), Settlement::Lost);
        let plain = Found { prepared: false, published: Published::Nothing, ..undecided };
        assert_eq!(settle(plain), Settlement::Keep);
    }
}
