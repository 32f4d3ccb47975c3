//! What proves a region: the conformance suite, and a wrapper that observes and fails operations.
//!
//! Feature `testing`. A region is done when [`conformance`] passes on it.

#[cfg(feature = "encrypt")]
mod cells;
mod endings;
pub mod fuzz;
#[cfg(feature = "peer")]
pub mod fuzz_wire;
mod hooked;
mod recovery;
mod staging;
mod taker;
mod wishes;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::{Durable, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_u64, to_usize};
use crate::id::{ImageId, JobId};
use crate::job::{Endpoint, Fingerprint, JobSpec};
use crate::manifest::Manifest;
use crate::region::{Outcome, Region, Restored, Source, Target, Vote};
use crate::seal::{Seal, digest_of, is_zero, seal};

pub use crate::disk::sim::{Action, Entered, Failure, Faults, Process, Rng, Simulation};
#[cfg(feature = "encrypt")]
pub use cells::Cells;
pub use hooked::{Hook, Hooked, Point, When};
pub use taker::Taker;

/// How the suite gets at regions of one kind.
pub trait Fixture: Sync {
    /// A place that holds no image and no job, apart from every other place that is still in use.
    ///
    /// It is made away with when the box is dropped. A place that is written in place should hold
    /// bytes other than zero.
    fn place(&self) -> Box<dyn Place>;
}

/// One place that holds images, as several processes would see it.
pub trait Place: Debug + Send + Sync {
    /// Another handle to the place, as a second process would open it: it shares nothing in memory
    /// with earlier ones but what the place itself keeps there.
    fn region(&self) -> Arc<dyn Region>;

    /// The id of image `number` in this place; `None` where it cannot hold so many. There is
    /// always an image 0, with room for 1 MiB.
    fn image(&self, number: u8) -> Option<ImageId>;

    /// Puts an image in place that does not come from a copy, over one that is there; `false`
    /// where the region cannot hold such an image.
    fn put(&self, image: &ImageId, bytes: &[u8]) -> bool;

    /// The names of everything that is here besides committed images and folders that regions
    /// keep for later. Empty when the place is clean.
    fn leftovers(&self) -> Vec<String>;
}

/// Runs every clause of the contract in [`region`](crate::region), each on a place of its own.
///
/// Wants a tokio runtime with its clock running.
///
/// # Panics
/// At the first clause that the region breaks, with the name of that clause.
///
/// # Cancel safety
/// Lossy: dropping it leaves the fixture's place as it is at that moment.
pub async fn conformance(fixture: &dyn Fixture) {
    macro_rules! clauses {
        ($($room:ident: $($name:ident)*;)*) => {
            [$($((stringify!($name), boxed!($room::$name)),)*)*]
        };
    }
    macro_rules! boxed {
        ($clause:path) => {
            (|place| Box::pin($clause(place))) as Clause
        };
    }
    let clauses: &[(&str, Clause)] = &clauses! {
        staging: an_empty_place_knows_nothing a_stage_is_invisible_until_commit
            an_image_has_one_stage two_images_are_copied_side_by_side a_stage_has_one_owner
            of_two_that_stage_at_once_one_wins images_of_every_shape_arrive
            zeros_replace_what_was_written staged_bytes_are_read_back
            a_reopened_stage_has_what_was_checkpointed_and_nothing_else
            attempts_count_up a_committed_image_is_listed_and_removed
            an_image_that_was_put_is_read_and_protected;
        endings: commit_and_finish_may_be_repeated an_image_that_came_first_stays
            a_finished_commit_is_not_cancelled
            a_cancel_before_begin_is_clean a_cancel_during_the_copy_is_clean
            a_cancel_reaches_the_live_owner a_cancel_is_finished_when_the_owner_is_gone
            a_cancel_after_commit_loses an_unknown_job_cannot_be_cancelled
            a_discarded_copy_leaves_nothing a_cancelled_stage_makes_room
            commit_and_cancel_at_once_agree;
        recovery: what_may_go_on_is_kept what_is_running_is_left_alone
            a_decided_commit_is_finished a_decided_cancel_is_finished
            recover_and_finish_do_not_mind_each_other;
        wishes: wishes_reach_the_owner a_stale_suspend_does_not_hit_the_next_attempt
            a_report_is_shown;
    };
    for (name, clause) in clauses {
        let place = fixture.place();
        let told = clause(&*place).await;
        let error = told.err().map(|error| error.report());
        assert!(error.is_none(), "clause {name}: {} in {place:?}", error.unwrap_or_default());
        let left = place.leftovers();
        assert!(left.is_empty(), "clause {name}: nothing may be left over, but {left:?} is");
    }
}

