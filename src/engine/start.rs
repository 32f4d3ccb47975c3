//! Starting and resuming: from a request to a job that is durable and on its way.

use std::sync::Arc;

use crate::chunk::Digest;
use crate::engine::clock::{job_of_token, random_job, unix_ms};
use crate::engine::drive::{Ends, drive};
use crate::engine::entry::{Entry, Job, JobOutcome};
use crate::engine::gate::Gate;
use crate::engine::index::JobRecord;
use crate::engine::{Inner, empty_receipt, found_receipt, unknown};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkSize, Geometry};
use crate::id::{JobId, KeyId};
use crate::job::{Endpoint, Fingerprint, JobSpec, JobState};
use crate::options::{CopyOptions, Encryption};
use crate::region::{Capabilities, Region, Settled, Source, Target, Vote, no_keys};

/// A copy to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyRequest {
    /// Where the bytes come from.
    pub source: Endpoint,
    /// Where the image is to be.
    pub target: Endpoint,
    /// What else is asked.
    pub options: CopyOptions,
}

impl CopyRequest {
    /// A copy from one image to another, with those options.
    pub fn new(source: Endpoint, target: Endpoint, options: CopyOptions) -> Self {
        Self { source, target, options }
    }
}

impl Inner {
    pub(super) async fn copy(self: &Arc<Self>, request: CopyRequest) -> Result<Job> {
        request.options.check()?;
        let source_region = self.region(&request.source.region)?;
        let target_region = self.region(&request.target.region)?;
        if request.source == request.target {
            return Err(Error::new(ErrorKind::Invalid, "copy an image onto itself")
                .within(request.target.to_string())
                .hint("source and destination are the same"));
        }
        if request.options.base.is_some() && !target_region.capabilities().takes_base {
            return Err(Error::new(ErrorKind::Unsupported, "copy with a base")
                .within(request.target.to_string())
                .hint("images of directory regions, here or at another daemon, can have one"));
        }
        // Order: the token first, for a source may be gone when its copy is asked for again.
        let turn = self.starting.lock().await;
        if let Some(job) = self.same_job(&request).await? {
            return Ok(job);
        }
        drop(turn);
        let source = source_region.open(&request.source.image).await?;
        let spec = self.spec_of(&request, &*source, &*target_region).await?;

        let _turn = self.starting.lock().await;
        self.refuse_when_closing()?;
        // Somebody may have come with the same token while we looked at the source.
        if let Some(job) = self.same_job(&request).await? {
            return Ok(job);
        }
        let target = target_region.stage(&spec).await?;
        if let (Some(from), Some(to)) = (source.local(), target.local())
            && from.file.is_same_as(&to.file)?
        {
            let error = Error::new(ErrorKind::Invalid, "copy a device onto itself")
                .within(target.location())
                .hint("source and destination are the same device under two names");
            return Err(target.discard().await.err().into_iter().fold(error, Error::and));
        }
        // Order: the stage first, so that a record never speaks of a job that does not exist.
        let record = JobRecord::new(spec.clone(), JobState::Queued);
        if let Err(error) = self.index.write(record).await {
            return Err(self.undo_start(&spec, &*target, error).await);
        }
        let gates = self.gates_of(&spec);
        let ends = Ends { target_region, source, target, gates, legs: request.options.legs };
        Ok(self.launch(spec, ends))
    }

    /// Undoes a start that cannot be put on record; what is told of it.
    async fn undo_start(&self, spec: &JobSpec, target: &dyn Target, why: Error) -> Error {
        // Order: the record goes first, for it may be there all the same. One whose stage is gone
        // is that of a job that was ended, and that would be the answer to its token from now on.
        if let Err(later) = self.index.remove(spec.job).await
            && spec.token.is_some()
        {
            return why.and(later).hint("start it again with the same token, or cancel it");
        }
        match target.discard().await {
            Ok(_) => why,
            Err(later) => why.and(later),
        }
    }

