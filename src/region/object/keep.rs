//! What an image hangs on: wrapped keys, found again by those who go on with a job, and objects
//! that are read back when they are put.

use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::region::refuse_key;
use crate::store::{Condition, Put};

use super::Shared;
use super::encrypted::{Lock, key_around};
use super::names::{self, Named, Part};
use super::stage::Stage;

impl Stage {
    /// What encrypts the image, if it is to be encrypted: the key of the last attempt that has kept
    /// one, else a new one.
    pub(super) async fn lock(&self, base: u32, before: u32) -> Result<Option<Arc<Lock>>> {
        let Some(fresh) = &self.fresh else {
            // What is to be encrypted is never written in clear.
            return refuse_key(&self.spec).map(|()| None);
        };
        let (image, job) = (&self.spec.target.image, self.spec.job);
        let earlier = self.shared.attempts(image, job).await?.into_iter();
        for epoch in earlier.filter(|epoch| (base.saturating_add(1)..before).contains(epoch)) {
            let attempt = names::attempt(image, job, epoch);
            if let Some(lock) = self.shared.find_lock(&attempt, &self.spec).await? {
                return Ok(Some(Arc::new(lock)));
            }
        }
        Ok(Some(fresh.clone()))
    }
}

impl Shared {
    /// The attempts of that job of which something is there, the last one first. They are not
    /// counted out of a head: that is only as bounded as who wrote it wants.
    pub(super) async fn attempts(&self, image: &ImageId, job: JobId) -> Result<Vec<u32>> {
        let folders = self.store.folders(&names::image(image)).await?;
        let attempts = folders.iter().filter_map(|folder| names::read_attempt(folder));
        let mut epochs: Vec<u32> =
            attempts.filter(|(of, _)| *of == job).map(|(_, epoch)| epoch).collect();
        epochs.sort_unstable_by_key(|epoch| std::cmp::Reverse(*epoch));
        Ok(epochs)
    }

    /// The key that an attempt of that job has kept, if it has kept one. One that is damaged opens
    /// nothing, and one that another key wraps is none of the job's: they are passed over, and
    /// nobody is asked for them.
    async fn find_lock(&self, attempt: &str, spec: &JobSpec) -> Result<Option<Lock>> {
        let image = &spec.target.image;
        let mut walk = self.walk(names::wrapped_keys(attempt));
        while let Some(entries) = walk.next().await? {
            for entry in entries {
                let Named::Part { part: Part::Key(digest), .. } = names::read(image, &entry.key)
                else {
                    continue;
                };
                let Some(wrapped) = self.wrapped_key(attempt, &digest).await? else { continue };
                if key_around(&wrapped) != spec.key {
                    continue;
                }
                match self.keys.open(wrapped, (image, spec.geometry, spec.job)).await {
                    Err(error) if error.kind() == ErrorKind::Corrupt => {}
                    opened => return opened.map(Some),
                }
            }
        }
        Ok(None)
    }

    /// The wrapped key of that name; `None` where there is none, or one that is not it.
    pub(super) async fn wrapped_key(
        &self,
        attempt: &str,
        digest: &Digest,
    ) -> Result<Option<Bytes>> {
        let key = names::wrapped_key(attempt, digest);
        let object = match self.store.get(&key, names::WRAPPED_KEY_LEN_MAX).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            read => read?,
        };
        let wrapped = object.map(|object| object.bytes);
        Ok(wrapped.filter(|wrapped| names::digest_of(wrapped) == *digest))
    }

    pub(super) async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        match self.store.put(key, bytes, &Condition::Any).await? {
            Put::Done(_) => Ok(()),
            Put::Unknown(error) => Err(error),
            Put::Refused => {
                Err(Error::new(ErrorKind::Unsupported, "write an object without a condition"))
            }
        }
    }

    /// Puts an object that everything hangs on, and reads it back.
    pub(super) async fn put_whole(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.put(key, bytes.clone()).await?;
        let read = self.store.get(key, to_u64(bytes.len())).await?;
        if read.is_none_or(|object| object.bytes != bytes) {
            let what = "write what an image hangs on: it reads back otherwise";
            return Err(
                Error::new(ErrorKind::Corrupt, what).within(format!("{}/{key}", self.location()))
            );
        }
        Ok(())
    }
}
