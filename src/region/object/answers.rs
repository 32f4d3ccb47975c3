//! What is told of images and jobs, and what is put before owners.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::id::{ImageId, JobId};
use crate::manifest::Manifest;
use crate::region::{ImageInfo, Located, Source, StagedJob, Wish};
use crate::store::{Condition, Put};

use super::chunks::Parts;
use super::encrypted::key_is_gone;
use super::image::{Image, SealedImage};
use super::notes::{self, Pulse};
use super::register::Held;
use super::rules::{Life, Phase, Sight};
use super::source::ObjectSource;
use super::{Shared, names};

/// How many heads are read at once.
const HEADS_AT_ONCE: usize = 16;

impl Shared {
    /// The job's pulse, and the head of the image that it speaks of, if it is this job's.
    async fn found(&self, job: JobId) -> Result<Option<(Pulse, Held)>> {
        let Some((pulse, _)) = self.pulse(job).await? else { return Ok(None) };
        let held = self.register.read(&pulse.image).await?;
        let ours = held.sight().is_some_and(|sight| sight.job == job);
        Ok(ours.then_some((pulse, held)))
    }

    /// What is told of a job; `patient`: until it is sure whether its owner lives.
    pub(super) async fn told(&self, job: JobId, patient: bool) -> Result<Option<StagedJob>> {
        loop {
            let Some((pulse, held)) = self.found(job).await? else { return Ok(None) };
            let Some(head) = held.head.filter(|head| is_staged(&head.sight, job)) else {
                return Ok(None);
            };
            let life = self.life(&head.sight, Some(&pulse)).await;
            if patient && life == Life::Unsure {
                self.pause().await;
                continue;
            }
            let Some(spec) = head.spec else { return Ok(None) };
            let mut told = StagedJob::new(*spec);
            told.epoch = head.sight.epoch - head.sight.base;
            told.owned = life != Life::Dead;
            told.cancelled = head.sight.phase == Phase::Aborting;
            told.progress = pulse.progress;
            let limits = self.store.get(&names::limits(job), notes::NOTE_LEN_MAX).await?;
            if let Some(limits) = limits {
                told.limits = notes::decode_ceilings(&limits.bytes)?;
            }
            return Ok(Some(told));
        }
    }

    /// The jobs that have shown themselves here.
    pub(super) async fn job_ids(&self) -> Result<Vec<JobId>> {
        let folders = self.store.folders(names::JOBS).await?;
        Ok(folders.iter().filter_map(|name| names::read_job(name)).collect())
    }

    pub(super) async fn jobs(self: &Arc<Self>) -> Result<Vec<StagedJob>> {
        let told = self
            .each(self.job_ids().await?, |shared, job| async move { shared.told(job, true).await });
        Ok(told.await?.into_iter().flatten().collect())
    }

    pub(super) async fn list(self: &Arc<Self>) -> Result<Vec<ImageInfo>> {
        let folders = self.store.folders(names::IMAGES).await?;
        let images: Vec<ImageId> = folders.iter().filter_map(|name| name.parse().ok()).collect();
        let told = self.each(images, |shared, image: ImageId| async move {
            let held = shared.register.read(&image).await?;
            Ok(held.head.and_then(|head| head.info()))
        });
        let mut told: Vec<ImageInfo> = told.await?.into_iter().flatten().collect();
        told.sort_by(|one, other| one.image.cmp(&other.image));
        Ok(told)
    }

    /// Asks the same of many, several at once.
    pub(super) async fn each<T, U, F>(
        self: &Arc<Self>,
        all: Vec<T>,
        ask: impl Fn(Arc<Self>, T) -> F,
    ) -> Result<Vec<U>>
    where
        U: Send + 'static,
        F: Future<Output = Result<U>> + Send + 'static,
    {
        let (mut all, mut tasks, mut told) = (all.into_iter(), JoinSet::new(), Vec::new());
        loop {
            while tasks.len() < HEADS_AT_ONCE {
                let Some(next) = all.next() else { break };
                tasks.spawn(ask(self.clone(), next));
            }
            let Some(ended) = tasks.join_next().await else { return Ok(told) };
            let ended =
                ended.unwrap_or_else(|e| Err(Error::new(ErrorKind::Io, "ask a store").because(e)));
            told.push(ended?);
        }
    }

