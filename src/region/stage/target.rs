//! The target of every place that keeps a journal: an owned job behind the async trait.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::chunk::{Durable, Sealed, Written};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, to_usize};
use crate::job::{JobState, Progress};
use crate::journal::{Journal, Status};
use crate::manifest::Manifest;
use crate::region::base::{BaseImage, LocalBase};
use crate::region::{
    Base, BoxFuture, EncryptedFile, LocalFile, Outcome, Restored, Target, Wishes, blocking,
};
use crate::sabotage;

/// How long one waits for a decision that another process is taking.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);
const DECISION_POLL: Duration = Duration::from_millis(5);

/// What the owner of a job holds, whatever the place: the bytes, the journal, and what both had
/// made durable before.
#[derive(Debug)]
pub(crate) struct Held {
    /// Before the journal: whoever owns that next must find a device closed.
    pub(crate) data: Arc<File>,
    pub(crate) journal: Journal,
    /// What else there is of an image that is encrypted.
    pub(crate) encrypted: Option<Arc<EncryptedFile>>,
    restored: Mutex<Option<Restored>>,
}

impl Held {
    pub(crate) fn new(data: File, journal: Journal, restored: Restored) -> Self {
        let restored = Mutex::new(Some(restored));
        Self { data: Arc::new(data), journal, encrypted: None, restored }
    }

    /// The stage is encrypted, and that is what its records tell to those who have the key.
    #[cfg(feature = "encrypt")]
    pub(crate) fn unlock(&mut self, encrypted: EncryptedFile, restored: Restored) {
        self.encrypted = Some(Arc::new(encrypted));
        self.restored = Mutex::new(Some(restored));
    }

    /// What earlier attempts made durable; once.
    pub(crate) fn take_restored(&self) -> Result<Restored> {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.take().ok_or_else(|| Error::new(ErrorKind::Invalid, "begin the same target twice"))
    }

    /// Begins the next attempt and hands out what earlier ones made durable.
    fn begin(&self) -> Result<Restored> {
        let epoch = self.journal.begin_attempt()?;
        let image_bytes = self.journal.header().spec.geometry.image_bytes();
        let progress = Progress::new(JobState::Copying, image_bytes);
        self.journal.set_status(&Status { epoch, progress })?;
        if let Some(encrypted) = &self.encrypted {
            encrypted.begin(epoch);
        }
        self.take_restored()
    }

    /// Makes what was written durable: the bytes, and the records that vouch for them.
    fn sync(&self) -> Result<()> {
        self.data.sync_data()?;
        self.encrypted.as_ref().map_or(Ok(()), |encrypted| encrypted.sync())
    }

    fn read_back(&self, range: ByteRange) -> Result<Bytes> {
        sabotage::unless("M8", || self.data.evict(range))?;
        if let Some(encrypted) = &self.encrypted {
            encrypted.evict(range)?;
            return match encrypted.read_range(&self.data, range) {
                Ok(bytes) => Ok(bytes.into()),
                // What does not decrypt does not verify.
                Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Bytes::new()),
                Err(error) => Err(error),
            };
        }
        let mut buffer = vec![0; to_usize(range.len)];
        let count = self.data.read_at(range.offset, &mut buffer)?;
        // A stage that is too short does not verify.
        buffer.truncate(count);
        Ok(buffer.into())
    }

    /// What others ask of us.
    fn wishes(&self) -> Result<Wishes> {
        let control = self.journal.control()?;
        Ok(Wishes {
            cancelled: self.journal.is_cancelled()?,
            suspend: control.suspend_epoch == Some(self.journal.epoch()),
            limits: control.limits,
        })
    }
}

/// A job in the hands of its owner: the steps that differ from place to place, all of them
/// blocking.
pub(crate) trait Owned: Debug + Send + Sync + 'static {
    fn held(&self) -> &Held;

    /// Writes the bytes of a chunk in clear.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.held().data.write_at(offset, bytes)
    }

    /// Makes the range read as zeros.
    fn write_zeroes(&self, range: ByteRange) -> Result<()>;

    /// Makes everything durable, down to the names, and puts that on record.
    fn prepare(&self, manifest: &Manifest) -> Result<()>;

    /// Decides: publishes the image unless a cancel came first. `None`: somebody holds the decision
    /// now; ask again.
    fn try_publish(&self) -> Result<Option<Outcome>>;

    /// After the commit: removes what is left of the job.
    fn finish(&self) -> Result<()>;

    /// Decides to cancel unless the job has committed, and removes everything. `None`: ask again.
    fn try_discard(&self) -> Result<Option<Outcome>>;
}

