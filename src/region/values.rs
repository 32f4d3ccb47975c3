//! What a region tells: what it can do, what it holds, how jobs stand and were settled.

use std::sync::Arc;

use crate::chunk::{Content, Digest, Durable};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{CHUNK_COUNT_MAX, Geometry};
use crate::id::{ImageId, JobId, KeyId};
use crate::job::{JobSpec, Progress};
use crate::manifest::{Manifest, TableBuilder};
use crate::options::Limits;
use crate::region::Base;

/// What a region can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A stage is hidden, and commit shows the image at once. Otherwise the target is written in
    /// place, and its first chunk is written last.
    pub atomic_commit: bool,
    /// A new stage reads as zeros, so that zero chunks need no write.
    pub blank_target: bool,
    /// An image that was there before is kept when the copy is cancelled. Otherwise staging needs
    /// `destructive`.
    pub preserves_previous: bool,
    /// What was written may be on record although no checkpoint was asked for: the far side of a
    /// copy between daemons makes its own.
    pub checkpoints_itself: bool,
    /// A stage can take chunks over from an image of the region ([`Restored::base`]).
    pub takes_base: bool,
    /// A stage can be encrypted where it lies, under a key that the job names. Without this no job
    /// with a key is staged: a region that knows nothing of keys would hold it in clear.
    pub encrypts: bool,
    /// The least chunk that it takes well: chunks are cut no smaller unless somebody asks for it.
    pub chunk_bytes_min: u64,
    /// The most chunks that an image has here.
    pub chunk_count_max: u32,
}

impl Capabilities {
    /// A hidden, blank stage: what a directory or an object store gives.
    pub fn staged() -> Self {
        Self {
            atomic_commit: true,
            blank_target: true,
            preserves_previous: true,
            checkpoints_itself: false,
            takes_base: false,
            encrypts: false,
            chunk_bytes_min: 0,
            chunk_count_max: CHUNK_COUNT_MAX,
        }
    }

    /// Of a region at another daemon, which has told as much.
    #[cfg(feature = "peer")]
    pub(crate) fn of_peer(atomic_commit: bool, preserves_previous: bool) -> Self {
        Self {
            atomic_commit,
            preserves_previous,
            // Every chunk is told, zero or not: the far side knows nothing else of the image.
            blank_target: false,
            checkpoints_itself: true,
            // Whether it does is told when a stage that names one is made.
            takes_base: true,
            encrypts: false,
            chunk_bytes_min: 0,
            chunk_count_max: CHUNK_COUNT_MAX,
        }
    }

    /// One multipart upload, a part a chunk: hidden until it is complete, and nothing in it is zero
    /// by itself. Stores want parts of 5 MiB or more.
    #[cfg(feature = "object")]
    pub(crate) fn plain_object() -> Self {
        Self {
            blank_target: false,
            chunk_bytes_min: 8 << 20,
            chunk_count_max: crate::store::PART_COUNT_MAX,
            ..Self::staged()
        }
    }

    /// Bytes are written where they stay: what a block device gives.
    pub fn in_place() -> Self {
        Self {
            atomic_commit: false,
            blank_target: false,
            preserves_previous: false,
            checkpoints_itself: false,
            takes_base: false,
            encrypts: false,
            chunk_bytes_min: 0,
            chunk_count_max: CHUNK_COUNT_MAX,
        }
    }
}

/// What is known of a committed image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its id.
    pub image: ImageId,
    /// Its size.
    pub image_bytes: u64,
    /// The root of its chunk table, where the region keeps manifests.
    pub root: Option<Digest>,
    /// The job that made it; `None` for an image that did not come from a copy.
    pub job: Option<JobId>,
    /// The key under which it is encrypted where it lies. Its root is then not told.
    pub key: Option<KeyId>,
}

impl ImageInfo {
    /// An image without manifest.
    pub fn new(image: ImageId, image_bytes: u64) -> Self {
        Self { image, image_bytes, root: None, job: None, key: None }
    }

    /// What its manifest says.
    pub fn of_manifest(image: ImageId, manifest: &Manifest) -> Self {
        Self {
            image,
            image_bytes: manifest.geometry().image_bytes(),
            root: Some(manifest.root()),
            job: manifest.job(),
            key: None,
        }
    }
}

