//! A simulated host with regions on its disk: `s`, a plain file as the source; `a`, a folder with
//! an image; `b`, a folder, and `t`, a plain file, as destinations. And one in memory, `m`, that is
//! both, and survives every crash, as a store elsewhere would.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Once};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blockferry::engine::{CopyRequest, Engine, JobOutcome, Shutdown};
use blockferry::geometry::ChunkSize;
use blockferry::id::{ImageId, JobId};
use blockferry::location::FILE_IMAGE;
use blockferry::manifest::Manifest;
use blockferry::options::{CopyOptions, Encryption, EngineOptions, Verify};
use blockferry::region::{DirRegion, FileRegion, Located, MemoryRegion, Region};
use blockferry::testing::{Entered, Process, Rng, Simulation};

use crate::world::{KIB, end, image, region};

/// Where the source's bytes lie.
pub(crate) const SOURCE: &str = "files/s.raw";
pub(crate) const TARGET: &str = "files/t.raw";
/// Longer than anything takes, in simulated time.
pub(crate) const AGES: Duration = Duration::from_secs(24 * 3600);

/// Destinations by number: two images of a region, a plain file, and an image in memory.
pub(crate) const DESTINATIONS: [&str; 4] = ["b/x", "b/y", "t/image", "m/x"];
/// That of the plain file.
pub(crate) const FILE: usize = 2;
/// That of the image in memory.
pub(crate) const MEMORY: usize = 3;
/// The regions that may hold stages.
pub(crate) const TARGETS: [&str; 3] = ["b", "t", "m"];

const STAGES: &str = "b/.blockferry/stage";
/// How committed bytes lie there: for owner and group to read, and as the umask has it.
const IMAGE_MODE: u32 = 0o440;
const FILE_MODE: u32 = 0o644;

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sim: Simulation,
    share: bool,
    keep_pages: bool,
    memory: MemoryRegion,
    _entered: Entered,
}

/// An engine in a process of its own.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) engine: Arc<Engine>,
}

impl Host {
    /// `share`: copies may share extents.
    pub(crate) fn new(seed: u64, source: &[u8], share: bool) -> Self {
        let sim = Simulation::new(seed);
        let entered = sim.enter();
        for folder in ["a", "b", "files", "state"] {
            sim.make_dir(folder).unwrap();
        }
        sim.write(SOURCE, source).unwrap();
        let memory = MemoryRegion::new("m");
        memory.insert(&image("image"), source.to_vec());
        Self { sim, share, keep_pages: false, memory, _entered: entered }
    }

    /// What has become durable stays in the page cache.
    pub(crate) fn keep_pages(&mut self) {
        self.keep_pages = true;
    }

    /// The source gets other bytes, wherever it lies.
    pub(crate) fn change_source(&self, bytes: &[u8]) {
        self.sim.write(SOURCE, bytes).unwrap();
        self.memory.insert(&image("image"), bytes.to_vec());
    }

    /// Somebody else puts a file where the plain file is to be, unless one is there; what is in it.
    pub(crate) fn put_stranger(&self) -> Option<Vec<u8>> {
        let bytes = b"a stranger's".to_vec();
        let is_free = self.sim.mode(TARGET).is_none();
        is_free.then(|| {
            self.sim.write(TARGET, &bytes).unwrap();
            bytes
        })
    }

    /// Copies what is almost the source into region `b`, as a base.
    pub(crate) async fn put_base(&self, source: &[u8]) {
        let mut bytes = source.to_vec();
        if let [_, .., last] = &mut bytes[..] {
            *last ^= 1;
        }
        self.sim.write(SOURCE, &bytes).unwrap();
        self.put("b/base").await;
        self.sim.write(SOURCE, source).unwrap();
    }

    /// Copies the source into region `a`, from where it comes with its digests.
    pub(crate) async fn put_image(&self) {
        self.put("a/image").await;
    }