    pub(super) async fn locate(&self, image: &ImageId) -> Result<Located> {
        let held = self.register.read(image).await?;
        Ok(match held.sight().map(|sight| (sight.phase, sight.job)) {
            Some((Phase::Committed, job)) => Located::Committed(Some(job)),
            Some((Phase::Active | Phase::Aborting, job)) => Located::Staged(job),
            Some((Phase::Aborted, job)) => Located::Cancelled(job),
            _ => Located::Absent,
        })
    }

    pub(super) async fn open(self: &Arc<Self>, image: &ImageId) -> Result<Arc<dyn Source>> {
        loop {
            let held = self.register.read(image).await?;
            let visible = held.sight().filter(|sight| sight.phase == Phase::Committed).copied();
            let Some(sight) = visible else { return Err(missing("open", image)) };
            let opened = match self.made(&held).await? {
                Image::Plain { epochs, manifest } => Some((Parts::Plain(epochs), manifest)),
                Image::Sealed(sealed) => self.unlock(&held, sealed).await?,
            };
            if let Some((parts, manifest)) = opened {
                let source = ObjectSource::new(self.clone(), image.clone(), sight, parts, manifest);
                return Ok(Arc::new(source));
            }
            // It has another key since, unless nothing has changed.
            if self.register.read(image).await?.sight() == Some(&sight) {
                return Err(key_is_gone("open image"));
            }
        }
    }

    /// Opens an encrypted image; `None`: the wrapped key that its head names is not there.
    async fn unlock(
        self: &Arc<Self>,
        held: &Held,
        sealed: SealedImage,
    ) -> Result<Option<(Parts, Manifest)>> {
        let what = "open image: whether it is encrypted is said in two ways";
        let parts = held.head.as_ref().and_then(|head| {
            let made = head.made.as_ref()?;
            Some((head, made, made.key.as_ref()?, head.geometry()?))
        });
        let Some((head, made, key, geometry)) = parts else {
            return Err(Error::new(ErrorKind::Corrupt, what));
        };
        let attempt = names::attempt(&head.image, head.sight.job, head.sight.epoch);
        let Some(wrapped) = self.wrapped_key(&attempt, &key.digest).await? else {
            return Ok(None);
        };
        let job = head.sight.job;
        let lock = Arc::new(self.keys.open(wrapped, (&head.image, geometry, job)).await?);
        let opening = lock.clone();
        let opened = host::spawn_blocking(move || {
            let manifest = opening.open_image(&sealed, job)?;
            let root = opening.blind(&manifest.root())?;
            Ok::<_, Error>((sealed.writes, manifest, root))
        });
        let opened = opened.await;
        let (writes, manifest, root) =
            opened.map_err(|error| Error::new(ErrorKind::Io, "open image").because(error))??;
        if (root, manifest.geometry().image_bytes()) != (made.root, made.image_bytes) {
            let what = "open image: its head speaks of another one";
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Ok(Some((Parts::Sealed(writes, lock), manifest)))
    }

    pub(super) async fn wish(&self, job: JobId, wish: Wish) -> Result<bool> {
        let Some((_, held)) = self.found(job).await? else { return Ok(false) };
        let Some(sight) = held.sight().filter(|sight| is_staged(sight, job)) else {
            return Ok(false);
        };
        let (key, bytes) = match wish {
            Wish::Suspend => (names::suspend(job), notes::encode_suspend(sight.txn)),
            Wish::Limit(limits) => (names::limits(job), notes::encode_ceilings(limits)),
        };
        match self.store.put(&key, bytes.into(), &Condition::Any).await? {
            Put::Done(_) => Ok(true),
            Put::Unknown(error) => Err(error),
            Put::Refused => Err(Error::new(ErrorKind::Unsupported, "leave a wish for a job")
                .within(self.location())),
        }
    }
}

/// Whether that job has the image staged, cancelled or not.
pub(super) fn is_staged(sight: &Sight, job: JobId) -> bool {
    sight.job == job && matches!(sight.phase, Phase::Active | Phase::Aborting)
}

pub(super) fn missing(what: &str, image: &ImageId) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} {image}"))
}
