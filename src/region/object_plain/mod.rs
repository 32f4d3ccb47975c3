//! A plain object of an object store as a region of one image: other tools see but the object.
//!
//! Copied to by one multipart upload, a part a chunk, which the store shows to nobody until it is
//! completed. The job's journal lies in the state folder, with the upload's name beside it. Between
//! commit and cancel the store decides in the end: an upload is completed or aborted, never both.

mod owned;
mod source;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::journal::{Header, Journal, Open};
use crate::location::{BucketAddress, FILE_IMAGE};
use crate::region::journals::{Journals, Stage};
use crate::region::stage::{open_visiting, until_decided};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Settled, Source, StagedJob,
    Target, Vote, Wish, blocking, refuse_key,
};
use crate::store::{
    Class, PART_BYTES_MIN, PART_COUNT_MAX, S3Options, S3Store, Store, Trouble, UploadId,
    abort_until_gone,
};

use owned::{Owned, PlainTarget};
use source::PlainSource;

/// The file with the name of the upload, beside the journal.
const UPLOAD: &str = "upload";
/// The longest name of an upload.
const UPLOAD_LEN_MAX: usize = 4096;

/// One plain object of an object store (`s3+raw://BUCKET/KEY`): it holds a single image, whatever
/// id is asked for. It never replaces an object that is there: where the store does not look at the
/// condition of a completion, one that comes in the moment before it is not seen.
#[derive(Debug)]
pub struct PlainObjectRegion {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    key: String,
    location: String,
    journals: Journals,
    part_bytes_min: u64,
}

impl PlainObjectRegion {
    /// The region of the object at that address; it need not exist. Nothing is asked of the store
    /// yet.
    ///
    /// `state_dir` keeps the journals of copies to it; it is made when first needed.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the address is no plain object's, or the settings for the store
    /// are not usable.
    pub fn open(
        address: &BucketAddress,
        options: &S3Options,
        state_dir: impl AsRef<Path>,
    ) -> Result<Self> {
        if !address.plain {
            return Err(Error::new(ErrorKind::Invalid, "use a region as a plain object")
                .within(address.to_string())
                .hint("write s3+raw://BUCKET/KEY"));
        }
        let store = S3Store::open(address, options)?;
        Ok(Self::new(store, &address.key, &address.to_string(), state_dir))
    }

    /// The region of that object of a store; `location` names it in messages and journals.
    pub fn new(
        store: Arc<dyn Store>,
        key: &str,
        location: &str,
        state_dir: impl AsRef<Path>,
    ) -> Self {
        let shared = Shared {
            store,
            key: key.to_owned(),
            location: location.to_owned(),
            journals: Journals::new(state_dir.as_ref(), location),
            part_bytes_min: PART_BYTES_MIN,
        };
        Self { shared: Arc::new(shared) }
    }

    fn with<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let shared = self.shared.clone();
        blocking(move || work(&shared).map_err(|error| error.within(shared.location.clone())))
    }
}

/// How an upload ended, or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The object is there, and this job made it.
    Completed,
    /// The upload is gone, and the object is not this job's.
    Gone,
}

impl Shared {
    /// Which job has made the object, as far as it tells; `None` where there is no object.
    async fn maker(&self) -> Result<Option<Option<JobId>>> {
        let meta = self.store.head(&self.key).await?;
        Ok(meta.map(|meta| meta.label.and_then(|label| label.parse().ok())))
    }

    /// Whether the object is there, and that job has made it.
    async fn made_by(&self, job: JobId) -> Result<bool> {
        Ok(self.maker().await?.flatten() == Some(job))
    }

    /// Begins an upload. A request for one that got no answer may have begun another, whose name
    /// nobody knows: then those that have come since, and hold nothing, do not stay.
    async fn begin_upload(&self, job: JobId) -> Result<UploadId> {
        // Order: before it is asked for; afterwards nothing tells a lost one from what others have.
        let before = self.unfinished().await;
        let begun = self.store.upload_begin(&self.key, &job.to_string()).await;
        let in_doubt = match &begun {
            Ok(begun) => begun.may_be_two,
            Err(error) => Trouble::class(error) == Class::Transient,
        };
        let begun = begun.map(|begun| begun.id);
        // Who may not list them, or cannot, has none to tell from those of others.
        if in_doubt
            && let Some(before) = before
            && let Some(now) = self.unfinished().await
        {
            for upload in now.difference(&before) {
                if begun.as_ref().is_ok_and(|begun| begun == upload) {
                    continue;
                }
                // Another daemon's, begun in these moments and without a part yet, looks the same.
                // If it is that, its copy fails: at its end at the latest one of the two would.
                let parts = self.store.parts(&self.key, upload).await;
                if matches!(parts, Ok(Some(parts)) if parts.is_empty()) {
                    // What stays all the same is told apart from nothing, and holds no bytes.
                    abort_until_gone(self.store.as_ref(), &self.key, upload).await.ok();
                }
            }
        }
        begun
    }

