//! Clauses on stages: hidden, one an image, one owner, exact bytes, reopened with what was
//! recorded.

use std::sync::Arc;

use crate::chunk::{Content, Durable};
use crate::error::{ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, to_u64};
use crate::id::{ImageId, JobId};
use crate::region::{Located, Outcome, Region, Vote, Wish};
use crate::seal::{digest_of, is_zero};

use super::{
    IMAGE_BYTES, Place, check_absent, check_blank, check_bytes, check_hidden, check_image, copy,
    discard, first, kind, manifest, piece, ready, sample, spec, write,
};

pub(super) async fn an_empty_place_knows_nothing(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    check_absent(place, &spec).await?;
    let region = place.region();
    assert!(!region.wish(spec.job, Wish::Suspend).await?, "nobody is there to be asked");
    assert!(region.recover(Some(spec.job)).await?.is_empty(), "there is no such job");
    if region.capabilities().atomic_commit {
        let found = region.locate(&spec.target.image).await?;
        assert_eq!(found, Located::Absent, "nothing is there");
    }
    Ok(())
}

pub(super) async fn a_stage_is_invisible_until_commit(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let (region, target) = (place.region(), place.region().stage(&spec).await?);
    check_claim(&*region, &spec.target.image, spec.job, true).await?;
    target.begin().await?;
    check_claim(&*region, &spec.target.image, spec.job, true).await?;
    let done = write(&*target, spec.geometry, &image, spec.geometry.chunks().iter()).await?;
    target.checkpoint(&done).await?;
    check_claim(&*region, &spec.target.image, spec.job, true).await?;
    drop(target);
    check_claim(&*region, &spec.target.image, spec.job, false).await?;
    region.cancel(spec.job, &spec.target.image).await?;
    check_absent(place, &spec).await
}

async fn check_claim(region: &dyn Region, image: &ImageId, job: JobId, owned: bool) -> Result<()> {
    check_hidden(region, image).await?;
    let found = region.locate(image).await?;
    assert_eq!(found, Located::Staged(job), "of a stage only the claim is seen");
    let jobs = region.jobs().await?;
    assert_eq!(jobs.len(), 1, "one job is staged: {jobs:?}");
    let told = region.job(job).await?;
    assert!(told.is_some_and(|told| told.spec == jobs[0].spec), "a job is found by number");
    assert_eq!((jobs[0].spec.job, jobs[0].owned), (job, owned), "a job tells of its owner");
    assert!(!jobs[0].cancelled, "nobody has cancelled it");
    Ok(())
}

pub(super) async fn an_image_has_one_stage(place: &dyn Place) -> Result<()> {
    let (mine, image) = first(place)?;
    let rival = spec(place, 2, 0, IMAGE_BYTES)?;
    let region = place.region();
    let (target, manifest) = ready(&*place.region(), &mine, &image).await?;
    let busy = "while a job has an image staged, another cannot stage it";
    assert_eq!(kind(region.stage(&rival).await), Some(ErrorKind::Busy), "{busy}");
    drop(target);
    assert_eq!(kind(region.stage(&rival).await), Some(ErrorKind::Busy), "{busy}: no owner");
    let target = region.stage(&mine).await?;
    target.begin().await?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    let atomic = region.capabilities().atomic_commit;
    let exists = "once an image is committed, it cannot be staged";
    if atomic {
        assert_eq!(kind(region.stage(&rival).await), Some(ErrorKind::Exists), "{exists}");
        drop(target);
        let again = kind(region.stage(&mine).await);
        assert_eq!(again, Some(ErrorKind::Exists), "{exists}, nor by the job that made it");
        region.recover(None).await?;
        let again = kind(region.stage(&mine).await);
        assert_eq!(again, Some(ErrorKind::Exists), "{exists}, nor by the job when finished");
        assert_eq!(kind(region.stage(&rival).await), Some(ErrorKind::Exists), "{exists}");
    } else {
        target.finish().await?;
    }
    check_image(place, &mine, &image).await
}

pub(super) async fn two_images_are_copied_side_by_side(place: &dyn Place) -> Result<()> {
    if place.image(1).is_none() {
        return Ok(());
    }
    let (one, image) = first(place)?;
    let (two, other) = (spec(place, 2, 1, 70_000)?, sample(70_000));
    let region = place.region();
    let (target, manifest) = ready(&*region, &one, &image).await?;
    copy(place, &two, &other).await?;
    assert_eq!(region.jobs().await?.len(), 1, "one is done, one is staged");
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    target.finish().await?;
    assert_eq!(region.list().await?.len(), 2, "both images are listed");
    check_image(place, &one, &image).await?;
    check_image(place, &two, &other).await
}

