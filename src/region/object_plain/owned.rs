//! A plain object in the hands of its owner: chunks are parts, commit completes the upload.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::chunk::{Durable, Sealed, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_usize};
use crate::job::{JobState, Progress};
use crate::journal::{Journal, Prepared, Status};
use crate::manifest::Manifest;
use crate::region::journals::Stage;
use crate::region::stage::until_decided;
use crate::region::{BoxFuture, LocalFile, Outcome, Restored, Target, Wishes, blocking};
use crate::store::{Condition, Part, Put, UploadId, abort_until_gone};

use super::{Fate, Shared, read_upload, remove, write_upload};

/// An owned job behind the async trait.
#[derive(Debug)]
pub(super) struct PlainTarget {
    owned: Arc<Owned>,
}

/// A job in the hands of its owner.
#[derive(Debug)]
pub(super) struct Owned {
    shared: Arc<Shared>,
    stage: Stage,
    journal: Journal,
    /// What earlier attempts put on record, until this one begins.
    recorded: Mutex<Option<Vec<Durable>>>,
    /// The upload, once the attempt has begun.
    upload: OnceLock<UploadId>,
    parts: Mutex<BTreeMap<u32, Part>>,
}

impl Owned {
    pub(super) fn new(
        shared: &Arc<Shared>,
        stage: Stage,
        journal: Journal,
        chunks: Vec<Durable>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            stage,
            journal,
            recorded: Mutex::new(Some(chunks)),
            upload: OnceLock::new(),
            parts: Mutex::default(),
        }
    }

    fn geometry(&self) -> Geometry {
        self.journal.header().spec.geometry
    }

    fn upload(&self) -> Result<&UploadId> {
        self.upload.get().ok_or_else(|| Error::new(ErrorKind::Invalid, "write before it has begun"))
    }

    /// Begins the next attempt: with the upload that is on record while the store knows it, and
    /// with the parts that it vouches for. Those that no checkpoint tells of are read once more,
    /// and sent only if the store holds other bytes.
    fn begin(&self) -> Result<Restored> {
        let recorded = locked(&self.recorded).take();
        let recorded = recorded
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "begin the same target twice"))?;
        let epoch = self.journal.begin_attempt()?;
        let image_bytes = self.geometry().image_bytes();
        let progress = Progress::new(JobState::Copying, image_bytes);
        self.journal.set_status(&Status { epoch, progress })?;
        let mut restored = Restored::new(self.geometry());
        let (store, wait) = (&self.shared.store, Handle::current());
        if let Some(upload) = read_upload(&self.stage)?
            && let Some(held) = wait.block_on(store.parts(&self.shared.key, &upload))?
        {
            let held: BTreeMap<u32, Part> =
                held.into_iter().map(|part| (part.number, part)).collect();
            for chunk in recorded.iter().filter(|chunk| self.is_held(chunk.run(), &held)) {
                restored.record(chunk)?;
            }
            *locked(&self.parts) = held;
            self.take(upload)?;
            return Ok(restored);
        }
        let upload = wait.block_on(self.shared.begin_upload(self.stage.job))?;
        // Order: on record before anything is in it, so that a cancel finds it.
        write_upload(&self.stage, &upload)?;
        self.take(upload)?;
        Ok(restored)
    }

    fn take(&self, upload: UploadId) -> Result<()> {
        self.upload
            .set(upload)
            .map_err(|_| Error::new(ErrorKind::Invalid, "begin the same target twice"))
    }

    /// Whether the store holds a part of the right length for every chunk of the run.
    fn is_held(&self, run: ChunkRun, held: &BTreeMap<u32, Part>) -> bool {
        run.iter().all(|index| {
            let len = self.geometry().range(index).len;
            held.get(&number(index)).is_some_and(|part| part.len == len)
        })
    }

    async fn put(&self, index: ChunkIndex, bytes: Bytes) -> Result<()> {
        let (shared, upload) = (&self.shared, self.upload()?);
        // An earlier attempt may have sent it, and have died before a checkpoint told so.
        let held = locked(&self.parts).get(&number(index)).cloned();
        if held.is_some_and(|held| held.holds(&bytes)) {
            return Ok(());
        }
        let part = shared.store.upload_part(&shared.key, upload, number(index), bytes).await?;
        locked(&self.parts).insert(part.number, part);
        Ok(())
    }

    /// Puts on record that everything is in the store.
    fn prepare(&self, manifest: &Manifest) -> Result<()> {
        if self.geometry().chunk_count() == 0 {
            // An upload has at least one part.
            Handle::current().block_on(self.put(ChunkIndex::new(0), Bytes::new()))?;
        }
        self.journal.append_prepared(Prepared { device: 0, inode: 0, root: manifest.root() })
    }

    /// Completes the upload unless a cancel came first. `None`: ask again.
    fn try_publish(&self) -> Result<Option<Outcome>> {
        let Some(decision) = self.journal.try_decide()? else { return Ok(None) };
        if self.journal.is_done() {
            return Ok(Some(Outcome::Committed));
        }
        if self.journal.is_cancelled()? {
            decision.cancel()?;
            return Ok(Some(Outcome::Cancelled));
        }
        // The decision: the store makes an object of the upload, or says that it is gone.
        Handle::current().block_on(self.complete())?;
        self.journal.append_done(&decision)?;
        Ok(Some(Outcome::Committed))
    }

    async fn complete(&self) -> Result<()> {
        let (shared, job) = (&self.shared, self.stage.job);
        let parts: Vec<Part> = locked(&self.parts).values().cloned().collect();
        let expected = to_usize(u64::from(self.geometry().chunk_count().max(1)));
        if parts.len() != expected {
            let what = format!("complete an upload of {} of {expected} parts", parts.len());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let (key, upload) = (&shared.key, self.upload()?);
        let taken = || {
            Error::new(ErrorKind::Exists, "complete the upload")
                .hint("another object has taken the key: cancel this copy")
        };
        // Some stores do not look at the condition: who came before this request is seen here.
        match shared.maker().await? {
            None => {}
            Some(Some(maker)) if maker == job => {
                // An earlier attempt had completed its own: of this one nothing is to stay.
                return abort_until_gone(shared.store.as_ref(), key, upload).await;
            }
            Some(_) => return Err(taken()),
        }
        let put = shared.store.upload_complete(key, upload, &parts, &Condition::Absent).await;
        let error = match put {
            Ok(Put::Done(_)) => return Ok(()),
            Ok(Put::Refused) => taken(),
            // It may have been done, by this request or one before.
            Ok(Put::Unknown(error)) | Err(error) => error,
        };
        if shared.made_by(job).await? { Ok(()) } else { Err(error) }
    }

    /// Decides to cancel unless the job has committed, and removes everything. `None`: ask again.
    fn try_discard(&self) -> Result<Option<Outcome>> {
        if !self.journal.is_still_in(&self.stage.dir)? {
            let is_done = self.journal.is_done();
            return Ok(Some(if is_done { Outcome::Committed } else { Outcome::Cancelled }));
        }
        let Some(decision) = self.journal.try_decide()? else { return Ok(None) };
        if self.journal.is_done() {
            return Ok(Some(Outcome::Committed));
        }
        let prepared = self.journal.prepared().is_some();
        if !prepared {
            decision.cancel()?;
        }
        let shared = &self.shared;
        let upload = self
            .upload
            .get()
            .cloned()
            .map_or_else(|| read_upload(&self.stage), |id| Ok(Some(id)))?;
        let end = async {
            shared.store.settle().await;
            shared.end_upload(self.stage.job, upload.as_ref()).await
        };
        if Handle::current().block_on(end)? == Fate::Completed && prepared {
            self.journal.append_done(&decision)?;
            return Ok(Some(Outcome::Committed));
        }
        // Order: durable before it is acted on; who wrote it may have died before its sync.
        decision.cancel()?;
        drop(decision);
        remove(&self.stage)?;
        Ok(Some(Outcome::Cancelled))
    }

    fn wishes(&self) -> Result<Wishes> {
        let control = self.journal.control()?;
        Ok(Wishes {
            cancelled: self.journal.is_cancelled()?,
            suspend: control.suspend_epoch == Some(self.journal.epoch()),
            limits: control.limits,
        })
    }
}

