//! Whole copies through the engine: a hot file to a directory region, durable, as a caller sees it.
//!
//! | case of the group `copy` | what is copied |
//! |---|---|
//! | `random` | random bytes, with the default checkpoints |
//! | `one checkpoint` | the same, recorded by a single checkpoint at the end |
//! | `encrypted` | the same, encrypted where it lies (feature `encrypt`) |
//! | `in clear` | the same as `random`, in turns with `encrypted` |
//! | `sparse` | an eighth random bytes, the rest holes |
//!
//! These names are stable: others read `criterion/copy/<case>/new/estimates.json` below the target
//! folder. `random` and `one checkpoint` are copied in turns, whichever of them is being timed, so
//! that their ratio is what checkpoints cost and not what the disk did meanwhile; so are `encrypted`
//! and `in clear`.
//!
//! The image has `BLOCKFERRY_BENCH_MIB` MiB (1024; once, to see that it works, 16). A checkpoint is
//! due every 256 MiB, so that smaller images say nothing of its cost. Figures of one run compare
//! with each other; to compare with other tools, use `benches/peers/run`, which warms memory before
//! every sample.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a bench that cannot go on stops")]
#![expect(clippy::print_stdout, reason = "criterion knows no ratios, so we print ours beside it")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

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

/// Longer than any copy.
const NEVER: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy)]
enum Kind {
    Default,
    OneCheckpoint,
    #[cfg(feature = "encrypt")]
    Encrypted,
}

struct Case {
    engine: Engine,
    region: Arc<DirRegion>,
    source: Endpoint,
    target: Endpoint,
    options: CopyOptions,
}

impl Case {
    /// In a folder of its own.
    async fn new(folder: &Path, source: &Path, kind: Kind) -> Result<Self> {
        let (root, state_dir) = (folder.join("region"), folder.join("state"));
        std::fs::create_dir_all(&root).unwrap();
        let options = EngineOptions::new(&state_dir);
        let engine = Engine::open(match kind {
            Kind::OneCheckpoint => options.with_checkpoint(u64::MAX / 4, NEVER),
            _ => options,
        });
        let engine = engine.await?;
        let (from, to) = (RegionName::try_from("file")?, RegionName::try_from("region")?);
        let (region, options) = (DirRegion::open_root(&root)?, CopyOptions::new());
        #[cfg(feature = "encrypt")]
        let (region, options) = match kind {
            Kind::Encrypted => encrypted(region, options)?,
            _ => (region, options),
        };
        let region = Arc::new(region);
        engine.register(from.clone(), FileRegion::open_path(source, &state_dir)?).await?;
        engine.register(to.clone(), region.clone()).await?;
        let image = ImageId::try_from("image")?;
        let (source, target) = (Endpoint::new(from, image.clone()), Endpoint::new(to, image));
        Ok(Self { engine, region, source, target, options })
    }

    /// One copy, from the request to the acknowledged commit.
    async fn copy(&self) -> Result<(Arc<Receipt>, Duration)> {
        let began = Instant::now();
        let (source, target) = (self.source.clone(), self.target.clone());
        let request = CopyRequest::new(source, target, self.options.clone());
        let outcome = self.engine.copy(request).await?.wait().await;
        let elapsed = began.elapsed();
        let JobOutcome::Committed(receipt) = outcome else { panic!("{outcome:?}") };
        Ok((receipt, elapsed))
    }

    /// The time of one copy, which is removed again.
    async fn round(&self) -> Result<Duration> {
        let (receipt, elapsed) = self.copy().await?;
        self.clear(&receipt).await?;
        Ok(elapsed)
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

/// Whatever is copied there is encrypted, under a key in memory.
#[cfg(feature = "encrypt")]
fn encrypted(region: DirRegion, options: CopyOptions) -> Result<(DirRegion, CopyOptions)> {
    let keys = blockferry::keys::MemoryKeyring::new();
    let key = blockferry::id::KeyId::try_from("key")?;
    keys.add(&key)?;
    let encryption = blockferry::options::Encryption::Key(key);
    Ok((region.with_keys(Arc::new(keys)), options.with_encryption(encryption)))
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

/// The same copy in two ways, in turns.
struct Pair {
    names: [&'static str; 2],
    cases: [Case; 2],
    turn: usize,
    ratios: Vec<f64>,
}

impl Pair {
    async fn new(folder: &Path, source: &Path, ways: [(&'static str, Kind); 2]) -> Result<Self> {
        let [(one, one_kind), (other, other_kind)] = ways;
        let cases = [
            Case::new(&folder.join(one), source, one_kind).await?,
            Case::new(&folder.join(other), source, other_kind).await?,
        ];
        for case in &cases {
            case.check(source).await?;
        }
        Ok(Self { names: [one, other], cases, turn: 0, ratios: Vec::new() })
    }

    /// The time of either, which of them goes first taking turns too.
    async fn round(&mut self) -> Result<[Duration; 2]> {
        let mut times = [Duration::ZERO; 2];
        for at in [self.turn, 1 - self.turn] {
            times[at] = self.cases[at].round().await?;
        }
        self.turn = 1 - self.turn;
        self.ratios.push(times[0].div_duration_f64(times[1]));
        Ok(times)
    }

    fn tell_ratio(&mut self) {
        self.ratios.sort_by(f64::total_cmp);
        if let Some(median) = self.ratios.get(self.ratios.len() / 2) {
            let count = self.ratios.len();
            let [one, other] = self.names;
            println!("copy/{one} : copy/{other} = {median:.3}, median of {count} pairs\n");
        }
    }
}

fn copies(bench: &mut Criterion) {
    let asked = std::env::var("BLOCKFERRY_BENCH_MIB").ok().map(|text| text.parse().unwrap());
    let mib = asked.unwrap_or(if smoke::is_smoke() { 16 } else { 1024 });
    let runtime = Runtime::new().unwrap();
    let mut group = bench.benchmark_group("copy");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(mib * MIB));

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = folder.path().join("source.raw");
    image(&source, mib, 1);
    let checkpoints = [("random", Kind::Default), ("one checkpoint", Kind::OneCheckpoint)];
    #[cfg(not(feature = "encrypt"))]
    let pairs = [checkpoints];
    #[cfg(feature = "encrypt")]
    let pairs = [checkpoints, [("encrypted", Kind::Encrypted), ("in clear", Kind::Default)]];
    for ways in pairs {
        let mut pair = runtime.block_on(Pair::new(folder.path(), &source, ways)).unwrap();
        for (at, name) in pair.names.into_iter().enumerate() {
            group.bench_function(name, |timer| {
                timer.iter_custom(|rounds| {
                    (0..rounds).map(|_| runtime.block_on(pair.round()).unwrap()[at]).sum()
                });
            });
        }
        if !smoke::is_smoke() {
            pair.tell_ratio();
        }
    }
    drop(folder);

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = folder.path().join("source.raw");
    image(&source, mib, 8);
    let case = Case::new(folder.path(), &source, Kind::Default);
    let case = runtime.block_on(case).unwrap();
    runtime.block_on(case.check(&source)).unwrap();
    group.bench_function("sparse", |timer| {
        timer.iter_custom(|rounds| {
            (0..rounds).map(|_| runtime.block_on(case.round()).unwrap()).sum()
        });
    });
    group.finish();
}

criterion_group!(benches, copies);
criterion_main!(benches);
