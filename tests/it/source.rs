//! A source that changes while it is copied: nothing is committed, and the error says what changed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use blockferry::engine::CancelAnswer;
use blockferry::options::Limits;
use blockferry::region::Located;
use blockferry::testing::{Hook, Hooked, Point, When};
use blockferry::{Error, ErrorKind};

use crate::world::{
    KIB, MIB, World, committed, ended, failed, image, kind, noise, rate, region, request, resumed,
    small, suspended, until_read,
};

const IMAGE_BYTES: u64 = 2 * MIB;

type Change = fn(&Path);

fn truncate(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(IMAGE_BYTES / 2).unwrap();
}

fn grow(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(IMAGE_BYTES + 1).unwrap();
}

fn rewrite(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"other", IMAGE_BYTES - 100).unwrap();
}

fn touch(path: &Path) {
    let file = File::open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
}

fn replace(path: &Path) {
    let new = path.with_extension("new");
    fs::copy(path, &new).unwrap();
    fs::rename(new, path).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

const CHANGES: [(&str, Change, &str); 6] = [
    ("truncate", truncate, "shorter"),
    ("grow", grow, "size was"),
    ("rewrite", rewrite, "mtime was"),
    ("touch", touch, "mtime was"),
    ("replace", replace, "another file"),
    ("remove", remove, "another file"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changes_during_the_copy_is_never_committed() {
    for (name, change, told) in CHANGES {
        for target in ["b/disk", "target/image", "n/disk"] {
            let world = World::in_memory();
            fs::write(world.source(), noise(1, IMAGE_BYTES)).unwrap();
            let engine = world.engine().await;
            let slow = small().with_limits(rate(256 * KIB));
            let job = engine.copy(request("source/image", target, slow)).await.unwrap();
            until_read(&job, 64 * KIB).await;
            change(&world.source());
            engine.limit(job.id(), Limits::NONE).await.unwrap();
            let why = failed(&ended(&job).await, ErrorKind::SourceChanged, false);
            assert!(why.contains(told), "{name}: {why}");
            assert!(!world.target().exists(), "{name} to {target}");
            let files: Vec<_> = fs::read_dir(world.path("files")).unwrap().collect();
            assert!(files.len() <= 1, "{name} to {target}: {files:?}");
            world.assert_empty("b");
            assert!(world.n.is_empty());
            let answer = engine.cancel(job.id()).await.unwrap().answer;
            assert_eq!(answer, CancelAnswer::NotCancellable, "{name} to {target}");
            if world.source().exists() {
                let again = engine.copy(request("source/image", target, small())).await.unwrap();
                committed(ended(&again).await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changed_while_suspended_is_not_gone_on_with() {
    for (name, change, _) in CHANGES {
        let world = World::in_memory();
        fs::write(world.source(), noise(1, IMAGE_BYTES)).unwrap();
        let engine = world.engine().await;
        let slow = small().with_limits(rate(256 * KIB));
        let job = engine.copy(request("source/image", "b/disk", slow)).await.unwrap();
        until_read(&job, 64 * KIB).await;
        suspended(&job.suspend().await);
        change(&world.source());
        let error = engine.resume(job.id()).await.unwrap_err();
        let wanted = if name == "remove" { ErrorKind::NotFound } else { ErrorKind::SourceChanged };
        assert_eq!(error.kind(), wanted, "{name}: {error:?}");
        let fact = match name {
            "truncate" => "size was 2097152, is 1048576",
            "grow" => "size was 2097152, is 2097153",
            "rewrite" => "mtime was",
            "touch" => "is 1000000.000000000",
            "replace" => "inode was",
            _ => "",
        };
        assert!(error.report().contains(fact), "{name}: {}", error.report());
        let staged = world.region("b").locate(&image("disk")).await.unwrap();
        assert_eq!(staged, Located::Staged(job.id()), "{name}: the stage is kept");
        let answer = engine.cancel(job.id()).await.unwrap().answer;
        assert_eq!(answer, CancelAnswer::Cancelled { clean: true }, "{name}");
        world.assert_empty("b");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_memory_that_was_put_anew_is_a_changed_source() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, IMAGE_BYTES));
    let engine = world.engine().await;
    let slow = small().with_limits(rate(256 * KIB));
    let job = engine.copy(request("m/disk", "b/disk", slow)).await.unwrap();
    until_read(&job, 64 * KIB).await;
    world.m.insert(&image("disk"), noise(2, IMAGE_BYTES));
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    let why = failed(&ended(&job).await, ErrorKind::SourceChanged, false);
    assert!(why.contains("version was 1, is 2"), "{why}");
    world.assert_empty("b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_image_is_not_copied() {
    for target in ["b/copy", "n/copy", "target/image"] {
        let world = World::in_memory();
        let engine = world.engine().await;
        world.put(&engine, &noise(3, IMAGE_BYTES), "a/disk").await;
        let data = world.data_of("a", "disk");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&data).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1_234_567).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], 1_234_567).unwrap();
        drop(file);

        let job = engine.copy(request("a/disk", target, small())).await.unwrap();
        failed(&ended(&job).await, ErrorKind::Corrupt, true);
        assert!(!world.target().exists());
        assert!(world.region("b").list().await.unwrap().is_empty());
        assert!(world.region("n").list().await.unwrap().is_empty());
        // It is as damaged the second time.
        failed(&ended(&resumed(&engine, &job).await).await, ErrorKind::Corrupt, true);
        let answer = job.cancel().await.unwrap().answer;
        assert_eq!(answer, CancelAnswer::Cancelled { clean: true });
        world.assert_empty("b");
        assert!(world.n.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_data_became_holes_is_not_copied() {
    for target in ["b/copy", "n/copy"] {
        let world = World::in_memory();
        let engine = world.engine().await;
        world.put(&engine, &noise(3, IMAGE_BYTES), "a/disk").await;
        let data = world.data_of("a", "disk");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&data).unwrap();
        file.set_len(IMAGE_BYTES / 2).unwrap();
        file.set_len(IMAGE_BYTES).unwrap();

        let job = engine.copy(request("a/disk", target, small())).await.unwrap();
        let why = failed(&ended(&job).await, ErrorKind::Corrupt, true);
        assert!(why.contains("does not match its manifest"), "{why}");
        let answer = job.cancel().await.unwrap().answer;
        assert_eq!(answer, CancelAnswer::Cancelled { clean: true });
        world.assert_empty("b");
        assert!(world.n.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_fenced_undoes_nothing_when_the_source_changed() {
    let world = World::in_memory();
    world.m.insert(&image("disk"), noise(1, IMAGE_BYTES));
    let engine = world.engine().await;
    let cancels = Arc::new(AtomicU64::new(0));
    let seen = cancels.clone();
    let hook: Hook = Arc::new(move |point: Point| match (point.operation, point.when) {
        // As a region answers whose job somebody else has taken over.
        ("discard", When::Before) => Err(Error::new(ErrorKind::Fenced, "discard")),
        ("cancel", When::Before) => {
            seen.fetch_add(1, Relaxed);
            Ok(())
        }
        _ => Ok(()),
    });
    let hooked = Hooked::new(world.region("b"), hook);
    engine.register(region("hooked"), Arc::new(hooked)).await.unwrap();
    let slow = small().with_limits(rate(256 * KIB));
    let job = engine.copy(request("m/disk", "hooked/disk", slow)).await.unwrap();
    until_read(&job, 64 * KIB).await;
    world.m.insert(&image("disk"), noise(2, IMAGE_BYTES));
    engine.limit(job.id(), Limits::NONE).await.unwrap();
    failed(&ended(&job).await, ErrorKind::SourceChanged, false);
    assert_eq!(cancels.load(Relaxed), 0, "the job is not ours to cancel");
    let staged = world.region("b").recover(None).await.unwrap();
    assert_eq!(staged.len(), 1, "what was staged is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_cut_short_is_not_opened() {
    let world = World::in_memory();
    let engine = world.engine().await;
    world.put(&engine, &noise(3, IMAGE_BYTES), "a/disk").await;
    let data = world.data_of("a", "disk");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(&data).unwrap().set_len(IMAGE_BYTES - 1).unwrap();
    let refused = engine.copy(request("a/disk", "b/copy", small())).await;
    assert_eq!(kind(refused), Some(ErrorKind::Corrupt));
    world.assert_empty("b");
}