    /// What the request comes to, now that the source is known.
    async fn spec_of(
        &self,
        request: &CopyRequest,
        source: &dyn Source,
        target_region: &dyn Region,
    ) -> Result<JobSpec> {
        let options = &request.options;
        let manifest = source.manifest();
        let size_bytes = source.size_bytes();
        let geometry = match options.chunk_size {
            Some(chunk_size) => Geometry::new(size_bytes, chunk_size),
            None => {
                let mut known = manifest.as_ref().map(|found| found.geometry().chunk_size());
                if let (None, Some(base)) = (known, &options.base) {
                    // Cut as the base is, or nothing could be taken over from it.
                    let base = target_region.open(base).await?.manifest();
                    known = base.map(|base| base.geometry().chunk_size());
                }
                let target = target_region.capabilities();
                cut(size_bytes, known.unwrap_or(ChunkSize::DEFAULT), target)
            }
        };
        let geometry = geometry.map_err(|error| error.within(source.location()))?;
        let fingerprint = source.fingerprint().await?;
        let key = key_of(&options.encryption, source, &fingerprint)?;
        let job = match &options.token {
            Some(token) => job_of_token(token),
            None => random_job()?,
        };
        let ends = (request.source.clone(), request.target.clone());
        let mut spec = JobSpec::new(job, ends.0, ends.1, geometry, fingerprint);
        spec.key = key;
        if spec.key.is_some() && !target_region.capabilities().encrypts {
            return Err(no_keys(&spec).within(spec.target.to_string()));
        }
        let seen = std::mem::take(&mut spec.fingerprint);
        spec.fingerprint = spec.facts_kept(seen);
        spec.verify = options.verify;
        spec.limits = options.limits;
        spec.token = options
            .token
            .as_ref()
            .map(|token| Digest::from_bytes(*blake3::hash(token.as_bytes()).as_bytes()));
        spec.destructive = options.destructive;
        spec.base = options.base.clone();
        spec.attributes = manifest.map(|m| m.attributes().clone()).unwrap_or_default();
        spec.attributes.extend(options.attributes.clone());
        crate::options::check_attributes(&spec.attributes)?;
        spec.created_unix_ms = unix_ms();
        Ok(spec)
    }

    /// The job that the same token has started before, if it has.
    async fn same_job(self: &Arc<Self>, request: &CopyRequest) -> Result<Option<Job>> {
        let Some(token) = &request.options.token else { return Ok(None) };
        let job = job_of_token(token);
        let live = self.live().get(&job).cloned();
        let earlier = match &live {
            Some(entry) => Some(entry.spec.clone()),
            None => self.index.read(job).await?.map(|record| record.spec),
        };
        let Some(earlier) = earlier else { return Ok(None) };
        if !asks_for(request, &earlier) {
            return Err(Error::new(ErrorKind::Invalid, "use that token for another request")
                .hint(format!("it belongs to job {job}: use a new one")));
        }
        match live {
            Some(entry) => Ok(Some(Job { engine: self.clone(), entry })),
            None => self.resume_locked(job, request.options.legs).await.map(Some),
        }
    }

    pub(super) async fn resume(self: &Arc<Self>, job: JobId) -> Result<Job> {
        let _turn = self.starting.lock().await;
        self.resume_locked(job, 1).await
    }