pub(super) async fn a_stage_has_one_owner(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    let (one, two) = (place.region(), place.region());
    let target = one.stage(&spec).await?;
    for region in [&one, &two] {
        let busy = kind(region.stage(&spec).await);
        assert_eq!(busy, Some(ErrorKind::Busy), "a stage has one owner, whoever asks");
    }
    target.begin().await?;
    drop(target);
    let target = two.stage(&spec).await?;
    assert_eq!(kind(one.stage(&spec).await), Some(ErrorKind::Busy), "the second owner, too");
    discard(&*target).await?;
    let next = if one.capabilities().atomic_commit {
        // A target that has ended must not disturb a later one of the same job.
        let next = one.stage(&spec).await?;
        drop(target);
        next
    } else {
        // In place, the target itself is held.
        drop(target);
        one.stage(&spec).await?
    };
    assert_eq!(kind(two.stage(&spec).await), Some(ErrorKind::Busy), "the third owner, too");
    discard(&*next).await?;
    check_absent(place, &spec).await
}

pub(super) async fn of_two_that_stage_at_once_one_wins(place: &dyn Place) -> Result<()> {
    let (mine, rival) = (spec(place, 1, 0, 1)?, spec(place, 2, 0, 1)?);
    let (one, two) = (place.region(), place.region());
    for _ in 0..10 {
        for other in [&mine, &rival] {
            let (left, right) = tokio::join!(one.stage(&mine), two.stage(other));
            let won = left.is_ok() != right.is_ok();
            assert!(won, "of two that stage an image at once one wins: {left:?}, {right:?}");
            for lost in [&left, &right].into_iter().filter_map(|told| told.as_ref().err()) {
                assert_eq!(lost.kind(), ErrorKind::Busy, "the other is told so: {lost}");
            }
            for target in [left, right].into_iter().flatten() {
                discard(&*target).await?;
            }
        }
    }
    check_absent(place, &mine).await
}

