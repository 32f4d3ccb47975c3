//! Clauses on endings: commit, finish, cancel and discard, alone, repeated and against each other.

use crate::error::{ErrorKind, Result};
use crate::region::{Located, Outcome, Settled, Vote};

use super::{
    IMAGE_BYTES, Place, check_absent, check_blank, check_bytes, check_hidden, check_image, copy,
    discard, first, kind, ready, spec, write,
};

pub(super) async fn commit_and_finish_may_be_repeated(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let region = place.region();
    let (target, manifest) = ready(&*region, &spec, &image).await?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    check_image(place, &spec, &image).await?;
    let atomic = region.capabilities().atomic_commit;
    if atomic {
        let found = place.region().locate(&spec.target.image).await?;
        let committed =
            matches!(found, Located::Committed(job) if job.is_none_or(|j| j == spec.job));
        assert!(committed, "it is committed as soon as commit says so, but is {found:?}");
    }
    let source = region.open(&spec.target.image).await?;
    let before = source.fingerprint().await?;
    let again = "commit may be called again and answers the same";
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "{again}");
    assert_eq!(source.fingerprint().await?, before, "a committed image never changes");
    let discard = target.discard().await?;
    assert_eq!(discard, Outcome::Committed, "a discard after commit loses");
    target.finish().await?;
    target.finish().await?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "{again}, finished too");
    let discard = target.discard().await?;
    assert_eq!(discard, Outcome::Committed, "a discard after finish loses");
    assert_eq!(source.fingerprint().await?, before, "a committed image never changes");
    drop(target);
    assert!(region.jobs().await?.is_empty(), "nothing is staged after finish");
    check_image(place, &spec, &image).await
}

pub(super) async fn an_image_that_came_first_stays(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let region = place.region();
    let (target, manifest) = ready(&*place.region(), &spec, &image).await?;
    let atomic = region.capabilities().atomic_commit;
    if atomic && place.put(&spec.target.image, b"first") {
        let refused = kind(target.commit(&manifest).await);
        assert_eq!(refused, Some(ErrorKind::Exists), "a commit never replaces an image");
        check_bytes(&*region.open(&spec.target.image).await?, b"first").await?;
        discard(&*target).await?;
        check_bytes(&*region.open(&spec.target.image).await?, b"first").await?;
        return region.remove(&spec.target.image).await;
    }
    discard(&*target).await?;
    check_absent(place, &spec).await
}

pub(super) async fn a_finished_commit_is_not_cancelled(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    copy(place, &spec, &image).await?;
    let region = place.region();
    let knows = region.list().await?.iter().any(|info| info.job == Some(spec.job));
    let expected = if knows { Vote::Committed } else { Vote::Unknown };
    for _ in 0..2 {
        let vote = region.cancel(spec.job, &spec.target.image).await?;
        assert_eq!(vote, expected, "a finished commit cannot be cancelled");
    }
    check_image(place, &spec, &image).await
}

pub(super) async fn a_cancel_before_begin_is_clean(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    let region = place.region();
    for _ in 0..2 {
        drop(place.region().stage(&spec).await?);
        let vote = region.cancel(spec.job, &spec.target.image).await?;
        assert_eq!(vote, Vote::Cancelled { first: true, clean: true }, "before begin");
        check_absent(place, &spec).await?;
    }
    Ok(())
}

pub(super) async fn a_cancel_during_the_copy_is_clean(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let region = place.region();
    for checkpointed in [false, true] {
        let target = place.region().stage(&one).await?;
        target.begin().await?;
        let done = write(&*target, one.geometry, &image, one.geometry.chunks().iter()).await?;
        if checkpointed {
            target.checkpoint(&done).await?;
        }
        drop(target);
        let vote = region.cancel(one.job, &one.target.image).await?;
        assert_eq!(vote, Vote::Cancelled { first: true, clean: true }, "during the copy");
        check_blank(place, &one).await?;
        check_absent(place, &one).await?;
    }
    let two = spec(place, 2, 0, IMAGE_BYTES)?;
    copy(place, &two, &image).await
}

pub(super) async fn a_cancel_reaches_the_live_owner(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let region = place.region();
    let (target, manifest) = ready(&*place.region(), &one, &image).await?;
    assert!(!target.wishes().await?.cancelled, "nobody has cancelled it");
    for first in [true, false, false] {
        let vote = region.cancel(one.job, &one.target.image).await?;
        let expected = Vote::Cancelled { first, clean: false };
        assert_eq!(vote, expected, "only one cancel is first, and only its owner may clean");
    }
    assert!(target.wishes().await?.cancelled, "the owner is told of the cancel");
    let told = region.job(one.job).await?;
    assert!(told.is_some_and(|job| job.cancelled && job.owned), "and so is everybody else");
    for _ in 0..2 {
        let outcome = target.commit(&manifest).await?;
        assert_eq!(outcome, Outcome::Cancelled, "a cancelled job cannot commit");
    }
    check_hidden(&*region, &one.target.image).await?;
    for _ in 0..2 {
        assert_eq!(target.discard().await?, Outcome::Cancelled, "a discard may be repeated");
    }
    let outcome = target.commit(&manifest).await?;
    assert_eq!(outcome, Outcome::Cancelled, "also when all is gone");
    drop(target);
    check_blank(place, &one).await?;
    check_absent(place, &one).await?;
    copy(place, &spec(place, 2, 0, IMAGE_BYTES)?, &image).await
}

