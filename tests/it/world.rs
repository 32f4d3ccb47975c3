//! A world to copy in: two folders and two memories as regions, two plain files, and engines over
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use blockferry::chunk::Digest;
use blockferry::engine::{CopyRequest, Engine, Job, JobOutcome};
use blockferry::geometry::ChunkSize;
use blockferry::id::{ImageId, RegionName};
use blockferry::job::{Endpoint, Receipt};
use blockferry::manifest::Manifest;
use blockferry::options::{CopyOptions, EngineOptions, Limits};
use blockferry::region::{DirRegion, FileRegion, MemoryRegion, Region};
use blockferry::seal::{content_digest, zero_digest};
use blockferry::{Error, ErrorKind};
use tokio::time::{Instant, sleep, timeout};

use crate::places::below;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
/// Longer than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Regions `a`, `b` (folders), `m`, `n` (memories), `source`, `target` (plain files).
#[derive(Debug)]
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) m: MemoryRegion,
    pub(crate) n: MemoryRegion,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    /// A world whose folders are made of memory: fast, and with holes that can be trusted.
    pub(crate) fn in_memory() -> Self {
        let shm = Path::new("/dev/shm");
        let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        Self::over(made.unwrap())
    }

    fn over(folder: tempfile::TempDir) -> Self {
        for name in ["a", "b", "files"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, m: MemoryRegion::new("m"), n: MemoryRegion::new("n") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("files/source.raw")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("files/target.raw")
    }

    /// A handle of its own to the region of that name, as another process would open it.
    pub(crate) fn region(&self, name: &str) -> Arc<dyn Region> {
        let state = self.path("state");
        match name {
            "m" => Arc::new(self.m.clone()),
            "n" => Arc::new(self.n.clone()),
            "source" => FileRegion::open_path(self.source(), state).unwrap(),
            "target" => FileRegion::open_path(self.target(), state).unwrap(),
            folder => Arc::new(DirRegion::open_root(self.path(folder)).unwrap()),
        }
    }

    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions::new(self.path("state")).with_threads(2)
    }

    /// An engine that knows all regions; each is as another process would be.
    pub(crate) async fn engine(&self) -> Engine {
        self.engine_with(self.options()).await
    }

    pub(crate) async fn engine_with(&self, options: EngineOptions) -> Engine {
        let engine = Engine::open(options).await.unwrap();
        for name in ["a", "b", "m", "n", "source", "target"] {
            engine.register(region(name), self.region(name)).await.unwrap();
        }
        engine
    }

    /// What is left in region `name` besides images and the folders that are kept.
    pub(crate) fn leftovers(&self, name: &str) -> Vec<PathBuf> {
        let root = self.path(name);
        let mut left = below(&root).unwrap();
        left.retain(|path| {
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap();
            path != ".blockferry" && path.starts_with(".blockferry") && path != ".blockferry/stage"
        });
        left
    }

    /// That there is no file at all in region `name`.
    pub(crate) fn assert_empty(&self, name: &str) {
        let files: Vec<_> = below(&self.path(name)).unwrap();
        let files: Vec<_> = files.iter().filter(|path| !path.is_dir()).collect();
        assert!(files.is_empty(), "region {name} holds {files:?}");
        assert_eq!(self.leftovers(name), Vec::<PathBuf>::new());
    }

    pub(crate) fn data_of(&self, name: &str, image: &str) -> PathBuf {
        self.path(name).join(image).join("data")
    }

    /// Copies these bytes to that image of that region, by way of memory.
    pub(crate) async fn put(&self, engine: &Engine, bytes: &[u8], to: &str) -> Receipt {
        let id: ImageId = "to-be-put".parse().unwrap();
        self.m.insert(&id, bytes.to_vec());
        let request = request("m/to-be-put", to, small());
        committed(engine.copy(request).await.unwrap().wait().await)
    }
}

pub(crate) fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

pub(crate) fn image(name: &str) -> ImageId {
    name.parse().unwrap()
}

/// `region/image`.
pub(crate) fn end(text: &str) -> Endpoint {
    let (name, id) = text.split_once('/').unwrap();
    Endpoint::new(region(name), image(id))
}

