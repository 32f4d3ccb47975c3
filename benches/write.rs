//! What writing costs: sealed chunks into the stage of a directory region, one at a time, and the
//! sync that makes them durable.
//!
//! Each round writes a whole new image, so blocks are allocated as in a real copy.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot go on stops")]

#[path = "made/job.rs"]
mod job;
#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry::Result;
use blockferry::chunk::{Content, Sealed};
use blockferry::geometry::{ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::region::{DirRegion, Located, Outcome, Region, Target};
use blockferry::seal::{Seal, seal};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use criterion::{criterion_group, criterion_main};
use tokio::runtime::Runtime;

const SIZES: [(&str, u64); 4] =
    [("64KiB", 64 << 10), ("256KiB", 256 << 10), ("1MiB", 1 << 20), ("4MiB", 4 << 20)];

/// An image in memory, cut and sealed, and where it is written.
struct Case {
    root: PathBuf,
    region: DirRegion,
    geometry: Geometry,
    chunks: Vec<Sealed>,
    next_job: u64,
}

impl Case {
    fn new(root: &Path, image: &Bytes, chunk_bytes: u64) -> Self {
        let size = ChunkSize::from_bytes(chunk_bytes).unwrap();
        let geometry = Geometry::new(image.len() as u64, size).unwrap();
        let pieces = image.chunks(usize::try_from(chunk_bytes).unwrap());
        let sealed =
            |(index, piece): (_, &[u8])| match seal(geometry, index, image.slice_ref(piece)) {
                Seal::Data(chunk) => chunk,
                Seal::Zero(index) => panic!("chunk {index} of the noise is zero"),
            };
        Self {
            root: root.to_owned(),
            region: DirRegion::open_root(root).unwrap(),
            geometry,
            chunks: geometry.chunks().iter().zip(pieces).map(sealed).collect(),
            next_job: 0,
        }
    }

    async fn stage(&mut self) -> Result<(JobId, Arc<dyn Target>)> {
        self.next_job += 1;
        let spec = job::spec(self.next_job, self.geometry);
        let target = self.region.stage(&spec).await?;
        target.begin().await?;
        Ok((spec.job, target))
    }

    /// Time spent in writing and in the sync, of one new image.
    async fn round(&mut self) -> Result<[Duration; 2]> {
        let (_, target) = self.stage().await?;
        let chunks = self.chunks.clone();
        let mut written = Vec::with_capacity(chunks.len());
        let began = Instant::now();
        for chunk in chunks {
            written.push(target.write(chunk).await?);
        }
        let before_sync = Instant::now();
        target.sync().await?;
        let after_sync = Instant::now();
        assert_eq!(written.len(), self.chunks.len());
        assert_eq!(target.discard().await?, Outcome::Cancelled);
        Ok([before_sync - began, after_sync - before_sync])
    }

    /// The stage holds the image, as another program reads it, and a discard leaves nothing.
    async fn check(&mut self, image: &[u8]) -> Result<()> {
        let (job, target) = self.stage().await?;
        for chunk in self.chunks.iter().rev() {
            let written = target.write(chunk.clone()).await?;
            let data_bytes = u32::try_from(chunk.range().len).unwrap();
            assert_eq!(written.content(), Content::Data { digest: chunk.digest(), data_bytes });
            assert_eq!(written.run().first, chunk.index());
        }
        target.sync().await?;
        let stages = self.root.join(".blockferry/stage");
        let staged = std::fs::read(stages.join(job.to_string()).join("image/data")).unwrap();
        assert_eq!(blake3::hash(&staged), blake3::hash(image));
        assert_eq!(target.discard().await?, Outcome::Cancelled);
        assert_eq!(self.region.locate(&"image".parse()?).await?, Located::Absent);
        assert_eq!(std::fs::read_dir(&stages).unwrap().count(), 0);
        Ok(())
    }
}

fn writes(bench: &mut Criterion) {
    let image_len = if smoke::is_smoke() { 8 << 20 } else { 64 << 20 };
    let image = Bytes::from(noise::noise(image_len));
    let runtime = Runtime::new().unwrap();
    let mut group = bench.benchmark_group("write");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(image_len as u64));
    for (name, chunk_bytes) in SIZES {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut case = Case::new(root.path(), &image, chunk_bytes);
        runtime.block_on(case.check(&image)).unwrap();
        for (at, step) in ["chunks", "sync"].into_iter().enumerate() {
            group.bench_function(BenchmarkId::new(step, name), |timer| {
                timer.iter_custom(|rounds| {
                    (0..rounds).map(|_| runtime.block_on(case.round()).unwrap()[at]).sum()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, writes);
criterion_main!(benches);