type Clause = for<'a> fn(&'a dyn Place) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Not a multiple of the chunk size, nor of a sector.
const IMAGE_BYTES: u64 = 4 * (64 << 10) + 12_345;

/// Chunks 1 and 2 of the sample image are zeros.
fn sample(len: u64) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut image: Vec<u8> = (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    let chunk = to_usize(ChunkSize::MIN.bytes());
    let (start, end) = (chunk.min(image.len()), (3 * chunk).min(image.len()));
    image[start..end].fill(0);
    image
}

/// Job `number`, which copies an image of that length to image `target` of the place.
fn spec(place: &dyn Place, number: u8, target: u8, image_bytes: u64) -> Result<JobSpec> {
    let image = place
        .image(target)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "use an image that the place has not"))?;
    let region = place.region();
    let mut spec = JobSpec::new(
        JobId::from_bytes([number; 16]),
        Endpoint::new("memory://conformance".parse()?, "source".parse()?),
        Endpoint::new(region.location().parse()?, image),
        Geometry::new(image_bytes, ChunkSize::MIN)?,
        Fingerprint::new().with("size", image_bytes),
    );
    spec.destructive = !region.capabilities().preserves_previous;
    spec.attributes.insert("name".into(), "conformance".into());
    Ok(spec)
}

/// Job 1, which copies the sample to image 0.
fn first(place: &dyn Place) -> Result<(JobSpec, Vec<u8>)> {
    Ok((spec(place, 1, 0, IMAGE_BYTES)?, sample(IMAGE_BYTES)))
}

fn piece(geometry: Geometry, image: &[u8], index: ChunkIndex) -> Bytes {
    let range = geometry.range(index);
    Bytes::copy_from_slice(&image[to_usize(range.offset)..to_usize(range.end())])
}

/// Writes those chunks of the image and syncs.
async fn write(
    target: &dyn Target,
    geometry: Geometry,
    image: &[u8],
    chunks: impl Iterator<Item = ChunkIndex>,
) -> Result<Vec<Durable>> {
    let mut written: Vec<Written> = Vec::new();
    for index in chunks {
        written.push(match seal(geometry, index, piece(geometry, image, index)) {
            Seal::Zero(index) => target.write_zeroes(ChunkRun::new(index, 1)).await?,
            Seal::Data(chunk) => target.write(chunk).await?,
        });
    }
    target.sync().await?;
    Ok(written.iter().map(|chunk| Durable::recorded(chunk.run(), chunk.content())).collect())
}

fn manifest(spec: &JobSpec, restored: Restored) -> Result<Manifest> {
    let table = restored
        .table
        .finish()
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "describe an image with missing chunks"))?;
    Manifest::new(table, Some(spec.job), spec.attributes.clone())
}

/// Stages the image and writes all of it, up to the commit.
async fn ready(
    region: &dyn Region,
    spec: &JobSpec,
    image: &[u8],
) -> Result<(Arc<dyn Target>, Manifest)> {
    let target = region.stage(spec).await?;
    let mut restored = target.begin().await?;
    let done = write(&*target, spec.geometry, image, spec.geometry.chunks().iter()).await?;
    target.checkpoint(&done).await?;
    done.iter().try_for_each(|chunk| restored.record(chunk))?;
    Ok((target, manifest(spec, restored)?))
}

/// Ends a copy that has not committed.
async fn discard(target: &dyn Target) -> Result<()> {
    assert_eq!(target.discard().await?, Outcome::Cancelled, "a copy is discarded until it commits");
    Ok(())
}

/// Copies the image whole.
async fn copy(place: &dyn Place, spec: &JobSpec, image: &[u8]) -> Result<()> {
    let (target, manifest) = ready(&*place.region(), spec, image).await?;
    let outcome = target.commit(&manifest).await?;
    assert_eq!(outcome, Outcome::Committed, "a commit that nobody contests is decided");
    target.finish().await?;
    drop(target);
    check_image(place, spec, image).await
}

