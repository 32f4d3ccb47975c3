//! Answers what peers ask of regions and of the stages they own.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::id::{ImageId, JobId, RegionName};
use crate::peer::{Grant, Lease, Operation};
use crate::region::peer::CHUNK_BYTES_MAX;
use crate::region::peer::call::{About, Call, Owned, Told};
use crate::region::peer::page::{page_of, recovered_len, staged_len};
use crate::region::{Located, Region, StagedJob, Wish};
use crate::sync::time::{Duration, timeout};
use crate::throttle::ThrottlePath;

use super::holds::{Hold, fenced};
use super::push::pass;
use super::verify;
use super::visitor::Visitor;

/// Answers a call that does not stage.
pub(super) async fn answer(visitor: &Visitor, call: Call) -> Result<Told> {
    match call {
        Call::Describe(region) => describe(visitor, &region),
        Call::List(region, after) => list(visitor, &region, after.as_ref()).await,
        Call::Remove(region, image) => {
            visitor.may(Operation::Remove, &region, &image)?;
            visitor.house.region(&region)?.remove(&image).await.map(|()| Told::Done)
        }
        Call::Locate(region, image) => {
            visitor.may(Operation::List, &region, &image)?;
            visitor.house.region(&region)?.locate(&image).await.map(Told::Located)
        }
        Call::Jobs(region, after) => jobs(visitor, &region, after).await,
        Call::Job(region, job) => {
            let grant = looks(visitor, &region)?;
            let found = find(visitor, &grant, &region, job).await?;
            Ok(Told::Jobs { jobs: found.into_iter().collect(), more: false })
        }
        Call::Wish(region, job, wish) => put_wish(visitor, &region, job, wish).await,
        Call::Recover { region, only, after } => recover(visitor, &region, only, after).await,
        Call::About(region, image) => about(visitor, &region, &image).await,
        Call::Verify(region, image, first) => {
            verify::verify(visitor, &region, &image, first).await.map(Told::Verified)
        }
        Call::Stage { .. } | Call::ReadBack(..) => {
            Err(Error::new(ErrorKind::Invalid, "answer what the connection itself does"))
        }
        Call::Wishes(owned) => {
            let hold = owner(visitor, &owned)?;
            let live = hold.live.read().await;
            let target = &live.as_ref().ok_or_else(fenced)?.target;
            target.wishes().await.map(Told::Wishes)
        }
        Call::Report(owned, progress) => {
            let hold = owner(visitor, &owned)?;
            let live = hold.live.read().await;
            let target = &live.as_ref().ok_or_else(fenced)?.target;
            target.report(&progress).await.map(|()| Told::Done)
        }
        Call::Sync(owned) => keep(visitor, &owned, false).await,
        Call::Checkpoint(owned) => keep(visitor, &owned, true).await,
        Call::Finish(owned) => {
            let hold = owner(visitor, &owned)?;
            let live = hold.live.read().await;
            let target = &live.as_ref().ok_or_else(fenced)?.target;
            let region = visitor.house.region(&owned.region)?;
            match region.locate(&hold.spec.target.image).await? {
                // A plain file does not tell whose it is.
                Located::Committed(job) if job.is_none_or(|job| job == owned.job) => {}
                _ => {
                    let what = "finish a stage that has not committed";
                    return Err(Error::new(ErrorKind::Invalid, what));
                }
            }
            target.finish().await.map(|()| Told::Done)
        }
        Call::Discard(owned) => discard(visitor, &owned).await,
    }
}

fn describe(visitor: &Visitor, region: &RegionName) -> Result<Told> {
    // Whoever may do anything there may know what can be done there.
    let _any: Grant = visitor.check_any(&Operation::ALL, region)?;
    Ok(Told::Capabilities(visitor.house.region(region)?.capabilities()))
}

/// Whoever may push, cancel or control jobs may look for them, each within its own images.
fn looks(visitor: &Visitor, region: &RegionName) -> Result<Grant> {
    visitor.check_any(&[Operation::List, Operation::Push, Operation::Cancel], region)
}

async fn list(visitor: &Visitor, region: &RegionName, after: Option<&ImageId>) -> Result<Told> {
    let grant = visitor.check(Operation::List, region)?;
    let mut images = visitor.house.region(region)?.list().await?;
    images.retain(|info| grant.covers(&info.image) && after.is_none_or(|a| info.image > *a));
    images.sort_by(|a, b| a.image.cmp(&b.image));
    let (images, more) = page_of(images.into_iter(), |info| info.image.as_str().len() + 64);
    Ok(Told::Images { images, more })
}

async fn jobs(visitor: &Visitor, region: &RegionName, after: Option<JobId>) -> Result<Told> {
    let grant = looks(visitor, region)?;
    visitor.house.holds.settle(region).await;
    let mut jobs = visitor.house.region(region)?.jobs().await?;
    jobs.retain(|job| {
        grant.covers(&job.spec.target.image) && after.is_none_or(|after| job.spec.job > after)
    });
    jobs.sort_by_key(|job| job.spec.job);
    let (jobs, more) = page_of(jobs.into_iter(), staged_len);
    Ok(Told::Jobs { jobs, more })
}

