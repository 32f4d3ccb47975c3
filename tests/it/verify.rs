//! Reading back before commit: wrong bytes are written again, or never become visible.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use blockferry::ErrorKind;
use blockferry::chunk::{Durable, Sealed, Written};
use blockferry::engine::Engine;
use blockferry::geometry::{ByteRange, ChunkRun};
use blockferry::id::{ImageId, JobId};
use blockferry::job::{Fingerprint, JobSpec, Progress};
use blockferry::manifest::Manifest;
use blockferry::options::Verify;
use blockferry::plan::{Extent, ExtentKind};
use blockferry::region::{
    BoxFuture, Capabilities, ImageInfo, LocalFile, Located, Outcome, Recovered, Region, Restored,
    Source, StagedJob, Target, Vote, Wish, Wishes,
};
use bytes::Bytes;

use crate::world::{
    KIB, World, committed, ended, failed, image, noise, rate, region, request, resumed, small,
    suspended, until,
};

const CHUNK: u64 = 64 * KIB;
const CHUNKS: u64 = 40;

/// What becomes of what is read back.
#[derive(Debug, Default)]
struct Book {
    /// Offset of a chunk -> how many more times it reads back wrong.
    wrong: HashMap<u64, u32>,
    /// Offset of a chunk -> how often it was read back.
    read_back: HashMap<u64, u32>,
    /// Offset of a chunk -> how often it was written.
    written: HashMap<u64, u32>,
    /// Sources tell of extents that have no length.
    stands_still: bool,
}

/// A region whose device does not keep what is written.
#[derive(Clone, Debug)]
struct Forgetful {
    inner: Arc<dyn Region>,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug)]
struct ForgetfulTarget {
    inner: Arc<dyn Target>,
    book: Arc<Mutex<Book>>,
}

/// A source whose extents never get further.
#[derive(Debug)]
struct StandingStill {
    inner: Arc<dyn Source>,
}

impl Source for StandingStill {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn fingerprint(&self) -> BoxFuture<'_, blockferry::Result<Fingerprint>> {
        self.inner.fingerprint()
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, blockferry::Result<Vec<Extent>>> {
        let nothing = Extent { range: ByteRange::new(range.offset, 0), kind: ExtentKind::Data };
        // Yields, so that a survey that never ends is found by its deadline and not by hanging.
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(vec![nothing])
        })
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.inner.manifest()
    }

    fn key(&self) -> Option<blockferry::id::KeyId> {
        self.inner.key()
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, blockferry::Result<Bytes>> {
        self.inner.read_at(range)
    }

    fn local(&self) -> Option<LocalFile> {
        self.inner.local()
    }
}

impl Region for Forgetful {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn open<'a>(
        &'a self,
        image: &'a ImageId,
    ) -> BoxFuture<'a, blockferry::Result<Arc<dyn Source>>> {
        Box::pin(async move {
            let inner = self.inner.open(image).await?;
            let stands_still = self.book.lock().unwrap().stands_still;
            Ok(if stands_still { Arc::new(StandingStill { inner }) } else { inner })
        })
    }

    fn stage<'a>(
        &'a self,
        spec: &'a JobSpec,
    ) -> BoxFuture<'a, blockferry::Result<Arc<dyn Target>>> {
        Box::pin(async move {
            let inner = self.inner.stage(spec).await?;
            let target: Arc<dyn Target> =
                Arc::new(ForgetfulTarget { inner, book: self.book.clone() });
            Ok(target)
        })
    }

    fn reopen<'a>(
        &'a self,
        spec: &'a JobSpec,
    ) -> BoxFuture<'a, blockferry::Result<Arc<dyn Target>>> {
        Box::pin(async move {
            let inner = self.inner.reopen(spec).await?;
            let target: Arc<dyn Target> =
                Arc::new(ForgetfulTarget { inner, book: self.book.clone() });
            Ok(target)
        })
    }

    fn list(&self) -> BoxFuture<'_, blockferry::Result<Vec<ImageInfo>>> {
        self.inner.list()
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, blockferry::Result<()>> {
        self.inner.remove(image)
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, blockferry::Result<Located>> {
        self.inner.locate(image)
    }

    fn jobs(&self) -> BoxFuture<'_, blockferry::Result<Vec<StagedJob>>> {
        self.inner.jobs()
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, blockferry::Result<Option<StagedJob>>> {
        self.inner.job(job)
    }

    fn cancel<'a>(
        &'a self,
        job: JobId,
        image: &'a ImageId,
    ) -> BoxFuture<'a, blockferry::Result<Vote>> {
        self.inner.cancel(job, image)
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, blockferry::Result<bool>> {
        self.inner.wish(job, wish)
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, blockferry::Result<Vec<Recovered>>> {
        self.inner.recover(only)
    }
}