/// The part that a chunk is.
fn number(index: ChunkIndex) -> u32 {
    index.get() + 1
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PlainTarget {
    pub(super) fn new(owned: Owned) -> Self {
        Self { owned: Arc::new(owned) }
    }

    /// Runs blocking work on the job; errors name the place.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Owned) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let owned = self.owned.clone();
        blocking(move || work(&owned).map_err(|error| error.within(owned.shared.location.clone())))
    }

    async fn decide(
        &self,
        ask: impl Fn(&Owned) -> Result<Option<Outcome>> + Copy + Send + 'static,
    ) -> Result<Outcome> {
        let owned = self.owned.clone();
        let decided = until_decided(move || ask(&owned)).await;
        decided.map_err(|error| error.within(self.owned.shared.location.clone()))
    }
}

impl Target for PlainTarget {
    fn location(&self) -> String {
        self.owned.shared.location.clone()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        self.with(Owned::begin)
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            self.owned.put(chunk.index(), chunk.data().clone()).await?;
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let geometry = self.owned.geometry();
            let len = geometry.image_bytes().min(geometry.chunk_size().bytes());
            let zeros = Bytes::from(vec![0; to_usize(len)]);
            for index in run.iter() {
                let len = to_usize(geometry.range(index).len);
                self.owned.put(index, zeros.slice(..len)).await?;
            }
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        // A part that the store has answered is durable.
        Box::pin(std::future::ready(Ok(())))
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        let chunks = chunks.to_vec();
        self.with(move |owned| owned.journal.append_progress(&chunks))
    }

    fn read_back(&self, _range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        let error = Error::new(ErrorKind::Unsupported, "read a part of an upload back")
            .within(self.location())
            .hint("no store shows it before it is complete: copy with --verify none");
        Box::pin(std::future::ready(Err(error)))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let manifest = manifest.clone();
            self.with(move |owned| owned.prepare(&manifest)).await?;
            self.decide(Owned::try_publish).await
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|owned| remove(&owned.stage))
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.decide(Owned::try_discard))
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.with(Owned::wishes)
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        let progress = progress.clone();
        self.with(move |owned| {
            let journal = &owned.journal;
            journal.set_status(&Status { epoch: journal.epoch(), progress })
        })
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
