//! Does every region keep the contract, and what does a directory region do with hostile folders?

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use blockferry::error::{Error, ErrorKind, Result};
use blockferry::geometry::{ByteRange, ChunkSize, Geometry};
use blockferry::id::{ImageId, JobId};
use blockferry::job::{Endpoint, Fingerprint, JobSpec};
use blockferry::region::{DirRegion, Region};
use blockferry::testing::{Fixture, Hooked, Place, Point, When, conformance};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::places::{Device, Dir, File, LOOP_DEVICES, Memory, below, skipped};
use crate::world::{World, noise};

#[tokio::test(flavor = "multi_thread")]
async fn memory_region_conforms() {
    conformance(&Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dir_region_conforms() {
    conformance(&Dir).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file_region_conforms() {
    conformance(&File).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn device_region_conforms() {
    let _alone = LOOP_DEVICES.lock().await;
    match Device::missing() {
        Some(why) => skipped(why),
        None => conformance(&Device).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hooked_region_conforms() {
    /// Places behind a hook that lets everything pass.
    struct Watched;

    #[derive(Debug)]
    struct WatchedPlace(Box<dyn Place>);

    impl Fixture for Watched {
        fn place(&self) -> Box<dyn Place> {
            Box::new(WatchedPlace(Dir.place()))
        }
    }

    impl Place for WatchedPlace {
        fn region(&self) -> Arc<dyn Region> {
            Arc::new(Hooked::new(self.0.region(), Arc::new(|_| Ok(()))))
        }

        fn image(&self, number: u8) -> Option<ImageId> {
            self.0.image(number)
        }

        fn put(&self, image: &ImageId, bytes: &[u8]) -> bool {
            self.0.put(image, bytes)
        }

        fn leftovers(&self) -> Vec<String> {
            self.0.leftovers()
        }
    }

    conformance(&Watched).await;
}

#[tokio::test]
async fn a_hook_sees_both_sides_and_fails_either() {
    let place = Memory.place();
    let seen: Arc<Mutex<Vec<Point>>> = Arc::default();
    let (notes, job) = (seen.clone(), spec("image-0"));
    let hook = move |point: Point| {
        notes.lock().unwrap().push(point);
        match (point.n, point.when, point.operation) {
            (0, ..) | (4, When::After, "stage") => Err(Error::new(ErrorKind::Unavailable, "reply")),
            _ => Ok(()),
        }
    };
    let hooked = Hooked::new(place.region(), Arc::new(hook));
    assert_eq!(kind(hooked.stage(&job).await), ErrorKind::Unavailable);
    assert!(place.leftovers().is_empty(), "a failure before keeps the operation from being made");
    assert!(hooked.jobs().await.unwrap().is_empty());
    assert_eq!(kind(hooked.stage(&job).await), ErrorKind::Unavailable);
    assert_eq!(place.leftovers().len(), 1, "a failure after loses only the reply");
    let target = hooked.stage(&job).await.unwrap();
    assert!(target.local().is_none());
    target.begin().await.unwrap();
    let operations: Vec<&str> = seen.lock().unwrap().iter().map(|seen| seen.operation).collect();
    assert_eq!(
        operations,
        ["stage", "jobs", "jobs", "stage", "stage", "stage", "stage", "begin", "begin"]
    );
    assert_eq!(hooked.count(), 9);
}

fn spec(image: &str) -> JobSpec {
    JobSpec::new(
        JobId::from_bytes([1; 16]),
        Endpoint::new("memory://source".parse().unwrap(), "source".parse().unwrap()),
        Endpoint::new("target".parse().unwrap(), image.parse().unwrap()),
        Geometry::new(100_000, ChunkSize::MIN).unwrap(),
        Fingerprint::new(),
    )
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().map(|error| error.kind()).unwrap()
}

/// A region's root, and a folder outside it that nobody may touch.
struct Hostile {
    temp: tempfile::TempDir,
}

impl Hostile {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("root")).unwrap();
        fs::create_dir_all(temp.path().join("outside/stage")).unwrap();
        fs::write(temp.path().join("outside/data"), b"outside").unwrap();
        fs::write(temp.path().join("outside/manifest"), b"outside").unwrap();
        Self { temp }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.temp.path().join("outside")
    }

    fn region(&self) -> DirRegion {
        DirRegion::open_root(self.root()).unwrap()
    }

    fn check_outside(&self) {
        let names = below(&self.outside()).unwrap();
        assert_eq!(names.len(), 3, "nothing is made or removed outside the root: {names:?}");
        for name in ["data", "manifest"] {
            assert_eq!(fs::read(self.outside().join(name)).unwrap(), b"outside");
        }
    }
}

#[tokio::test]
async fn an_image_folder_that_is_a_symlink_is_refused() {
    let hostile = Hostile::new();
    symlink(hostile.outside(), hostile.root().join("image")).unwrap();
    let (region, image) = (hostile.region(), "image".parse().unwrap());
    assert_eq!(kind(region.open(&image).await), ErrorKind::Denied);
    assert_eq!(kind(region.remove(&image).await), ErrorKind::Denied);
    assert_eq!(kind(region.locate(&image).await), ErrorKind::Denied);
    assert_eq!(kind(region.stage(&spec("image")).await), ErrorKind::Exists);
    assert!(region.list().await.unwrap().is_empty());
    hostile.check_outside();
}

#[tokio::test]
async fn files_of_an_image_that_are_symlinks_are_refused() {
    let hostile = Hostile::new();
    fs::create_dir(hostile.root().join("image")).unwrap();
    for name in ["data", "manifest"] {
        symlink(hostile.outside().join(name), hostile.root().join("image").join(name)).unwrap();
    }
    let region = hostile.region();
    assert_eq!(kind(region.open(&"image".parse().unwrap()).await), ErrorKind::Denied);
    hostile.check_outside();
}

#[tokio::test]
async fn our_folder_that_is_a_symlink_is_refused() {
    for name in [".blockferry", ".blockferry/stage"] {
        let hostile = Hostile::new();
        if name != ".blockferry" {
            fs::create_dir(hostile.root().join(".blockferry")).unwrap();
        }
        symlink(hostile.outside(), hostile.root().join(name)).unwrap();
        let (region, job) = (hostile.region(), spec("image"));
        assert_eq!(kind(region.stage(&job).await), ErrorKind::Denied, "{name}");
        assert_eq!(kind(region.jobs().await), ErrorKind::Denied, "{name}");
        assert_eq!(kind(region.recover(None).await), ErrorKind::Denied, "{name}");
        assert_eq!(kind(region.cancel(job.job, &job.target.image).await), ErrorKind::Denied);
        hostile.check_outside();
    }
}

#[tokio::test]
async fn a_stage_that_is_a_symlink_is_refused() {
    let hostile = Hostile::new();
    let job = spec("image");
    drop(hostile.region().stage(&job).await.unwrap());
    let stage = hostile.root().join(".blockferry/stage").join(job.job.to_string());
    fs::remove_dir_all(stage.join("image")).unwrap();
    symlink(hostile.outside(), stage.join("image")).unwrap();
    let region = hostile.region();
    assert_eq!(kind(region.stage(&job).await), ErrorKind::Denied);
    assert_eq!(kind(region.cancel(job.job, &job.target.image).await), ErrorKind::Denied);
    hostile.check_outside();
    fs::remove_dir_all(&stage).unwrap();
    symlink(hostile.outside(), &stage).unwrap();
    assert_eq!(kind(region.stage(&job).await), ErrorKind::Denied);
    assert_eq!(kind(region.cancel(job.job, &job.target.image).await), ErrorKind::Denied);
    hostile.check_outside();
}

/// Exchanges two names for as long as it lives; nothing else happens to what they lead to.
#[derive(Debug)]
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    /// # Errors
    /// Where the file system cannot exchange names.
    fn start(one: PathBuf, other: PathBuf) -> io::Result<Self> {
        renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // What is just being removed cannot be exchanged.
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).ok();
                thread::yield_now();
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Longer than it takes, on a machine that does other work too.
const SWAPPING_MAX: Duration = Duration::from_secs(300);

/// Names and bytes of all that lies below.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let read = |path: &PathBuf| path.is_file().then(|| fs::read(path).unwrap());
    below(root).unwrap().into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// Region `a` with an image, and region `b`, which has all that somebody whom a link leads there
/// could read or remove: an image of that name, and a job of the id that is asked for.
async fn with_another_region() -> (World, Vec<u8>) {
    let world = World::in_memory();
    let engine = world.engine().await;
    let ours = noise(1, 70_000);
    world.put(&engine, &ours, "a/disk").await;
    world.put(&engine, &noise(2, 70_000), "b/disk").await;
    drop(world.region("b").stage(&spec("theirs")).await.unwrap());
    (world, ours)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symlink_that_is_swapped_for_an_image_at_any_moment_leads_nowhere() {
    let (world, ours) = with_another_region().await;
    let (there, kept) = (world.path("b"), tree(&world.path("b")));
    let (name, link, spare) = (world.path("a/disk"), world.path("link"), world.path("spare"));
    symlink(there.join("disk"), &link).unwrap();
    let (region, image) = (world.region("a"), "disk".parse().unwrap());
    let swapper = match Swapper::start(name.clone(), link.clone()) {
        Ok(swapper) => swapper,
        Err(error) => return skipped(error.to_string()),
    };
    let (mut opened, mut refused, began) = (0, 0, Instant::now());
    while opened + refused < 10_000 || opened == 0 || refused == 0 {
        assert!(began.elapsed() < SWAPPING_MAX, "{opened} opened, {refused} refused");
        match region.open(&image).await {
            Ok(source) => {
                let read = source.read_at(ByteRange::new(0, 70_000)).await.unwrap();
                assert!(read[..] == ours[..], "bytes from outside the region");
                opened += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
                refused += 1;
            }
        }
    }
    drop(swapper);
    let mut removed = 0;
    for round in 0..200 {
        for path in [&name, &link, &spare] {
            drop(fs::remove_file(path));
            drop(fs::remove_dir_all(path));
        }
        fs::create_dir(&spare).unwrap();
        for file in ["data", "manifest"] {
            fs::copy(there.join("disk").join(file), spare.join(file)).unwrap();
        }
        fs::rename(&spare, &name).unwrap();
        symlink(there.join("disk"), &link).unwrap();
        let swapper = Swapper::start(name.clone(), link.clone()).unwrap();
        match region.remove(&image).await {
            Ok(()) => removed += 1,
            Err(error) => {
                let known = [ErrorKind::Denied, ErrorKind::NotFound, ErrorKind::Busy];
                assert!(known.contains(&error.kind()), "{round}: {error}");
            }
        }
        drop(swapper);
        assert!(tree(&there) == kept, "{round}: something outside the region was changed");
        // Whatever the race has left: the region is of use again.
        region.recover(None).await.unwrap();
    }
    assert!(removed > 0, "no removal came through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_symlink_that_is_swapped_for_our_folders_at_any_moment_leads_nowhere() {
    let (world, _) = with_another_region().await;
    let (there, kept) = (world.path("b"), tree(&world.path("b")));
    for ours in [".blockferry", ".blockferry/stage"] {
        let (name, link) = (world.path("a").join(ours), world.path("link"));
        symlink(there.join(ours), &link).unwrap();
        let region = world.region("a");
        let swapper = match Swapper::start(name, link.clone()) {
            Ok(swapper) => swapper,
            Err(error) => return skipped(error.to_string()),
        };
        let (mut staged, mut refused, began) = (0, 0, Instant::now());
        while staged + refused < 500 || staged == 0 || refused == 0 {
            assert!(began.elapsed() < SWAPPING_MAX, "{staged} staged, {refused} refused");
            let jobs = region.jobs().await.unwrap_or_default();
            let theirs = jobs.iter().any(|job| job.spec.target.image.as_str() == "theirs");
            assert!(!theirs, "a job from outside the region");
            drop(region.cancel(spec("theirs").job, &"theirs".parse().unwrap()).await);
            drop(region.recover(None).await);
            match region.stage(&spec("ours")).await {
                Ok(target) => {
                    drop(target.begin().await);
                    drop(target.discard().await);
                    staged += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
                    refused += 1;
                }
            }
        }
        drop(swapper);
        if link.is_dir() && !link.is_symlink() {
            renameat_with(CWD, &link, CWD, world.path("a").join(ours), RenameFlags::EXCHANGE)
                .unwrap();
        }
        fs::remove_file(&link).unwrap();
        assert!(tree(&there) == kept, "{ours}: something outside the region was changed");
    }
}

#[tokio::test]
async fn a_file_where_a_folder_should_be_is_refused() {
    let job = spec("image");
    let stage = format!(".blockferry/stage/{}", job.job);
    for name in [".blockferry", ".blockferry/stage", &stage] {
        let hostile = Hostile::new();
        let path = hostile.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"mine").unwrap();
        let region = hostile.region();
        assert_eq!(kind(region.stage(&job).await), ErrorKind::Invalid, "{name}");
        assert_eq!(kind(region.cancel(job.job, &job.target.image).await), ErrorKind::Invalid);
        assert_eq!(fs::read(&path).unwrap(), b"mine", "what is not ours is left alone");
    }
}

#[tokio::test]
async fn a_root_that_is_no_folder_is_refused() {
    let hostile = Hostile::new();
    let refused = |path: PathBuf| kind(DirRegion::open_root(path));
    assert_eq!(refused(hostile.temp.path().join("missing")), ErrorKind::NotFound);
    assert!(!hostile.temp.path().join("missing").exists(), "a root is never created");
    assert_eq!(refused(hostile.outside().join("data")), ErrorKind::Invalid);
}

#[test]
fn hostile_ids_cannot_be_made() {
    let long = "a".repeat(129);
    for text in ["", ".", "..", ".blockferry", "a/b", "../a", "/a", "a\0b", "-a", "ä", "a b", &long]
    {
        assert!(text.parse::<ImageId>().is_err(), "{text:?} is no image id");
    }
}

/// A file system that is mounted to be read only, unmounted when dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn over(folder: &Path) -> Result<Self, String> {
        let mount = |options: &str| {
            let made = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "none"])
                .arg(folder)
                .output()
                .map_err(|error| format!("mount: {error}"))?;
            let told = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            if made.status.success() { Ok(()) } else { Err(format!("mount: {told}")) }
        };
        mount("ro,size=1m")?;
        Ok(Self(folder.to_path_buf()))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{:?} stays mounted", self.0);
    }
}

#[tokio::test]
async fn a_read_only_root_can_be_read_and_is_refused_as_target() {
    let temp = tempfile::Builder::new().tempdir_in(env::temp_dir()).unwrap();
    let _mounted = match ReadOnly::over(temp.path()) {
        Ok(mounted) => mounted,
        Err(why) => return skipped(why),
    };
    let region = DirRegion::open_root(temp.path()).unwrap();
    assert_eq!(kind(region.stage(&spec("image")).await), ErrorKind::Denied);
    assert!(region.list().await.unwrap().is_empty());
    assert!(region.jobs().await.unwrap().is_empty());
    assert!(region.recover(None).await.unwrap().is_empty());
    assert!(below(temp.path()).unwrap().is_empty());
}
