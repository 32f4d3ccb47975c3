//! Removing: what a job has written, what only its stage needed, and what nobody wants any more.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::sabotage;
use crate::store::{DELETE_KEYS_MAX, Entry, PAGE_ENTRIES_MAX, Store};

use super::Shared;
use super::image::{IMAGE_LEN_MAX, Image};
use super::names::{self, Named, Part};
use super::register::{Held, Swapped, draw};
use super::rules::{self, Phase, Sight, Wanted};

/// How often is looked whether everything is gone.
const ROUND_COUNT_MAX: u32 = 50;
/// How many listings in a row must show nothing.
const EMPTY_COUNT: u32 = 2;

impl Shared {
    /// The objects whose keys begin with `prefix`, page by page.
    pub(super) fn walk(&self, prefix: String) -> Walk<'_> {
        Walk { shared: self, prefix, after: None, ended: false }
    }

    /// Deletes the objects with that prefix that are `unwanted`, and tells how many there were.
    async fn delete_where(
        &self,
        prefix: &str,
        unwanted: &(impl Fn(&Entry) -> bool + Sync),
    ) -> Result<usize> {
        let mut count = 0;
        let mut walk = self.walk(prefix.to_owned());
        while let Some(entries) = walk.next().await? {
            let keys: Vec<String> =
                entries.into_iter().filter(|entry| unwanted(entry)).map(|e| e.key).collect();
            count += keys.len();
            for keys in keys.chunks(DELETE_KEYS_MAX) {
                self.store.delete(keys).await?;
            }
        }
        Ok(count)
    }

    /// Deletes until two listings in a row show nothing more to delete.
    async fn delete_all(
        &self,
        prefix: &str,
        unwanted: impl Fn(&Entry) -> bool + Sync,
    ) -> Result<()> {
        // What this process has sent and given up may still be landing.
        self.store.settle().await;
        let mut empty = 0;
        for _ in 0..ROUND_COUNT_MAX {
            empty = match self.delete_where(prefix, &unwanted).await? {
                0 => empty + 1,
                _ => 0,
            };
            if empty == EMPTY_COUNT {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "remove what a job has left: it does not go")
            .within(format!("{}/{prefix}", self.store.location())))
    }

    /// Removes everything that the job of this head has written, then writes the tombstone, then
    /// removes what spoke of the job. `held` is aborting or removing.
    ///
    /// Attempts behind this head's are not touched: they belong to those who claimed it since.
    pub(super) async fn bury(&self, held: &Held) -> Result<()> {
        let Some(head) = &held.head else { return Ok(()) };
        let (sight, image) = (&head.sight, &head.image);
        let of_it = |entry: &Entry| match names::read(image, &entry.key) {
            Named::Part { job, epoch, .. } => job == sight.job && epoch <= sight.epoch,
            _ => false,
        };
        if head.encrypted {
            // Order: what opens it, then the rest; from then on what is left of it is noise.
            self.forget_keys(image, sight.job, |epoch| epoch <= sight.epoch).await?;
        }
        self.delete_all(&names::written(image, sight.job), of_it).await?;
        let tomb = match sight.phase {
            Phase::Removing => Phase::Removed,
            _ => Phase::Aborted,
        };
        // Order: nothing of it is left, then the tombstone; and who looks for jobs that are to be
        // settled finds this one until it stands.
        match self.register.swap(held, head.moved(tomb, None, draw()?)).await? {
            Swapped::Done(_) => {}
            Swapped::Lost(now) if now.sight().is_some_and(|now| now.seq > sight.seq) => {}
            Swapped::Lost(_) => {
                return Err(Error::new(ErrorKind::Unavailable, format!("bury {image}"))
                    .within(self.store.location())
                    .hint("its head went back to an earlier state"));
            }
        }
        self.forget(sight.job).await
    }

    /// Removes the wrapped keys of those attempts of a job.
    pub(super) async fn forget_keys(
        &self,
        image: &ImageId,
        job: JobId,
        which: impl Fn(u32) -> bool,
    ) -> Result<()> {
        self.store.settle().await;
        for epoch in self.attempts(image, job).await?.into_iter().filter(|epoch| which(*epoch)) {
            self.delete_all(&names::wrapped_keys(&names::attempt(image, job, epoch)), |_| true)
                .await?;
        }
        Ok(())
    }

    /// Removes what spoke of a job.
    pub(super) async fn forget(&self, job: JobId) -> Result<()> {
        self.delete_all(&names::job(job), |_| true).await
    }

    /// Removes what a committed image does not need: what only its stage did.
    pub(super) async fn tidy(&self, sight: &Sight, image: &ImageId, made: &Image) -> Result<()> {
        let prefix = names::written(image, sight.job);
        let unwanted = |entry: &Entry| match names::read(image, &entry.key) {
            // Of keys the head alone knows which one counts, and it may have changed since.
            Named::Part { epoch, part: Part::Key(_), .. } if epoch == sight.epoch => false,
            Named::Part { job, epoch, part } => {
                job == sight.job && epoch <= sight.epoch && !names_it(made, sight, epoch, &part)
            }
            _ => false,
        };
        self.delete_all(&prefix, unwanted).await?;
        self.forget(sight.job).await
    }

    /// The manifest that the head of a committed image names.
    pub(super) async fn made(&self, held: &Held) -> Result<Image> {
        made(&*self.store, held).await
    }

    /// What nobody wants any more: late writes of attempts that are over, and what speaks of jobs
    /// that there are not. Only what is older than `grace_ms` by the store's own clock; removed if
    /// `apply`, else only told.
    pub(super) async fn sweep(&self, apply: bool, grace_ms: u64) -> Result<Vec<Swept>> {
        let now_ms = self.now_ms(apply).await?;
        let old = |entry: &Entry| entry.meta.modified_ms.saturating_add(grace_ms) <= now_ms;
        let mut swept = Vec::new();
        for name in self.store.folders(names::IMAGES).await? {
            let Ok(image) = name.parse::<ImageId>() else { continue };
            self.sweep_image(&image, apply, &old, &mut swept).await?;
        }
        for name in self.store.folders(names::JOBS).await? {
            let Some(job) = names::read_job(&name) else { continue };
            self.sweep_job(job, apply, &old, &mut swept).await?;
        }
        Ok(swept)
    }

    async fn sweep_image(
        &self,
        image: &ImageId,
        apply: bool,
        old: &(impl Fn(&Entry) -> bool + Sync),
        swept: &mut Vec<Swept>,
    ) -> Result<()> {
        let held = self.register.read(image).await?;
        if apply && held.sight().is_some_and(|sight| sight.phase == Phase::Removing) {
            // Whoever removed it has not come to the end.
            self.bury(&held).await?;
        }
        let mut read: Option<(rules::Txn, Image)> = None;
        let mut walk = self.walk(names::image(image));
        while let Some(entries) = walk.next().await? {
            // Order: the head after the listing; an attempt that it does not speak of is over.
            let held = self.register.read(image).await?;
            let visible = held.sight().filter(|sight| sight.phase == Phase::Committed);
            match visible.map(|sight| sight.txn) {
                Some(txn) if read.as_ref().is_none_or(|(of, _)| *of != txn) => {
                    read = Some((txn, self.made(&held).await?));
                }
                Some(_) => {}
                None => read = None,
            }
            let made = read.as_ref().map(|(_, made)| made);
            let unwanted = |entry: &&Entry| old(entry) && is_unwanted(image, &held, made, entry);
            let found: Vec<&Entry> = entries.iter().filter(unwanted).collect();
            if apply {
                self.destroy_keys(image, &found, &unwanted, swept).await?;
            }
            let keys: Vec<String> = found.iter().map(|entry| entry.key.clone()).collect();
            if apply && !keys.is_empty() {
                self.store.delete(&keys).await?;
            }
            swept.extend(found.into_iter().map(Swept::of));
            let stale = entries.iter().filter(|entry| old(entry) && is_stale_key(&held, entry));
            let stale: Vec<&Entry> = stale.collect();
            if stale.is_empty() || apply && !self.drop_keys(&held, &stale).await? {
                continue;
            }
            swept.extend(stale.into_iter().map(Swept::of));
        }
        Ok(())
    }

    /// Deletes wrapped keys that the head of a committed image does not name; `false`: the head has
    /// changed meanwhile.
    async fn drop_keys(&self, held: &Held, stale: &[&Entry]) -> Result<bool> {
        let Some(head) = &held.head else { return Ok(false) };
        // Order: the head is written anew, and fails whoever is about to name one of them; then
        // they go.
        let next = head.stepped(head.sight.reworded(draw()?));
        if let Swapped::Lost(_) = self.register.swap(held, next).await? {
            return Ok(false);
        }
        let keys: Vec<String> = stale.iter().map(|entry| entry.key.clone()).collect();
        self.store.delete(&keys).await?;
        Ok(true)
    }

    /// Deletes the wrapped keys of attempts of which chunks are about to go: the keys go first.
    async fn destroy_keys(
        &self,
        image: &ImageId,
        found: &[&Entry],
        unwanted: &(impl Fn(&&Entry) -> bool + Sync),
        swept: &mut Vec<Swept>,
    ) -> Result<()> {
        let attempts: BTreeSet<String> = found
            .iter()
            .filter_map(|entry| match names::read(image, &entry.key) {
                Named::Part { job, epoch, part: Part::Sealed { .. } } => {
                    Some(names::attempt(image, job, epoch))
                }
                _ => None,
            })
            .collect();
        for attempt in attempts {
            let prefix = names::wrapped_keys(&attempt);
            let page = self.store.list(&prefix, None, PAGE_ENTRIES_MAX).await?;
            let gone: Vec<&Entry> = page.entries.iter().filter(unwanted).collect();
            let keys: Vec<String> = gone.iter().map(|entry| entry.key.clone()).collect();
            if !keys.is_empty() {
                self.store.delete(&keys).await?;
            }
            let later = gone.into_iter().filter(|gone| found.iter().all(|f| f.key != gone.key));
            swept.extend(later.map(Swept::of));
        }
        Ok(())
    }

    async fn sweep_job(
        &self,
        job: JobId,
        apply: bool,
        old: &(impl Fn(&Entry) -> bool + Sync),
        swept: &mut Vec<Swept>,
    ) -> Result<()> {
        let mut found = Vec::new();
        let mut walk = self.walk(names::job(job));
        while let Some(entries) = walk.next().await? {
            found.extend(entries);
        }
        if !found.iter().all(old) {
            return Ok(());
        }
        let lives = match self.pulse(job).await? {
            None => false,
            Some((pulse, _)) => {
                let held = self.register.read(&pulse.image).await?;
                held.sight().is_some_and(|sight| {
                    sight.job == job
                        && !matches!(sight.phase, Phase::Aborted | Phase::Removing | Phase::Removed)
                })
            }
        };
        if lives {
            return Ok(());
        }
        let keys: Vec<String> = found.iter().map(|entry| entry.key.clone()).collect();
        swept.extend(found.iter().map(Swept::of));
        for keys in keys.chunks(DELETE_KEYS_MAX).filter(|_| apply) {
            self.store.delete(keys).await?;
        }
        Ok(())
    }

    /// The store's own clock, read off an object that is written for it; without writing, the
    /// newest time that the host's clock and the store's listings have seen is good enough to tell.
    async fn now_ms(&self, apply: bool) -> Result<u64> {
        if !apply {
            return Ok(crate::host::unix_ms());
        }
        let name = names::CLOCK.to_owned();
        let written = self.store.put(&name, "now".into(), &crate::store::Condition::Any).await;
        let read = match written {
            Ok(_) => self.store.head(&name).await,
            Err(error) => Err(error),
        };
        self.store.delete(std::slice::from_ref(&name)).await?;
        read?.map(|meta| meta.modified_ms).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "read the store's clock: what was written is gone")
                .within(self.store.location())
        })
    }
}

