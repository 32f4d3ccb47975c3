//! Three copies of one image, each to a region of its own: begun together as the legs of a fan-out,
//! which read and hash it once, and as three that know nothing of each other.
//!
//! | source | |
//! |---|---|
//! | `file` | a file in the page cache: reading it again costs little |
//! | `slow` | memory behind 100 MiB/s that all its readers share, as a source far away |
//!
//! What is printed are ratios of times and of processor time, for criterion knows neither: together
//! and apart take turns, so that the ratio is what handing over costs and spares, and not what the
//! disk did meanwhile. The image has `BLOCKFERRY_BENCH_MIB` MiB (512; once, to see that it works,
//! 16), the engine's memory budget `BLOCKFERRY_BENCH_MEMORY_MIB` (the default).

#![expect(clippy::panic, clippy::unwrap_used, reason = "a bench that cannot go on stops")]
#![expect(clippy::print_stdout, reason = "criterion knows no ratios, so we print ours beside it")]
#![expect(clippy::disallowed_methods, reason = "a slow source is one that sleeps")]

#[path = "made/noise.rs"]
mod noise;
#[path = "made/smoke.rs"]
mod smoke;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockferry::engine::{CopyRequest, Engine, JobOutcome};
use blockferry::id::{ImageId, RegionName};
use blockferry::job::Endpoint;
use blockferry::options::{CopyOptions, EngineOptions};
use blockferry::region::{DirRegion, FileRegion, MemoryRegion, Region};
use blockferry::testing::{Hook, Hooked, When};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

const LEGS: u32 = 3;
const SLOW_BYTES_PER_SEC: u64 = 100 << 20;
/// The default for images of this size.
const CHUNK_BYTES: u64 = 4 << 20;

struct Yard {
    engine: Engine,
    targets: Vec<(RegionName, Arc<DirRegion>)>,
}

/// What some copies took.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    processor: Duration,
}

impl Yard {
    async fn new(folder: &Path, bytes: Vec<u8>) -> Self {
        // Where extents are shared nothing is handed over.
        let options = EngineOptions::new(folder.join("state")).with_share_extents(false);
        let memory = std::env::var("BLOCKFERRY_BENCH_MEMORY_MIB").ok();
        let options = match memory.map(|mib| mib.parse::<u64>().unwrap()) {
            Some(mib) => options.with_memory_bytes_max(mib << 20),
            None => options,
        };
        let engine = Engine::open(options).await.unwrap();
        let path = folder.join("source.raw");
        std::fs::write(&path, &bytes).unwrap();
        let file = FileRegion::open_path(&path, folder.join("state")).unwrap();
        engine.register("file".parse().unwrap(), file).await.unwrap();
        let memory = MemoryRegion::new("memory");
        memory.insert(&image(), bytes);
        let slow = Arc::new(Hooked::new(Arc::new(memory), link()));
        engine.register("slow".parse().unwrap(), slow).await.unwrap();
        let mut targets = Vec::new();
        for leg in 0..LEGS {
            let root = folder.join(format!("region-{leg}"));
            std::fs::create_dir(&root).unwrap();
            let region = Arc::new(DirRegion::open_root(&root).unwrap());
            let name: RegionName = format!("region-{leg}").parse().unwrap();
            engine.register(name.clone(), region.clone()).await.unwrap();
            targets.push((name, region));
        }
        Self { engine, targets }
    }

    /// Copies to so many regions at once, and takes the copies away again.
    async fn copies(&self, source: &str, count: usize, options: &CopyOptions) -> Took {
        let (began, before) = (Instant::now(), processor());
        let mut jobs = Vec::new();
        for (name, _) in &self.targets[..count] {
            let from = Endpoint::new(source.parse().unwrap(), image());
            let to = Endpoint::new(name.clone(), image());
            let request = CopyRequest::new(from, to, options.clone());
            jobs.push(self.engine.copy(request).await.unwrap());
        }
        for job in jobs {
            let outcome = job.wait().await;
            let JobOutcome::Committed(_) = outcome else { panic!("{outcome:?}") };
        }
        let took = Took { wall: began.elapsed(), processor: processor() - before };
        for (_, region) in &self.targets[..count] {
            region.remove(&image()).await.unwrap();
        }
        took
    }
}

fn image() -> ImageId {
    "image".parse().unwrap()
}

/// Lets one chunk through at a time.
fn link() -> Hook {
    let link = Mutex::new(());
    let time = Duration::from_millis(1000 * CHUNK_BYTES / SLOW_BYTES_PER_SEC);
    Arc::new(move |point| {
        if point.operation == "read_at" && point.when == When::Before {
            tokio::task::block_in_place(|| {
                let _turn = link.lock().unwrap();
                std::thread::sleep(time);
            });
        }
        Ok(())
    })
}

/// What this process has had of the processors, in steps of 10 ms.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn fan_out(_: &mut Criterion) {
    let (rounds, mib) = if smoke::is_smoke() { (1, 16) } else { (7, 512) };
    let asked = std::env::var("BLOCKFERRY_BENCH_MIB").ok().map(|text| text.parse().unwrap());
    let bytes = noise::noise(asked.unwrap_or(mib) << 20);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    Runtime::new().unwrap().block_on(async {
        let yard = Yard::new(folder.path(), bytes).await;
        let (apart, together) = (CopyOptions::new(), CopyOptions::new().with_legs(LEGS));
        for source in ["file", "slow"] {
            yard.copies(source, 3, &apart).await;
            let mut ratios = [const { Vec::new() }; 4];
            for _ in 0..rounds {
                let one = yard.copies(source, 1, &apart).await;
                let three = yard.copies(source, 3, &apart).await;
                let fan = yard.copies(source, 3, &together).await;
                let of = |one: Duration, other: Duration| one.div_duration_f64(other);
                ratios[0].push(of(fan.wall, three.wall));
                ratios[1].push(of(fan.processor, three.processor));
                ratios[2].push(of(fan.wall, one.wall));
                ratios[3].push(of(fan.processor, one.processor));
            }
            let [wall, processor, wall_of_one, processor_of_one] = ratios.map(median);
            println!(
                "fan/{source}: {LEGS} together take {wall:.2} of the time and {processor:.2} of the \
                 processor time of {LEGS} apart, and {wall_of_one:.2} and {processor_of_one:.2} of one"
            );
        }
    });
}

criterion_group!(benches, fan_out);
criterion_main!(benches);
