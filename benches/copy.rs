//! Whole copies through the engine: a hot file to a directory region, durable, as a caller sees it.
//!
//! The image has `BLOCKFERRY_BENCH_MIB` MiB (256). Figures of one run compare with each other; to
//! compare with other tools, use `benches/peers/run`, which warms memory before every sample.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a bench that cannot go on stops")]

#[path = "made/noise.rs"]
mod noise;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry::Result;
use blockferry::engine::{CopyRequest, Engine, JobOutcome};
use blockferry::id::{ImageId, RegionName};
use blockferry::job::{Endpoint, Receipt};
use blockferry::options::{CopyOptions, EngineOptions};
use blockferry::region::{DirRegion, FileRegion, Region};
use blockferry::seal::{content_digest, zero_digest};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;

struct Case {
    engine: Engine,
    region: Arc<DirRegion>,
    source: Endpoint,
    target: Endpoint,
}

impl Case {
    async fn new(folder: &Path, source: &Path) -> Result<Self> {
        let (root, state_dir) = (folder.join("region"), folder.join("state"));
        std::fs::create_dir_all(&root).unwrap();
        let engine = Engine::open(EngineOptions::new(&state_dir)).await?;
        let (from, to) = (RegionName::try_from("file")?, RegionName::try_from("region")?);
        let region = Arc::new(DirRegion::open_root(&root)?);
        engine.register(from.clone(), FileRegion::open_path(source, &state_dir)?).await?;
        engine.register(to.clone(), region.clone()).await?;
        let image = ImageId::try_from("image")?;
        let (source, target) = (Endpoint::new(from, image.clone()), Endpoint::new(to, image));
        Ok(Self { engine, region, source, target })
    }

    /// One copy, from the request to the acknowledged commit.
    async fn copy(&self) -> Result<(Arc<Receipt>, Duration)> {
        let began = Instant::now();
        let (source, target) = (self.source.clone(), self.target.clone());
        let request = CopyRequest::new(source, target, CopyOptions::new());
        let outcome = self.engine.copy(request).await?.wait().await;
        let elapsed = began.elapsed();
        let JobOutcome::Committed(receipt) = outcome else { panic!("{outcome:?}") };
        Ok((receipt, elapsed))
    }

    async fn clear(&self, receipt: &Receipt) -> Result<()> {
        assert!(receipt.warnings.is_empty(), "{:?}", receipt.warnings);
        self.region.remove(&self.target.image).await
    }

    /// The committed image has the bytes of the source, by the digest that `b3sum` prints.
    async fn check(&self, source: &Path) -> Result<()> {
        let (receipt, _) = self.copy().await?;
        let copied = self.region.open(&self.target.image).await?;
        let manifest = copied.manifest().unwrap();
        let geometry = manifest.geometry();
        let merged = content_digest(geometry, |index| {
            manifest.table().digest(index).unwrap_or_else(|| zero_digest(geometry, index))
        });
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(source).unwrap()).unwrap();
        assert_eq!(merged.as_bytes(), hasher.finalize().as_bytes());
        assert_eq!(receipt.root, manifest.root());
        let data = manifest.table();
        for index in geometry.chunks().iter() {
            let bytes = copied.read_at(geometry.range(index)).await?;
            let zero = blockferry::seal::is_zero(&bytes);
            let digest = blockferry::seal::digest_of(geometry, index, &bytes);
            assert_eq!(data.digest(index), (!zero).then_some(digest), "chunk {index}");
        }
        self.clear(&receipt).await
    }
}

/// An image of which every `data_every`th MiB is random and the rest holes.
fn image(path: &Path, mib: u64, data_every: u64) {
    let file = File::create(path).unwrap();
    file.set_len(mib * MIB).unwrap();
    let noise = noise::noise(usize::try_from(8 * MIB).unwrap());
    for at in (0..mib).step_by(usize::try_from(data_every).unwrap()) {
        // Another stretch of the noise each time, so that no two chunks are equal.
        let from = usize::try_from((at * 4099) % (7 * MIB)).unwrap();
        let piece = &noise[from..from + usize::try_from(MIB).unwrap()];
        file.write_all_at(piece, at * MIB).unwrap();
    }
    file.sync_all().unwrap();
}

fn copies(bench: &mut Criterion) {
    let is_smoke = std::env::args().any(|word| word == "--test");
    let asked = std::env::var("BLOCKFERRY_BENCH_MIB").ok().map(|text| text.parse().unwrap());
    let mib = asked.unwrap_or(if is_smoke { 16 } else { 256 });
    let runtime = Runtime::new().unwrap();
    let mut group = bench.benchmark_group(format!("copy {mib} MiB, file to region"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(mib * MIB));
    for (name, data_every) in [("random", 1), ("sparse, an eighth data", 8)] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let source = folder.path().join("source.raw");
        image(&source, mib, data_every);
        let case = runtime.block_on(Case::new(folder.path(), &source)).unwrap();
        runtime.block_on(case.check(&source)).unwrap();
        group.bench_function(name, |timer| {
            timer.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    let (receipt, elapsed) = runtime.block_on(case.copy()).unwrap();
                    total += elapsed;
                    runtime.block_on(case.clear(&receipt)).unwrap();
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, copies);
criterion_main!(benches);
