//! A stage in an object store: where its owner stands, what it writes, what it hears.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chunk::{Content, Durable, Sealed, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, to_usize};
use crate::job::{JobSpec, JobState, Progress};
use crate::region::{Outcome, Restored, Wishes};
use crate::store::PAGE_ENTRIES_MAX;

use super::Shared;
use super::chunks::{Cover, read_chunk};
use super::encrypted::{ADDED_LEN, Lock};
use super::gather::{Gathered, Whereabouts};
use super::image::{SALT_LEN, Salt};
use super::names::{self, Mark, Named, Part};
use super::notes::{self, NOTE_LEN_MAX, ZEROS_LEN_MAX};
use super::pulse::Heart;
use super::register::{Held, Swapped, draw};
use super::rules::{self, Decide, Owner};

/// How many looks and signs of life in a row are made at once; then one each beat.
const BURST: u32 = 8;

/// What a target and its signs of life share.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: JobSpec,
    pub(super) owner: Owner,
    /// The head as this owner last wrote it.
    pub(super) held: tokio::sync::Mutex<Held>,
    heart: tokio::sync::Mutex<Heart>,
    inner: Mutex<Inner>,
    /// A new data key, for an image that is to be encrypted and has none yet.
    pub(super) fresh: Option<Arc<Lock>>,
    /// The target is dropped, or needs no sign of life any more.
    ended: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Inner {
    standing: Standing,
    pub(super) attempt: Option<Attempt>,
    pub(super) whereabouts: Option<Whereabouts>,
    wishes: Wishes,
    budget: Budget,
    heart: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) epoch: u32,
    pub(super) prefix: String,
    zeros: u32,
    /// What encrypts its chunks, if the image is encrypted.
    pub(super) lock: Option<Arc<Lock>>,
}

/// Where this owner stands, as far as it has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Owns,
    /// It was cancelled: what is written from now on is of no use to anybody.
    Cancelled,
    Fenced,
}