    async fn put(&self, to: &str) {
        let daemon = self.daemon(false).await.unwrap();
        let job = daemon.engine.copy(request("s/image", to, options())).await.unwrap();
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
        daemon.engine.shutdown(Shutdown::Suspend, AGES).await;
        daemon.engine.forget(job.id()).await.unwrap();
        daemon.process.kill();
    }

    /// Starts a process with an engine. `often`: checkpoints come often.
    pub(crate) async fn daemon(&self, often: bool) -> blockferry::Result<Daemon> {
        let process = self.sim.process();
        let options = EngineOptions::new(process.path("state")).with_threads(1);
        let mut options = options.with_share_extents(self.share).with_drop_behind(!self.keep_pages);
        if often {
            options = options.with_checkpoint(64 * KIB, Duration::from_millis(1));
        }
        let engine = Engine::open(options).await?;
        let file = |path| FileRegion::open_path(process.path(path), process.path("state"));
        let folder = |path| -> blockferry::Result<Arc<dyn Region>> {
            let dir = DirRegion::open_root(process.path(path))?;
            #[cfg(feature = "encrypt")]
            let dir = dir.with_keys(super::encrypted::keys());
            Ok(Arc::new(dir))
        };
        engine.register(region("s"), file(SOURCE)?).await?;
        engine.register(region("a"), folder("a")?).await?;
        engine.register(region("b"), folder("b")?).await?;
        engine.register(region("t"), file(TARGET)?).await?;
        engine.register(region("m"), Arc::new(self.memory.clone())).await?;
        Ok(Daemon { process, engine: Arc::new(engine) })
    }

    /// Somebody moves out of the way what lies at that destination.
    pub(crate) fn move_away(&self, destination: usize) {
        let place = if destination == FILE { TARGET } else { DESTINATIONS[destination] };
        self.sim.rename(place, "files/elsewhere").unwrap();
    }

    /// Removes the image at that destination, as a daemon does that links the library.
    pub(crate) async fn remove(
        &self,
        daemon: &Daemon,
        destination: usize,
    ) -> blockferry::Result<()> {
        let process = &daemon.process;
        let to = end(DESTINATIONS[destination]);
        let at: Arc<dyn Region> = match destination {
            FILE => FileRegion::open_path(process.path(TARGET), process.path("state"))?,
            MEMORY => Arc::new(self.memory.clone()),
            _ => Arc::new(DirRegion::open_root(process.path("b"))?),
        };
        at.remove(&to.image).await
    }

    /// What is visible at that destination.
    pub(crate) fn visible(&self, destination: usize) -> Result<Option<Visible>, String> {
        let (place, name) = DESTINATIONS[destination].split_once('/').unwrap();
        match place {
            "m" => return Ok(self.visible_in_memory(&image(name))),
            "t" => return self.visible_file(),
            _ => {}
        }
        if self.sim.mode(&format!("b/{name}")).is_none() {
            return Ok(None);
        }
        let file =
            |of| self.sim.read(&format!("b/{name}/{of}")).ok_or(format!("b/{name}: no {of}"));
        let (bytes, manifest) = (file("data")?, file("manifest")?);
        #[cfg(feature = "encrypt")]
        if manifest.starts_with(b"BFMANIC") {
            let files = [bytes, manifest, file("records")?, file("key")?];
            return super::encrypted::visible(name, files).map(Some);
        }
        let manifest = Manifest::decode_from(&mut &manifest[..])
            .map_err(|error| format!("b/{name}: its manifest: {error}"))?;
        if manifest.geometry().image_bytes() != u64::try_from(bytes.len()).unwrap() {
            return Err(format!("b/{name}: its manifest is that of another size"));
        }
        for of in ["data", "manifest"] {
            match self.sim.mode(&format!("b/{name}/{of}")) {
                Some(IMAGE_MODE) => {}
                mode => return Err(format!("b/{name}/{of} has mode {mode:?}")),
            }
        }
        Ok(Some(Visible { bytes, job: manifest.job() }))
    }