    /// The unfinished uploads of the key, where they can be listed.
    async fn unfinished(&self) -> Option<BTreeSet<UploadId>> {
        let uploads = self.store.uploads(&self.key).await.ok()?;
        Some(uploads.into_iter().filter(|found| found.key == self.key).map(|it| it.id).collect())
    }

    /// Ends the upload for good, and tells how. After `Gone` it can never be completed.
    async fn end_upload(&self, job: JobId, upload: Option<&UploadId>) -> Result<Fate> {
        if let Some(upload) = upload {
            // Order: gone before it is looked, or a completion on its way could still win.
            abort_until_gone(self.store.as_ref(), &self.key, upload).await?;
        }
        Ok(if self.made_by(job).await? { Fate::Completed } else { Fate::Gone })
    }

    fn stage(self: &Arc<Self>, spec: &JobSpec) -> Result<PlainTarget> {
        refuse_key(spec)?;
        self.check_parts(spec.geometry)?;
        let _claim = self.journals.claim()?;
        if let Some(stage) = self.journals.find_staged(spec.job)? {
            return self.take_over(stage, spec);
        }
        // Nothing was uploaded before a start was acknowledged.
        self.journals.forget_one(spec.job, &remove)?;
        self.journals.make_way("stage an object", |stage, journal| self.settled(stage, journal))?;
        if Handle::current().block_on(self.store.head(&self.key))?.is_some() {
            return Err(Error::new(ErrorKind::Exists, "copy over an object")
                .hint("delete it first, or choose another key"));
        }
        let stage = self.journals.make(spec.job)?;
        let header = Header { spec: spec.clone(), name: self.location.clone() };
        let journal = Journal::create(&stage.dir, header)?;
        stage.dir.sync()?;
        Ok(PlainTarget::new(Owned::new(self, stage, journal, Vec::new())))
    }

    /// The parts of an upload are the chunks, and stores want neither small nor many ones.
    fn check_parts(&self, geometry: Geometry) -> Result<()> {
        let chunk_bytes = geometry.chunk_size().bytes();
        let hint = if geometry.chunk_count() > 1 && chunk_bytes < self.part_bytes_min {
            "each chunk is a part of an upload, which has at least 5 MiB: give --chunk-size 8MiB"
        } else if geometry.chunk_count() > PART_COUNT_MAX {
            "each chunk is one of at most 10000 parts: give a larger --chunk-size, up to 64MiB; \
             larger images fit in regions (s3://) only"
        } else {
            return Ok(());
        };
        let count = geometry.chunk_count();
        let what = format!("upload {count} chunks of {} as an object", geometry.chunk_size());
        Err(Error::new(ErrorKind::Invalid, what).hint(hint))
    }

    fn take_over(self: &Arc<Self>, stage: Stage, spec: &JobSpec) -> Result<PlainTarget> {
        let mut chunks = Vec::new();
        let journal = open_visiting(&stage.dir, spec, &mut |chunk| chunks.push(*chunk))?;
        journal.forget_suspend()?;
        Ok(PlainTarget::new(Owned::new(self, stage, journal, chunks)))
    }

    fn try_cancel(self: &Arc<Self>, job: JobId) -> Result<Option<Vote>> {
        let Some((stage, watched)) = self.journals.watch(job)? else {
            self.journals.find_staged(job)?;
            // Order: gone for good before anybody is told; whoever removed it may not have come to
            // its sync.
            self.journals.sync()?;
            let made = Handle::current().block_on(self.made_by(job))?;
            return Ok(Some(if made { Vote::Committed } else { Vote::Unknown }));
        };
        let Some(decision) = watched.try_decide()? else { return Ok(None) };
        let opened = Journal::open(&stage.dir, job, &mut |_| {})?;
        let Some(Open::Valid(journal)) = opened else { return Ok(None) };
        if journal.is_done() {
            // Order: durable before it is told; its owner may have died before its sync.
            journal.sync()?;
            return Ok(Some(Vote::Committed));
        }
        let first = !journal.is_cancelled()?;
        let upload = read_upload(&stage)?;
        // Who was completing it held the right to decide, and is gone: it may yet be completed.
        if journal.prepared().is_some() {
            let ended = self.end_upload(job, upload.as_ref());
            if Handle::current().block_on(ended)? == Fate::Completed {
                return Ok(Some(Vote::Committed));
            }
        }
        // Order: durable before it is told; who wrote it may have died before its sync.
        decision.cancel()?;
        drop(decision);
        if !watched.try_own()? {
            return Ok(Some(Vote::Cancelled { first, clean: false }));
        }
        // Read anew: its owner may have begun an upload since, and be gone only now.
        let upload = read_upload(&stage)?;
        Handle::current().block_on(self.end_upload(job, upload.as_ref()))?;
        remove(&stage)?;
        Ok(Some(Vote::Cancelled { first, clean: true }))
    }

