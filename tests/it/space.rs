//! Destinations without room, and such that may not be written: the failure is clean, and what was
//! done is kept or gone as it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, Engine};
use blockferry::region::DirRegion;

use crate::places::{below, skipped};
use crate::world::{
    MIB, World, assert_same, committed, ended, failed, kind, noise, region, request, resumed, small,
};

/// A file system that is unmounted when dropped.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir(at).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    fn ext4(at: &Path, size: u64) -> Result<Self, String> {
        fs::create_dir(at).unwrap();
        let backing = at.with_extension("backing");
        File::create(&backing).unwrap().set_len(size).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&backing))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&backing).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0))
            .unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Handles of a crashed engine may live a moment longer.
        let done = run(Command::new("umount").arg("--lazy").arg(&self.0));
        assert!(done.is_ok(), "{self:?} stays mounted: {done:?}");
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let told = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", told.trim())) }
}

const IMAGE_BYTES: u64 = 12 * MIB;

/// A source of 12 MiB, and a small file system as region `tight`; `None`: there can be none here.
async fn tight(
    make: impl FnOnce(&Path) -> Result<Mount, String>,
) -> Option<(World, Mount, Engine)> {
    let world = World::new();
    fs::write(world.source(), noise(1, IMAGE_BYTES)).unwrap();
    let mount = match make(&world.path("tight")) {
        Ok(mount) => mount,
        Err(why) => {
            skipped(why);
            return None;
        }
    };
    let engine = world.engine().await;
    let place = DirRegion::open_root(world.path("tight")).unwrap();
    engine.register(region("tight"), Arc::new(place)).await.unwrap();
    Some((world, mount, engine))
}

fn fill(folder: &Path) {
    let ballast = File::create(folder.join("ballast")).unwrap();
    // As much as there is, down to the last block.
    for len in [1 << 20, 4096, 512] {
        let block = vec![1_u8; len];
        while std::io::Write::write_all(&mut &ballast, &block).is_ok() {}
    }
    ballast.sync_all().ok();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = below(folder).unwrap();
    files.retain(|path| !path.is_dir());
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_fills_up_keeps_the_job_until_there_is_room() {
    let Some((world, mount, engine)) = tight(|at| Mount::tmpfs(at, "size=8m")).await else {
        return;
    };
    let job = engine.copy(request("source/image", "tight/disk", small())).await.unwrap();
    failed(&ended(&job).await, ErrorKind::NoSpace, true);
    assert!(engine.images(&region("tight")).await.unwrap().is_empty());
    // It is as full the second time.
    failed(&ended(&resumed(&engine, &job).await).await, ErrorKind::NoSpace, true);
    mount.remount("size=16m");
    let receipt = committed(ended(&resumed(&engine, &job).await).await);
    assert_eq!(receipt.resumed_bytes + receipt.written_bytes, IMAGE_BYTES);
    assert!(receipt.resumed_bytes > 0, "what had found room is kept");
    assert_same(&world.source(), &world.path("tight/disk/data"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_needs_no_room() {
    let small_ext4 = |at: &Path| Mount::ext4(at, 8 * MIB);
    for made in [tight(|at| Mount::tmpfs(at, "size=8m")).await, tight(small_ext4).await] {
        let Some((world, _mount, engine)) = made else { continue };
        let job = engine.copy(request("source/image", "tight/disk", small())).await.unwrap();
        failed(&ended(&job).await, ErrorKind::NoSpace, true);
        fill(&world.path("tight"));
        let answer = engine.cancel(job.id()).await.unwrap().answer;
        assert_eq!(answer, CancelAnswer::Cancelled { clean: true });
        assert_eq!(files(&world.path("tight")), [world.path("tight/ballast")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_any_room_leaves_nothing() {
    let small_ext4 = |at: &Path| Mount::ext4(at, 8 * MIB);
    for made in [tight(|at| Mount::tmpfs(at, "size=1m")).await, tight(small_ext4).await] {
        let Some((world, _mount, engine)) = made else { continue };
        fill(&world.path("tight"));
        let refused = engine.copy(request("source/image", "tight/disk", small())).await;
        assert_eq!(kind(refused), Some(ErrorKind::NoSpace));
        engine.recover(&region("tight")).await.unwrap();
        assert_eq!(files(&world.path("tight")), [world.path("tight/ballast")]);
        assert!(engine.jobs().await.unwrap().is_empty());
        assert!(world.region("tight").jobs().await.unwrap().is_empty());
        // Nothing stands in the way of the next copy.
        fs::remove_file(world.path("tight/ballast")).unwrap();
        fs::write(world.source(), noise(1, 100_000)).unwrap();
        let job = engine.copy(request("source/image", "tight/disk", small())).await.unwrap();
        committed(ended(&job).await);
        assert_same(&world.source(), &world.path("tight/disk/data"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_may_not_be_written_is_left_alone() {
    let Some((world, mount, engine)) = tight(|at| Mount::tmpfs(at, "size=8m")).await else {
        return;
    };
    fs::write(world.path("tight/kept"), b"kept").unwrap();
    mount.remount("ro");
    let refused = engine.copy(request("source/image", "tight/disk", small())).await;
    assert_eq!(kind(refused), Some(ErrorKind::Denied));
    assert_eq!(below(&world.path("tight")).unwrap(), [world.path("tight/kept")]);
    assert!(engine.jobs().await.unwrap().is_empty());
}
