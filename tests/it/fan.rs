//! Copies of one image that are made together: it is read once, and each leg ends on its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use blockferry::engine::{Engine, Job, JobOutcome};
use blockferry::options::{CopyOptions, EngineOptions, Limits, Verify};
use blockferry::testing::{Hook, Hooked, When};
use blockferry::{Error, ErrorKind};

use crate::world::{
    KIB, MIB, World, committed, end, ended, image, noise, rate, region, request, rolled_back,
    small, suspended, until,
};

const CHUNK_BYTES: u64 = 64 * KIB;
const IMAGE_BYTES: u64 = 64 * CHUNK_BYTES + 1000;

/// Data, with zeros in it that are not holes: whole chunks, blocks, and bytes.
fn mixed() -> Vec<u8> {
    let mut bytes = noise(3, IMAGE_BYTES);
    for (from, len) in [(5 * CHUNK_BYTES, 3 * CHUNK_BYTES), (2 * MIB + 100, 4000), (3 * MIB, 1)] {
        let from = usize::try_from(from).unwrap();
        bytes[from..from + usize::try_from(len).unwrap()].fill(0);
    }
    bytes
}

async fn start(engine: &Engine, from: &str, to: &[&str], options: &CopyOptions) -> Vec<Job> {
    let options = options.clone().with_legs(u32::try_from(to.len()).unwrap());
    let mut jobs = Vec::new();
    for to in to {
        jobs.push(engine.copy(request(from, to, options.clone())).await.unwrap());
    }
    jobs
}

/// Waits for all of them; how many bytes they have read together.
async fn read_by(jobs: &[Job]) -> u64 {
    let mut read = 0;
    for job in jobs {
        read += committed(ended(job).await).read_bytes;
    }
    read
}

/// Whether somebody has read something.
fn has_begun(jobs: &[Job]) -> bool {
    jobs.iter().any(|job| job.progress().read_bytes > 0)
}

fn assert_there(world: &World, at: &str, wanted: &[u8]) {
    let end = end(at);
    let found = match at.split_once('/').unwrap().0 {
        "m" => world.m.bytes(&end.image).unwrap().to_vec(),
        "n" => world.n.bytes(&end.image).unwrap().to_vec(),
        name => fs::read(world.data_of(name, &end.image.to_string())).unwrap(),
    };
    assert!(found == wanted, "{at} is not what was copied");
}

/// An engine that shows every operation on its memory `n` to a hook.
async fn hooked(world: &World, hook: Hook) -> Engine {
    hooked_with(world, hook, world.options()).await
}

