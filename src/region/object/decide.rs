//! How a stage ends by its owner: commit, what remains to be done after it, discard.

use bytes::Bytes;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, to_u64, to_usize};
use crate::manifest::Manifest;
use crate::region::Outcome;

use super::chunks::Parts;
use super::encrypted::ADDED_LEN;
use super::head::Made;
use super::image::Image;
use super::names::{self, Named, Part};
use super::register::{Held, Swapped, draw};
use super::rules::{self, Decide, Phase};
use super::stage::Stage;

/// How many chunks that no listing shows are asked for one by one before a commit.
const UNLISTED_COUNT_MAX: usize = 4096;

impl Stage {
    pub(super) async fn commit(&self, manifest: &Manifest) -> Result<Outcome> {
        let mut held = self.held.lock().await;
        let image = &self.spec.target.image;
        let now = self.shared.register.read(image).await?;
        if let Some(outcome) = self.decided(&now)? {
            return Ok(outcome);
        }
        let Some(head) = now.head.clone() else { return Err(self.fenced()) };
        let made = match self.make(head.sight.epoch, manifest).await {
            Ok(made) => made,
            // Who has cancelled from elsewhere deletes what is looked for here.
            Err(error) => {
                return self.decided(&self.shared.register.read(image).await?)?.ok_or(error);
            }
        };
        // Order: everything that the head will name is there, then the head. This is the decision.
        let next = head.moved(Phase::Committed, Some(made), draw()?);
        match self.shared.register.swap(&now, next).await? {
            Swapped::Done(now) => {
                *held = now;
                Ok(Outcome::Committed)
            }
            Swapped::Lost(now) => self.decided(&now)?.ok_or_else(|| {
                Error::new(ErrorKind::Unavailable, "commit: the head changed under it")
                    .within(self.location())
            }),
        }
    }

    /// Everything that the head will name.
    async fn make(&self, epoch: u32, manifest: &Manifest) -> Result<Made> {
        let parts = self.parts(manifest)?;
        self.check_listed(manifest, &parts).await?;
        let attempt = names::attempt(&self.spec.target.image, self.spec.job, epoch);
        self.put_image(&attempt, &parts, manifest).await
    }

    /// How the job was decided; `None`: it is not, and this owner may.
    fn decided(&self, now: &Held) -> Result<Option<Outcome>> {
        self.note(now);
        match rules::decide(now.sight(), self.spec.job, self.owner) {
            Decide::Decided(outcome) => Ok(Some(outcome)),
            Decide::Fenced => Err(self.fenced()),
            Decide::Swap => Ok(None),
        }
    }

