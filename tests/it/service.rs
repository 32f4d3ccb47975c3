//! The image service over real folders: queues, tokens, cancels and their one winner, crashes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use blockferry::engine::{CopyRequest, Engine};
use blockferry::job::Endpoint;
use blockferry::options::{EngineOptions, Limits};
use blockferry::region::{DirRegion, Region};
use blockferry::service::{
    Answer, Caller, CopyOrder, Image, ImageKind, ImageService, ImageState, Leg, Rules,
    ServiceOptions, ServiceRegion, Stage, Token,
};
use blockferry::testing::{Hook, Hooked, Point};
use blockferry::{Error, ErrorKind};
use tokio::time::{sleep, timeout};

use crate::world::{
    KIB, MIB, PATIENCE, World, committed, end, image, noise, region, request, small,
};

const IMAGE_BYTES: u64 = 2 * MIB;

/// Images `a/s0`, `a/s1`, … of project `p`.
async fn world(images: usize) -> World {
    let world = World::in_memory();
    let engine = world.engine().await;
    for number in 0..images {
        let bytes = noise(u64::try_from(number).unwrap() + 1, IMAGE_BYTES);
        world.put(&engine, &bytes, &format!("a/s{number}")).await;
    }
    world
}

async fn open_with(world: &World, copies_max: usize) -> ImageService {
    open_over(world, copies_max, |place| place).await
}

/// Over folders as `dressed` shows them.
async fn open_over(
    world: &World,
    copies_max: usize,
    dressed: impl Fn(Arc<dyn Region>) -> Arc<dyn Region>,
) -> ImageService {
    let state = world.path("daemon");
    let mut options = ServiceOptions::new(&state);
    for name in ["a", "b"] {
        let place = dressed(Arc::new(DirRegion::open_root(world.path(name)).unwrap()));
        let place = ServiceRegion::new(place).with_copies_max(copies_max);
        options = options.with_region(region(name), place);
    }
    let opened = timeout(PATIENCE, async {
        loop {
            let engine = EngineOptions::new(&state).with_threads(2);
            let engine = Engine::open(engine).await.unwrap();
            match ImageService::open(engine, options.clone()).await {
                // The life before has not let go of its database yet.
                Err(error) if error.kind() == blockferry::ErrorKind::Busy => {
                    sleep(Duration::from_millis(5)).await;
                }
                opened => return opened.unwrap(),
            }
        }
    });
    opened.await.unwrap()
}

/// A service that knows the first images of region `a`.
async fn open(world: &World, images: usize) -> ImageService {
    let service = open_with(world, 5).await;
    for number in 0..images {
        let id = image(&format!("s{number}"));
        service.put_image(Image::new(region("a"), id, "p")).await.unwrap();
    }
    service
}

fn caller() -> Caller {
    let star = vec!["*".to_owned()];
    Caller { project: "p".into(), key: "k".into(), regions: star.clone(), images: star }
}

fn order(from: &str, to: &str) -> CopyOrder {
    CopyOrder::new(end(from), vec![end(to)], Rules::HUAWEI_CROSS_REGION)
}

async fn start(service: &ImageService, from: &str, to: &str) -> Leg {
    service.start(&caller(), order(from, to)).await.unwrap().remove(0)
}

fn slow(service: &ImageService) {
    let limits = Limits::NONE.with_bytes_per_sec(256 * KIB);
    service.engine().limit_region(&region("b"), limits).unwrap();
}

fn fast(service: &ImageService) {
    service.engine().limit_region(&region("b"), Limits::NONE).unwrap();
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

async fn until_stage(service: &ImageService, leg: &Leg, stage: Stage) {
    let told = || service.copy(&caller(), leg.job).map(|view| view.stage);
    until(&format!("{stage:?}"), || told() == Some(stage)).await;
}

fn state(service: &ImageService, at: &Endpoint) -> Option<ImageState> {
    service.image(&caller(), &at.region, &at.image).map(|view| view.image.state)
}

fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> &'static str {
    answer.unwrap_err().name()
}

