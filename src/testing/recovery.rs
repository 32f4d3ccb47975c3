//! Clauses on recovery: what is found of a job whose owner is gone, and what is done about it.

use crate::error::Result;
use crate::id::JobId;
use crate::region::{Outcome, Recovered, Settled, Vote};

use super::{Place, check_absent, check_blank, check_image, discard, first, ready, write};

/// Recovery touches that one job, as named, in both ways of asking.
async fn recovered(place: &dyn Place, only: Option<JobId>) -> Result<Option<Recovered>> {
    let mut all = place.region().recover(only).await?;
    assert!(all.len() <= 1, "a job is settled once: {all:?}");
    Ok(all.pop())
}

pub(super) async fn what_may_go_on_is_kept(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    for begun in [false, true] {
        let target = place.region().stage(&spec).await?;
        if begun {
            target.begin().await?;
            let done = write(&*target, spec.geometry, &image, spec.geometry.chunks().iter());
            target.checkpoint(&done.await?).await?;
        }
        drop(target);
        for only in [None, Some(spec.job), None] {
            let told = recovered(place, only).await?;
            let kept = told.is_some_and(|told| {
                matches!(told.settled, Settled::Kept) && told.spec.as_ref() == Some(&spec)
            });
            assert!(kept, "a copy that may go on is kept, however often one recovers");
        }
        let other = recovered(place, Some(JobId::from_bytes([9; 16]))).await?;
        assert!(other.is_none(), "only the job that was asked for is settled");
    }
    let target = place.region().stage(&spec).await?;
    assert_eq!(target.begin().await?.table.missing(), 0, "recovery took nothing away");
    discard(&*target).await?;
    drop(target);
    check_absent(place, &spec).await
}

pub(super) async fn what_is_running_is_left_alone(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let (target, manifest) = ready(&*place.region(), &spec, &image).await?;
    for only in [None, Some(spec.job)] {
        let told = recovered(place, only).await?;
        let left = told.is_some_and(|told| matches!(told.settled, Settled::Running));
        assert!(left, "a job that a live process owns is left alone");
    }
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    let told = recovered(place, None).await?;
    let left = told.is_none_or(|told| matches!(told.settled, Settled::Running));
    assert!(left, "also when it has committed: its owner finishes");
    target.finish().await?;
    check_image(place, &spec, &image).await
}

pub(super) async fn a_decided_commit_is_finished(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    for only in [None, Some(spec.job)] {
        let (target, manifest) = ready(&*place.region(), &spec, &image).await?;
        assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
        drop(target);
        let told = recovered(place, only).await?;
        let finished = told.is_some_and(|told| matches!(told.settled, Settled::Committed));
        assert!(finished, "a commit that was decided is finished");
        assert!(recovered(place, only).await?.is_none(), "and then nothing is left to settle");
        assert!(place.leftovers().is_empty(), "nothing is left of the stage");
        check_image(place, &spec, &image).await?;
        let region = place.region();
        if region.capabilities().atomic_commit {
            region.remove(&spec.target.image).await?;
        }
    }
    Ok(())
}

pub(super) async fn a_decided_cancel_is_finished(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    for only in [None, Some(spec.job)] {
        let (target, _) = ready(&*place.region(), &spec, &image).await?;
        let vote = place.region().cancel(spec.job, &spec.target.image).await?;
        assert_eq!(vote, Vote::Cancelled { first: true, clean: false }, "its owner lives");
        drop(target);
        let told = recovered(place, only).await?;
        let finished = told.is_some_and(|told| matches!(told.settled, Settled::RolledBack));
        assert!(finished, "a cancel that was decided is finished");
        assert!(recovered(place, only).await?.is_none(), "and then nothing is left to settle");
        check_blank(place, &spec).await?;
        check_absent(place, &spec).await?;
    }
    Ok(())
}

pub(super) async fn recover_and_finish_do_not_mind_each_other(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let (target, manifest) = ready(&*place.region(), &spec, &image).await?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    let region = place.region();
    let (finished, recovered) = tokio::join!(target.finish(), region.recover(None));
    finished?;
    for told in recovered? {
        let fine = !matches!(told.settled, Settled::Failed(_) | Settled::RolledBack);
        assert!(fine, "finish and recover may meet: {told:?}");
    }
    target.finish().await?;
    drop(target);
    assert!(region.recover(None).await?.is_empty(), "nothing is left to settle");
    check_image(place, &spec, &image).await
}