pub(super) async fn images_of_every_shape_arrive(place: &dyn Place) -> Result<()> {
    const CHUNK: u64 = 64 << 10;
    let region = place.region();
    for len in [0, 1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK, IMAGE_BYTES] {
        for image in [sample(len), vec![0; sample(len).len()]] {
            let spec = spec(place, 1, 0, len)?;
            copy(place, &spec, &image).await?;
            if region.capabilities().atomic_commit {
                region.remove(&spec.target.image).await?;
                check_absent(place, &spec).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn zeros_replace_what_was_written(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let geometry = spec.geometry;
    let target = place.region().stage(&spec).await?;
    target.begin().await?;
    write(&*target, geometry, &image, geometry.chunks().iter()).await?;
    let last = ChunkIndex::new(geometry.chunk_count() - 1);
    for run in [ChunkRun::new(ChunkIndex::new(0), 2), ChunkRun::new(last, 1)] {
        let written = target.write_zeroes(run).await?;
        assert_eq!((written.run(), written.content()), (run, Content::Zero), "a run of zeros");
        let read = target.read_back(geometry.run_range(run)).await?;
        assert!(is_zero(&read), "chunks that were made zero read as zeros, whatever they held");
    }
    let untouched = ChunkIndex::new(3);
    let read = target.read_back(geometry.range(untouched)).await?;
    assert!(read == piece(geometry, &image, untouched), "other chunks keep their bytes");
    discard(&*target).await?;
    check_blank(place, &spec).await?;
    check_absent(place, &spec).await
}

pub(super) async fn staged_bytes_are_read_back(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let (target, _) = ready(&*place.region(), &spec, &image).await?;
    for index in spec.geometry.chunks().iter() {
        let read = target.read_back(spec.geometry.range(index)).await?;
        assert!(read == piece(spec.geometry, &image, index), "chunk {index} is read back");
    }
    let middle = ByteRange::new(65_535, 131_074);
    let read = target.read_back(middle).await?;
    assert!(read[..] == image[65_535..65_535 + 131_074], "a range may cross chunks");
    discard(&*target).await?;
    check_absent(place, &spec).await
}

pub(super) async fn a_reopened_stage_has_what_was_checkpointed_and_nothing_else(
    place: &dyn Place,
) -> Result<()> {
    let (spec, image) = first(place)?;
    let geometry = spec.geometry;
    let chunk = ChunkIndex::new;
    let region = place.region();
    let target = region.stage(&spec).await?;
    let restored = target.begin().await?;
    assert_eq!(restored.table.missing(), geometry.chunk_count(), "a new stage holds nothing");
    let done = write(&*target, geometry, &image, [chunk(0), chunk(1)].into_iter()).await?;
    target.checkpoint(&done).await?;
    target.checkpoint(&[]).await?;
    write(&*target, geometry, &image, [chunk(3), chunk(4)].into_iter()).await?;
    drop(target);

    let target = place.region().stage(&spec).await?;
    let mut restored = target.begin().await?;
    for index in geometry.chunks().iter() {
        let held = match index.get() {
            0 => Some(Some(digest_of(geometry, index, &piece(geometry, &image, index)))),
            1 => Some(None),
            _ => None,
        };
        let what = "begin returns what was checkpointed, and nothing else: chunk";
        let told = restored.table.digest(index);
        if told.is_none() || held.is_some() || !region.capabilities().checkpoints_itself {
            assert_eq!(told, held, "{what} {index}");
        } else {
            let digest = digest_of(geometry, index, &piece(geometry, &image, index));
            assert_eq!(told, Some(Some(digest)), "what it recorded by itself is right: {index}");
        }
        let read = target.read_back(geometry.range(index)).await?;
        if held.is_some() {
            let kept = read == piece(geometry, &image, index);
            assert!(kept, "what was checkpointed is there: chunk {index}");
        } else if region.capabilities().blank_target && told.is_none() {
            assert!(is_zero(&read), "what no checkpoint covers is blank again: chunk {index}");
            assert_eq!(to_u64(read.len()), geometry.range(index).len, "and whole");
        }
    }
    let (counted, asked) = (restored.data_bytes, data_bytes(&done));
    let by_itself = region.capabilities().checkpoints_itself && counted > asked;
    assert!(by_itself || counted == asked, "data bytes are counted: {counted} of {asked}");
    // Again, and in another order: a chunk that is recorded twice counts once.
    target.checkpoint(&done).await?;
    let rest = write(&*target, geometry, &image, (2..=4).rev().map(chunk)).await?;
    target.checkpoint(&rest).await?;
    rest.iter().try_for_each(|chunk| restored.record(chunk))?;
    drop(target);

    let target = region.stage(&spec).await?;
    let all = target.begin().await?;
    assert_eq!(all.table.missing(), 0, "every chunk was checkpointed");
    assert_eq!(all.data_bytes, restored.data_bytes, "a chunk recorded twice counts once");
    let manifest = manifest(&spec, all)?;
    assert_eq!(target.commit(&manifest).await?, Outcome::Committed, "nobody contests it");
    target.finish().await?;
    drop(target);
    check_image(place, &spec, &image).await
}

fn data_bytes(chunks: &[Durable]) -> u64 {
    let data = |content| match content {
        Content::Data { data_bytes, .. } => u64::from(data_bytes),
        Content::Zero => 0,
    };
    chunks.iter().map(|chunk| data(chunk.content())).sum()
}

pub(super) async fn attempts_count_up(place: &dyn Place) -> Result<()> {
    let (spec, _) = first(place)?;
    let region = place.region();
    let epoch = async |region: &Arc<dyn Region>| -> Result<Option<u32>> {
        Ok(region.job(spec.job).await?.map(|told| told.epoch))
    };
    for before in 0..3 {
        let target = place.region().stage(&spec).await?;
        assert_eq!(epoch(&region).await?, Some(before), "the last attempt, before the next");
        target.begin().await?;
        assert_eq!(epoch(&region).await?, Some(before + 1), "an attempt gets the next number");
    }
    let vote = region.cancel(spec.job, &spec.target.image).await?;
    assert_eq!(vote, Vote::Cancelled { first: true, clean: true }, "nobody owns it");
    check_absent(place, &spec).await
}

pub(super) async fn a_committed_image_is_listed_and_removed(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let id = &spec.target.image;
    copy(place, &spec, &image).await?;
    let region = place.region();
    let listed = region.list().await?;
    assert_eq!(listed.len(), 1, "the image is listed once: {listed:?}");
    assert_eq!(&listed[0].image, id, "under its id");
    assert!(listed[0].image_bytes >= to_u64(image.len()), "with its size");
    if let Some(job) = listed[0].job {
        assert_eq!(job, spec.job, "with the job that made it");
        // Of an encrypted image it is for those who have the key.
        let told = listed[0].root.is_some() || listed[0].key.is_some();
        assert!(told, "and the root of its chunk table");
    }
    let found = region.locate(id).await?;
    assert_eq!(found, Located::Committed(listed[0].job), "it is located as committed");
    if !region.capabilities().atomic_commit {
        let refused = kind(region.remove(id).await);
        assert_eq!(refused, Some(ErrorKind::Unsupported), "in place, nothing can be removed");
        return Ok(());
    }
    region.remove(id).await?;
    assert_eq!(region.locate(id).await?, Located::Absent, "what was removed is gone");
    check_absent(place, &spec).await?;
    copy(place, &spec, &image).await
}

pub(super) async fn an_image_that_was_put_is_read_and_protected(place: &dyn Place) -> Result<()> {
    let (spec, image) = first(place)?;
    let id = &spec.target.image;
    let region = place.region();
    if !place.put(id, &image) || !region.capabilities().atomic_commit {
        return Ok(());
    }
    let source = region.open(id).await?;
    check_bytes(&*source, &image).await?;
    assert_eq!(region.locate(id).await?, Located::Committed(None), "it came from no copy");
    assert_eq!(kind(region.stage(&spec).await), Some(ErrorKind::Exists), "it is not replaced");
    let vote = region.cancel(spec.job, id).await?;
    assert_eq!(vote, Vote::Unknown, "no job made it");
    let print = source.fingerprint().await?;
    assert_eq!(print, region.open(id).await?.fingerprint().await?, "nothing has changed");
    place.put(id, &image[1..]);
    let now = source.fingerprint().await;
    let seen = now.map_or(true, |now| now != print);
    assert!(seen, "an image that was replaced has another fingerprint, or none");
    region.remove(id).await?;
    check_absent(place, &spec).await
}