    fn visible_file(&self) -> Result<Option<Visible>, String> {
        let Some(bytes) = self.sim.read(TARGET) else { return Ok(None) };
        match self.sim.mode(TARGET) {
            Some(FILE_MODE) => Ok(Some(Visible { bytes, job: None })),
            mode => Err(format!("{TARGET} has mode {mode:?}")),
        }
    }

    fn visible_in_memory(&self, name: &ImageId) -> Option<Visible> {
        let bytes = self.memory.bytes(name)?.to_vec();
        let job = match at_once(self.memory.locate(name)) {
            Located::Committed(job) => job,
            _ => None,
        };
        Some(Visible { bytes, job })
    }

    /// The jobs of which anything is staged, and whether that may be bytes of the image.
    pub(crate) fn staged(&self) -> BTreeMap<JobId, bool> {
        let mut staged = BTreeMap::new();
        let mut add = |job: &str, path: &str| {
            let Ok(job) = job.parse() else { return };
            *staged.entry(job).or_default() |= path.ends_with("data");
        };
        for path in self.sim.paths(STAGES) {
            add(path.split('/').next().unwrap(), &path);
        }
        for path in self.sim.paths("files") {
            if let Some(path) = path.strip_prefix(".blockferry-") {
                add(path.split('/').next().unwrap(), path);
            }
        }
        let in_memory = at_once(self.memory.jobs());
        staged.extend(in_memory.into_iter().map(|staged| (staged.spec.job, !staged.cancelled)));
        staged
    }

    /// Everything that belongs to a job which has not ended.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = self.sim.paths(STAGES);
        left.extend(self.sim.paths("files").into_iter().filter(|path| path.starts_with('.')));
        left.extend(self.sim.paths("state/jobs").into_iter().filter(|path| path.ends_with(".new")));
        let in_memory = at_once(self.memory.jobs());
        left.extend(in_memory.iter().map(|staged| format!("m: job {}", staged.spec.job)));
        left
    }
}

/// What a region in memory answers: it never keeps anybody waiting.
fn at_once<T>(answer: impl Future<Output = blockferry::Result<T>>) -> T {
    match pin!(answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer.unwrap()),
        Poll::Pending => None,
    }
    .unwrap()
}

#[derive(Clone, Debug)]
pub(crate) struct Visible {
    pub(crate) bytes: Vec<u8>,
    pub(crate) job: Option<JobId>,
}

pub(crate) fn options() -> CopyOptions {
    CopyOptions::new().with_chunk_size(ChunkSize::from_bytes(64 * KIB).unwrap())
}

/// With the copy encrypted where it lies.
pub(crate) fn encrypted(options: CopyOptions) -> CopyOptions {
    options.with_encryption(Encryption::Key("key".parse().unwrap()))
}

pub(crate) fn verified(verify: bool) -> CopyOptions {
    options().with_verify(if verify { Verify::Full } else { Verify::None })
}

pub(crate) fn request(from: &str, to: &str, options: CopyOptions) -> CopyRequest {
    debug_assert_eq!(FILE_IMAGE, "image");
    CopyRequest::new(end(from), end(to), options)
}

/// Bytes of a source: some pages are zeros, and no two versions of one length are alike.
pub(crate) fn bytes_of(version: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(version ^ 0x5eed);
    let mut bytes = vec![0; len];
    for page in bytes.chunks_mut(4096) {
        if rng.chance(2, 3) {
            let word = rng.next_u64().to_le_bytes();
            page.iter_mut().zip(word.iter().cycle()).for_each(|(byte, with)| *byte = *with);
        }
    }
    bytes.iter_mut().take(8).zip((version + 1).to_le_bytes()).for_each(|(byte, with)| *byte = with);
    bytes
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// How often code has panicked on this thread. An engine lives on after a panic of a task of its.
pub(crate) fn panics() -> u32 {
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            told(panic);
        }));
    });
    PANICS.get()
}

/// Runs a simulated world on a runtime of its own.
pub(crate) fn in_simulation<T>(world: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(world)
}
