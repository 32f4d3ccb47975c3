//! Many jobs at once: a thousand small images in one engine, and thirty-two that share the machine.

use std::collections::HashSet;
use std::fs;

use blockferry::engine::Job;
use blockferry::options::Limits;

use crate::world::{MIB, World, committed, ended, noise, rate, region, request, small, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_small_images_are_queued_and_copied() {
    const COUNT: u64 = 1000;
    let world = World::in_memory();
    let engine = world.engine().await;
    engine.limit_engine(rate(1));
    let mut jobs = Vec::new();
    for n in 0..COUNT {
        let name = format!("disk-{n}");
        world.m.insert(&blockferry::id::ImageId::try_from(&*name).unwrap(), noise(n, 1000 + n));
        let (from, to) = (format!("m/{name}"), format!("b/{name}"));
        jobs.push(engine.copy(request(&from, &to, small())).await.unwrap());
    }
    // All but the first few wait for their turn, and all of them are there to be seen.
    assert!(engine.jobs().await.unwrap().len() == jobs.len());
    assert!(jobs.iter().filter(|job| job.outcome().is_none()).count() > jobs.len() / 2);
    engine.limit_engine(Limits::NONE);
    for job in &jobs {
        committed(ended(job).await);
    }
    let images = engine.images(&region("b")).await.unwrap();
    let made: HashSet<_> = images.iter().filter_map(|info| info.job).collect();
    assert_eq!(made, jobs.iter().map(Job::id).collect());
    for n in 0..COUNT {
        let data = fs::read(world.data_of("b", &format!("disk-{n}"))).unwrap();
        assert!(data == noise(n, 1000 + n), "disk-{n}");
    }
    assert_eq!(world.leftovers("b"), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_jobs_share_the_machine() {
    const IMAGE_BYTES: u64 = 8 * MIB;
    let world = World::in_memory();
    fs::write(world.source(), noise(7, IMAGE_BYTES)).unwrap();
    let engine = world.engine_with(world.options().with_jobs_running_max(32)).await;
    // Nobody gets far ahead while the others are still being started.
    engine.limit_engine(rate(MIB));
    let mut jobs = Vec::new();
    for n in 0..32 {
        let to = format!("b/disk-{n}");
        jobs.push(engine.copy(request("source/image", &to, small())).await.unwrap());
    }
    // So that all wake, which takes a tenth of a second, long before the first has its bytes.
    engine.limit_engine(rate(64 * MIB));
    until("one has ended", async || jobs.iter().any(|job| job.outcome().is_some())).await;
    let metrics = engine.metrics();
    let behind: Vec<_> = jobs
        .iter()
        .filter_map(|job| metrics.jobs.get(&job.id()))
        .map(|progress| progress.read_bytes)
        .filter(|read_bytes| *read_bytes < IMAGE_BYTES / 4)
        .collect();
    assert!(behind.is_empty(), "when the first had all its bytes, these had: {behind:?}");
    engine.limit_engine(Limits::NONE);
    for job in &jobs {
        committed(ended(job).await);
    }
}