/// The image is visible, from another handle, with exactly these bytes.
async fn check_image(place: &dyn Place, spec: &JobSpec, image: &[u8]) -> Result<()> {
    let region = place.region();
    let source = region.open(&spec.target.image).await?;
    let in_place = !region.capabilities().atomic_commit;
    let size = source.size_bytes();
    assert!(
        size == to_u64(image.len()) || in_place && size > to_u64(image.len()),
        "a committed image has its size: {size} where {} belong",
        image.len()
    );
    check_bytes(&*source, image).await?;
    if let Some(manifest) = source.manifest() {
        assert_eq!(manifest.job(), Some(spec.job), "the manifest names the job that made it");
        assert_eq!(manifest.attributes(), &spec.attributes, "attributes arrive");
        for index in spec.geometry.chunks().iter() {
            let bytes = piece(spec.geometry, image, index);
            let digest = (!is_zero(&bytes)).then(|| digest_of(spec.geometry, index, &bytes));
            assert_eq!(manifest.table().digest(index), digest, "digest of chunk {index}");
        }
    }
    Ok(())
}

async fn check_bytes(source: &dyn Source, image: &[u8]) -> Result<()> {
    use crate::geometry::ByteRange;
    use crate::plan::ExtentKind;
    let whole = ByteRange::new(0, to_u64(image.len()));
    let read = source.read_at(whole).await?;
    assert!(read[..] == *image, "a committed image has exactly its bytes");
    if let Some(middle) = image.get(1..image.len().saturating_sub(1)) {
        let read = source.read_at(ByteRange::new(1, to_u64(middle.len()))).await?;
        assert!(read[..] == *middle, "a read may begin and end anywhere");
    }
    let mut covered = 0;
    while covered < whole.end() {
        let extents = source.extents(ByteRange::new(covered, whole.end() - covered)).await?;
        assert!(!extents.is_empty() && extents.len() <= 1024, "extents come, 1024 at most");
        for extent in extents {
            assert_eq!(extent.range.offset, covered, "extents are neighbours from the start");
            assert!(!extent.range.is_empty(), "an extent is not empty");
            let bytes = &image[to_usize(covered)..to_usize(extent.range.end().min(whole.end()))];
            assert!(extent.kind != ExtentKind::Zero || is_zero(bytes), "zero claims are true");
            covered = extent.range.end();
        }
    }
    Ok(())
}

/// What a cancelled image must look like to those who never knew of the job.
async fn check_absent(place: &dyn Place, spec: &JobSpec) -> Result<()> {
    let region = place.region();
    let (image, job) = (&spec.target.image, spec.job);
    assert!(region.jobs().await?.is_empty(), "no job is staged any more");
    assert!(region.job(job).await?.is_none(), "the job is not staged any more");
    assert_eq!(region.cancel(job, image).await?, Vote::Unknown, "a clean job is unknown");
    assert!(region.recover(None).await?.is_empty(), "nothing is left to recover");
    check_hidden(&*region, image).await?;
    let left = place.leftovers();
    assert!(left.is_empty(), "nothing may be left over, but {left:?} is");
    Ok(())
}

/// Nothing is seen of the image.
async fn check_hidden(region: &dyn Region, image: &ImageId) -> Result<()> {
    if !region.capabilities().atomic_commit {
        return Ok(());
    }
    let kind = region.open(image).await.err().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::NotFound), "an image that is not committed is not opened");
    let listed = region.list().await?;
    assert!(listed.iter().all(|info| info.image != *image), "only committed images are listed");
    let kind = region.remove(image).await.err().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::NotFound), "an image that is not committed is not removed");
    Ok(())
}

/// In place, a cancelled image reads as zeros.
async fn check_blank(place: &dyn Place, spec: &JobSpec) -> Result<()> {
    let region = place.region();
    if !region.capabilities().atomic_commit {
        let source = region.open(&spec.target.image).await?;
        let read = source.read_at(spec.geometry.whole()).await?;
        assert!(is_zero(&read), "in place, a cancelled image reads as zeros");
    }
    Ok(())
}

/// The kind of the failure, if it is one.
fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}