/// The manifest that the head of a committed image names.
pub(super) async fn made(store: &dyn Store, held: &Held) -> Result<Image> {
    let head = held.head.as_ref().filter(|head| head.sight.phase == Phase::Committed);
    let Some((head, made)) = head.and_then(|head| Some((head, head.made.as_ref()?))) else {
        return Err(Error::new(ErrorKind::NotFound, "read the manifest of an image")
            .within(store.location()));
    };
    let (image, sight) = (&head.image, &head.sight);
    let key = names::manifest(&names::attempt(image, sight.job, sight.epoch));
    let told = |error: Error| error.within(format!("{}/{key}", store.location()));
    let limit = made.manifest_bytes.min(IMAGE_LEN_MAX);
    let object = store.get(&key, limit).await.map_err(told)?.ok_or_else(|| {
        told(Error::new(ErrorKind::Corrupt, "read the manifest of an image: it is gone"))
    })?;
    if blake3::hash(&object.bytes).as_bytes() != made.manifest.as_bytes() {
        return Err(told(Error::new(
            ErrorKind::Corrupt,
            "read the manifest of an image: it is not the one that was committed",
        )));
    }
    let read = Image::decode(&object.bytes).map_err(told)?;
    let agrees = match &read {
        Image::Plain { manifest, .. } => {
            manifest.root() == made.root
                && manifest.geometry().image_bytes() == made.image_bytes
                && manifest.job() == Some(sight.job)
                && !head.encrypted
        }
        // The rest is told by those who decrypt it.
        Image::Sealed(_) => head.encrypted,
    };
    if !agrees {
        return Err(told(Error::new(
            ErrorKind::Corrupt,
            "read the manifest of an image: its head says otherwise",
        )));
    }
    Ok(read)
}

