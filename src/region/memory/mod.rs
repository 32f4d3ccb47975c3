//! A region in memory: for documentation, tests, and images that need not outlive the process.

mod pieces;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, to_u64};
use crate::id::{ImageId, JobId, KeyId};
use crate::job::{Fingerprint, JobSpec, Progress};
use crate::manifest::Manifest;
use crate::options::Limits;
use crate::plan::{Extent, ExtentKind};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, LocalFile, Located, Outcome, Recovered, Region, Restored,
    Settled, Source, StagedJob, Target, Vote, Wish, Wishes, refuse_key,
};

use pieces::Pieces;

/// Images in memory. Clones share the same images, so that one survives an engine that is dropped.
///
/// Nothing in it survives the process: its durability is that of the memory it is in.
#[derive(Clone, Debug)]
pub struct MemoryRegion {
    location: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<ImageId, Image>,
    stages: BTreeMap<JobId, Stage>,
    /// Counts owners, so that a target that has ended is not taken for a later one of its job.
    owners: u64,
    /// Counts insertions, so that an image put in place of another has another fingerprint.
    versions: u64,
}

#[derive(Clone, Debug)]
struct Image {
    bytes: Pieces,
    version: u64,
    manifest: Option<Arc<Manifest>>,
}

#[derive(Debug)]
struct Stage {
    spec: JobSpec,
    bytes: Pieces,
    epoch: u32,
    owned: bool,
    /// Which of those that ever owned a stage here is its owner, or was the last.
    owner: u64,
    cancelled: bool,
    limits: Option<Limits>,
    suspend_epoch: Option<u32>,
    recorded: Vec<Durable>,
    committed: bool,
    progress: Option<Progress>,
}

impl MemoryRegion {
    /// An empty region, named so in messages: `memory://NAME`.
    pub fn new(name: &str) -> Self {
        Self { location: format!("memory://{name}"), state: Arc::default() }
    }

    /// Puts an image in place, as if it had always been there; one of that id is replaced.
    pub fn insert(&self, image: &ImageId, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let (size_bytes, pieces) = (to_u64(bytes.len()), BTreeMap::from([(0, bytes)]));
        let (bytes, mut state) = (Pieces { size_bytes, pieces }, self.state());
        state.versions += 1;
        let version = state.versions;
        state.images.insert(image.clone(), Image { bytes, version, manifest: None });
    }

    /// All bytes of a committed image; `None` when there is none.
    pub fn bytes(&self, image: &ImageId) -> Option<Bytes> {
        let image = self.state().images.get(image)?.bytes.clone();
        Some(image.read(ByteRange::new(0, image.size_bytes)))
    }

    /// Whether nothing is here: no image, no stage.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.images.is_empty() && state.stages.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T>,
    ) -> BoxFuture<'a, Result<T>> {
        let done = work(&mut self.state()).map_err(|error| error.within(self.location.clone()));
        Box::pin(std::future::ready(done))
    }
}

impl State {
    /// Stages the image, or takes its stage over; returns the number of the owner.
    fn stage(&mut self, spec: &JobSpec) -> Result<u64> {
        refuse_key(spec)?;
        let committed = self.has_committed(spec.job);
        if let Some(stage) = self.stages.get_mut(&spec.job) {
            if committed {
                return Err(Error::new(ErrorKind::Exists, format!("take over job {}", spec.job)));
            }
            if stage.owned {
                return Err(Error::new(ErrorKind::Busy, format!("take over job {}", spec.job)));
            }
            if !stage.spec.same_request(spec) {
                return Err(Error::new(ErrorKind::Invalid, format!("take over job {}", spec.job))
                    .hint("it was started with another request"));
            }
            self.owners += 1;
            stage.owned = true;
            stage.owner = self.owners;
            // It was meant for an owner before this one.
            stage.suspend_epoch = None;
            return Ok(self.owners);
        }
        let image = &spec.target.image;
        if self.images.contains_key(image) {
            return Err(Error::new(ErrorKind::Exists, format!("stage {image}")));
        }
        self.stages.retain(|_, rival| {
            rival.spec.target.image != *image || rival.owned || !rival.cancelled
        });
        if self.stages.values().any(|rival| rival.spec.target.image == *image) {
            return Err(Error::new(ErrorKind::Busy, format!("stage {image}")));
        }
        self.owners += 1;
        let bytes = Pieces { size_bytes: spec.geometry.image_bytes(), pieces: BTreeMap::new() };
        let stage = Stage {
            spec: spec.clone(),
            bytes,
            epoch: 0,
            owned: true,
            owner: self.owners,
            cancelled: false,
            limits: None,
            suspend_epoch: None,
            recorded: Vec::new(),
            committed: false,
            progress: None,
        };
        self.stages.insert(spec.job, stage);
        Ok(self.owners)
    }