/// An owned job behind the async trait.
#[derive(Debug)]
pub(crate) struct JournaledTarget<O> {
    /// Before the owner: see [`Held`].
    file: LocalFile,
    location: String,
    owned: Arc<O>,
    base: Option<BaseImage>,
}

impl<O: Owned> JournaledTarget<O> {
    pub(crate) fn of(owned: O, location: String) -> Result<Arc<dyn Target>> {
        Self::with_base(owned, location, None)
    }

    pub(crate) fn with_base(
        owned: O,
        location: String,
        base: Option<BaseImage>,
    ) -> Result<Arc<dyn Target>> {
        let mut file = LocalFile::of(owned.held().data.clone())?;
        file.encrypted.clone_from(&owned.held().encrypted);
        Ok(Arc::new(Self { file, location, owned: Arc::new(owned), base }))
    }

    fn base(&self) -> Option<Arc<dyn Base>> {
        // What is encrypted takes nothing over: a base lends bytes as they lie, in clear.
        let image = self.base.clone().filter(|_| self.file.encrypted.is_none())?;
        Some(Arc::new(LocalBase::new(image, self.owned.clone(), self.location.clone())))
    }

    /// Runs blocking work on the job; errors name the place.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&O) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let (owned, place) = (self.owned.clone(), self.location.clone());
        blocking(move || work(&owned).map_err(|error| error.within(place)))
    }

    async fn decide(
        &self,
        ask: impl Fn(&O) -> Result<Option<Outcome>> + Copy + Send + 'static,
    ) -> Result<Outcome> {
        let owned = self.owned.clone();
        let decided = until_decided(move || ask(&owned)).await;
        decided.map_err(|error| error.within(self.location.clone()))
    }
}

/// Asks again until the one who holds the decision has let go of it.
pub(crate) async fn until_decided<T: Send + 'static>(
    ask: impl Fn() -> Result<Option<T>> + Clone + Send + 'static,
) -> Result<T> {
    let deadline = tokio::time::Instant::now() + DECISION_TIMEOUT;
    loop {
        if let Some(answer) = blocking(ask.clone()).await? {
            return Ok(answer);
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Busy, "decide between commit and cancel")
                .hint("another process has been deciding for 30 seconds; ask again")
                .retryable(true));
        }
        tokio::time::sleep(DECISION_POLL).await;
    }
}

impl<O: Owned> Target for JournaledTarget<O> {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        let base = self.base();
        self.with(|owned| {
            let mut restored = owned.held().begin()?;
            restored.base = base;
            Ok(restored)
        })
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        self.with(move |owned| {
            let held = owned.held();
            match &held.encrypted {
                Some(encrypted) => encrypted.write_chunk(&held.data, &chunk)?,
                None => owned.write(chunk.range().offset, chunk.data())?,
            }
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        self.with(move |owned| {
            let geometry = owned.held().journal.header().spec.geometry;
            if let Some(encrypted) = &owned.held().encrypted {
                encrypted.forget(run)?;
            }
            owned.write_zeroes(geometry.run_range(run))?;
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        self.with(|owned| {
            let sync = || owned.held().sync();
            let again = |error| if sabotage::is("M5") { sync() } else { Err(error) };
            sabotage::unless("M1", || sync().or_else(again))
        })
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        let chunks = chunks.to_vec();
        self.with(move |owned| {
            let held = owned.held();
            match &held.encrypted {
                Some(encrypted) => held.journal.append_progress(&encrypted.masked(&chunks)?),
                None => held.journal.append_progress(&chunks),
            }
        })
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        self.with(move |owned| owned.held().read_back(range))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let manifest = manifest.clone();
            self.with(move |owned| owned.prepare(&manifest)).await?;
            self.decide(O::try_publish).await
        })
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.with(O::finish)
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.decide(O::try_discard))
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        self.with(|owned| owned.held().wishes())
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        let progress = progress.clone();
        self.with(move |owned| {
            let journal = &owned.held().journal;
            journal.set_status(&Status { epoch: journal.epoch(), progress })
        })
    }

    fn local(&self) -> Option<LocalFile> {
        Some(self.file.clone())
    }
}
