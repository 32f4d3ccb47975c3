//! The life of a job: start, watch, suspend, crash, resume, cancel, forget, from one engine or two.

use std::fs;
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, Engine, JobOutcome, Shutdown};
use blockferry::job::JobState;
use blockferry::options::{CopyOptions, Limits};
use blockferry::region::{Located, Settled};
use tokio::time::Instant;

use crate::world::{
    KIB, MIB, PATIENCE, World, assert_same, committed, ended, image, kind, noise, rate, region,
    request, resumed, rolled_back, small, standing, suspended, until, until_read,
};

/// A world with a source file of that many bytes of data.
fn world(image_bytes: u64) -> World {
    let world = World::in_memory();
    fs::write(world.source(), noise(image_bytes, image_bytes)).unwrap();
    world
}

/// An engine that makes a checkpoint of whatever there is, often.
async fn eager(world: &World) -> Engine {
    world.engine_with(world.options().with_checkpoint(64 * KIB, Duration::from_millis(10))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_is_durable_before_bytes_move() {
    let world = world(MIB);
    let engine = world.engine().await;
    let job = engine.copy(request("source/image", "b/disk", standing())).await.unwrap();
    let staged = world.region("b").jobs().await.unwrap();
    assert_eq!(staged.len(), 1);
    assert_eq!((staged[0].spec.job, staged[0].owned), (job.id(), true));
    assert_eq!(staged[0].spec, *job.spec());
    let other = world.engine().await;
    let listed = other.jobs().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].running);
    assert!(matches!(listed[0].state, JobState::Queued | JobState::Copying), "{listed:?}");
    assert_eq!(other.show(job.id()).await.unwrap().spec, *job.spec());
    // Nobody sees the image.
    assert!(world.region("b").list().await.unwrap().is_empty());
    assert_eq!(kind(world.region("b").open(&image("disk")).await), Some(ErrorKind::NotFound));
    assert!(job.cancel().await.unwrap().answer.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_sees_the_job_commit() {
    let world = world(MIB);
    let engine = world.engine().await;
    let job = engine.copy(request("source/image", "b/disk", small())).await.unwrap();
    let mut watch = job.watch();
    let seen = watch.wait_for(|progress| progress.state == JobState::Committed);
    let seen = tokio::time::timeout(PATIENCE, seen).await.unwrap().unwrap().clone();
    let receipt = committed(ended(&job).await);
    assert_eq!(seen.data_bytes + seen.zero_bytes, MIB);
    assert_eq!(receipt.written_bytes, MIB);
    assert_eq!(receipt.read_bytes, MIB);
    assert_eq!(job.progress().remaining_bytes, 0);
    assert!(engine.job(job.id()).is_none(), "it lives no more");
    let shown = engine.show(job.id()).await.unwrap();
    assert_eq!((shown.state, shown.running), (JobState::Committed, false));
    assert_eq!(shown.receipt.unwrap().root, receipt.root);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_goes_on_where_it_was_in_this_or_another_engine() {
    for elsewhere in [false, true] {
        for target in ["b/disk", "target/image"] {
            let world = world(2 * MIB);
            let engine = eager(&world).await;
            let slow = small().with_limits(rate(MIB));
            let job = engine.copy(request("source/image", target, slow)).await.unwrap();
            until_read(&job, 256 * KIB).await;
            suspended(&job.suspend().await);
            let first = job.progress();
            let other = eager(&world).await;
            let shown = other.show(job.id()).await.unwrap();
            assert_eq!((shown.state, shown.running), (JobState::Suspended, false));
            assert!(!world.target().exists());
            assert!(world.region("b").list().await.unwrap().is_empty());

            other.limit(job.id(), Limits::NONE).await.unwrap();
            let on = if elsewhere { &other } else { &engine };
            let receipt = committed(ended(&resumed(on, &job).await).await);
            assert!(receipt.resumed_bytes >= 256 * KIB, "{receipt:?}");
            assert_eq!(receipt.resumed_bytes + receipt.written_bytes, 2 * MIB);
            assert_eq!(receipt.resumed_bytes + receipt.read_bytes, 2 * MIB, "nothing twice");
            // An orderly suspend puts all that was written on record; only a chunk that was under
            // way on each thread is done again.
            assert!(receipt.resumed_bytes + 4 * 64 * KIB >= first.written_bytes, "{first:?}");
            let file = match target {
                "b/disk" => world.data_of("b", "disk"),
                _ => world.target(),
            };
            assert_same(&world.source(), &file);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_engine_is_a_crash_and_the_job_is_resumed() {
    for target in ["b/disk", "target/image", "n/disk"] {
        let world = world(2 * MIB);
        let engine = eager(&world).await;
        let slow = small().with_limits(rate(MIB));
        let job = engine.copy(request("source/image", target, slow)).await.unwrap();
        until_read(&job, 512 * KIB).await;
        let (name, id) = target.split_once('/').unwrap();
        drop(engine);
        let place = world.region(name);
        until("the crashed engine lets go", async || {
            place.job(job.id()).await.unwrap().is_some_and(|staged| !staged.owned)
        })
        .await;
        assert_eq!(place.locate(&image(id)).await.unwrap(), Located::Staged(job.id()));
        assert!(place.list().await.unwrap().is_empty());
        let other = eager(&world).await;
        let shown = other.show(job.id()).await.unwrap();
        assert_eq!((shown.state, shown.running), (JobState::Suspended, false), "{target}");
        let settled = other.recover(&region(name)).await.unwrap();
        assert!(matches!(settled[..], [ref one] if matches!(one.settled, Settled::Kept)));
        other.limit(job.id(), Limits::NONE).await.unwrap();
        let receipt = committed(ended(&resumed(&other, &job).await).await);
        assert!(receipt.resumed_bytes >= 128 * KIB, "{receipt:?}");
        assert_eq!(receipt.resumed_bytes + receipt.written_bytes, 2 * MIB);
        match name {
            "b" => assert_same(&world.source(), &world.data_of("b", "disk")),
            "target" => assert_same(&world.source(), &world.target()),
            _ => assert!(world.n.bytes(&image("disk")).unwrap() == noise(2 * MIB, 2 * MIB)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_suspends_or_cancels_what_runs_and_what_waits() {
    for mode in [Shutdown::Suspend, Shutdown::Cancel] {
        let world = world(MIB);
        let engine = world.engine_with(world.options().with_jobs_running_max(1)).await;
        let mut jobs = Vec::new();
        for n in 0..3 {
            let target = format!("b/disk-{n}");
            jobs.push(engine.copy(request("source/image", &target, standing())).await.unwrap());
        }
        let late = engine.shutdown(mode, PATIENCE).await;
        assert!(late.is_empty());
        let refused = engine.copy(request("source/image", "b/more", small())).await;
        assert_eq!(kind(refused), Some(ErrorKind::Unavailable));
        for job in &jobs {
            match mode {
                Shutdown::Suspend => suspended(&ended(job).await),
                Shutdown::Cancel => rolled_back(&ended(job).await),
            }
        }
        let left = world.region("b").jobs().await.unwrap().len();
        match mode {
            Shutdown::Suspend => assert_eq!(left, 3),
            Shutdown::Cancel => world.assert_empty("b"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_by_handle_by_number_and_by_destination_is_clean_and_repeats() {
    for how in ["handle", "number", "destination", "number elsewhere", "destination elsewhere"] {
        for target in ["b/disk", "target/image"] {
            let world = world(MIB);
            let before = fs::metadata(world.source()).unwrap().modified().unwrap();
            let (engine, other) = (world.engine().await, world.engine().await);
            let job = engine.copy(request("source/image", target, standing())).await.unwrap();
            until_read(&job, 64 * KIB).await;
            let (name, id) = target.split_once('/').unwrap();
            let reply = match how {
                "handle" => job.cancel().await,
                "number" => engine.cancel(job.id()).await,
                "destination" => engine.cancel_image(&region(name), &image(id)).await,
                "number elsewhere" => other.cancel(job.id()).await,
                _ => other.cancel_image(&region(name), &image(id)).await,
            };
            let reply = reply.unwrap();
            assert_eq!(reply.job, Some(job.id()), "{how}");
            assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true }, "{how}");
            rolled_back(&ended(&job).await);
            assert_eq!(job.progress().state, JobState::RolledBack);
            let again = CancelAnswer::AlreadyCancelled { clean: true };
            for by in [&engine, &other, &world.engine().await] {
                assert_eq!(by.cancel(job.id()).await.unwrap().answer, again, "{how}");
                let reply = by.cancel_image(&region(name), &image(id)).await.unwrap();
                assert_eq!((reply.job, reply.answer), (Some(job.id()), again), "{how}");
            }
            world.assert_empty("b");
            assert_eq!(fs::read_dir(world.path("files")).unwrap().count(), 1, "the source only");
            assert!(fs::read(world.source()).unwrap() == noise(MIB, MIB));
            assert_eq!(fs::metadata(world.source()).unwrap().modified().unwrap(), before);
            let ended_now = other.resume(job.id()).await.unwrap();
            rolled_back(&ended(&ended_now).await);
            let next = other.copy(request("source/image", target, small())).await.unwrap();
            committed(ended(&next).await);
            // The first stays cancelled, the second has committed.
            assert_eq!(engine.cancel(job.id()).await.unwrap().answer, again);
            let reply = engine.cancel_image(&region(name), &image(id)).await.unwrap();
            assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted, "{how} {target}");
            assert_eq!(reply.job, Some(next.id()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_of_what_is_no_running_copy_says_what_it_is() {
    let world = world(MIB);
    let engine = world.engine().await;
    let nobody = blockferry::id::JobId::from_bytes([9; 16]);
    assert_eq!(engine.cancel(nobody).await.unwrap().answer, CancelAnswer::NotFound);
    for (name, id) in [("b", "disk"), ("target", "image"), ("n", "disk")] {
        let reply = engine.cancel_image(&region(name), &image(id)).await.unwrap();
        assert_eq!((reply.job, reply.answer), (None, CancelAnswer::NotFound), "{name}");
    }
    for (name, id) in [("source", "image"), ("m", "disk")] {
        world.m.insert(&image("disk"), vec![1; 100]);
        let reply = engine.cancel_image(&region(name), &image(id)).await.unwrap();
        assert_eq!((reply.job, reply.answer), (None, CancelAnswer::NotACopy), "{name}");
    }
    for target in ["b/disk", "n/disk", "target/image"] {
        let (name, id) = target.split_once('/').unwrap();
        let job = engine.copy(request("source/image", target, small())).await.unwrap();
        committed(ended(&job).await);
        for by in [&engine, &world.engine().await] {
            for _ in 0..2 {
                let answer = by.cancel(job.id()).await.unwrap().answer;
                assert_eq!(answer, CancelAnswer::AlreadyCommitted, "{target}");
                let reply = by.cancel_image(&region(name), &image(id)).await.unwrap();
                assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted, "{target}");
                assert_eq!(reply.job, Some(job.id()), "{target}");
            }
        }
    }
    // With no index at all, the manifest still tells who made an image.
    fs::remove_dir_all(world.path("state")).unwrap();
    let other = world.engine().await;
    let reply = other.cancel_image(&region("b"), &image("disk")).await.unwrap();
    assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted);
    assert!(reply.job.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_is_cancelled_while_nobody_runs_it() {
    for target in ["b/disk", "target/image", "n/disk"] {
        let world = world(MIB);
        let engine = world.engine().await;
        let job = engine.copy(request("source/image", target, standing())).await.unwrap();
        until_read(&job, 64 * KIB).await;
        let other = world.engine().await;
        assert_eq!(other.suspend(job.id()).await.unwrap(), JobState::Suspended, "{target}");
        suspended(&ended(&job).await);
        drop(engine);
        let answer = other.cancel(job.id()).await.unwrap().answer;
        assert_eq!(answer, CancelAnswer::Cancelled { clean: true }, "{target}");
        assert_eq!(other.show(job.id()).await.unwrap().state, JobState::RolledBack);
        assert!(world.region("b").jobs().await.unwrap().is_empty());
        assert!(world.n.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_job_has_one_runner_and_one_destination_has_one_job() {
    for target in ["b/disk", "target/image", "n/disk"] {
        let world = world(MIB);
        let (engine, other) = (world.engine().await, world.engine().await);
        let job = engine.copy(request("source/image", target, standing())).await.unwrap();
        assert_eq!(kind(other.resume(job.id()).await), Some(ErrorKind::Busy), "{target}");
        for by in [&engine, &other] {
            let rival = by.copy(request("source/image", target, small())).await;
            assert_eq!(kind(rival), Some(ErrorKind::Busy), "{target}");
        }
        assert_eq!(engine.resume(job.id()).await.unwrap().id(), job.id(), "it runs here");
        suspended(&job.suspend().await);
        // Suspended or not, the destination is taken.
        let rival = other.copy(request("source/image", target, small())).await;
        assert_eq!(kind(rival), Some(ErrorKind::Busy), "{target}");
        other.limit(job.id(), Limits::NONE).await.unwrap();
        committed(ended(&resumed(&other, &job).await).await);
        for by in [&engine, &other] {
            let rival = by.copy(request("source/image", target, small())).await;
            assert_eq!(kind(rival), Some(ErrorKind::Exists), "{target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_token_is_the_same_job() {
    let world = world(MIB);
    let (engine, other) = (world.engine().await, world.engine().await);
    let asked = |limit: u64| {
        let options = small().with_token("the token").with_limits(rate(limit));
        request("source/image", "b/disk", options)
    };
    let job = engine.copy(asked(1)).await.unwrap();
    assert_eq!(engine.copy(asked(1)).await.unwrap().id(), job.id(), "while it runs");
    assert_eq!(kind(other.copy(asked(1)).await), Some(ErrorKind::Busy), "it runs elsewhere");
    assert_eq!(kind(engine.copy(asked(2)).await), Some(ErrorKind::Invalid), "another request");
    let mut elsewhere = asked(1);
    elsewhere.target = crate::world::end("b/other");
    assert_eq!(kind(engine.copy(elsewhere).await), Some(ErrorKind::Invalid));
    suspended(&job.suspend().await);
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let on = engine.copy(asked(1)).await.unwrap();
    assert_eq!(on.id(), job.id(), "it goes on");
    let receipt = committed(ended(&on).await);
    for by in [&engine, &other] {
        let again = by.copy(asked(1)).await.unwrap();
        assert_eq!(again.id(), job.id(), "after it has ended");
        assert_eq!(committed(ended(&again).await).root, receipt.root);
    }
    assert_eq!(kind(engine.copy(asked(2)).await), Some(ErrorKind::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_known_when_the_source_is_gone_and_told_from_other_chunk_sizes() {
    let world = world(MIB);
    let engine = world.engine().await;
    let asked = || request("source/image", "b/disk", small().with_token("the token"));
    let job = engine.copy(asked()).await.unwrap();
    committed(ended(&job).await);
    let mut other = asked();
    other.options = CopyOptions::new()
        .with_token("the token")
        .with_chunk_size(blockferry::geometry::ChunkSize::from_bytes(128 * KIB).unwrap());
    assert_eq!(kind(engine.copy(other).await), Some(ErrorKind::Invalid));
    fs::remove_file(world.source()).unwrap();
    let again = engine.copy(asked()).await.unwrap();
    assert_eq!(again.id(), job.id());
    committed(ended(&again).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_job_is_forgotten_on_request_and_its_image_stays() {
    let world = world(MIB);
    let engine = world.engine().await;
    let job = engine.copy(request("source/image", "b/disk", standing())).await.unwrap();
    assert_eq!(kind(engine.forget(job.id()).await), Some(ErrorKind::Busy));
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    committed(ended(&job).await);
    engine.forget(job.id()).await.unwrap();
    assert_eq!(kind(engine.forget(job.id()).await), Some(ErrorKind::NotFound));
    assert_eq!(kind(engine.show(job.id()).await), Some(ErrorKind::NotFound));
    assert!(engine.jobs().await.unwrap().is_empty());
    assert_eq!(engine.images(&region("b")).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recover_rebuilds_an_index_that_was_lost() {
    let world = world(MIB);
    let engine = world.engine().await;
    let job = engine.copy(request("source/image", "b/disk", standing())).await.unwrap();
    until_read(&job, 64 * KIB).await;
    suspended(&job.suspend().await);
    drop(engine);
    fs::remove_dir_all(world.path("state")).unwrap();
    let other = world.engine().await;
    assert!(other.jobs().await.unwrap().is_empty());
    let found = other.recover(&region("b")).await.unwrap();
    assert_eq!(found.len(), 1);
    let listed = other.jobs().await.unwrap();
    assert_eq!((listed[0].spec.job, listed[0].state), (job.id(), JobState::Suspended));
    assert_eq!(other.recover(&region("b")).await.unwrap().len(), 1, "it is idempotent");
    other.limit(job.id(), Limits::NONE).await.unwrap();
    committed(ended(&resumed(&other, &job).await).await);
    assert!(other.recover(&region("b")).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_ended_by_way_of_another_index_has_one_outcome() {
    let world = world(MIB);
    let engine = world.engine().await;
    let mut options = world.options();
    options.state_dir = world.path("other-state");
    let other = world.engine_with(options).await;
    for (target, commits) in [("b/cancelled", false), ("b/committed", true)] {
        let job = engine.copy(request("source/image", target, standing())).await.unwrap();
        until_read(&job, 64 * KIB).await;
        suspended(&job.suspend().await);
        if commits {
            other.recover(&region("b")).await.unwrap();
            other.limit(job.id(), Limits::NONE).await.unwrap();
            committed(ended(&resumed(&other, &job).await).await);
        } else {
            let reply = other.cancel_image(&region("b"), &image("cancelled")).await.unwrap();
            assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true });
        }
        let state = engine.show(job.id()).await.unwrap().state;
        let outcome = ended(&engine.resume(job.id()).await.unwrap()).await;
        let answer = engine.cancel(job.id()).await.unwrap().answer;
        if commits {
            assert_eq!(state, JobState::Committed);
            committed(outcome);
            assert_eq!(answer, CancelAnswer::AlreadyCommitted);
        } else {
            assert_eq!(state, JobState::RolledBack);
            rolled_back(&outcome);
            assert_eq!(answer, CancelAnswer::AlreadyCancelled { clean: true });
        }
    }
}

/// How many seconds a copy takes.
async fn seconds(engine: &Engine, target: &str, options: CopyOptions) -> f64 {
    let began = Instant::now();
    let job = engine.copy(request("m/disk", target, options)).await.unwrap();
    committed(ended(&job).await);
    began.elapsed().as_secs_f64()
}

/// Never faster than the limit, but for what an idle bucket saves up. How much slower is the
/// machine's affair.
#[track_caller]
fn holds(seconds: f64, wanted: f64) {
    assert!(seconds >= wanted - 0.2, "{seconds} s for {wanted} s");
}

// The pool's threads are none of the runtime's, so a paused clock would run ahead of them: these
// take their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_engine_region_and_job_hold() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, 2 * MIB));
    let engine = world.engine().await;
    for target in ["n/1", "b/1"] {
        holds(seconds(&engine, target, small().with_limits(rate(4 * MIB))).await, 0.5);
    }
    engine.limit_engine(rate(4 * MIB));
    holds(seconds(&engine, "n/2", small()).await, 0.5);
    engine.limit_engine(Limits::NONE);
    for name in ["m", "n"] {
        engine.limit_region(&region(name), rate(4 * MIB)).unwrap();
        holds(seconds(&engine, &format!("n/of-{name}"), small()).await, 0.5);
        engine.limit_region(&region(name), Limits::NONE).unwrap();
    }
    // 32 chunks at 64 a second.
    let ops = Limits::NONE.with_ops_per_sec(64);
    holds(seconds(&engine, "n/3", small().with_limits(ops)).await, 0.5);
    let free = seconds(&engine, "n/4", small()).await;
    assert!(free < 0.4, "{free} s without a limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_an_engine_is_for_all_its_jobs_together() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, MIB));
    let engine = world.engine_with(world.options().with_limits(rate(4 * MIB))).await;
    let began = Instant::now();
    let mut jobs = Vec::new();
    for n in 0..5 {
        let target = format!("n/disk-{n}");
        jobs.push(engine.copy(request("m/disk", &target, small())).await.unwrap());
    }
    for job in &jobs {
        committed(ended(job).await);
    }
    holds(began.elapsed().as_secs_f64(), 1.25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_is_changed_while_the_job_runs() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, 4 * MIB));
    let engine = world.engine().await;
    let began = Instant::now();
    let options = small().with_limits(rate(2 * MIB));
    let job = engine.copy(request("m/disk", "n/disk", options)).await.unwrap();
    until_read(&job, 2 * MIB).await;
    engine.limit(job.id(), rate(20 * MIB)).await.unwrap();
    committed(ended(&job).await);
    let seconds = began.elapsed().as_secs_f64();
    assert!((0.9..=1.8).contains(&seconds), "{seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_limit_survives_a_resume_from_the_first_byte_on() {
    for target in ["n/disk", "b/disk"] {
        let world = World::in_memory();
        world.m.insert(&image("disk"), noise(1, 2 * MIB));
        let engine = world.engine().await;
        // As first asked for, it would be done at once.
        let options = small().with_limits(rate(1000 * MIB));
        engine.limit_engine(rate(1));
        let job = engine.copy(request("m/disk", target, options)).await.unwrap();
        suspended(&job.suspend().await);
        engine.limit(job.id(), rate(2 * MIB)).await.unwrap();
        let began = Instant::now();
        let other = world.engine().await;
        let job = other.resume(job.id()).await.unwrap();
        committed(ended(&job).await);
        holds(began.elapsed().as_secs_f64(), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_jobs_run_at_once() {
    let world = world(MIB);
    let engine = world.engine_with(world.options().with_jobs_running_max(2)).await;
    let mut jobs = Vec::new();
    for n in 0..5 {
        let target = format!("b/disk-{n}");
        jobs.push(engine.copy(request("source/image", &target, standing())).await.unwrap());
    }
    let running = || {
        let states = jobs.iter().map(|job| job.progress().state);
        states.filter(|state| *state == JobState::Copying).count()
    };
    until("two run", async || running() == 2).await;
    until_read(&jobs[0], 1).await;
    assert_eq!(running(), 2);
    for (n, job) in jobs.iter().enumerate() {
        engine.limit(job.id(), Limits::NONE).await.unwrap();
        assert!(running() <= 2, "after {n}");
    }
    for job in &jobs {
        assert!(running() <= 2);
        committed(ended(job).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_add_up() {
    let world = world(MIB);
    let engine = world.engine().await;
    let mut jobs = Vec::new();
    for n in 0..3 {
        let target = format!("b/disk-{n}");
        jobs.push(engine.copy(request("source/image", &target, small())).await.unwrap());
    }
    for job in &jobs {
        committed(ended(job).await);
    }
    let job = engine.copy(request("source/image", "b/no", standing())).await.unwrap();
    until_read(&job, 64 * KIB).await;
    assert_eq!(engine.metrics().jobs.keys().copied().collect::<Vec<_>>(), [job.id()]);
    assert!(job.cancel().await.unwrap().answer.is_clean());
    let metrics = engine.metrics();
    assert!(metrics.jobs.is_empty());
    let (source, b) = (metrics.regions[&region("source")], metrics.regions[&region("b")]);
    assert_eq!((b.committed, b.rolled_back, b.failed), (3, 1, 0));
    assert!(source.read_bytes >= 3 * MIB + 64 * KIB && source.read_bytes <= 4 * MIB, "{source:?}");
    assert_eq!(b.written_bytes, source.read_bytes);
    assert_eq!((source.written_bytes, b.read_bytes), (0, 0));
    assert!(b.moves.is_balanced(), "{b:?}");
    assert!(b.moves.succeeded >= 3 && b.moves.cancelled >= 1 && b.moves.failed == 0, "{b:?}");
    assert_eq!(source.moves.issued, 0, "moves are counted where they lead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_of_an_engine_never_go_back() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, 64 * KIB));
    let engine = world.engine().await;
    let (mut jobs, mut seen, mut n) = (Vec::new(), 0, 0);
    while n < 200 || jobs.iter().any(|job: &blockferry::engine::Job| job.outcome().is_none()) {
        if n < 200 {
            let target = format!("n/disk-{n}");
            jobs.push(engine.copy(request("m/disk", &target, small())).await.unwrap());
            n += 1;
        } else {
            tokio::task::yield_now().await;
        }
        let written = engine.metrics().regions[&region("n")].written_bytes;
        assert!(written >= seen, "{written} after {seen}");
        assert!(written <= n * 64 * KIB, "{written} after {n} jobs");
        seen = written;
    }
    assert_eq!(engine.metrics().regions[&region("n")].written_bytes, 200 * 64 * KIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_onto_itself_or_from_nowhere_is_refused() {
    let world = world(MIB);
    let engine = world.engine().await;
    let refused = engine.copy(request("source/image", "source/image", small())).await;
    assert_eq!(kind(refused), Some(ErrorKind::Invalid));
    for from in ["b/none", "n/none", "target/none"] {
        let refused = engine.copy(request(from, "b/disk", small())).await;
        assert_eq!(kind(refused), Some(ErrorKind::NotFound), "{from}");
    }
    let refused = engine.copy(request("source/image", "nowhere/disk", small())).await;
    assert_eq!(kind(refused), Some(ErrorKind::NotFound));
    world.assert_empty("b");
    assert!(engine.jobs().await.unwrap().is_empty());
    let again = engine.register(region("b"), world.region("b")).await;
    assert_eq!(kind(again), Some(ErrorKind::Exists));
    // A wait does not hold a job, nor does its handle.
    let job = engine.copy(request("source/image", "b/disk", small())).await.unwrap();
    let id = job.id();
    drop(job);
    until("it commits all the same", async || {
        engine.show(id).await.unwrap().state == JobState::Committed
    })
    .await;
    assert!(matches!(engine.resume(id).await.unwrap().outcome(), Some(JobOutcome::Committed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_checkpoint_covers_is_blank_again_after_a_resume() {
    for target in ["b/disk", "target/image"] {
        let world = World::in_memory();
        // The second half is a hole: nobody writes there, so nothing may be there already.
        fs::write(world.source(), noise(1, MIB)).unwrap();
        fs::OpenOptions::new().write(true).open(world.source()).unwrap().set_len(2 * MIB).unwrap();
        let engine = world.engine().await;
        engine.limit_engine(rate(1));
        let job = engine.copy(request("source/image", target, small())).await.unwrap();
        drop(engine);
        let (name, folder) = match target {
            "b/disk" => ("b", format!("b/.blockferry/stage/{}/image", job.id())),
            _ => ("target", format!("files/.blockferry-{}", job.id())),
        };
        let place = world.region(name);
        until("the crashed engine lets go", async || {
            place.job(job.id()).await.unwrap().is_some_and(|staged| !staged.owned)
        })
        .await;
        // As a late write, or one that no checkpoint came to cover.
        let data = world.path(&folder).join("data");
        let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
        let last = 2 * MIB - 100 * KIB;
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(9, 100 * KIB), last).unwrap();
        drop(file);
        let other = world.engine().await;
        // The hole may be on record by now; then those bytes are damage, and no leftover.
        let covered =
            place.job(job.id()).await.unwrap().is_some_and(|staged| {
                staged.progress.is_some_and(|progress| progress.zero_bytes > 0)
            });
        assert!(!covered, "the crash came too late for this test");
        committed(ended(&resumed(&other, &job).await).await);
        let copied = match name {
            "b" => world.data_of("b", "disk"),
            _ => world.target(),
        };
        assert_same(&world.source(), &copied);
    }
}