    fn commit(&mut self, job: JobId, manifest: &Manifest) -> Result<Outcome> {
        if self.has_committed(job) {
            return Ok(Outcome::Committed);
        }
        let Some(stage) = self.stages.get_mut(&job).filter(|stage| !stage.cancelled) else {
            return Ok(Outcome::Cancelled);
        };
        let id = stage.spec.target.image.clone();
        if self.images.contains_key(&id) {
            return Err(Error::new(ErrorKind::Exists, format!("publish {id}")));
        }
        self.versions += 1;
        let manifest = Some(Arc::new(manifest.clone()));
        let image = Image { bytes: stage.bytes.clone(), version: self.versions, manifest };
        stage.committed = true;
        self.images.insert(id, image);
        Ok(Outcome::Committed)
    }

    /// Whether the job has committed, whatever is left of its stage, or of its image.
    fn has_committed(&self, job: JobId) -> bool {
        self.stages.get(&job).is_some_and(|stage| stage.committed)
            || self.images.values().any(|image| image.job() == Some(job))
    }

    fn cancel(&mut self, job: JobId) -> Vote {
        if self.has_committed(job) {
            return Vote::Committed;
        }
        let Some(stage) = self.stages.get_mut(&job) else { return Vote::Unknown };
        let first = !stage.cancelled;
        stage.cancelled = true;
        let clean = !stage.owned;
        if clean {
            self.stages.remove(&job);
        }
        Vote::Cancelled { first, clean }
    }

    fn staged(&mut self, job: JobId) -> Result<&mut Stage> {
        self.stages
            .get_mut(&job)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("find the stage of job {job}")))
    }

    fn recover(&mut self, only: Option<JobId>) -> Vec<Recovered> {
        let all: Vec<JobId> =
            self.stages.keys().copied().filter(|job| only.is_none_or(|o| o == *job)).collect();
        let mut recovered = Vec::new();
        for job in all {
            let committed = self.has_committed(job);
            let Some(stage) = self.stages.get(&job) else { continue };
            let settled = match (stage.owned, committed, stage.cancelled) {
                (true, ..) => Settled::Running,
                (_, true, _) => Settled::Committed,
                (_, _, true) => Settled::RolledBack,
                _ => Settled::Kept,
            };
            let spec = Some(stage.spec.clone());
            if matches!(settled, Settled::Committed | Settled::RolledBack) {
                self.stages.remove(&job);
            }
            recovered.push(Recovered::new(job, spec, settled));
        }
        recovered
    }
}

impl Image {
    fn job(&self) -> Option<JobId> {
        self.manifest.as_ref().and_then(|manifest| manifest.job())
    }
}

impl Stage {
    fn told(&self) -> StagedJob {
        let mut told = StagedJob::new(self.spec.clone());
        told.epoch = self.epoch;
        told.owned = self.owned;
        told.cancelled = self.cancelled;
        told.limits = self.limits.unwrap_or(self.spec.limits);
        told.progress = self.progress.clone();
        told
    }
}