    async fn resume_locked(self: &Arc<Self>, job: JobId, legs: u32) -> Result<Job> {
        let live = self.live().get(&job).cloned();
        if let Some(entry) = live {
            return Ok(Job { engine: self.clone(), entry });
        }
        self.refuse_when_closing()?;
        let record = self.index.read(job).await?;
        if let Some(record) = &record
            && record.state.is_final()
        {
            return Ok(self.ended(record.clone()).await);
        }
        let pending =
            record.as_ref().is_some_and(|record| record.state == JobState::RollbackPending);
        let (target_region, spec) = match record {
            Some(record) => (self.region(&record.spec.target.region)?, record.spec),
            None => {
                let (region, staged) = self.find_staged(job).await?.ok_or_else(|| unknown(job))?;
                (region, staged.spec)
            }
        };
        if pending {
            // It is to be undone, whether or not its region knows yet: it never goes on.
            return self.finish_rollback(spec, &*target_region).await;
        }
        // What was decided before comes first; only an undecided job can go on.
        for found in target_region.recover(Some(job)).await? {
            self.note_recovered(&*target_region, &found).await?;
            match found.settled {
                Settled::Kept => match self.go_on(spec.clone(), &target_region, legs).await {
                    // Somebody else has ended it while we looked at the source: see below how.
                    Err(error)
                        if error.kind() == ErrorKind::NotFound
                            && target_region.job(job).await?.is_none() => {}
                    gone_on => return gone_on,
                },
                Settled::Failed(error) => return Err(error),
                Settled::Running => {
                    return Err(Error::new(ErrorKind::Busy, format!("resume job {job}"))
                        .hint("another process runs it"));
                }
                Settled::Committed | Settled::RolledBack | Settled::Forgotten => {}
            }
        }
        match self.index.read(job).await? {
            Some(record) if record.state.is_final() => Ok(self.ended(record).await),
            _ => {
                // Somebody has ended it by way of another index: take that over into ours.
                let state = self.ended_unseen(&*target_region, &spec).await?;
                let mut record = JobRecord::new(spec, state);
                if state == JobState::Committed {
                    record.receipt = found_receipt(&*target_region, &record.spec).await.ok();
                }
                self.index.write(record.clone()).await?;
                Ok(self.ended(record).await)
            }
        }
    }

    async fn finish_rollback(
        self: &Arc<Self>,
        spec: JobSpec,
        target_region: &dyn Region,
    ) -> Result<Job> {
        let (state, clean) = match target_region.cancel(spec.job, &spec.target.image).await? {
            Vote::Committed => (JobState::Committed, true),
            Vote::Cancelled { clean: true, .. } | Vote::Unknown => (JobState::RolledBack, true),
            Vote::Cancelled { clean: false, .. } => (JobState::RollbackPending, false),
        };
        let mut record = JobRecord::new(spec, state);
        if state == JobState::Committed {
            record.receipt = found_receipt(target_region, &record.spec).await.ok();
        }
        self.index.write(record.clone()).await?;
        if clean {
            return Ok(self.ended(record).await);
        }
        let outcome = JobOutcome::RolledBack { clean };
        let entry = Arc::new(Entry::ended(record.spec, state, outcome));
        Ok(Job { engine: self.clone(), entry })
    }

    async fn go_on(
        self: &Arc<Self>,
        spec: JobSpec,
        target_region: &Arc<dyn Region>,
        legs: u32,
    ) -> Result<Job> {
        let source_region = self.region(&spec.source.region)?;
        let source = source_region.open(&spec.source.image).await?;
        let now = spec.facts_kept(source.fingerprint().await?);
        if let Some(what) = spec.fingerprint.difference(&now) {
            let what = format!("resume job {}: the source is not what it was: {what}", spec.job);
            return Err(Error::new(ErrorKind::SourceChanged, what)
                .within(source.location())
                .hint("cancel the job and copy again"));
        }
        let target = target_region.reopen(&spec).await?;
        let record = JobRecord::new(spec.clone(), JobState::Queued);
        self.index.write(record).await?;
        let gates = self.gates_of(&spec);
        let ends = Ends { target_region: target_region.clone(), source, target, gates, legs };
        Ok(self.launch(spec, ends))
    }

    fn launch(self: &Arc<Self>, spec: JobSpec, ends: Ends) -> Job {
        let entry = Arc::new(Entry::new(spec.clone(), spec.limits));
        self.live().insert(spec.job, entry.clone());
        self.tasks.spawn(drive(self.clone(), entry.clone(), ends));
        Job { engine: self.clone(), entry }
    }