/// A burst of calls, then one a beat: who asks the store as often as a disk pays for it.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn take(&mut self, beat: Duration) -> bool {
        let now = Instant::now();
        let beats = now.duration_since(self.refilled).as_millis() / beat.as_millis().max(1);
        if beats > 0 {
            let more = u32::try_from(beats).unwrap_or(BURST);
            (self.left, self.refilled) = (self.left.saturating_add(more).min(BURST), now);
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

impl Stage {
    pub(super) fn new(
        shared: Arc<Shared>,
        spec: &JobSpec,
        owner: Owner,
        (held, heart): (Held, Heart),
        fresh: Option<Lock>,
    ) -> Self {
        let inner = Inner {
            standing: Standing::Owns,
            attempt: None,
            whereabouts: None,
            wishes: Wishes::default(),
            budget: Budget { left: BURST, refilled: Instant::now() },
            heart: None,
        };
        Self {
            shared,
            spec: spec.clone(),
            owner,
            held: tokio::sync::Mutex::new(held),
            heart: tokio::sync::Mutex::new(heart),
            inner: Mutex::new(inner),
            fresh: fresh.map(Arc::new),
            ended: CancellationToken::new(),
        }
    }

    /// The task that shows its signs of life.
    pub(super) fn beats_in(&self, task: JoinHandle<()>) {
        self.inner().heart = Some(task);
    }

    /// No sign of life is needed any more.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn beat_interval(&self) -> Duration {
        self.shared.options.beat
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn location(&self) -> String {
        self.shared.location_of(&self.spec.target.image)
    }

    pub(super) fn fenced(&self) -> Error {
        Error::new(ErrorKind::Fenced, format!("go on with job {}", self.spec.job))
            .within(self.location())
            .hint("another daemon took it over; it goes on there")
    }

    /// One look at the head, and one sign of life.
    pub(super) async fn beat(&self) {
        // A look that fails is no loss: the next one comes soon.
        self.look().await.ok();
        if self.inner().standing == Standing::Fenced {
            return;
        }
        let swaps = self.shared.register.swaps();
        let mut heart = self.heart.lock().await;
        if let Ok(false) = heart.beat(&*self.shared.store, swaps).await
            && self.look().await.is_ok_and(|standing| standing == Standing::Owns)
        {
            // Somebody took the pulse away who thought that nobody needed it.
            heart.start(&*self.shared.store).await.ok();
        }
    }

    /// Tells, if it can be told safely, that nobody owns the stage any more.
    pub(super) async fn let_go(&self) {
        if !self.shared.register.swaps() {
            return;
        }
        let mut heart = self.heart.lock().await;
        heart.let_go = true;
        heart.beat(&*self.shared.store, true).await.ok();
    }

    /// Ends the signs of life, and waits until none is under way.
    pub(super) async fn still(&self) {
        self.end();
        let beating = self.inner().heart.take();
        if let Some(beating) = beating {
            beating.await.ok();
        }
    }

    /// Reads the head, and notes where this owner stands.
    async fn look(&self) -> Result<Standing> {
        let now = self.shared.register.read(&self.spec.target.image).await?;
        Ok(self.note(&now))
    }

    pub(super) fn note(&self, now: &Held) -> Standing {
        let is_ours = now.sight().is_some_and(|sight| sight.owner == self.owner);
        let standing = match rules::decide(now.sight(), self.spec.job, self.owner) {
            Decide::Swap => Standing::Owns,
            Decide::Decided(Outcome::Committed) if is_ours => Standing::Owns,
            // Somebody else has committed it: what is still written here is of no use.
            Decide::Decided(Outcome::Committed) => Standing::Fenced,
            Decide::Decided(Outcome::Cancelled) => Standing::Cancelled,
            Decide::Fenced => Standing::Fenced,
        };
        self.inner().standing = standing;
        standing
    }

    /// The attempt under way; `None`: the job was cancelled, and nothing needs to be written.
    pub(super) fn attempt(&self) -> Result<Option<Attempt>> {
        let inner = self.inner();
        match (inner.standing, &inner.attempt) {
            (Standing::Fenced, _) => Err(self.fenced()),
            (Standing::Cancelled, _) => Ok(None),
            (Standing::Owns, Some(attempt)) => Ok(Some(attempt.clone())),
            (Standing::Owns, None) => {
                Err(Error::new(ErrorKind::Invalid, "write before the attempt has begun")
                    .within(self.location()))
            }
        }
    }

    pub(super) async fn begin(&self) -> Result<Restored> {
        let mut held = self.held.lock().await;
        if self.inner().attempt.is_some() {
            return Err(
                Error::new(ErrorKind::Invalid, "begin an attempt twice").within(self.location())
            );
        }
        let Some(head) = held.head.clone() else { return Err(self.fenced()) };
        let next = head.stepped(head.sight.begun(draw()?));
        // Order: the attempt before is fenced, then what it has left is listed.
        match self.shared.register.swap(&held, next).await? {
            Swapped::Done(now) => *held = now,
            Swapped::Lost(now) => {
                return match self.note(&now) {
                    Standing::Cancelled => Ok(Restored::new(self.spec.geometry)),
                    _ => Err(self.fenced()),
                };
            }
        }
        let Some(sight) = held.sight().copied() else { return Err(self.fenced()) };
        let lock = self.lock(sight.base, sight.epoch).await?;
        let gathered = self.gather(sight.base, sight.epoch, lock.as_deref()).await?;
        let (restored, whereabouts) = gathered;
        let prefix = names::attempt(&self.spec.target.image, self.spec.job, sight.epoch);
        if let Some(lock) = &lock {
            // Order: the wrapped key, then what it opens.
            let key = names::wrapped_key(&prefix, &lock.made_key().digest);
            self.put(&key, lock.wrapped().clone()).await?;
        }
        let mut inner = self.inner();
        inner.attempt = Some(Attempt { epoch: sight.epoch, prefix, zeros: 0, lock });
        inner.whereabouts = Some(whereabouts);
        Ok(restored)
    }

    /// What earlier attempts of this job have made durable. Of an encrypted image nothing counts
    /// that its key has not made for that very place.
    async fn gather(
        &self,
        base: u32,
        before: u32,
        lock: Option<&Lock>,
    ) -> Result<(Restored, Whereabouts)> {
        let (image, job) = (&self.spec.target.image, self.spec.job);
        let mut gathered = Gathered::new(self.spec.geometry, lock.is_some());
        let mut zeros = Vec::new();
        let mut walk = self.shared.walk(names::written(image, job));
        while let Some(entries) = walk.next().await? {
            for entry in entries {
                match names::read(image, &entry.key) {
                    Named::Part { epoch, part, .. } if base < epoch && epoch < before => match part
                    {
                        Part::Chunk { index, digest } if lock.is_none() => {
                            gathered.chunk(epoch, index, digest, entry.meta.len);
                        }
                        Part::Sealed { index, mark } => {
                            let read = lock.and_then(|lock| lock.read_mark(index, epoch, &mark));
                            let Some(digest) = read else { continue };
                            let len = entry.meta.len.saturating_sub(ADDED_LEN);
                            gathered.sealed(epoch, index, digest, len, salt_of(&mark));
                        }
                        Part::Zeros(number) => zeros.push((epoch, number, entry.key)),
                        _ => {}
                    },
                    _ => {}
                }
            }
        }
        for (epoch, number, key) in zeros {
            let told = |error: Error| error.within(format!("{}/{key}", self.shared.location()));
            let object = self.shared.store.get(&key, ZEROS_LEN_MAX).await.map_err(told)?;
            let Some(object) = object else { continue };
            let read = match lock.map(|lock| lock.open_note(epoch, number, &object.bytes)) {
                None => notes::decode_zeros(self.spec.geometry, &object.bytes).map_err(told)?,
                Some(Ok(text)) => notes::decode_zeros(self.spec.geometry, &text).map_err(told)?,
                // Somebody else's: what it says is looked at again.
                Some(Err(_)) => continue,
            };
            for run in read {
                gathered.zeros(epoch, run);
            }
        }
        gathered.finish()
    }

    /// These chunks are zero: what was written of them is theirs no more.
    pub(super) fn forget(&self, run: ChunkRun) {
        if let Some(whereabouts) = &mut self.inner().whereabouts {
            run.iter().for_each(|index| whereabouts.set(index, None));
        }
    }

    /// That attempt has written the chunk; with that salt, if it is encrypted.
    pub(super) fn set(&self, index: ChunkIndex, epoch: u32, salt: Option<Salt>) {
        match (&mut self.inner().whereabouts, salt) {
            (Some(whereabouts), Some(salt)) => whereabouts.set_write(index, epoch, salt),
            (Some(whereabouts), None) => whereabouts.set(index, Some(epoch)),
            (None, _) => {}
        }
    }

    fn epoch_of(&self, index: ChunkIndex) -> Option<u32> {
        self.inner().whereabouts.as_ref()?.of(index)
    }

    fn write_of(&self, index: ChunkIndex) -> Option<(u32, Salt)> {
        self.inner().whereabouts.as_ref()?.write_of(index)
    }

    pub(super) async fn write(&self, chunk: Sealed) -> Result<Written> {
        let Some(attempt) = self.attempt()? else { return Ok(chunk.written()) };
        let place = (attempt.prefix.as_str(), attempt.epoch);
        let stored = self.shared.stored(place, attempt.lock.as_ref(), &chunk).await?;
        let offset = chunk.range().offset;
        let put = self.put(&stored.key, stored.bytes).await;
        put.map_err(|error| error.at(self.location(), offset))?;
        self.set(chunk.index(), attempt.epoch, stored.salt);
        Ok(chunk.written())
    }

    pub(super) async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.shared.put(key, bytes).await.map_err(|error| error.within(self.location()))
    }

    pub(super) async fn checkpoint(&self, chunks: &[Durable]) -> Result<()> {
        let zero = |chunk: &&Durable| chunk.content() == Content::Zero;
        let runs = notes::joined(chunks.iter().filter(zero).map(Durable::run).collect());
        // Chunks of data are on record when they are written: the listing is the record.
        for record in notes::encode_zeros(&runs) {
            let Some(attempt) = self.attempt()? else { return Ok(()) };
            if let Some(attempt) = &mut self.inner().attempt {
                attempt.zeros += 1;
            }
            let record = match &attempt.lock {
                None => record,
                Some(lock) => lock.seal_note(attempt.epoch, attempt.zeros, &record)?,
            };
            self.put(&names::zeros(&attempt.prefix, attempt.zeros), record.into()).await?;
        }
        self.attempt().map(|_| ())
    }

    pub(super) async fn read_back(&self, range: ByteRange) -> Result<Bytes> {
        let geometry = self.spec.geometry;
        let mut bytes = vec![0; to_usize(range.len)];
        let mut offset = range.offset;
        while offset < range.end().min(geometry.image_bytes()) {
            let index = geometry.index_of(offset);
            let of_chunk = geometry.range(index);
            let part = of_chunk.intersect(range);
            if let Some(epoch) = self.epoch_of(index) {
                let told = |error: Error| error.at(self.location(), of_chunk.offset);
                let chunk = self.staged(index, epoch).await.map_err(told)?;
                let from = to_usize(part.offset - of_chunk.offset);
                let Some(read) = chunk.get(from..from + to_usize(part.len)) else {
                    // Fewer bytes than asked for: they do not verify.
                    bytes.truncate(to_usize(part.offset - range.offset));
                    return Ok(bytes.into());
                };
                let at = to_usize(part.offset - range.offset);
                bytes[at..at + read.len()].copy_from_slice(read);
            }
            offset = of_chunk.end();
        }
        Ok(bytes.into())
    }

    /// A chunk as it is staged; empty where the store has lost it.
    async fn staged(&self, index: ChunkIndex, epoch: u32) -> Result<Bytes> {
        let image = &self.spec.target.image;
        let attempt = names::attempt(image, self.spec.job, epoch);
        let prefix = names::chunk_at(&attempt, index);
        let page = self.shared.store.list(&prefix, None, PAGE_ENTRIES_MAX).await?;
        let lock = self.inner().attempt.as_ref().and_then(|attempt| attempt.lock.clone());
        let salt = self.write_of(index).map(|(_, salt)| salt);
        let ours = page.entries.into_iter().filter_map(|entry| {
            match (names::read(image, &entry.key), &lock) {
                (Named::Part { part: Part::Chunk { .. }, .. }, None) => Some((entry, None)),
                (Named::Part { part: Part::Sealed { mark, .. }, .. }, Some(lock))
                    if salt == Some(salt_of(&mark)) =>
                {
                    Some((entry, Some(Cover { lock: lock.clone(), epoch, mark })))
                }
                _ => None,
            }
        });
        let latest = ours.max_by_key(|(entry, _)| entry.meta.modified_ms);
        let Some((latest, cover)) = latest else { return Ok(Bytes::new()) };
        let (store, geometry) = (&*self.shared.store, self.spec.geometry);
        match read_chunk(store, &latest.key, geometry, index, cover).await {
            // What is damaged does not verify: that is what it is read back for.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Bytes::new()),
            read => Ok(read?.unwrap_or_default()),
        }
    }

    pub(super) async fn wishes(&self) -> Result<Wishes> {
        let beat = self.shared.options.beat;
        if !self.inner().budget.take(beat) {
            return Ok(self.inner().wishes);
        }
        let now = self.shared.register.read(&self.spec.target.image).await?;
        let cancelled = self.note(&now) == Standing::Cancelled;
        let job = self.spec.job;
        let (limits, suspend) = (names::limits(job), names::suspend(job));
        let limits = self.shared.store.get(&limits, NOTE_LEN_MAX).await?;
        let limits = limits.map(|object| notes::decode_ceilings(&object.bytes)).transpose()?;
        let suspend = self.shared.store.get(&suspend, NOTE_LEN_MAX).await?;
        let suspend = suspend.map(|object| notes::decode_suspend(&object.bytes)).transpose()?;
        let suspend = suspend.is_some() && suspend == now.sight().map(|sight| sight.txn);
        let wishes = Wishes { cancelled, suspend, limits };
        self.inner().wishes = wishes;
        Ok(wishes)
    }

    pub(super) async fn report(&self, progress: &Progress) -> Result<()> {
        let mut heart = self.heart.lock().await;
        heart.progress = Some(progress.clone());
        heart.let_go = has_stopped(progress.state);
        let now = self.inner().budget.take(self.shared.options.beat) || heart.let_go;
        let is_fenced = self.inner().standing == Standing::Fenced;
        if !now || self.ended.is_cancelled() || is_fenced {
            return Ok(());
        }
        heart.beat(&*self.shared.store, self.shared.register.swaps()).await.map(|_| ())
    }
}

/// Whether an owner that tells this of itself is about to let go.
fn has_stopped(state: JobState) -> bool {
    matches!(state, JobState::Suspended | JobState::Failed { .. } | JobState::RollbackPending)
}

fn salt_of(mark: &Mark) -> Salt {
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&mark[..SALT_LEN]);
    salt
}
