//! What a crash or a failure leaves in the middle of a step, and what is made of it.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use blockferry::engine::{CancelAnswer, Engine, Shutdown};
use blockferry::geometry::{ChunkSize, Geometry};
use blockferry::id::JobId;
use blockferry::job::{Fingerprint, JobSpec};
use blockferry::options::Limits;
use blockferry::region::{Settled, Vote};
use blockferry::testing::{Hook, Hooked, When};
use blockferry::{Error, ErrorKind};

use crate::world::{
    KIB, PATIENCE, World, committed, end, ended, failed, image, kind, noise, region, request,
    resumed, rolled_back, small, standing,
};

const TARGETS: [(&str, &str); 2] = [("b/disk", "b"), ("target/image", "target")];

/// A job of four chunks to that end, as an engine would stage it.
fn spec(target: &str) -> JobSpec {
    let geometry = Geometry::new(256 * KIB, ChunkSize::from_bytes(64 * KIB).unwrap()).unwrap();
    let job = JobId::from_bytes([7; 16]);
    JobSpec::new(job, end("m/source"), end(target), geometry, Fingerprint::new())
}

/// The stage's folder below the world, and that of its data.
fn folders(name: &str, job: JobId) -> (String, String) {
    match name {
        "b" => {
            let stage = format!("b/.blockferry/stage/{job}");
            (stage.clone(), format!("{stage}/image"))
        }
        _ => (format!("files/.blockferry-{job}"), format!("files/.blockferry-{job}")),
    }
}

#[tokio::test]
async fn a_commit_whose_stage_was_not_quite_removed_is_still_a_commit() {
    for (target, name) in TARGETS {
        let world = World::new();
        world.m.insert(&image("source"), noise(1, 256 * KIB));
        let engine = world.engine().await;
        let job = engine.copy(request("m/source", target, small())).await.unwrap();
        committed(ended(&job).await);
        // A crash after the journal is unlinked and before its folder is.
        let stage = world.path(&folders(name, job.id()).0);
        fs::create_dir(&stage).unwrap();
        let reply = engine.cancel(job.id()).await.unwrap();
        assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted, "{target}");
        assert_eq!(engine.show(job.id()).await.unwrap().state.name(), "committed");
        assert!(!stage.exists());
    }
}

#[tokio::test]
async fn a_stage_that_a_crash_left_without_its_data_is_taken_up_again() {
    for (target, name) in TARGETS {
        let world = World::new();
        let (place, spec) = (world.region(name), spec(target));
        drop(place.stage(&spec).await.unwrap());
        // A crash after the journal is durable and before its data is made.
        let data = world.path(&folders(name, spec.job).1).join("data");
        fs::remove_file(&data).unwrap();
        assert!(matches!(place.recover(None).await.unwrap()[0].settled, Settled::Kept));
        drop(place.reopen(&spec).await.unwrap());
        assert_eq!(fs::metadata(&data).unwrap().len(), 256 * KIB);
    }
}

#[tokio::test]
async fn a_start_that_failed_and_could_not_be_undone_is_taken_up_or_cancelled() {
    let world = World::new();
    let (place, spec) = (world.region("b"), spec("b/disk"));
    for is_taken_up in [true, false] {
        drop(place.stage(&spec).await.unwrap());
        // The clean-up came as far as the folder of the data.
        let inner = world.path(&folders("b", spec.job).1);
        fs::remove_dir_all(&inner).unwrap();
        if is_taken_up {
            drop(place.reopen(&spec).await.unwrap());
            assert_eq!(fs::metadata(inner.join("data")).unwrap().len(), 256 * KIB);
        }
        let vote = place.cancel(spec.job, &spec.target.image).await.unwrap();
        assert_eq!(vote, Vote::Cancelled { first: true, clean: true });
        assert!(!world.path(&folders("b", spec.job).0).exists());
    }
}