impl Target for ForgetfulTarget {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn begin(&self) -> BoxFuture<'_, blockferry::Result<Restored>> {
        self.inner.begin()
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, blockferry::Result<Written>> {
        *self.book.lock().unwrap().written.entry(chunk.range().offset).or_default() += 1;
        self.inner.write(chunk)
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, blockferry::Result<Written>> {
        let offset = u64::from(run.first.get()) * CHUNK;
        *self.book.lock().unwrap().written.entry(offset).or_default() += 1;
        self.inner.write_zeroes(run)
    }

    fn sync(&self) -> BoxFuture<'_, blockferry::Result<()>> {
        self.inner.sync()
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, blockferry::Result<()>> {
        self.inner.checkpoint(chunks)
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, blockferry::Result<Bytes>> {
        Box::pin(async move {
            let mut bytes = self.inner.read_back(range).await?.to_vec();
            let mut book = self.book.lock().unwrap();
            *book.read_back.entry(range.offset).or_default() += 1;
            if let Some(times @ 1..) = book.wrong.get_mut(&range.offset) {
                *times -= 1;
                bytes[100] ^= 1;
            }
            Ok(bytes.into())
        })
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, blockferry::Result<Outcome>> {
        self.inner.commit(manifest)
    }

    fn finish(&self) -> BoxFuture<'_, blockferry::Result<()>> {
        self.inner.finish()
    }

    fn discard(&self) -> BoxFuture<'_, blockferry::Result<Outcome>> {
        self.inner.discard()
    }

    fn wishes(&self) -> BoxFuture<'_, blockferry::Result<Wishes>> {
        self.inner.wishes()
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, blockferry::Result<()>> {
        self.inner.report(progress)
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}

/// An image of 40 chunks, every fifth of zeros, and a forgetful region over `place`.
async fn play(place: &str, wrong: &[(u64, u32)]) -> (World, Engine, Arc<Mutex<Book>>) {
    let world = World::in_memory();
    let mut bytes = noise(5, CHUNKS * CHUNK);
    for chunk in (0..CHUNKS).step_by(5) {
        let start = usize::try_from(chunk * CHUNK).unwrap();
        bytes[start..start + (64 << 10)].fill(0);
    }
    world.m.insert(&image("disk"), bytes);
    let book: Arc<Mutex<Book>> = Arc::default();
    book.lock().unwrap().wrong =
        wrong.iter().map(|(chunk, times)| (chunk * CHUNK, *times)).collect();
    let options = world.options().with_checkpoint(CHUNK, std::time::Duration::from_millis(20));
    let engine = world.engine_with(options).await;
    let forgetful = Forgetful { inner: world.region(place), book: book.clone() };
    engine.register(region("forgetful"), Arc::new(forgetful)).await.unwrap();
    (world, engine, book)
}

async fn assert_right(world: &World, place: &str) {
    let source = world.region(place).open(&image("disk")).await.unwrap();
    let bytes = source.read_at(ByteRange::new(0, CHUNKS * CHUNK)).await.unwrap();
    assert!(bytes == world.m.bytes(&image("disk")).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_read_back_wrong_a_few_times_are_written_again() {
    for place in ["n", "b"] {
        for times in 1..=3 {
            let (world, engine, book) =
                play(place, &[(0, times), (7, times), (CHUNKS - 1, 1)]).await;
            let options = small().with_verify(Verify::Full);
            let job = engine.copy(request("m/disk", "forgetful/disk", options)).await.unwrap();
            let receipt = committed(ended(&job).await);
            assert_eq!(receipt.verified.rewritten_chunks, 2 * times + 1, "{times} times");
            let again = u64::from(receipt.verified.rewritten_chunks);
            assert_eq!(u64::from(receipt.verified.chunks), CHUNKS + again);
            assert_eq!(receipt.data_bytes + receipt.zero_bytes, receipt.image_bytes);
            assert_eq!(book.lock().unwrap().written[&(7 * CHUNK)], 1 + times);
            assert_right(&world, place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_always_reads_back_wrong_is_never_visible() {
    for place in ["n", "b"] {
        for chunk in [0, 7] {
            let (world, engine, _) = play(place, &[(chunk, u32::MAX)]).await;
            let options = small().with_verify(Verify::Full);
            let job = engine.copy(request("m/disk", "forgetful/disk", options)).await.unwrap();
            failed(&ended(&job).await, ErrorKind::Corrupt, true);
            assert!(world.region(place).list().await.unwrap().is_empty());
            assert!(job.cancel().await.unwrap().answer.is_clean());
            world.assert_empty("b");
            assert!(world.n.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_verification_nothing_is_read_back() {
    let (world, engine, book) = play("n", &[(1, u32::MAX)]).await;
    let job = engine.copy(request("m/disk", "forgetful/disk", small())).await.unwrap();
    let receipt = committed(ended(&job).await);
    assert_eq!((receipt.verified.chunks, receipt.verified.bytes), (0, 0));
    assert!(book.lock().unwrap().read_back.is_empty());
    assert_right(&world, "n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_reads_back_about_its_share() {
    for (percent, least, most) in [(5, 2, 4), (25, 9, 12), (50, 19, 22), (100, 40, 40)] {
        let (_world, engine, book) = play("n", &[]).await;
        let verify = Verify::Sample { per_million: percent * 10_000 };
        let options = small().with_verify(verify);
        let job = engine.copy(request("m/disk", "forgetful/disk", options)).await.unwrap();
        let receipt = committed(ended(&job).await);
        assert!((least..=most).contains(&receipt.verified.chunks), "{percent} %: {receipt:?}");
        let read = book.lock().unwrap().read_back.len();
        assert_eq!(read, usize::try_from(receipt.verified.chunks).unwrap());
        assert_eq!(receipt.verified.mode, verify);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_verification_also_reads_back_what_a_resume_does_not_copy() {
    for place in ["n", "b"] {
        let (world, engine, book) = play(place, &[]).await;
        // So slow that it stops half way.
        let options = small().with_verify(Verify::Full).with_limits(rate(8 * CHUNK));
        let job = engine.copy(request("m/disk", "forgetful/disk", options)).await.unwrap();
        until("some chunks are durable", async || book.lock().unwrap().read_back.len() >= 4).await;
        suspended(&job.suspend().await);
        let (earlier, before) = {
            let mut book = book.lock().unwrap();
            // A chunk that was good before it was suspended has gone bad since.
            let held = *book.read_back.keys().find(|at| book.written.contains_key(at)).unwrap();
            book.read_back.clear();
            book.wrong.insert(held, 1);
            (held, book.written.clone())
        };
        engine.limit(job.id(), blockferry::options::Limits::NONE).await.unwrap();
        let receipt = committed(ended(&resumed(&engine, &job).await).await);
        {
            let book = book.lock().unwrap();
            assert_eq!(book.read_back.len(), usize::try_from(CHUNKS).unwrap(), "every chunk");
            assert!(receipt.resumed_bytes > 0);
            assert_eq!(receipt.verified.rewritten_chunks, 1);
            assert_eq!(book.written[&earlier], before[&earlier] + 1);
        }
        assert_right(&world, place).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_extents_get_no_further_does_not_hold_the_job_for_ever() {
    let (world, engine, book) = play("n", &[]).await;
    let job = engine.copy(request("m/disk", "forgetful/disk", small())).await.unwrap();
    committed(ended(&job).await);
    book.lock().unwrap().stands_still = true;
    let job = engine.copy(request("forgetful/disk", "b/again", small())).await.unwrap();
    failed(&ended(&job).await, ErrorKind::Invalid, true);
    assert!(world.region("b").list().await.unwrap().is_empty());
    assert!(job.cancel().await.unwrap().answer.is_clean());
}
