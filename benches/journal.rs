//! What a job costs beside its bytes: start, one checkpoint, commit, durable on a real disk.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/manifest.rs"]
mod manifest;

use std::path::Path;
use std::time::{Duration, Instant};

use blockferry::Result;
use blockferry::chunk::{Content, Digest, Durable};
use blockferry::geometry::{ChunkRun, ChunkSize, Geometry};
use blockferry::id::{ImageId, JobId};
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::manifest::Manifest;
use blockferry::region::{DirRegion, Located, Outcome, Region};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// The chunks of one checkpoint, and what it takes to commit their image again and again.
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
            let run = ChunkRun::new(blockferry::geometry::ChunkIndex::new(n), 1);
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

    /// A new job for the image, and the manifest that it will commit.
    fn job(&mut self) -> (JobSpec, Manifest) {
        self.next_job += 1;
        let mut number = [0; 16];
        number[..8].copy_from_slice(&self.next_job.to_le_bytes());
        let job = JobId::from_bytes(number);
        let source = Endpoint::new("bench".parse().unwrap(), "source".parse().unwrap());
        let target = Endpoint::new("region".parse().unwrap(), self.image.clone());
        let spec = JobSpec::new(job, source, target, self.geometry, Fingerprint::new());
        let bytes = manifest::manifest_bytes(self.geometry, job);
        (spec, Manifest::decode_from(&mut &bytes[..]).unwrap())
    }

    /// Start, checkpoint, commit, and the end of the stage. No bytes are written.
    async fn cycle(&self, spec: &JobSpec, manifest: &Manifest) -> Result<Duration> {
        let began = Instant::now();
        let target = self.region.stage(spec).await?;
        target.begin().await?;
        target.sync().await?;
        target.checkpoint(&self.chunks).await?;
        assert_eq!(target.commit(manifest).await?, Outcome::Committed);
        target.finish().await?;
        Ok(began.elapsed())
    }

    /// What a checkpoint recorded is what a process that takes the job over is given.
    async fn check(&mut self) -> Result<()> {
        let (spec, manifest) = self.job();
        let target = self.region.stage(&spec).await?;
        target.begin().await?;
        target.checkpoint(&self.chunks).await?;
        drop(target);
        let target = self.region.stage(&spec).await?;
        let restored = target.begin().await?;
        assert_eq!(restored.table.missing(), 0);
        assert_eq!(restored.data_bytes, self.geometry.image_bytes());
        assert_eq!(target.commit(&manifest).await?, Outcome::Committed);
        target.finish().await?;
        drop(target);
        let located = self.region.locate(&self.image).await?;
        assert_eq!(located, Located::Committed(Some(spec.job)));
        self.region.remove(&self.image).await
    }
}

fn cycles(bench: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = bench.benchmark_group("start, checkpoint, commit");
    group.sample_size(20);
    for chunk_count in [1, 64, 4096] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut case = Case::new(root.path(), chunk_count);
        runtime.block_on(case.check()).unwrap();
        group.bench_function(BenchmarkId::from_parameter(chunk_count), |timer| {
            timer.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    let (spec, manifest) = case.job();
                    total += runtime.block_on(case.cycle(&spec, &manifest)).unwrap();
                    runtime.block_on(case.region.remove(&case.image)).unwrap();
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cycles);
criterion_main!(benches);
