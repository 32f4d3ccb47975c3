//! What a job costs beside its bytes, durable on a real disk: its start, a checkpoint, its commit.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/job.rs"]
mod job;
#[path = "made/manifest.rs"]
mod manifest;

use std::path::Path;
use std::time::{Duration, Instant};

use blockferry::Result;
use blockferry::chunk::{Content, Digest, Durable};
use blockferry::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry};
use blockferry::id::ImageId;
use blockferry::job::JobSpec;
use blockferry::manifest::Manifest;
use blockferry::region::{DirRegion, Located, Outcome, Region};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// After so many checkpoints a new stage is made: a journal has a greatest length.
const CHECKPOINTS_PER_STAGE: u64 = 64;

/// The chunks of one checkpoint, and what it takes to commit their image again and again. No bytes
/// are written.
struct Case {
    region: DirRegion,
    image: ImageId,
    geometry: Geometry,
    chunks: Vec<Durable>,
    next_job: u64,
}

impl Case {
    fn new(root: &Path, chunk_count: u32) -> Self {
        let size = ChunkSize::MIN;
        let geometry = Geometry::new(u64::from(chunk_count) * size.bytes(), size).unwrap();
        let data_bytes = u32::try_from(size.bytes()).unwrap();
        let chunk = |n| {
            let digest = Digest::from_bytes(manifest::digest(n));
            let run = ChunkRun::new(ChunkIndex::new(n), 1);
            Durable::recorded(run, Content::Data { digest, data_bytes })
        };
        Self {
            region: DirRegion::open_root(root).unwrap(),
            image: "image".parse().unwrap(),
            geometry,
            chunks: (0..chunk_count).map(chunk).collect(),
            next_job: 0,
        }
    }

    /// A new job for the image.
    fn job(&mut self) -> JobSpec {
        self.next_job += 1;
        job::spec(self.next_job, self.geometry)
    }

    /// What that job will commit.
    fn manifest(&self, spec: &JobSpec) -> Manifest {
        let bytes = manifest::manifest_bytes(self.geometry, spec.job);
        Manifest::decode_from(&mut &bytes[..]).unwrap()
    }

    /// From nothing to an attempt that is on record.
    async fn starts(&mut self, rounds: u64) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for _ in 0..rounds {
            let spec = self.job();
            let began = Instant::now();
            let target = self.region.stage(&spec).await?;
            target.begin().await?;
            total += began.elapsed();
            assert_eq!(target.discard().await?, Outcome::Cancelled);
        }
        Ok(total)
    }

    /// Checkpoints alone, each of all chunks.
    async fn checkpoints(&mut self, rounds: u64) -> Result<Duration> {
        let mut total = Duration::ZERO;
        let mut left = rounds;
        while left > 0 {
            let spec = self.job();
            let target = self.region.stage(&spec).await?;
            target.begin().await?;
            let began = Instant::now();
            for _ in 0..left.min(CHECKPOINTS_PER_STAGE) {
                target.checkpoint(&self.chunks).await?;
            }
            total += began.elapsed();
            left = left.saturating_sub(CHECKPOINTS_PER_STAGE);
            assert_eq!(target.discard().await?, Outcome::Cancelled);
        }
        Ok(total)
    }

    /// The commit, and the end of the stage.
    async fn commits(&mut self, rounds: u64) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for _ in 0..rounds {
            let spec = self.job();
            let manifest = self.manifest(&spec);
            let target = self.region.stage(&spec).await?;
            target.begin().await?;
            target.checkpoint(&self.chunks).await?;
            let began = Instant::now();
            assert_eq!(target.commit(&manifest).await?, Outcome::Committed);
            target.finish().await?;
            total += began.elapsed();
            self.region.remove(&self.image).await?;
        }
        Ok(total)
    }

    /// What a checkpoint recorded is what a process that takes the job over is given, and what was
    /// committed is what a reader finds.
    async fn check(&mut self) -> Result<()> {
        let spec = self.job();
        let manifest = self.manifest(&spec);
        let target = self.region.stage(&spec).await?;
        assert_eq!(target.begin().await?.table.missing(), self.geometry.chunk_count());
        target.checkpoint(&self.chunks).await?;
        drop(target);
        let target = self.region.stage(&spec).await?;
        let restored = target.begin().await?;
        assert_eq!(restored.table.missing(), 0);
        assert_eq!(restored.data_bytes, self.geometry.image_bytes());
        for index in self.geometry.chunks().iter() {
            let digest = Digest::from_bytes(manifest::digest(index.get()));
            assert_eq!(restored.table.digest(index), Some(Some(digest)));
        }
        assert_eq!(target.commit(&manifest).await?, Outcome::Committed);
        target.finish().await?;
        drop(target);
        let located = self.region.locate(&self.image).await?;
        assert_eq!(located, Located::Committed(Some(spec.job)));
        let committed = self.region.open(&self.image).await?.manifest().unwrap();
        assert_eq!(committed.root(), manifest.root());
        self.region.remove(&self.image).await
    }
}

fn journal(bench: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = bench.benchmark_group("journal");
    group.sample_size(20);
    for chunk_count in [1, 64, 4096] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut case = Case::new(root.path(), chunk_count);
        runtime.block_on(case.check()).unwrap();
        if chunk_count == 1 {
            // A start knows nothing of chunks.
            group.bench_function("start", |timer| {
                timer.iter_custom(|rounds| runtime.block_on(case.starts(rounds)).unwrap());
            });
        }
        group.bench_function(BenchmarkId::new("checkpoint", chunk_count), |timer| {
            timer.iter_custom(|rounds| runtime.block_on(case.checkpoints(rounds)).unwrap());
        });
        group.bench_function(BenchmarkId::new("commit", chunk_count), |timer| {
            timer.iter_custom(|rounds| runtime.block_on(case.commits(rounds)).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, journal);
criterion_main!(benches);