    /// The handle of a job that has ended.
    async fn ended(self: &Arc<Self>, mut record: JobRecord) -> Job {
        self.reveal(&mut record).await;
        let outcome = match record.state {
            JobState::Committed => {
                let receipt = record.receipt.unwrap_or_else(|| empty_receipt(&record.spec));
                JobOutcome::Committed(Arc::new(receipt))
            }
            JobState::Failed { resumable } => {
                let (kind, message) =
                    record.error.unwrap_or((ErrorKind::Io, "the copy failed".to_owned()));
                let error = Error::new(kind, format!("copy the image, earlier: {message}"));
                JobOutcome::Failed { error: Arc::new(error), resumable }
            }
            _ => JobOutcome::RolledBack { clean: true },
        };
        let entry = Arc::new(Entry::ended(record.spec, record.state, outcome));
        Job { engine: self.clone(), entry }
    }

    /// The root of an encrypted image is not in the index: those who have its key get it from the
    /// image.
    pub(super) async fn reveal(&self, record: &mut JobRecord) {
        let Some(receipt) = record.receipt.as_mut().filter(|_| record.spec.key.is_some()) else {
            return;
        };
        let Ok(region) = self.region(&record.spec.target.region) else { return };
        if let Ok(found) = found_receipt(&*region, &record.spec).await {
            receipt.root = found.root;
        }
    }

    fn gates_of(&self, spec: &JobSpec) -> Vec<Gate> {
        [&spec.source.region, &spec.target.region]
            .into_iter()
            .filter_map(|name| self.registered(name, |found| found.gate.clone()).ok())
            .collect()
    }

    fn refuse_when_closing(&self) -> Result<()> {
        if self.closing.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "start a job")
                .hint("the engine is shutting down"));
        }
        Ok(())
    }
}

/// The image in chunks that the target takes well, no smaller than those.
fn cut(size_bytes: u64, at_least: ChunkSize, target: Capabilities) -> Result<Geometry> {
    let mut geometry = Geometry::grown(size_bytes, at_least)?;
    let is_fit = |geometry: Geometry| {
        geometry.chunk_size().bytes() >= target.chunk_bytes_min
            && geometry.chunk_count() <= target.chunk_count_max
    };
    while !is_fit(geometry) && geometry.chunk_size() < ChunkSize::MAX {
        let larger = ChunkSize::from_bytes(geometry.chunk_size().bytes() * 2)?;
        geometry = Geometry::grown(size_bytes, larger)?;
    }
    Ok(geometry)
}

/// The key under which the new image is to be encrypted, if it is to be.
fn key_of(asked: &Encryption, source: &dyn Source, facts: &Fingerprint) -> Result<Option<KeyId>> {
    match asked {
        Encryption::Key(key) => Ok(Some(key.clone())),
        Encryption::Plain => Ok(None),
        Encryption::Keep => match source.key() {
            // The far side of a copy between daemons tells that there is a key, and not which.
            None if facts.is_encrypted() => {
                let what = "copy an image that is encrypted where it lies";
                Err(Error::new(ErrorKind::Invalid, what)
                    .within(source.location())
                    .hint("say under which key the copy is to be, or that it is to be in clear"))
            }
            key => Ok(key),
        },
    }
}

/// Whether the request could have started that job. Only what was asked for counts: the source may
/// have changed since, or be gone.
fn asks_for(request: &CopyRequest, earlier: &JobSpec) -> bool {
    let options = &request.options;
    let cut_so = |asked| asked == earlier.geometry.chunk_size();
    let holds = |(key, value)| earlier.attributes.get(key) == Some(value);
    (&request.source, &request.target) == (&earlier.source, &earlier.target)
        && options.verify == earlier.verify
        && options.limits == earlier.limits
        && options.destructive == earlier.destructive
        && options.base == earlier.base
        && options.chunk_size.is_none_or(cut_so)
        && options.attributes.iter().all(holds)
        && match &options.encryption {
            // What it comes to is the source's affair, which may be gone.
            Encryption::Keep => true,
            Encryption::Plain => earlier.key.is_none(),
            Encryption::Key(key) => earlier.key.as_ref() == Some(key),
        }
}