async fn cancel(service: &ImageService, at: &Endpoint) -> &'static str {
    let told = service.cancel(&caller(), &at.region, &at.image).await;
    told.map_or_else(|refusal| refusal.name(), |_| "cancelled")
}

/// What the engine copied, byte by byte.
fn assert_copied(world: &World, from: &str, to: &str) {
    let data = |name: &str, id: &str| std::fs::read(world.data_of(name, id)).unwrap();
    let (from, to) = (end(from), end(to));
    assert_eq!(
        data(from.region.as_str(), from.image.as_str()),
        data(to.region.as_str(), to.image.as_str())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_followed_from_its_start_to_an_available_image() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    slow(&service);
    let mut events = service.events();
    let leg = start(&service, "a/s0", "b/t0").await;
    let view = service.image(&caller(), &region("b"), &image("t0")).unwrap();
    assert_eq!(view.image.state, ImageState::Creating);
    assert_eq!(view.image.image_bytes, IMAGE_BYTES);
    assert_eq!(view.copy.unwrap().copy.job, leg.job);
    let mut follower = service.watch(&caller(), leg.job).unwrap();
    until("bytes move", || service.copy(&caller(), leg.job).unwrap().percent > 0).await;
    fast(&service);
    let mut percents = Vec::new();
    let mut last = follower.borrow_and_update().clone();
    while follower.changed().await.is_ok() {
        last = follower.borrow_and_update().clone();
        percents.push(last.percent);
    }
    assert_eq!((last.stage, last.percent), (Stage::Done, 100));
    assert!(percents.is_sorted(), "{percents:?}");
    assert_eq!(state(&service, &leg.target), Some(ImageState::Available));
    assert_copied(&world, "a/s0", "b/t0");
    let mut told = Vec::new();
    let mut number = None;
    while let Ok(event) = events.try_recv() {
        assert!(number.is_none_or(|last| event.number == last + 1), "no number is left out");
        number = Some(event.number);
        told.push(event.fields["state"].as_str().unwrap().to_owned());
    }
    assert_eq!(told, ["creating", "queued", "copying", "available", "done"]);
    // Whoever comes late is told the end and nothing more.
    let mut late = service.watch(&caller(), leg.job).unwrap();
    assert_eq!(late.borrow_and_update().stage, Stage::Done);
    assert!(late.changed().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_half_way_leaves_nothing_and_one_afterwards_nothing_to_cancel() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    slow(&service);
    let leg = start(&service, "a/s0", "b/t0").await;
    until("bytes move", || service.copy(&caller(), leg.job).unwrap().percent > 0).await;
    assert_eq!(cancel(&service, &leg.target).await, "cancelled");
    assert_eq!(state(&service, &leg.target), None, "gone at the next look");
    assert_eq!(cancel(&service, &leg.target).await, "no_image");
    assert_eq!(service.copy(&caller(), leg.job).unwrap().stage, Stage::Cancelled);
    until("nothing is left", || world.leftovers("b").is_empty()).await;
    world.assert_empty("b");
    fast(&service);
    let again = start(&service, "a/s0", "b/t0").await;
    until_stage(&service, &again, Stage::Done).await;
    assert_eq!(cancel(&service, &again.target).await, "finished");
    assert_eq!(state(&service, &again.target), Some(ImageState::Available));
    assert_eq!(cancel(&service, &end("a/s0")).await, "not_a_copy");
    assert_eq!(cancel(&service, &end("b/none")).await, "no_image");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_region_takes_wait_and_can_be_cancelled_while_they_do() {
    let world = world(8).await;
    let service = open(&world, 8).await;
    slow(&service);
    let mut legs = Vec::new();
    for number in 0..8 {
        legs.push(start(&service, &format!("a/s{number}"), &format!("b/t{number}")).await);
    }
    let stages = |service: &ImageService| -> Vec<Stage> {
        legs.iter().map(|leg| service.copy(&caller(), leg.job).unwrap().stage).collect()
    };
    assert_eq!(stages(&service)[5..], [Stage::Queued; 3], "five at once");
    assert!(stages(&service)[..5].iter().all(|stage| *stage == Stage::Copying));
    assert_eq!(cancel(&service, &legs[6].target).await, "cancelled");
    assert_eq!(state(&service, &legs[6].target), None);
    assert_eq!(cancel(&service, &legs[0].target).await, "cancelled");
    until_stage(&service, &legs[5], Stage::Copying).await;
    assert_eq!(stages(&service)[7], Stage::Queued);
    fast(&service);
    for at in [1, 2, 3, 4, 5, 7] {
        until_stage(&service, &legs[at], Stage::Done).await;
        assert_copied(&world, &format!("a/s{at}"), &format!("b/t{at}"));
    }
    until("nothing is left", || world.leftovers("b").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_one_start_also_after_a_restart() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    let token = |request| Token { scope: "p".into(), text: "once".into(), request: [request; 32] };
    let with = |to: &str, request| {
        let mut order = order("a/s0", to);
        order.token = Some(token(request));
        order
    };
    let first = service.start(&caller(), with("b/t0", 1)).await.unwrap();
    assert_eq!(service.start(&caller(), with("b/t1", 1)).await.unwrap(), first);
    assert_eq!(refused(service.start(&caller(), with("b/t1", 2)).await), "token_reused");
    until_stage(&service, &first[0], Stage::Done).await;
    drop(service);
    let service = open(&world, 1).await;
    assert_eq!(service.start(&caller(), with("b/t1", 1)).await.unwrap(), first);
    assert_eq!(service.replayed(&token(1)).unwrap(), Some(first));
    assert_eq!(refused(service.replayed(&token(2))), "token_reused");
    assert_eq!(state(&service, &end("b/t1")), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_goes_on_after_a_crash_and_what_waited_waits_on() {
    for orderly in [false, true] {
        let world = world(7).await;
        let service = open(&world, 7).await;
        slow(&service);
        let mut legs = Vec::new();
        for number in 0..7 {
            legs.push(start(&service, &format!("a/s{number}"), &format!("b/t{number}")).await);
        }
        let moved = || service.copy(&caller(), legs[0].job).unwrap().percent > 0;
        until("bytes move", moved).await;
        if orderly {
            assert!(service.shutdown(PATIENCE).await);
        }
        drop(service);
        let service = open_with(&world, 5).await;
        slow(&service);
        let told: Vec<_> =
            legs.iter().map(|leg| service.copy(&caller(), leg.job).unwrap().stage).collect();
        assert_eq!(told[5..], [Stage::Queued; 2], "orderly: {orderly}");
        assert!(told[..5].iter().all(|stage| *stage == Stage::Copying), "{told:?}");
        // A cancel still works, of one that runs and of one that waits.
        assert_eq!(cancel(&service, &legs[1].target).await, "cancelled");
        assert_eq!(cancel(&service, &legs[6].target).await, "cancelled");
        fast(&service);
        for at in [0, 2, 3, 4, 5] {
            until_stage(&service, &legs[at], Stage::Done).await;
            assert_copied(&world, &format!("a/s{at}"), &format!("b/t{at}"));
        }
        until("nothing is left", || world.leftovers("b").is_empty()).await;
        assert_eq!(state(&service, &legs[1].target), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cancel_and_the_end_one_wins_and_both_know_it() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    let (mut cancelled, mut finished) = (0, 0);
    for round in 0..60_u64 {
        let leg = start(&service, "a/s0", &format!("b/t{round}")).await;
        // From at once to after the end.
        let delay = Duration::from_micros(round * 400);
        sleep(delay).await;
        match cancel(&service, &leg.target).await {
            "cancelled" => {
                cancelled += 1;
                assert_eq!(state(&service, &leg.target), None);
                assert_eq!(cancel(&service, &leg.target).await, "no_image");
                until("it is gone", || !world.path("b").join(leg.target.image.as_str()).exists())
                    .await;
            }
            "finished" => {
                finished += 1;
                assert_eq!(state(&service, &leg.target), Some(ImageState::Available));
                assert_copied(&world, "a/s0", &leg.target.to_string());
                let at = (&leg.target.region, &leg.target.image);
                service.delete(&caller(), at.0, at.1, false).await.unwrap();
                assert_eq!(state(&service, &leg.target), None);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(cancelled + finished, 60);
    until("nothing is left", || world.leftovers("b").is_empty()).await;
    world.assert_empty("b");
}

/// Nothing was decided, so it goes on as if nobody had asked: also to its failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_could_not_be_decided_leaves_the_copy_as_it_was() {
    for fails in [true, false] {
        let world = world(1).await;
        let no_cancel = Arc::new(AtomicBool::new(true));
        let no_write = Arc::new(AtomicBool::new(false));
        let hook: Hook = {
            let (no_cancel, no_write) = (no_cancel.clone(), no_write.clone());
            Arc::new(move |point: Point| {
                let out = match point.operation {
                    "cancel" => no_cancel.load(Relaxed),
                    "write" => no_write.load(Relaxed),
                    _ => false,
                };
                if out { Err(Error::new(ErrorKind::Io, "a disk that is out")) } else { Ok(()) }
            })
        };
        let dressed = |place| Arc::new(Hooked::new(place, hook.clone())) as Arc<dyn Region>;
        let service = open_over(&world, 5, dressed).await;
        service.put_image(Image::new(region("a"), image("s0"), "p")).await.unwrap();
        slow(&service);
        let leg = start(&service, "a/s0", "b/t0").await;
        until_stage(&service, &leg, Stage::Copying).await;
        assert_eq!(cancel(&service, &leg.target).await, "failed");
        no_cancel.store(false, Relaxed);
        no_write.store(fails, Relaxed);
        fast(&service);
        let end = if fails { Stage::Failed } else { Stage::Done };
        until_stage(&service, &leg, end).await;
        if !fails {
            assert_copied(&world, "a/s0", "b/t0");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fan_out_reads_its_source_once() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    let mut fan =
        CopyOrder::new(end("a/s0"), vec![end("a/t0"), end("b/t0")], Rules::HUAWEI_IN_REGION);
    fan.name = "fan".into();
    let legs = service.start(&caller(), fan).await.unwrap();
    let mut read = 0;
    for leg in &legs {
        until_stage(&service, leg, Stage::Done).await;
        assert_copied(&world, "a/s0", &leg.target.to_string());
        let receipt = service.engine().show(leg.job).await.unwrap().receipt.unwrap();
        read += receipt.read_bytes;
    }
    assert_eq!(read, IMAGE_BYTES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_leaves_a_name_and_no_bytes() {
    let world = world(1).await;
    let service = open(&world, 1).await;
    // The bytes of the source are not what its manifest says.
    damage(&world.data_of("a", "s0"));
    let leg = start(&service, "a/s0", "b/t0").await;
    until_stage(&service, &leg, Stage::Failed).await;
    assert_eq!(state(&service, &leg.target), Some(ImageState::CreateFailed));
    assert_eq!(cancel(&service, &leg.target).await, "had_failed");
    until("nothing is left", || world.leftovers("b").is_empty()).await;
    world.assert_empty("b");
    assert_eq!(state(&service, &end("a/s0")), Some(ImageState::Available), "the source stays");
    service.delete(&caller(), &leg.target.region, &leg.target.image, false).await.unwrap();
    assert_eq!(state(&service, &leg.target), None);
}

fn damage(path: &Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_234_567).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], 1_234_567).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_deleted_but_not_while_it_is_made_or_read() {
    let world = world(2).await;
    let service = open(&world, 2).await;
    slow(&service);
    let leg = start(&service, "a/s0", "b/t0").await;
    let delete = |at: &'static str| {
        let at = end(at);
        let service = &service;
        async move { service.delete(&caller(), &at.region, &at.image, false).await }
    };
    assert_eq!(refused(delete("b/t0").await), "being_copied");
    assert_eq!(refused(delete("a/s0").await), "being_read");
    delete("a/s1").await.unwrap();
    assert!(!world.path("a/s1").exists());
    assert_eq!(refused(delete("a/s1").await), "no_image");
    fast(&service);
    until_stage(&service, &leg, Stage::Done).await;
    delete("a/s0").await.unwrap();
    delete("b/t0").await.unwrap();
    assert!(!world.path("a/s0").exists() && !world.path("b/t0").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_leg_of_a_fan_out_ends_on_its_own() {
    let world = World::in_memory();
    let engine = world.engine().await;
    world.put(&engine, &noise(1, IMAGE_BYTES), "a/s0").await;
    // A second job has the image of one leg staged: that leg cannot have it.
    world.m.insert(&image("other"), noise(2, IMAGE_BYTES));
    let held = small().with_limits(Limits::NONE.with_bytes_per_sec(64 * KIB));
    let held: CopyRequest = request("m/other", "a/t0", held);
    let held = engine.copy(held).await.unwrap();
    let service = open(&world, 1).await;
    let mut fan =
        CopyOrder::new(end("a/s0"), vec![end("a/t0"), end("b/t0")], Rules::HUAWEI_IN_REGION);
    fan.name = "fan".into();
    let legs = service.start(&caller(), fan).await.unwrap();
    until_stage(&service, &legs[1], Stage::Done).await;
    assert_copied(&world, "a/s0", "b/t0");
    // It is tried again, and gets through once the other is gone.
    assert_eq!(service.copy(&caller(), legs[0].job).unwrap().stage, Stage::Copying);
    held.cancel().await.unwrap();
    until_stage(&service, &legs[0], Stage::Done).await;
    assert_copied(&world, "a/s0", "a/t0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_there_is_made_known_and_only_to_whom_it_may_be() {
    let world = world(2).await;
    let service = open(&world, 1).await;
    let nowhere = Image::new(region("b"), image("s0"), "p");
    let error = service.put_image(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), blockferry::ErrorKind::NotFound);
    let mut system = Image::new(region("a"), image("s1"), "vendor");
    system.kind = ImageKind::System;
    service.put_image(system).await.unwrap();
    let other = Caller { project: "q".into(), ..caller() };
    let seen = service.images(&other, &region("a"), |_, _| true).unwrap();
    assert_eq!(seen.len(), 1, "the system's image alone");
    assert!(service.image(&other, &region("a"), &image("s0")).is_none());
    let told = service.start(&other, order("a/s0", "b/t0")).await;
    assert_eq!(refused(told), "no_image", "as if it were not there");
    let nobody = Caller { regions: Vec::new(), ..caller() };
    assert_eq!(refused(service.images(&nobody, &region("a"), |_, _| true)), "no_source_region");
    assert!(service.regions(&nobody).is_empty());
    let leg = start(&service, "a/s0", "b/t0").await;
    assert!(service.copy(&other, leg.job).is_none());
    assert_eq!(refused(service.watch(&other, leg.job)), "no_job");
    let second = Engine::open(EngineOptions::new(world.path("other"))).await.unwrap();
    let busy = ImageService::open(second, ServiceOptions::new(world.path("daemon"))).await;
    assert_eq!(busy.unwrap_err().kind(), blockferry::ErrorKind::Busy, "one service a database");
    until_stage(&service, &leg, Stage::Done).await;
    let engine = world.engine().await;
    committed(engine.copy(request("b/t0", "m/back", small())).await.unwrap().wait().await);
}
