//! Places for images that the tests use: in memory, in folders, in plain files, on loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{fs, io};

use blockferry::id::ImageId;
use blockferry::region::{DirRegion, FileRegion, MemoryRegion, Region};
use blockferry::testing::{Fixture, Place};

/// Says that a test was left out, and fails where nothing may be.
pub(crate) fn skipped(why: impl AsRef<str>) {
    eprintln!("skipped: {}", why.as_ref());
    let all = std::env::var_os("BLOCKFERRY_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!all, "nothing may be skipped here: {}", why.as_ref());
}

pub(crate) struct Memory;

#[derive(Debug)]
struct MemoryPlace(MemoryRegion);

impl Fixture for Memory {
    fn place(&self) -> Box<dyn Place> {
        Box::new(MemoryPlace(MemoryRegion::new("conformance")))
    }
}

impl Place for MemoryPlace {
    fn region(&self) -> Arc<dyn Region> {
        Arc::new(self.0.clone())
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        format!("image-{number}").parse().ok()
    }

    fn put(&self, image: &ImageId, bytes: &[u8]) -> bool {
        self.0.insert(image, bytes.to_vec());
        true
    }

    fn leftovers(&self) -> Vec<String> {
        // In memory, every answer is there at once.
        match self.0.jobs().as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(jobs) => {
                jobs.unwrap().iter().map(|told| told.spec.job.to_string()).collect()
            }
            Poll::Pending => vec!["an answer".into()],
        }
    }
}

pub(crate) struct Dir;

#[derive(Debug)]
struct DirPlace(tempfile::TempDir);

impl Fixture for Dir {
    fn place(&self) -> Box<dyn Place> {
        Box::new(DirPlace(tempfile::tempdir().unwrap()))
    }
}

impl Place for DirPlace {
    fn region(&self) -> Arc<dyn Region> {
        Arc::new(DirRegion::open_root(self.0.path()).unwrap())
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        format!("image-{number}").parse().ok()
    }

    fn put(&self, _image: &ImageId, _bytes: &[u8]) -> bool {
        false
    }

    fn leftovers(&self) -> Vec<String> {
        let ours = |path: &Path| {
            let path = path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().to_owned();
            let in_image = path.strip_prefix("image-").map(|rest| rest.split_once('/'));
            let kept = matches!(path.as_str(), ".blockferry" | ".blockferry/stage")
                || matches!(in_image, Some(None | Some((_, "data" | "manifest"))));
            (!kept).then_some(path)
        };
        below(self.0.path()).unwrap().iter().filter_map(|path| ours(path)).collect()
    }
}

pub(crate) struct File;

#[derive(Debug)]
struct FilePlace(tempfile::TempDir);

impl Fixture for File {
    fn place(&self) -> Box<dyn Place> {
        Box::new(FilePlace(tempfile::tempdir().unwrap()))
    }
}

impl Place for FilePlace {
    fn region(&self) -> Arc<dyn Region> {
        let path = self.0.path();
        FileRegion::open_path(path.join("disk.raw"), path.join("state")).unwrap()
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        (number == 0).then(|| "image".parse().unwrap())
    }

    fn put(&self, _image: &ImageId, bytes: &[u8]) -> bool {
        let path = self.0.path().join("disk.raw");
        // Another file, and not only other bytes in the same.
        fs::write(path.with_extension("new"), bytes).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
        true
    }

    fn leftovers(&self) -> Vec<String> {
        let names = below(self.0.path()).unwrap();
        let names = names.iter().filter(|path| **path != self.0.path().join("disk.raw"));
        names.map(|path| path.display().to_string()).collect()
    }
}

/// Block devices: loop devices over files of 1 MiB.
pub(crate) struct Device;

impl Device {
    /// Why there can be no loop device here, if so.
    pub(crate) fn missing() -> Option<String> {
        LoopDevice::over(&tempfile::tempdir().unwrap()).err()
    }
}

/// The right to use loop devices: whoever looks for a free one disturbs those who use theirs.
pub(crate) static LOOP_DEVICES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Which loop devices are ours to take.
const LOOP_FIRST: u32 = 64;
const LOOP_COUNT: u32 = 64;

/// A loop device, detached when dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn over(folder: &tempfile::TempDir) -> Result<Self, String> {
        let backing = folder.path().join("backing");
        fs::write(&backing, vec![0xaa; 1 << 20]).unwrap();
        // Not the first free one: whoever else asks for that at the same moment looks into ours,
        // and keeps us from opening it alone.
        let ours = std::process::id() % LOOP_COUNT;
        for number in (0..LOOP_COUNT).map(|n| LOOP_FIRST + (ours + n) % LOOP_COUNT) {
            let device = PathBuf::from(format!("/dev/loop{number}"));
            let made = Command::new("losetup").arg(&device).arg(&backing).output();
            let made = made.map_err(|error| format!("losetup: {error}"))?;
            if made.status.success() {
                return Ok(Self(device));
            }
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            if !said.contains("Device or resource busy") {
                return Err(format!("losetup: {said}"));
            }
        }
        Err(format!("losetup: {LOOP_COUNT} loop devices are busy"))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "{self:?} stays attached");
    }
}

#[derive(Debug)]
struct DevicePlace {
    // Dropped in this order: the device before the file below it.
    device: LoopDevice,
    folder: tempfile::TempDir,
}

impl Fixture for Device {
    fn place(&self) -> Box<dyn Place> {
        let folder = tempfile::tempdir().unwrap();
        let device = LoopDevice::over(&folder).unwrap();
        Box::new(DevicePlace { device, folder })
    }
}

impl Place for DevicePlace {
    fn region(&self) -> Arc<dyn Region> {
        FileRegion::open_path(&self.device.0, self.folder.path().join("state")).unwrap()
    }

    fn image(&self, number: u8) -> Option<ImageId> {
        (number == 0).then(|| "image".parse().unwrap())
    }

    fn put(&self, _image: &ImageId, bytes: &[u8]) -> bool {
        fs::write(&self.device.0, bytes).is_ok()
    }

    fn leftovers(&self) -> Vec<String> {
        let journals = self.folder.path().join("state/in-place");
        let names = below(&journals).unwrap_or_default();
        names.iter().map(|path| path.display().to_string()).collect()
    }
}

/// Everything below a folder, folders too.
pub(crate) fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            found.extend(below(&path)?);
        }
        found.push(path);
    }
    found.sort();
    Ok(found)
}