    fn recover(self: &Arc<Self>, only: Option<JobId>) -> Result<Vec<Recovered>> {
        self.journals.recover(only, &remove, |stage, journal| self.settled(stage, journal))
    }

    fn settled(&self, stage: &Stage, journal: &Journal) -> Result<Settled> {
        let (job, wait) = (stage.job, Handle::current());
        let is_made = journal.is_done()
            || journal.prepared().is_some() && wait.block_on(self.made_by(job))?;
        if is_made {
            remove(stage)?;
            return Ok(Settled::Committed);
        }
        if !journal.is_cancelled()? {
            return Ok(Settled::Kept);
        }
        let Some(decision) = journal.try_decide()? else { return Ok(Settled::Running) };
        let upload = read_upload(stage)?;
        // An attempt to cancel that could not finish may have come before a completion landed.
        if wait.block_on(self.end_upload(job, upload.as_ref()))? == Fate::Completed
            && journal.prepared().is_some()
        {
            remove(stage)?;
            return Ok(Settled::Committed);
        }
        decision.cancel()?;
        remove(stage)?;
        Ok(Settled::RolledBack)
    }
}

/// The name of the upload; `None` when none was put on record.
fn read_upload(stage: &Stage) -> Result<Option<UploadId>> {
    let Some(file) = stage.dir.find_file(UPLOAD)? else { return Ok(None) };
    let mut bytes = vec![0; UPLOAD_LEN_MAX + 1];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    // The line's end is written with it: without one, it was never whole.
    let text = String::from_utf8(bytes).unwrap_or_default();
    Ok(text.strip_suffix('\n').map(|id| UploadId(id.to_owned())))
}

/// Puts the name of the upload on record, durable.
fn write_upload(stage: &Stage, upload: &UploadId) -> Result<()> {
    let line = format!("{}\n", upload.0);
    if line.len() > UPLOAD_LEN_MAX || upload.0.contains('\n') {
        return Err(Error::new(ErrorKind::Unsupported, "keep the name of an upload: too long"));
    }
    if stage.dir.find_file(UPLOAD)?.is_some() {
        stage.dir.remove_file(UPLOAD)?;
    }
    let file = stage.dir.create_file(UPLOAD, 0o600)?;
    file.write_at(0, line.as_bytes())?;
    file.sync_all()?;
    stage.dir.sync()
}

fn remove(stage: &Stage) -> Result<()> {
    if stage.dir.find_file(UPLOAD)?.is_some() {
        stage.dir.remove_file(UPLOAD)?;
    }
    stage.remove()
}

impl Region for PlainObjectRegion {
    fn location(&self) -> String {
        self.shared.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::plain_object()
    }

    fn open<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        Box::pin(async move {
            let shared = &self.shared;
            let source =
                PlainSource::open(shared.store.clone(), &shared.key, &shared.location).await?;
            let source: Arc<dyn Source> = Arc::new(source);
            Ok(source)
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let spec = spec.clone();
        self.with(move |shared| {
            let target: Arc<dyn Target> = Arc::new(shared.stage(&spec)?);
            Ok(target)
        })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let spec = spec.clone();
        self.with(move |shared| {
            let stage = shared.journals.find_staged(spec.job)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("take over job {}", spec.job))
                    .hint("nothing of it is staged any more")
            })?;
            let target: Arc<dyn Target> = Arc::new(shared.take_over(stage, &spec)?);
            Ok(target)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        Box::pin(async move {
            let image: ImageId = FILE_IMAGE.parse()?;
            let meta = self.shared.store.head(&self.shared.key).await?;
            Ok(meta.map(|meta| ImageInfo::new(image, meta.len)).into_iter().collect())
        })
    }

    fn remove<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Shared { store, key, location, .. } = &*self.shared;
            if store.head(key).await?.is_none() {
                return Err(
                    Error::new(ErrorKind::NotFound, "remove object").within(location.clone())
                );
            }
            store.delete(std::slice::from_ref(key)).await
        })
    }

    fn locate<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        Box::pin(async move {
            let jobs = self.jobs().await?;
            let meta = self.shared.store.head(&self.shared.key).await?;
            let made_by = meta.as_ref().and_then(|meta| meta.label.as_ref()?.parse().ok());
            let staged = jobs.first().map(|staged| staged.spec.job);
            Ok(match (staged, meta) {
                (Some(job), _) if made_by != Some(job) => Located::Staged(job),
                (_, Some(_)) => Located::Committed(made_by),
                _ => Located::Absent,
            })
        })
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.with(|shared| shared.journals.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.with(move |shared| shared.journals.job(job))
    }

    fn cancel<'a>(&'a self, job: JobId, _image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || {
            shared.try_cancel(job).map_err(|error| error.within(shared.location.clone()))
        }))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || shared.journals.try_wish(job, wish)))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.with(move |shared| shared.recover(only))
    }
}