/// A listing, page by page.
pub(super) struct Walk<'a> {
    shared: &'a Shared,
    prefix: String,
    after: Option<String>,
    ended: bool,
}

impl Walk<'_> {
    /// The next page; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        if self.ended {
            return Ok(None);
        }
        let store = &self.shared.store;
        let page = store.list(&self.prefix, self.after.as_deref(), PAGE_ENTRIES_MAX).await?;
        self.after = page.entries.last().map(|entry| entry.key.clone());
        self.ended = !page.more || self.after.is_none();
        Ok(Some(page.entries))
    }
}

/// An object that nobody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Its key, below the region's prefix.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

impl Swept {
    fn of(entry: &Entry) -> Self {
        Self { key: entry.key.clone(), bytes: entry.meta.len }
    }
}

/// Whether a committed image is made of that part.
fn names_it(made: &Image, sight: &Sight, epoch: u32, part: &Part) -> bool {
    match part {
        Part::Manifest => epoch == sight.epoch,
        _ => made.names(epoch, part),
    }
}

/// Whether that is a wrapped key beside the one that the head of a committed image names: what a
/// rewrap has left that came to no end, or is about to name.
fn is_stale_key(held: &Held, entry: &Entry) -> bool {
    let (Some(head), Some(key)) = (&held.head, held.key()) else { return false };
    match names::read(&head.image, &entry.key) {
        Named::Part { job, epoch, part: Part::Key(digest) } => {
            (job, epoch) == (head.sight.job, head.sight.epoch) && digest != key.digest
        }
        _ => false,
    }
}

/// Whether nobody wants that object. What is not ours is never swept.
fn is_unwanted(image: &ImageId, held: &Held, made: Option<&Image>, entry: &Entry) -> bool {
    let sight = held.sight();
    match names::read(image, &entry.key) {
        Named::Part { part: Part::Foreign, .. } | Named::Foreign => false,
        Named::Head(Some(seq)) if sabotage::is("M14") => sight.is_some_and(|sight| seq < sight.seq),
        Named::Head(_) => false,
        Named::Part { job, epoch, part } => {
            let wanted = match sabotage::is("M13") {
                true => Wanted::Nothing,
                false => rules::wanted(sight, job, epoch),
            };
            match (wanted, sight, made) {
                (Wanted::Nothing, ..) => true,
                // Which one counts may change at any moment: see `is_stale_key`.
                (Wanted::Named, Some(sight), _)
                    if epoch == sight.epoch && matches!(part, Part::Key(_)) =>
                {
                    false
                }
                (Wanted::Named, Some(sight), Some(made)) => !names_it(made, sight, epoch, &part),
                _ => false,
            }
        }
    }
}