impl Region for MemoryRegion {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::staged()
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        self.at(|state| {
            let found = state.images.get(image).cloned();
            let found =
                found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("open {image}")))?;
            let source: Arc<dyn Source> =
                Arc::new(MemorySource { region: self.clone(), id: image.clone(), image: found });
            Ok(source)
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.at(|state| {
            let owner = state.stage(spec)?;
            let target: Arc<dyn Target> =
                Arc::new(MemoryTarget { region: self.clone(), spec: spec.clone(), owner });
            Ok(target)
        })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        self.at(|state| {
            state.staged(spec.job)?;
            let owner = state.stage(spec)?;
            let target: Arc<dyn Target> =
                Arc::new(MemoryTarget { region: self.clone(), spec: spec.clone(), owner });
            Ok(target)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.at(|state| {
            let info = |(id, image): (&ImageId, &Image)| match &image.manifest {
                Some(manifest) => ImageInfo::of_manifest(id.clone(), manifest),
                None => ImageInfo::new(id.clone(), image.bytes.size_bytes),
            };
            Ok(state.images.iter().map(info).collect())
        })
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.at(|state| match state.images.remove(image) {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::NotFound, format!("remove {image}"))),
        })
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.at(|state| {
            if let Some(found) = state.images.get(image) {
                return Ok(Located::Committed(found.job()));
            }
            let staged = state.stages.values().find(|stage| stage.spec.target.image == *image);
            Ok(staged.map_or(Located::Absent, |stage| Located::Staged(stage.spec.job)))
        })
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.at(|state| Ok(state.stages.values().map(Stage::told).collect()))
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.at(|state| Ok(state.stages.get(&job).map(Stage::told)))
    }

    fn cancel<'a>(&'a self, job: JobId, _image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        self.at(|state| Ok(state.cancel(job)))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        self.at(|state| {
            let Some(stage) = state.stages.get_mut(&job) else { return Ok(false) };
            match wish {
                Wish::Suspend => stage.suspend_epoch = Some(stage.epoch),
                Wish::Limit(limits) => stage.limits = Some(limits),
            }
            Ok(true)
        })
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.at(|state| Ok(state.recover(only)))
    }
}

#[derive(Debug)]
struct MemorySource {
    region: MemoryRegion,
    id: ImageId,
    image: Image,
}

impl Source for MemorySource {
    fn location(&self) -> String {
        format!("{}/{}", self.region.location, self.id)
    }

    fn size_bytes(&self) -> u64 {
        self.image.bytes.size_bytes
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        self.region.at(|state| {
            let now = state.images.get(&self.id).map_or(0, |image| image.version);
            Ok(Fingerprint::new().with("size", self.size_bytes()).with("version", now))
        })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(std::future::ready(Ok(vec![Extent { range, kind: ExtentKind::Data }])))
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.image.manifest.clone()
    }

    fn key(&self) -> Option<KeyId> {
        None
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(std::future::ready(Ok(self.image.bytes.read(range))))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}

#[derive(Debug)]
struct MemoryTarget {
    region: MemoryRegion,
    spec: JobSpec,
    owner: u64,
}

impl Drop for MemoryTarget {
    fn drop(&mut self) {
        if let Some(stage) = self.region.state().stages.get_mut(&self.spec.job)
            && stage.owner == self.owner
        {
            stage.owned = false;
        }
    }
}

impl MemoryTarget {
    fn on<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Stage) -> Result<T>,
    ) -> BoxFuture<'a, Result<T>> {
        self.region.at(|state| work(state.staged(self.spec.job)?))
    }
}

impl Target for MemoryTarget {
    fn location(&self) -> String {
        format!("{}/{}", self.region.location, self.spec.target.image)
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        self.on(|stage| {
            stage.epoch += 1;
            let mut restored = Restored::new(stage.spec.geometry);
            stage.recorded.iter().try_for_each(|chunk| restored.record(chunk))?;
            // What no checkpoint covers is made blank again.
            let geometry = stage.spec.geometry;
            stage.bytes.pieces.retain(|at, _| restored.table.holds(geometry.index_of(*at)));
            Ok(restored)
        })
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        self.on(|stage| {
            stage.bytes.pieces.insert(chunk.range().offset, chunk.data().clone());
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        self.on(|stage| {
            let range = stage.spec.geometry.run_range(run);
            stage.bytes.pieces.retain(|at, _| !(range.offset..range.end()).contains(at));
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        self.on(|_| Ok(()))
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        self.on(|stage| {
            stage.recorded.extend_from_slice(chunks);
            Ok(())
        })
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.on(|stage| Ok(stage.bytes.read(range)))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        self.region.at(|state| state.commit(self.spec.job, manifest))
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.region.at(|state| {
            state.stages.retain(|_, stage| stage.owner != self.owner);
            Ok(())
        })
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        self.region.at(|state| {
            if state.has_committed(self.spec.job) {
                return Ok(Outcome::Committed);
            }
            state.stages.retain(|_, stage| stage.owner != self.owner);
            Ok(Outcome::Cancelled)
        })
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.region.at(|state| {
            let Some(stage) = state.stages.get(&self.spec.job) else {
                return Ok(Wishes::default());
            };
            let suspend = stage.suspend_epoch == Some(stage.epoch);
            Ok(Wishes { cancelled: stage.cancelled, suspend, limits: stage.limits })
        })
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        self.on(|stage| {
            stage.progress = Some(progress.clone());
            Ok(())
        })
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
