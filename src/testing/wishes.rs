//! Clauses on what the owner of a stage and others tell each other.

use crate::error::Result;
use crate::job::{JobState, Progress};
use crate::options::Limits;
use crate::region::{Wish, Wishes};

use super::{Place, check_absent, discard, first};

pub(super) async fn wishes_reach_the_owner(place: &dyn Place) -> Result<()> {
    let (mut spec, _) = first(place)?;
    spec.limits = Limits::NONE.with_bytes_per_sec(1 << 30);
    let (one, two) = (place.region(), place.region());
    let target = one.stage(&spec).await?;
    target.begin().await?;
    assert_eq!(target.wishes().await?, Wishes::default(), "nobody has asked for anything");
    let told = two.job(spec.job).await?.map(|told| told.limits);
    assert_eq!(told, Some(spec.limits), "the first ceilings are those that were asked for");
    let slower = Limits::NONE.with_bytes_per_sec(1 << 20).with_ops_per_sec(5);
    assert!(two.wish(spec.job, Wish::Limit(slower)).await?, "there is a stage");
    let wishes = target.wishes().await?;
    assert_eq!(wishes, Wishes { limits: Some(slower), ..Wishes::default() }, "the limit arrives");
    assert!(two.wish(spec.job, Wish::Suspend).await?, "there is a stage");
    let wishes = target.wishes().await?;
    let both = Wishes { limits: Some(slower), suspend: true, ..Wishes::default() };
    assert_eq!(wishes, both, "the wish to suspend arrives, and the limit stays");
    drop(target);

    let told = one.job(spec.job).await?.map(|told| told.limits);
    assert_eq!(told, Some(slower), "limits outlive the owner");
    assert!(two.wish(spec.job, Wish::Limit(Limits::NONE)).await?, "also without an owner");
    let target = two.stage(&spec).await?;
    target.begin().await?;
    let limits = target.wishes().await?.limits;
    assert_eq!(limits, Some(Limits::NONE), "limits survive a resume, and none is one");
    discard(&*target).await?;
    assert!(!one.wish(spec.job, Wish::Suspend).await?, "nobody is there to be asked");
    drop(target);
    check_absent(place, &spec).await
}

pub(super) async fn a_stale_suspend_does_not_hit_the_next_attempt(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    let region = place.region();
    for _ in 0..2 {
        let target = place.region().stage(&spec).await?;
        assert!(!target.wishes().await?.suspend, "a wish to suspend is for one owner only");
        target.begin().await?;
        assert!(!target.wishes().await?.suspend, "a wish to suspend is for one attempt only");
        assert!(region.wish(spec.job, Wish::Suspend).await?, "there is a stage");
        assert!(target.wishes().await?.suspend, "and that one gets it");
        drop(target);
        assert!(region.wish(spec.job, Wish::Suspend).await?, "nobody runs, so nobody is hit");
    }
    region.cancel(spec.job, &spec.target.image).await?;
    check_absent(place, &spec).await
}

pub(super) async fn a_report_is_shown(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    let region = place.region();
    let target = place.region().stage(&spec).await?;
    target.begin().await?;
    let mut progress = Progress::new(JobState::Copying, spec.geometry.image_bytes());
    progress.written_bytes = 12_345;
    target.report(&progress).await?;
    let told = region.job(spec.job).await?.and_then(|told| told.progress);
    assert_eq!(told.as_ref(), Some(&progress), "what the owner tells is shown");
    let jobs = region.jobs().await?;
    assert_eq!(jobs.len(), 1, "one job is staged");
    assert_eq!(jobs[0].progress.as_ref(), Some(&progress), "in the list, too");
    discard(&*target).await?;
    drop(target);
    check_absent(place, &spec).await
}
