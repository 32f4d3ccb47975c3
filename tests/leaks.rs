//! A thousand jobs leave nothing behind: no descriptor, no thread, no memory.
//!
//! One test in a process of its own, so that nobody else opens or allocates meanwhile.
#![cfg(feature = "testing")]
#![expect(clippy::print_stdout, reason = "figures are shown to whoever asks for them")]

mod heap;

use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, CopyRequest, Engine, JobOutcome, Shutdown};
use blockferry::geometry::ChunkSize;
use blockferry::id::ImageId;
use blockferry::job::Endpoint;
use blockferry::options::{CopyOptions, EngineOptions, Limits};
use blockferry::region::{DirRegion, MemoryRegion, Region};
use blockferry::testing::{Hook, Hooked, Point, When};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const JOBS: u32 = 1_000;
/// After so many, whatever is made once and kept has been made.
const WARM: u32 = 200;
/// What 800 jobs may add to the heap: less than 100 bytes a job.
const HEAP_GROWTH_MAX: usize = 64 << 10;
/// Pages that the system's allocator keeps, in KiB.
const ANONYMOUS_GROWTH_MAX_KIB: u64 = 8 << 10;

#[test]
fn after_a_thousand_jobs_no_descriptor_thread_or_memory_is_left() -> Result<(), Box<dyn Error>> {
    // Where there is memory to copy in, no sync takes time.
    let shm = std::path::Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
    let before = (count("fd")?, count("task")?);
    // Few blocking threads, all of them made early: otherwise their number would tell of luck.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_time()
        .build()?;
    let (warm, end) = runtime.block_on(jobs(folder.path()))?;
    drop(runtime);
    println!("after {WARM} jobs: {warm:?}");
    println!("after {JOBS} jobs: {end:?}");
    assert_eq!(end.descriptors, warm.descriptors, "descriptors while the engine lives");
    assert!(end.threads <= warm.threads, "threads while the engine lives");
    assert!(end.heap <= warm.heap + HEAP_GROWTH_MAX, "the heap grows");
    assert!(end.anonymous_kib <= warm.anonymous_kib + ANONYMOUS_GROWTH_MAX_KIB, "memory grows");
    // A dropped engine does not wait for its threads: they end once they see that it is gone.
    let until = Instant::now() + Duration::from_secs(10);
    while (count("fd")?, count("task")?) != before && Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    assert_eq!((count("fd")?, count("task")?), before, "descriptors, threads after the engine");
    Ok(())
}

#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    heap: usize,
    anonymous_kib: u64,
}

impl Held {
    fn now() -> Result<Self, Box<dyn Error>> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?;
        Ok(Self {
            descriptors: count("fd")?,
            threads: count("task")?,
            heap: heap::live_bytes(),
            anonymous_kib: kib.parse()?,
        })
    }
}

fn count(what: &str) -> std::io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/self/{what}"))?.count())
}

async fn jobs(folder: &std::path::Path) -> Result<(Held, Held), Box<dyn Error>> {
    let (state, root) = (folder.join("state"), folder.join("root"));
    fs::create_dir(&root)?;
    let engine = Engine::open(EngineOptions::new(&state).with_threads(2)).await?;
    let memory = MemoryRegion::new("m");
    let image: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    memory.insert(&"a".parse()?, image);
    let broken: Hook = Arc::new(|point: Point| match (point.when, point.operation) {
        (When::Before, "read_at") => Err(blockferry::Error::new(ErrorKind::Io, "read")),
        _ => Ok(()),
    });
    let region = Arc::new(DirRegion::open_root(&root)?);
    engine.register("m".parse()?, Arc::new(memory.clone())).await?;
    engine.register("x".parse()?, Arc::new(Hooked::new(Arc::new(memory), broken))).await?;
    engine.register("d".parse()?, region.clone()).await?;
    let mut warm = None;
    for number in 0..JOBS {
        if number == WARM {
            warm = Some(Held::now()?);
        }
        one(&engine, &region, number).await?;
    }
    let end = Held::now()?;
    engine.shutdown(Shutdown::Suspend, Duration::from_secs(30)).await;
    Ok((warm.ok_or("no warm-up")?, end))
}

/// A job that commits, is cancelled, fails, or is suspended and cancelled, in turns.
async fn one(engine: &Engine, region: &DirRegion, number: u32) -> Result<(), Box<dyn Error>> {
    let image: ImageId = "copy".parse()?;
    let turn = number % 4;
    let (source, rate) = match turn {
        0 => ("m", 0),
        2 => ("x", 0),
        _ => ("m", 1),
    };
    let options = CopyOptions::new()
        .with_chunk_size(ChunkSize::MIN)
        .with_limits(Limits::NONE.with_bytes_per_sec(rate));
    let source = Endpoint::new(source.parse()?, "a".parse()?);
    let request = CopyRequest::new(source, Endpoint::new("d".parse()?, image.clone()), options);
    let job = engine.copy(request).await?;
    let outcome = match turn {
        1 => {
            job.cancel().await?;
            job.wait().await
        }
        3 => job.suspend().await,
        _ => job.wait().await,
    };
    let expected = match (turn, &outcome) {
        (0, JobOutcome::Committed(_)) => true,
        (1, JobOutcome::RolledBack { clean }) => *clean,
        (2, JobOutcome::Failed { .. }) | (3, JobOutcome::Suspended) => true,
        _ => false,
    };
    assert!(expected, "job {number}: {outcome:?}");
    let reply = engine.cancel(job.id()).await?;
    assert_eq!(reply.answer == CancelAnswer::AlreadyCommitted, turn == 0, "{reply:?}");
    if turn == 0 {
        region.remove(&image).await?;
    }
    engine.forget(job.id()).await?;
    Ok(())
}