/// A job outside the grant is answered for as one that does not exist.
async fn find(
    visitor: &Visitor,
    grant: &Grant,
    region: &RegionName,
    job: JobId,
) -> Result<Option<StagedJob>> {
    visitor.house.holds.settle(region).await;
    let found = visitor.house.region(region)?.job(job).await?;
    Ok(found.filter(|found| grant.covers(&found.spec.target.image)))
}

async fn put_wish(visitor: &Visitor, region: &RegionName, job: JobId, wish: Wish) -> Result<Told> {
    let grant = visitor.check(Operation::Control, region)?;
    let known = find(visitor, &grant, region, job).await?.is_some();
    let place: &Arc<dyn Region> = visitor.house.region(region)?;
    Ok(Told::Wished(known && place.wish(job, wish).await?))
}

async fn recover(
    visitor: &Visitor,
    region: &RegionName,
    only: Option<JobId>,
    after: Option<JobId>,
) -> Result<Told> {
    // Its own job anybody may settle who may push: a resume begins with it.
    let grant = match only {
        Some(_) => visitor.check_any(&[Operation::Recover, Operation::Push], region)?,
        None => visitor.check(Operation::Recover, region)?,
    };
    visitor.house.holds.settle(region).await;
    let place = visitor.house.region(region)?;
    if let Some(job) = only
        && let Some(found) = place.job(job).await?
        && !grant.covers(&found.spec.target.image)
    {
        return Ok(Told::Recovered { settled: Vec::new(), more: false });
    }
    let mut settled = match only {
        None if !grant.covers_all() => {
            // What is not covered is not touched either.
            let mut settled = Vec::new();
            for staged in place.jobs().await? {
                if grant.covers(&staged.spec.target.image) {
                    settled.extend(place.recover(Some(staged.spec.job)).await?);
                }
            }
            settled
        }
        only => place.recover(only).await?,
    };
    settled.retain(|found| {
        let covered = found.spec.as_ref().is_none_or(|spec| grant.covers(&spec.target.image));
        covered && after.is_none_or(|after| found.job > after)
    });
    settled.sort_by_key(|found| found.job);
    let (settled, more) = page_of(settled.into_iter(), recovered_len);
    Ok(Told::Recovered { settled, more })
}

async fn about(visitor: &Visitor, region: &RegionName, image: &ImageId) -> Result<Told> {
    visitor.may(Operation::Pull, region, image)?;
    let source = visitor.house.region(region)?.open(image).await?;
    Ok(Told::About(source.manifest().map(|manifest| About {
        root: manifest.root(),
        job: manifest.job(),
        attributes: manifest.attributes().clone(),
    })))
}

/// The stage that a peer owns, if it does.
fn owner(visitor: &Visitor, owned: &Owned) -> Result<Arc<Hold>> {
    let hold = visitor.house.holds.find(&owned.region, owned.job);
    let hold = hold.filter(|hold| hold.identity == visitor.identity && hold.holds(owned.token));
    let hold = hold.ok_or_else(fenced)?;
    visitor.may(Operation::Push, &owned.region, &hold.spec.target.image)?;
    Ok(hold)
}

async fn keep(visitor: &Visitor, owned: &Owned, record: bool) -> Result<Told> {
    let hold = owner(visitor, owned)?;
    let live = hold.live.read().await;
    let live = live.as_ref().ok_or_else(fenced)?;
    match (&live.push, record) {
        (Some(push), true) => push.record().await?,
        (Some(push), false) => push.sync().await?,
        // Nothing has been written.
        (None, _) => {}
    }
    Ok(Told::Done)
}

/// Staged bytes from there on: as many as fit a piece, and the room they take until they are said.
pub(super) async fn read_back(
    visitor: &Visitor,
    owned: &Owned,
    range: ByteRange,
) -> Result<(Bytes, Lease)> {
    let hold = owner(visitor, owned)?;
    let fits =
        range.len <= u64::from(CHUNK_BYTES_MAX) && range.end() <= hold.spec.geometry.image_bytes();
    if !fits {
        return Err(Error::new(ErrorKind::Invalid, "read past the end of a stage"));
    }
    let len = range.len.min(visitor.seat.read_back_bytes_max());
    let credits = visitor.seat.read_back();
    let room = credits.take(u32::try_from(len).unwrap_or(u32::MAX));
    let Ok(room) = timeout(READ_BACK_TIME, room).await else {
        let what = "read a stage back: others of the same peer are read back before";
        return Err(Error::new(ErrorKind::Busy, what).retryable(true));
    };
    let room = room?;
    pass(&ThrottlePath::new([visitor.seat.throttle().clone()]), len).await;
    let live = hold.live.read().await;
    let target = &live.as_ref().ok_or_else(fenced)?.target;
    let bytes = target.read_back(ByteRange::new(range.offset, len)).await?;
    debug_assert!(to_u64(bytes.len()) <= len, "read back more than was asked for");
    Ok((bytes, room))
}

/// How long one read-back waits for those before it.
const READ_BACK_TIME: Duration = Duration::from_secs(60);

async fn discard(visitor: &Visitor, owned: &Owned) -> Result<Told> {
    let hold = owner(visitor, owned)?;
    let live = hold.live.read().await;
    let live = live.as_ref().ok_or_else(fenced)?;
    let outcome = match &live.push {
        Some(push) => push.discard(true).await?,
        None => live.target.discard().await?,
    };
    Ok(Told::Outcome(outcome))
}