pub(crate) fn request(from: &str, to: &str, options: CopyOptions) -> CopyRequest {
    CopyRequest::new(end(from), end(to), options)
}

/// The smallest chunks.
pub(crate) fn small() -> CopyOptions {
    CopyOptions::new().with_chunk_size(ChunkSize::from_bytes(64 * KIB).unwrap())
}

pub(crate) fn rate(bytes_per_sec: u64) -> Limits {
    Limits::NONE.with_bytes_per_sec(bytes_per_sec)
}

/// So slow that nothing moves after the first chunks.
pub(crate) fn standing() -> CopyOptions {
    small().with_limits(rate(1))
}

#[track_caller]
pub(crate) fn committed(outcome: JobOutcome) -> Receipt {
    let told = format!("{outcome:?}");
    let receipt = match outcome {
        JobOutcome::Committed(receipt) => Some(receipt),
        _ => None,
    };
    assert!(receipt.is_some(), "{told}");
    Receipt::clone(&receipt.unwrap())
}

#[track_caller]
pub(crate) fn rolled_back(outcome: &JobOutcome) {
    assert!(matches!(outcome, JobOutcome::RolledBack { clean: true }), "{outcome:?}");
}

#[track_caller]
pub(crate) fn suspended(outcome: &JobOutcome) {
    assert!(matches!(outcome, JobOutcome::Suspended), "{outcome:?}");
}

#[track_caller]
pub(crate) fn failed(outcome: &JobOutcome, kind: ErrorKind, resumable: bool) -> String {
    let told = match outcome {
        JobOutcome::Failed { error, resumable: may } if error.kind() == kind => {
            (*may == resumable).then(|| error.report())
        }
        _ => None,
    };
    assert!(told.is_some(), "not {kind:?}, resumable {resumable}: {outcome:?}");
    told.unwrap()
}

#[track_caller]
pub(crate) fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Waits for the end of a job, but not for ever.
pub(crate) async fn ended(job: &Job) -> JobOutcome {
    let ended = timeout(PATIENCE, job.wait()).await;
    assert!(ended.is_ok(), "job {} hangs: {:?}", job.id(), job.progress());
    ended.unwrap()
}

/// Asks again and again until it is so; fails after a long time.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the job has read so much.
pub(crate) async fn until_read(job: &Job, bytes: u64) {
    let mut watch = job.watch();
    let seen = timeout(PATIENCE, watch.wait_for(|progress| progress.read_bytes >= bytes)).await;
    assert!(seen.is_ok(), "job {} reads nothing: {:?}", job.id(), job.progress());
}

/// Resumes in an engine as soon as the owner before has let go.
pub(crate) async fn resumed(engine: &Engine, job: &Job) -> Job {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match engine.resume(job.id()).await {
            Ok(job) => return job,
            Err(error) => {
                assert!(error.kind() == ErrorKind::Busy && Instant::now() < deadline, "{error:?}");
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes that are not zero, a different stream for each seed.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes
}

/// A random number generator of a few lines; its seed is printed by who uses it.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to `below`, exclusive.
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// What `cmp` says of two files.
#[track_caller]
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let done = Command::new("cmp").arg(one).arg(other).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// What `b3sum` prints of a file; without the tool, the hash of its bytes. By reads: a hole of a
/// `tmpfs` that is read through a mapping becomes data.
pub(crate) fn b3sum(path: &Path) -> String {
    match Command::new("b3sum").args(["--no-names", "--no-mmap"]).arg(path).output() {
        Ok(done) if done.status.success() => {
            String::from_utf8(done.stdout).unwrap().trim().to_owned()
        }
        _ => blake3::hash(&fs::read(path).unwrap()).to_hex().to_string(),
    }
}

/// The content digest that the manifest gives.
pub(crate) fn content(manifest: &Manifest) -> Digest {
    let geometry = manifest.geometry();
    content_digest(geometry, |index| {
        manifest.table().digest(index).unwrap_or_else(|| zero_digest(geometry, index))
    })
}

pub(crate) fn allocated(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.blocks() * 512)
}
