//! A simulated host with regions on its disk: `s`, a plain file as the source; `a`, a folder with
//! an image; `b`, a folder, and `t`, a plain file, as destinations.

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Duration;

use blockferry::engine::{CopyRequest, Engine, JobOutcome, Shutdown};
use blockferry::geometry::ChunkSize;
use blockferry::id::JobId;
use blockferry::location::FILE_IMAGE;
use blockferry::manifest::Manifest;
use blockferry::options::{CopyOptions, EngineOptions, Verify};
use blockferry::region::{DirRegion, FileRegion, Region};
use blockferry::testing::{Entered, Process, Rng, Simulation};

use crate::world::{KIB, end, region};

/// Where the source's bytes lie.
pub(crate) const SOURCE: &str = "files/s.raw";
const TARGET: &str = "files/t.raw";
/// Longer than anything takes, in simulated time.
pub(crate) const AGES: Duration = Duration::from_secs(24 * 3600);

/// Destinations by number: two images of a region, and a plain file.
pub(crate) const DESTINATIONS: [&str; 3] = ["b/x", "b/y", "t/image"];

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sim: Simulation,
    _entered: Entered,
}

/// An engine in a process of its own.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) engine: Arc<Engine>,
}

impl Host {
    pub(crate) fn new(seed: u64, source: &[u8]) -> Self {
        let sim = Simulation::new(seed);
        let entered = sim.enter();
        for folder in ["a", "b", "files", "state"] {
            sim.make_dir(folder).unwrap();
        }
        sim.write(SOURCE, source).unwrap();
        Self { sim, _entered: entered }
    }

    /// Copies the source into region `a`, from where it comes with its digests.
    pub(crate) async fn put_image(&self) {
        let daemon = self.daemon(false).await.unwrap();
        let job = daemon.engine.copy(request("s/image", "a/image", options())).await.unwrap();
        let outcome = job.wait().await;
        assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
        daemon.engine.shutdown(Shutdown::Suspend, AGES).await;
        daemon.engine.forget(job.id()).await.unwrap();
        daemon.process.kill();
    }

    /// Starts a process with an engine. `often`: checkpoints come often.
    pub(crate) async fn daemon(&self, often: bool) -> blockferry::Result<Daemon> {
        let process = self.sim.process();
        let mut options = EngineOptions::new(process.path("state")).with_threads(1);
        if often {
            options = options.with_checkpoint(64 * KIB, Duration::from_millis(1));
        }
        let engine = Engine::open(options).await?;
        let file = |path| FileRegion::open_path(process.path(path), process.path("state"));
        let folder = |path| -> blockferry::Result<Arc<dyn Region>> {
            Ok(Arc::new(DirRegion::open_root(process.path(path))?))
        };
        engine.register(region("s"), file(SOURCE)?).await?;
        engine.register(region("a"), folder("a")?).await?;
        engine.register(region("b"), folder("b")?).await?;
        engine.register(region("t"), file(TARGET)?).await?;
        Ok(Daemon { process, engine: Arc::new(engine) })
    }

    /// What is visible at that destination.
    pub(crate) fn visible(&self, destination: usize) -> Result<Option<Visible>, String> {
        let Some(name) = DESTINATIONS[destination].strip_prefix("b/") else {
            return Ok(self.sim.read(TARGET).map(|bytes| Visible { bytes, job: None }));
        };
        if !self.sim.paths("b").contains(&format!("{name}/")) {
            return Ok(None);
        }
        let file =
            |of| self.sim.read(&format!("b/{name}/{of}")).ok_or(format!("b/{name}: no {of}"));
        let (bytes, manifest) = (file("data")?, file("manifest")?);
        let manifest = Manifest::decode_from(&mut &manifest[..])
            .map_err(|error| format!("b/{name}: its manifest: {error}"))?;
        if manifest.geometry().image_bytes() != u64::try_from(bytes.len()).unwrap() {
            return Err(format!("b/{name}: its manifest is that of another size"));
        }
        Ok(Some(Visible { bytes, job: manifest.job() }))
    }

    /// Everything on the disk that belongs to a job which has not ended.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = self.sim.paths("b/.blockferry/stage");
        left.extend(self.sim.paths("files").into_iter().filter(|path| path.starts_with('.')));
        left.extend(self.sim.paths("state/jobs").into_iter().filter(|path| path.ends_with(".new")));
        left
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Visible {
    pub(crate) bytes: Vec<u8>,
    pub(crate) job: Option<JobId>,
}

pub(crate) fn options() -> CopyOptions {
    CopyOptions::new().with_chunk_size(ChunkSize::from_bytes(64 * KIB).unwrap())
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