async fn hooked_with(world: &World, hook: Hook, options: EngineOptions) -> Engine {
    let engine = Engine::open(options).await.unwrap();
    for name in ["a", "b", "m"] {
        engine.register(region(name), world.region(name)).await.unwrap();
    }
    let n = Arc::new(Hooked::new(world.region("n"), hook));
    engine.register(region("n"), n).await.unwrap();
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_read_once_for_all_legs() {
    let wanted = mixed();
    for (from, chunk_kib) in [("m/disk", 64), ("source/image", 64), ("source/image", 1024)] {
        let world = World::in_memory();
        world.m.insert(&image("disk"), wanted.clone());
        fs::write(world.source(), &wanted).unwrap();
        let engine = world.engine().await;
        let chunk_size = blockferry::geometry::ChunkSize::from_bytes(chunk_kib * KIB).unwrap();
        let options = small().with_chunk_size(chunk_size).with_verify(Verify::Full);
        let to = ["b/one", "n/two", "a/three", "b/four"];
        let jobs = start(&engine, from, &to, &options).await;
        assert_eq!(read_by(&jobs).await, IMAGE_BYTES, "{from}, chunks of {chunk_kib} KiB");
        to.iter().for_each(|to| assert_there(&world, to, &wanted));
    }
}

/// Reading a file of this host once more costs less than waiting for each other would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legs_between_files_go_alone_where_the_budget_holds_few_chunks() {
    let wanted = mixed();
    for chunks in [31, 32] {
        for from in ["source/image", "m/disk"] {
            let world = World::in_memory();
            world.m.insert(&image("disk"), wanted.clone());
            fs::write(world.source(), &wanted).unwrap();
            let options = world.options().with_memory_bytes_max(chunks * CHUNK_BYTES);
            let engine = world.engine_with(options).await;
            let to = ["a/one", "b/two"];
            let jobs = start(&engine, from, &to, &small()).await;
            let read_twice = read_by(&jobs).await == 2 * IMAGE_BYTES;
            let go_alone = from == "source/image" && chunks == 31;
            assert_eq!(read_twice, go_alone, "{from}, room for {chunks}");
            to.iter().for_each(|to| assert_there(&world, to, &wanted));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_image_has_legs_too() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), Vec::new());
    fs::write(world.source(), b"").unwrap();
    let engine = world.engine().await;
    for (from, to) in [("source/image", ["a/one", "b/two"]), ("m/disk", ["a/three", "n/four"])] {
        let jobs = start(&engine, from, &to, &small()).await;
        assert_eq!(read_by(&jobs).await, 0);
        to.iter().for_each(|to| assert_there(&world, to, b""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_handed_over_is_as_sparse_as_what_was_read() {
    let world = World::in_memory();
    let mut wanted = noise(3, 4 * MIB);
    // In chunks of a MiB: blocks of zeros in the middle of one, and at the end of another.
    wanted[200 << 10..500 << 10].fill(0);
    wanted[3 << 20..].fill(0);
    fs::write(world.source(), &wanted).unwrap();
    let engine = world.engine().await;
    let options = CopyOptions::new()
        .with_chunk_size(blockferry::geometry::ChunkSize::from_bytes(MIB).unwrap());
    let alone = engine.copy(request("source/image", "b/alone", options.clone())).await.unwrap();
    let alone = committed(ended(&alone).await);
    let jobs = start(&engine, "source/image", &["a/one", "b/two"], &options).await;
    for job in &jobs {
        let receipt = committed(ended(job).await);
        assert_eq!(receipt.root, alone.root);
        assert_eq!(receipt.data_bytes, alone.data_bytes);
        assert_eq!(receipt.written_bytes, alone.written_bytes);
    }
    let used = |name: &str, id: &str| fs::metadata(world.data_of(name, id)).unwrap().blocks();
    assert_eq!(used("a", "one"), used("b", "alone"));
    assert_eq!(used("b", "two"), used("b", "alone"));
}

/// With little memory, so that those in front soon have to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_that_stands_still_holds_up_nobody() {
    // Between files fewer chunks than that are not handed over.
    for (from, chunks) in [("m/disk", 8), ("source/image", 32)] {
        let wanted = mixed();
        let world = World::in_memory();
        world.m.insert(&image("disk"), wanted.clone());
        fs::write(world.source(), &wanted).unwrap();
        let options = world.options().with_memory_bytes_max(chunks * CHUNK_BYTES);
        let engine = world.engine_with(options).await;
        let stands = small().with_limits(rate(1)).with_legs(3);
        let stands = engine.copy(request(from, "b/stands", stands)).await.unwrap();
        let options = small().with_legs(3);
        let mut goes = Vec::new();
        for to in ["a/goes", "n/goes"] {
            goes.push(engine.copy(request(from, to, options.clone())).await.unwrap());
        }
        for job in &goes {
            committed(ended(job).await);
        }
        assert!(stands.outcome().is_none());
        engine.limit(stands.id(), Limits::NONE).await.unwrap();
        committed(ended(&stands).await);
        for to in ["b/stands", "a/goes", "n/goes"] {
            assert_there(&world, to, &wanted);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_that_is_cancelled_or_suspended_takes_nobody_along() {
    let wanted = mixed();
    let world = World::in_memory();
    fs::write(world.source(), &wanted).unwrap();
    let engine = world.engine().await;
    engine.limit_engine(rate(MIB));
    let to = ["b/one", "b/two", "n/three"];
    let jobs = start(&engine, "source/image", &to, &small()).await;
    until("they have begun", async || has_begun(&jobs)).await;
    jobs[0].cancel().await.unwrap();
    rolled_back(&ended(&jobs[0]).await);
    suspended(&jobs[1].suspend().await);
    engine.limit_engine(Limits::NONE);
    committed(ended(&jobs[2]).await);
    assert_there(&world, "n/three", &wanted);
    assert!(!world.path("b/one").exists() && !world.path("b/two").exists());
    committed(ended(&engine.resume(jobs[1].id()).await.unwrap()).await);
    assert_there(&world, "b/two", &wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_or_a_write_that_fails_is_the_failure_of_one_leg() {
    for (operation, nth) in [("read_at", 0), ("read_at", 9), ("write", 0), ("write", 9)] {
        let (wanted, world) = (mixed(), World::in_memory());
        world.n.insert(&image("disk"), wanted.clone());
        let calls = Arc::new(AtomicU64::new(0));
        let hook: Hook = Arc::new(move |point| {
            let is_it = point.operation == operation && point.when == When::Before;
            match is_it && calls.fetch_add(1, Relaxed) == nth {
                true => Err(Error::new(ErrorKind::Io, "fail once")),
                false => Ok(()),
            }
        });
        let engine = hooked(&world, hook).await;
        let to = ["b/one", "n/two", "a/three"];
        let jobs = start(&engine, "n/disk", &to, &small()).await;
        let mut failures = 0;
        for (job, to) in jobs.iter().zip(to) {
            match ended(job).await {
                JobOutcome::Failed { resumable: true, .. } => {
                    failures += 1;
                    committed(ended(&engine.resume(job.id()).await.unwrap()).await);
                }
                outcome => drop(committed(outcome)),
            }
            assert_there(&world, to, &wanted);
        }
        assert_eq!(failures, 1, "{operation} {nth}");
    }
}

/// What passes is tried again by the leg that met it, and nobody notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_fails_for_a_moment_is_made_again() {
    let (wanted, world) = (mixed(), World::in_memory());
    world.n.insert(&image("disk"), wanted.clone());
    let calls = Arc::new(AtomicU64::new(0));
    let hook: Hook = Arc::new(move |point| {
        let is_it = point.operation == "read_at" && point.when == When::Before;
        // Three times in all, for whoever fails four times gives up.
        match is_it && [0, 20, 40].contains(&calls.fetch_add(1, Relaxed)) {
            true => Err(Error::new(ErrorKind::Unavailable, "fail now and then")),
            false => Ok(()),
        }
    });
    let engine = hooked(&world, hook).await;
    let to = ["b/one", "m/two"];
    let jobs = start(&engine, "n/disk", &to, &small()).await;
    assert_eq!(read_by(&jobs).await, IMAGE_BYTES);
    to.iter().for_each(|to| assert_there(&world, to, &wanted));
}

/// The token that has started a leg starts it again, as one of those that go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legs_that_go_on_after_a_crash_read_the_rest_once() {
    let (wanted, world) = (mixed(), World::in_memory());
    fs::write(world.source(), &wanted).unwrap();
    let options = |n: usize| small().with_token(format!("leg {n}")).with_legs(2);
    let to = ["b/one", "a/two"];
    let begin = async |engine: &Engine| {
        let mut jobs = Vec::new();
        for (n, to) in to.iter().enumerate() {
            jobs.push(engine.copy(request("source/image", to, options(n))).await.unwrap());
        }
        jobs
    };
    let engine = world.engine().await;
    engine.limit_engine(rate(MIB));
    let jobs = begin(&engine).await;
    until("they have begun", async || has_begun(&jobs)).await;
    for job in &jobs {
        suspended(&job.suspend().await);
    }
    drop(engine);
    let engine = world.engine().await;
    let jobs = begin(&engine).await;
    let mut read = 0;
    let mut missing: u64 = 0;
    for job in &jobs {
        let receipt = committed(ended(job).await);
        read += receipt.read_bytes;
        missing = missing.max(IMAGE_BYTES - receipt.resumed_bytes);
    }
    assert!(read <= missing + 8 * CHUNK_BYTES, "{read} bytes read, {missing} were missing");
    to.iter().for_each(|to| assert_there(&world, to, &wanted));
}

/// With all that it may hold in memory. What goes on beside it has the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_whose_writes_hang_holds_up_nobody() {
    let (wanted, world) = (mixed(), World::in_memory());
    world.m.insert(&image("disk"), wanted.clone());
    // Nothing is ever sent: who receives waits until the other end is gone.
    let (hangs, hanging) = crossbeam_channel::bounded::<()>(0);
    let hook: Hook = Arc::new(move |point| {
        if point.operation == "write" {
            tokio::task::block_in_place(|| hanging.recv().unwrap_or_default());
        }
        Ok(())
    });
    let engine = hooked_with(&world, hook, world.options().with_memory_bytes_max(8 * CHUNK_BYTES));
    let engine = engine.await;
    let to = ["n/hangs", "b/one", "a/two"];
    let jobs = start(&engine, "m/disk", &to, &small()).await;
    for job in &jobs[1..] {
        committed(ended(job).await);
    }
    assert!(jobs[0].outcome().is_none());
    drop(hangs);
    committed(ended(&jobs[0]).await);
    to.iter().for_each(|to| assert_there(&world, to, &wanted));
}

/// Chunks that are too large to wait are not handed over, and nobody waits for anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legs_with_chunks_that_cannot_wait_go_alone() {
    let (wanted, world) = (mixed(), World::in_memory());
    world.m.insert(&image("disk"), wanted.clone());
    let options = world.options().with_memory_bytes_max(3 * CHUNK_BYTES);
    let engine = world.engine_with(options).await;
    let to = ["b/one", "a/two"];
    let jobs = start(&engine, "m/disk", &to, &small()).await;
    assert_eq!(read_by(&jobs).await, 2 * IMAGE_BYTES);
    to.iter().for_each(|to| assert_there(&world, to, &wanted));
}