    /// Which attempt has written each chunk of data.
    fn parts(&self, manifest: &Manifest) -> Result<Parts> {
        let runs = manifest.table().runs().filter(|(_, is_zero)| !is_zero);
        let data = runs.flat_map(|(run, _)| run.iter());
        let inner = self.inner();
        let lock = inner.attempt.as_ref().and_then(|attempt| attempt.lock.clone());
        let parts = inner.whereabouts.as_ref().and_then(|whereabouts| match lock {
            None => whereabouts.epochs(data).map(Parts::Plain),
            Some(lock) => whereabouts.writes(data).map(|writes| Parts::Sealed(writes, lock)),
        });
        parts.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "commit an image of which chunks were not written")
                .within(self.location())
        })
    }

    /// The store lists every chunk that the manifest names; those that it does not are asked for.
    async fn check_listed(&self, manifest: &Manifest, parts: &Parts) -> Result<()> {
        let (image, job, geometry) = (&self.spec.target.image, self.spec.job, self.spec.geometry);
        let table = manifest.table();
        let mut listed = vec![false; to_usize(u64::from(geometry.chunk_count()))];
        self.shared.store.settle().await;
        let mut walk = self.shared.walk(names::written(image, job));
        while let Some(entries) = walk.next().await? {
            for entry in entries {
                let Named::Part { epoch, part, .. } = names::read(image, &entry.key) else {
                    continue;
                };
                let (index, added) = match part {
                    Part::Chunk { index, .. } => (index, 0),
                    Part::Sealed { index, .. } => (index, ADDED_LEN),
                    _ => continue,
                };
                if geometry.holds(ChunkRun::new(index, 1))
                    && parts.name(epoch, &part, manifest)
                    && (1 + added..=geometry.range(index).len + added).contains(&entry.meta.len)
                {
                    listed[index.slot()] = true;
                }
            }
        }
        let named = |index: &ChunkIndex| table.digest(*index).is_some() && !listed[index.slot()];
        for (count, index) in geometry.chunks().iter().filter(named).enumerate() {
            let Some(digest) = table.digest(index) else { continue };
            let place = parts.place(|epoch| names::attempt(image, job, epoch), index, &digest)?;
            let Some((key, _)) = place else { continue };
            if count >= UNLISTED_COUNT_MAX || self.shared.store.head(&key).await?.is_none() {
                let offset = geometry.range(index).offset;
                return Err(Error::new(ErrorKind::Corrupt, "commit: the store has lost a chunk")
                    .at(self.location(), offset)
                    .hint("nothing was committed; resume the job to write it again"));
            }
        }
        Ok(())
    }

    /// Puts what the head will name: the manifest, and the key that opens it.
    async fn put_image(&self, attempt: &str, parts: &Parts, manifest: &Manifest) -> Result<Made> {
        let (bytes, root, key) = match parts {
            Parts::Plain(epochs) => (Image::encode(epochs, manifest)?, manifest.root(), None),
            Parts::Sealed(writes, lock) => {
                let key = lock.made_key();
                // Again: without it, nothing of the image is worth anything.
                let place = names::wrapped_key(attempt, &key.digest);
                self.shared.put_whole(&place, lock.wrapped().clone()).await?;
                let bytes = lock.seal_image(writes, manifest)?;
                (bytes, lock.blind(&manifest.root())?, Some(key))
            }
        };
        let bytes = Bytes::from(bytes);
        self.shared.put_whole(&names::manifest(attempt), bytes.clone()).await?;
        Ok(Made {
            manifest: Digest::from_bytes(*blake3::hash(&bytes).as_bytes()),
            manifest_bytes: to_u64(bytes.len()),
            root,
            image_bytes: manifest.geometry().image_bytes(),
            key,
        })
    }

    pub(super) async fn finish(&self) -> Result<()> {
        self.still().await;
        let now = self.shared.register.read(&self.spec.target.image).await?;
        let ours = now
            .sight()
            .filter(|sight| sight.job == self.spec.job && sight.phase == Phase::Committed);
        // An image that was removed since has nothing left, of the stage neither.
        let Some(sight) = ours.copied() else { return Ok(()) };
        let made = self.shared.made(&now).await?;
        self.shared.tidy(&sight, &self.spec.target.image, &made).await
    }

    pub(super) async fn discard(&self) -> Result<Outcome> {
        self.still().await;
        let image = &self.spec.target.image;
        loop {
            let now = self.shared.register.read(image).await?;
            let decided = match self.decided(&now)? {
                Some(Outcome::Committed) => return Ok(Outcome::Committed),
                Some(Outcome::Cancelled) => now,
                None => {
                    let Some(head) = &now.head else { return Err(self.fenced()) };
                    let next = head.moved(Phase::Aborting, None, draw()?);
                    match self.shared.register.swap(&now, next).await? {
                        Swapped::Done(now) => now,
                        Swapped::Lost(_) => continue,
                    }
                }
            };
            let ours = decided.sight().filter(|sight| sight.job == self.spec.job);
            match ours.map(|sight| sight.phase) {
                Some(Phase::Aborting) => self.shared.bury(&decided).await?,
                // Somebody else has cleaned it; what this owner showed of itself may be there yet.
                Some(Phase::Aborted) => self.shared.forget(self.spec.job).await?,
                _ => {}
            }
            return Ok(Outcome::Cancelled);
        }
    }
}