pub(super) async fn a_cancel_is_finished_when_the_owner_is_gone(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let region = place.region();
    let (target, _) = ready(&*place.region(), &one, &image).await?;
    let vote = region.cancel(one.job, &one.target.image).await?;
    assert_eq!(vote, Vote::Cancelled { first: true, clean: false }, "its owner lives");
    drop(target);
    let told = region.job(one.job).await?;
    assert!(told.is_some_and(|job| job.cancelled && !job.owned), "the cancel outlives the owner");
    let vote = place.region().cancel(one.job, &one.target.image).await?;
    assert_eq!(vote, Vote::Cancelled { first: false, clean: true }, "whoever asks next cleans");
    check_blank(place, &one).await?;
    check_absent(place, &one).await
}

pub(super) async fn a_cancel_after_commit_loses(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let region = place.region();
    let (target, manifest) = ready(&*place.region(), &spec, &image).await?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    for _ in 0..2 {
        let vote = region.cancel(spec.job, &spec.target.image).await?;
        assert_eq!(vote, Vote::Committed, "a cancel after commit loses");
    }
    assert!(!target.wishes().await?.cancelled, "and leaves no trace");
    assert_eq!(target.discard().await?, Outcome::Committed, "the owner is told the same");
    drop(target);
    let vote = place.region().cancel(spec.job, &spec.target.image).await?;
    assert_eq!(vote, Vote::Committed, "also when the owner is gone");
    for told in region.recover(None).await? {
        assert!(matches!(told.settled, Settled::Committed), "{told:?}");
    }
    check_image(place, &spec, &image).await
}

pub(super) async fn an_unknown_job_cannot_be_cancelled(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let other = spec(place, 2, 0, IMAGE_BYTES)?;
    let region = place.region();
    let (target, manifest) = ready(&*place.region(), &one, &image).await?;
    let unknown = "a job that is not staged and made no image is unknown";
    let vote = region.cancel(other.job, &one.target.image).await?;
    assert_eq!(vote, Vote::Unknown, "{unknown}");
    assert!(!target.wishes().await?.cancelled, "and its neighbour is not cancelled");
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    target.finish().await?;
    drop(target);
    let vote = region.cancel(other.job, &one.target.image).await?;
    assert_eq!(vote, Vote::Unknown, "{unknown}: another made the image");
    check_image(place, &one, &image).await
}

pub(super) async fn a_discarded_copy_leaves_nothing(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let region = place.region();
    for steps in 0..3 {
        let target = region.stage(&one).await?;
        if steps > 0 {
            target.begin().await?;
        }
        if steps > 1 {
            let done = write(&*target, one.geometry, &image, one.geometry.chunks().iter()).await?;
            target.checkpoint(&done).await?;
        }
        for _ in 0..2 {
            assert_eq!(target.discard().await?, Outcome::Cancelled, "a discard may be repeated");
        }
        let left = place.leftovers();
        assert!(left.is_empty(), "nothing is left after discard, also while the target lives");
        drop(target);
        check_absent(place, &one).await?;
    }
    check_blank(place, &one).await?;
    copy(place, &one, &image).await
}

pub(super) async fn a_cancelled_stage_makes_room(place: &dyn Place) -> Result<()> {
    let (one, image) = first(place)?;
    let two = spec(place, 2, 0, IMAGE_BYTES)?;
    let region = place.region();
    let (target, _) = ready(&*place.region(), &one, &image).await?;
    region.cancel(one.job, &one.target.image).await?;
    let busy = kind(region.stage(&two).await);
    assert_eq!(busy, Some(ErrorKind::Busy), "a cancelled stage is there until it is clean");
    drop(target);
    let target = region.stage(&two).await?;
    assert!(region.job(one.job).await?.is_none(), "who comes next cleans it");
    discard(&*target).await?;
    drop(target);
    check_absent(place, &two).await?;
    copy(place, &two, &image).await
}

pub(super) async fn commit_and_cancel_at_once_agree(place: &dyn Place) -> Result<()> {
    let region = place.region();
    for round in 0..60_u32 {
        let one = spec(place, 1, 0, 1)?;
        let (target, manifest) = ready(&*place.region(), &one, &[7]).await?;
        let cancel = async {
            // The later in the round, the later in the commit.
            for _ in 0..round % 20 {
                region.job(one.job).await?;
            }
            region.cancel(one.job, &one.target.image).await
        };
        let (outcome, vote) = tokio::join!(target.commit(&manifest), cancel);
        let (outcome, vote) = (outcome?, vote?);
        let agree = match vote {
            Vote::Cancelled { .. } => outcome == Outcome::Cancelled,
            Vote::Committed => outcome == Outcome::Committed,
            Vote::Unknown => false,
        };
        assert!(agree, "commit and cancel agree on one decision: {outcome:?}, {vote:?}");
        match outcome {
            Outcome::Committed => {
                target.finish().await?;
                drop(target);
                check_image(place, &one, &[7]).await?;
                if region.capabilities().atomic_commit {
                    region.remove(&one.target.image).await?;
                }
            }
            Outcome::Cancelled => {
                check_hidden(&*region, &one.target.image).await?;
                assert_eq!(target.discard().await?, Outcome::Cancelled, "a cancel is for good");
                drop(target);
                check_absent(place, &one).await?;
            }
        }
    }
    Ok(())
}