/// What is under an image id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Located {
    /// Nothing.
    Absent,
    /// Nothing: the last copy to it was cancelled, and nothing of it is left. Only regions that
    /// remember it tell so.
    Cancelled(JobId),
    /// A copy that is neither committed nor cancelled.
    Staged(JobId),
    /// A committed image, and the job that made it if it came from a copy and the region knows.
    Committed(Option<JobId>),
}

/// A job found staged in a region.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StagedJob {
    /// What it is to do.
    pub spec: JobSpec,
    /// The number of its last attempt; 0 before the first.
    pub epoch: u32,
    /// Whether a live process owns it.
    pub owned: bool,
    /// Whether it was decided to cancel it.
    pub cancelled: bool,
    /// Its ceilings now.
    pub limits: Limits,
    /// What its owner last told of itself.
    pub progress: Option<Progress>,
}

impl StagedJob {
    /// A staged job that nobody runs and that has told nothing.
    pub fn new(spec: JobSpec) -> Self {
        let limits = spec.limits;
        Self { spec, epoch: 0, owned: false, cancelled: false, limits, progress: None }
    }
}

/// A region's answer to a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Vote {
    /// The job can never commit. `first`: this call decided it. `clean`: nothing of the job is
    /// left.
    Cancelled {
        /// Whether this call decided it; `false` when it had been decided before.
        first: bool,
        /// Whether nothing of it is left. If not, its owner is still draining: ask again.
        clean: bool,
    },
    /// The job has committed, and that is durable.
    Committed,
    /// There is no stage of this job and no image made by it.
    Unknown,
}

/// How a job was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Outcome {
    /// The image is visible, complete and durable.
    Committed,
    /// A cancel came first: the image can never become visible.
    Cancelled,
}

/// What `recover` did about one staged job.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// The job.
    pub job: JobId,
    /// What it was to do, where that could be read.
    pub spec: Option<JobSpec>,
    /// What was done.
    pub settled: Settled,
}

impl Recovered {
    /// What was done about that job.
    pub fn new(job: JobId, spec: Option<JobSpec>, settled: Settled) -> Self {
        Self { job, spec, settled }
    }
}

/// What was done about a staged job.
#[derive(Debug)]
#[non_exhaustive]
pub enum Settled {
    /// A live process owns it: left alone.
    Running,
    /// Its commit had been decided and is finished.
    Committed,
    /// Its cancel had been decided and is finished: nothing of it is left.
    RolledBack,
    /// Its start had never been acknowledged: what there was is removed.
    Forgotten,
    /// It waits for resume or cancel.
    Kept,
    /// It could not be settled now.
    Failed(Error),
}

/// What an attempt begins with: what a region remembers of the chunks that were durable when it was
/// last heard of, and the base.
#[derive(Debug)]
#[non_exhaustive]
pub struct Restored {
    /// The chunks and their digests.
    pub table: TableBuilder,
    /// How many of their bytes are data.
    pub data_bytes: u64,
    /// The job's base; `None` where it names none, or the region does not have it any more.
    pub base: Option<Arc<dyn Base>>,
}

impl Restored {
    /// Nothing is durable yet, and there is no base.
    pub fn new(geometry: Geometry) -> Self {
        Self { table: TableBuilder::new(geometry), data_bytes: 0, base: None }
    }

    /// Takes in what a checkpoint recorded.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when it lies outside the image.
    pub fn record(&mut self, chunk: &Durable) -> Result<()> {
        let run = chunk.run();
        if run.count == 0 || !self.table.geometry().holds(run) {
            return Err(Error::new(ErrorKind::Corrupt, "restore chunks outside the image"));
        }
        if let Content::Data { data_bytes, .. } = chunk.content() {
            // A chunk that was written again after a failed verification is counted once.
            let counted = self.table.digest(run.first).is_some_and(|held| held.is_some());
            self.data_bytes += if counted { 0 } else { u64::from(data_bytes) };
        }
        self.table.put(run, chunk.content());
        Ok(())
    }
}

/// What others ask of the owner of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wishes {
    /// It was decided to cancel.
    pub cancelled: bool,
    /// Somebody wants this attempt to suspend.
    pub suspend: bool,
    /// New ceilings, once somebody has set any.
    pub limits: Option<Limits>,
}

/// A wish that is put before the owner of a stage, in whatever process it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wish {
    /// Suspend the attempt that runs now.
    Suspend,
    /// Use these ceilings from now on, also after a resume.
    Limit(Limits),
}