#[tokio::test]
async fn a_strangers_file_is_not_taken_for_the_commit_of_a_job_that_never_had_data() {
    let world = World::new();
    let (place, spec) = (world.region("target"), spec("target/image"));
    drop(place.stage(&spec).await.unwrap());
    // A crash after the journal is durable and before its data is made.
    fs::remove_file(world.path(&folders("target", spec.job).1).join("data")).unwrap();
    let stranger = world.target();
    fs::write(&stranger, b"a stranger's").unwrap();
    let vote = place.cancel(spec.job, &spec.target.image).await.unwrap();
    assert_eq!(vote, Vote::Cancelled { first: true, clean: true });
    assert_eq!(fs::read(&stranger).unwrap(), b"a stranger's");
}

/// The end of the first could not be written, and a plain file does not tell who made it.
#[tokio::test]
async fn the_image_of_a_later_job_is_not_taken_for_the_commit_of_a_cancelled_one() {
    let world = World::new();
    world.m.insert(&image("source"), noise(1, 256 * KIB));
    let engine = world.engine().await;
    let first = engine.copy(request("m/source", "target/image", standing())).await.unwrap();
    let record = world.path("state").join("jobs").join(first.id().to_string());
    let before = fs::read(&record).unwrap();
    let reply = engine.cancel(first.id()).await.unwrap();
    assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true });
    rolled_back(&ended(&first).await);
    fs::write(&record, before).unwrap();
    let second = engine.copy(request("m/source", "target/image", small())).await.unwrap();
    committed(ended(&second).await);
    assert_eq!(engine.show(first.id()).await.unwrap().state.name(), "rolled_back");
    let reply = engine.cancel(first.id()).await.unwrap();
    assert_eq!(reply.answer, CancelAnswer::AlreadyCancelled { clean: true });
    rolled_back(&ended(&engine.resume(first.id()).await.unwrap()).await);
    let reply = engine.cancel_image(&region("target"), &image("image")).await.unwrap();
    assert_eq!((reply.job, reply.answer), (Some(second.id()), CancelAnswer::AlreadyCommitted));
}

#[tokio::test]
async fn bytes_that_were_on_record_and_are_gone_are_not_taken_for_zeros() {
    for (target, name) in TARGETS {
        let world = World::new();
        world.m.insert(&image("source"), noise(1, 256 * KIB));
        let engine = world.engine().await;
        let job = engine.copy(request("m/source", target, standing())).await.unwrap();
        // The name is taken before the commit: everything is on record, and nothing is published.
        let taken = if name == "b" { world.path("b/disk") } else { world.target() };
        fs::create_dir(&taken).unwrap();
        job.limit(Limits::NONE).await.unwrap();
        failed(&ended(&job).await, ErrorKind::Exists, true);
        fs::remove_dir(&taken).unwrap();
        let data = world.path(&folders(name, job.id()).1).join("data");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).unwrap();
        fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(0).unwrap();
        assert_eq!(kind(engine.resume(job.id()).await), Some(ErrorKind::Corrupt), "{target}");
        assert!(engine.cancel(job.id()).await.unwrap().answer.is_clean());
    }
}

#[tokio::test]
async fn a_cancel_slot_is_made_durable_by_whoever_acts_on_it() {
    for (target, name) in TARGETS {
        let world = World::new();
        let (place, spec) = (world.region(name), spec(target));
        drop(place.stage(&spec).await.unwrap());
        let (stage, data) = folders(name, spec.job);
        // As a canceller leaves it that died before its sync.
        let journal = world.path(&stage).join("journal");
        let journal = fs::OpenOptions::new().read(true).write(true).open(journal).unwrap();
        journal.write_all_at(b"torn", 32 << 10).unwrap();
        // The rollback is cut short after the data is gone.
        fs::create_dir(world.path(&data).join("manifest")).unwrap();
        let settled = place.recover(None).await.unwrap();
        assert!(matches!(settled[0].settled, Settled::Failed(_)), "{target}: {settled:?}");
        let mut slot = [0; 4];
        journal.read_exact_at(&mut slot, 32 << 10).unwrap();
        assert_eq!(&slot, b"BFSL", "{target}");
    }
}

/// An engine whose region `h` is the folder `b`, every operation shown to that hook.
async fn hooked(world: &World, hook: Hook) -> Engine {
    let engine = world.engine().await;
    let place = Arc::new(Hooked::new(world.region("b"), hook));
    engine.register(region("h"), place).await.unwrap();
    engine
}

#[tokio::test]
async fn a_cancel_that_could_not_be_decided_is_not_told_as_one_and_never_commits() {
    let world = World::new();
    world.m.insert(&image("source"), noise(1, 256 * KIB));
    let broken: Hook = Arc::new(|point| match (point.operation, point.when) {
        ("discard" | "cancel", When::Before) => Err(Error::new(ErrorKind::Io, "decide")),
        _ => Ok(()),
    });
    let engine = hooked(&world, broken).await;
    let job = engine.copy(request("m/source", "h/disk", standing())).await.unwrap();
    let late = engine.shutdown(Shutdown::Cancel, PATIENCE).await;
    assert!(late.is_empty());
    failed(&ended(&job).await, ErrorKind::Io, true);
    drop(engine);
    let engine = hooked(&world, Arc::new(|_| Ok(()))).await;
    let again = engine.resume(job.id()).await.unwrap();
    rolled_back(&ended(&again).await);
    world.assert_empty("b");
}

#[tokio::test]
async fn a_region_that_panics_ends_its_job_and_lets_go_of_the_stage() {
    let world = World::new();
    world.m.insert(&image("source"), noise(1, 256 * KIB));
    let panics: Hook = Arc::new(|point| {
        assert!(point.operation != "commit", "as a region of poor quality");
        Ok(())
    });
    let engine = hooked(&world, panics).await;
    let job = engine.copy(request("m/source", "h/disk", small())).await.unwrap();
    failed(&ended(&job).await, ErrorKind::Unavailable, true);
    drop(engine);
    let engine = hooked(&world, Arc::new(|_| Ok(()))).await;
    committed(ended(&resumed(&engine, &job).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_commits_while_it_is_looked_at_is_shown_as_committed() {
    let world = World::new();
    world.m.insert(&image("source"), noise(1, 256 * KIB));
    let owner = hooked(&world, Arc::new(|_| Ok(()))).await;
    let job = owner.copy(request("m/source", "h/disk", standing())).await.unwrap();
    let (id, job) = (job.id(), Arc::new(job));
    let (there, elsewhere) = (world.path("b/disk"), world.path("elsewhere"));
    // Between the look into the index and that at the region, it commits, and its image goes.
    let late: Hook = Arc::new(move |point| {
        if (point.operation, point.when) == ("job", When::Before) && !elsewhere.exists() {
            let ends = async {
                job.limit(Limits::NONE).await.unwrap();
                committed(ended(&job).await);
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(ends));
            fs::rename(&there, &elsewhere).unwrap();
        }
        Ok(())
    });
    let other = hooked(&world, late).await;
    let shown = other.show(id).await.unwrap();
    assert_eq!((shown.state.name(), shown.running), ("committed", false));
    assert!(shown.receipt.is_some());
}

#[tokio::test]
async fn a_cancel_of_what_was_made_by_a_token_leaves_what_the_token_copies_now_alone() {
    let world = World::new();
    world.m.insert(&image("source"), noise(1, 256 * KIB));
    let engine = world.engine().await;
    let one = request("m/source", "b/one", small().with_token("token"));
    let first = engine.copy(one).await.unwrap();
    committed(ended(&first).await);
    engine.forget(first.id()).await.unwrap();
    let other = request("m/source", "b/other", standing().with_token("token"));
    let second = engine.copy(other).await.unwrap();
    assert_eq!(second.id(), first.id());
    let late = engine.cancel_image(&region("b"), &image("one")).await.unwrap();
    assert_eq!((late.job, late.answer), (Some(first.id()), CancelAnswer::AlreadyCommitted));
    second.limit(Limits::NONE).await.unwrap();
    committed(ended(&second).await);
}
