//! All that is kept of images, copies and tokens, and what may become of it: every decision of the
//! service that is not the engine's. Pure.
//!
//! A call changes a catalog of its own and notes each change; the changes are shown to others once
//! they are durable.

mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::id::{ImageId, JobId, KeyId, RegionName};
use crate::job::Endpoint;
use crate::service::model::{
    Caller, Copy, CopyOrder, CopyState, Image, ImageKind, ImageState, Leg, Relation, SameRegion,
    Token, TokenUse,
};
use crate::service::refusal::{Answer, Refusal};

pub(crate) use change::{Change, TokenKey};

/// Ceilings of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionLimits {
    /// Copies to it that run at once.
    pub(crate) copies_max: usize,
    /// Copies to it that wait.
    pub(crate) queue_max: usize,
    /// Images that one project has in it.
    pub(crate) images_max: usize,
}

/// Copies to one region that have not ended.
#[derive(Clone, Debug, Default)]
struct Line {
    waiting: BTreeMap<u64, JobId>,
    running: BTreeSet<JobId>,
}

/// What is kept, with the changes that were made since they were last taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    regions: BTreeMap<RegionName, RegionLimits>,
    /// The keys of each region, the one that is meant by default first.
    keys: BTreeMap<RegionName, Vec<KeyId>>,
    images: BTreeMap<RegionName, BTreeMap<ImageId, Arc<Image>>>,
    copies: BTreeMap<JobId, Arc<Copy>>,
    tokens: BTreeMap<TokenKey, Arc<TokenUse>>,
    lines: BTreeMap<RegionName, Line>,
    /// Copies that read each image and have not ended.
    readers: BTreeMap<(RegionName, ImageId), usize>,
    order_next: u64,
    changes: Vec<Change>,
}

/// How a cancel goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CancelStep {
    /// It had not begun: it is cancelled.
    Cancelled(JobId),
    /// The engine decides.
    Ask(JobId),
}

/// What draws random bytes for new jobs.
pub(crate) struct Fresh {
    pub(crate) job: JobId,
    pub(crate) engine_token: String,
}

impl Catalog {
    pub(crate) fn new(regions: BTreeMap<RegionName, RegionLimits>) -> Self {
        Self { regions, ..Self::default() }
    }

    pub(crate) fn with_keys(mut self, keys: BTreeMap<RegionName, Vec<KeyId>>) -> Self {
        self.keys = keys;
        self
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = &RegionName> {
        self.regions.keys()
    }

    pub(crate) fn image(&self, region: &RegionName, id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(region)?.get(id)
    }

    pub(crate) fn images_of(&self, region: &RegionName) -> impl Iterator<Item = &Arc<Image>> {
        self.images.get(region).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn copy(&self, job: JobId) -> Option<&Arc<Copy>> {
        self.copies.get(&job)
    }

    pub(crate) fn copies(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.copies.values()
    }

    /// How many copies wait for a region, and how many run.
    pub(crate) fn line(&self, region: &RegionName) -> (usize, usize) {
        self.lines.get(region).map_or((0, 0), |line| (line.waiting.len(), line.running.len()))
    }

    // ---- Decisions ----

    /// What that token has started; `None`: nothing.
    pub(crate) fn replayed(&self, token: &Token) -> Answer<Option<Vec<Leg>>> {
        let key = (token.scope.clone(), token.text.clone());
        match self.tokens.get(&key) {
            None => Ok(None),
            Some(used) if used.request == token.request => Ok(Some(used.legs.clone())),
            Some(_) => Err(Refusal::TokenReused),
        }
    }

    /// The image that a caller names as a source, if it may.
    pub(crate) fn source(&self, caller: &Caller, end: &Endpoint) -> Answer<(Arc<Image>, Relation)> {
        if !self.regions.contains_key(&end.region) || !caller.may_use(&end.region) {
            return Err(Refusal::NoSourceRegion);
        }
        let image = self.image(&end.region, &end.image).ok_or(Refusal::NoImage)?;
        let relation = caller.sees(image).ok_or(Refusal::NoImage)?;
        if image.state == ImageState::Deleting {
            return Err(Refusal::NoImage);
        }
        Ok((image.clone(), relation))
    }

    /// Whether the order could be started now.
    ///
    /// The order of the checks is a choice \[C\]: regions, source, kind, where to, its state,
    /// names, concurrent copies, quota, keys.
    pub(crate) fn check(&self, caller: &Caller, order: &CopyOrder) -> Answer<Arc<Image>> {
        let from = &order.source.region;
        if !self.regions.contains_key(from) || !caller.may_use(from) {
            return Err(Refusal::NoSourceRegion);
        }
        for target in &order.targets {
            if !self.regions.contains_key(&target.region) || !caller.may_use(&target.region) {
                return Err(Refusal::NoRegion(target.region.clone()));
            }
        }
        let (source, relation) = self.source(caller, &order.source)?;
        if relation == Relation::Public || source.kind == ImageKind::System {
            return Err(Refusal::NotOwn);
        }
        if source.kind == ImageKind::Iso {
            return Err(Refusal::KindNotCopied(source.kind));
        }
        for target in &order.targets {
            self.check_way(order, &source, relation, target)?;
        }
        if source.state != ImageState::Available {
            return Err(Refusal::NotAvailable);
        }
        for target in &order.targets {
            self.check_room(caller, order, target)?;
        }
        for target in &order.targets {
            self.key_of(order, &source, &target.region)?;
        }
        Ok(source)
    }

    /// The key that the image in that region is to be encrypted under, if it is to be.
    fn key_of(
        &self,
        order: &CopyOrder,
        source: &Image,
        region: &RegionName,
    ) -> Answer<Option<String>> {
        let keys = self.keys.get(region).map_or(&[][..], Vec::as_slice);
        let known = |asked: &str| keys.iter().map(KeyId::as_str).find(|key| *key == asked);
        let key = match (order.key.as_deref(), source.key.as_deref()) {
            (None, None) => return Ok(None),
            // Only under its own: in clear it goes nowhere.
            (None, Some(kept)) => known(kept).ok_or(Refusal::EncryptedElsewhere)?,
            (Some(""), _) => keys.first().map(KeyId::as_str).ok_or(Refusal::NoKeys)?,
            (Some(_), _) if keys.is_empty() => return Err(Refusal::NoKeys),
            (Some(asked), kept) => {
                let key = known(asked).ok_or(Refusal::NoKey)?;
                if order.rules.another_key && kept == Some(key) {
                    return Err(Refusal::SameKey);
                }
                key
            }
        };
        match order.rules.encrypted_bytes_max {
            Some(most) if source.image_bytes > most => Err(Refusal::EncryptedTooLarge(most)),
            _ => Ok(Some(key.to_owned())),
        }
    }

    fn check_way(
        &self,
        order: &CopyOrder,
        source: &Image,
        relation: Relation,
        target: &Endpoint,
    ) -> Answer<()> {
        let shared = relation == Relation::Shared;
        if shared && source.key.is_some() {
            return Err(Refusal::SharedEncrypted);
        }
        if target.region != order.source.region {
            if source.key.is_some() && !order.rules.encrypted_elsewhere {
                return Err(Refusal::EncryptedElsewhere);
            }
            if shared && !order.rules.shared_elsewhere {
                return Err(Refusal::SharedElsewhere);
            }
            if source.kind == ImageKind::WholeInstance && !order.rules.whole_instance_elsewhere {
                return Err(Refusal::KindNotCopied(source.kind));
            }
            return Ok(());
        }
        if source.kind == ImageKind::WholeInstance {
            return Err(Refusal::KindNotCopied(source.kind));
        }
        match order.rules.same_region {
            SameRegion::Allowed => Ok(()),
            SameRegion::SharedOrEncrypted if shared || order.key.is_some() => Ok(()),
            SameRegion::Refused | SameRegion::SharedOrEncrypted => Err(Refusal::SameRegion),
        }
    }

    fn check_room(&self, caller: &Caller, order: &CopyOrder, target: &Endpoint) -> Answer<()> {
        let limits = self.regions.get(&target.region).ok_or(Refusal::NoSourceRegion)?;
        let own = || {
            let images = self.images_of(&target.region);
            images.filter(|image| image.project == caller.project)
        };
        if order.rules.unique_names
            && !order.name.is_empty()
            && own().any(|image| image.name == order.name)
        {
            return Err(Refusal::NameTaken);
        }
        if order.rules.one_copy_per_region && self.is_being_copied(&order.source, &target.region) {
            return Err(Refusal::CopyUnderWay);
        }
        if own().count() >= limits.images_max {
            return Err(Refusal::ImageQuota(crate::geometry::to_u64(limits.images_max)));
        }
        if self.line(&target.region).0 >= limits.queue_max {
            return Err(Refusal::QueueFull(crate::geometry::to_u64(limits.queue_max)));
        }
        Ok(())
    }

    fn is_being_copied(&self, source: &Endpoint, region: &RegionName) -> bool {
        let Some(line) = self.lines.get(region) else { return false };
        let mut jobs = line.waiting.values().chain(&line.running);
        jobs.any(|job| self.copies.get(job).is_some_and(|copy| copy.source == *source))
    }

    /// Accepts an order: its images are being created, its copies wait.
    pub(crate) fn start(
        &mut self,
        caller: &Caller,
        order: &CopyOrder,
        fresh: &[Fresh],
        now_unix_ms: u64,
    ) -> Answer<Vec<Leg>> {
        if let Some(token) = &order.token
            && let Some(legs) = self.replayed(token)?
        {
            return Ok(legs);
        }
        let source = self.check(caller, order)?;
        let taken = |end: &&Endpoint| self.image(&end.region, &end.image).is_some();
        if let Some(end) = order.targets.iter().find(taken) {
            let error = Error::new(ErrorKind::Exists, "make an image").within(end.to_string());
            return Err(error.into());
        }
        let mut legs = Vec::new();
        for (target, fresh) in order.targets.iter().zip(fresh) {
            let mut image =
                Image::new(target.region.clone(), target.image.clone(), &*caller.project);
            image.made_by = Some(caller.key.clone());
            image.name = order.name.clone();
            image.description = order.description.clone();
            image.tags = order.tags.clone();
            image.kind = source.kind;
            image.key = self.key_of(order, &source, &target.region)?;
            image.state = ImageState::Creating;
            image.copied_by = Some(fresh.job);
            image.image_bytes = source.image_bytes;
            image.created_unix_ms = now_unix_ms;
            let copy = Copy {
                job: fresh.job,
                engine_token: fresh.engine_token.clone(),
                order: self.order_next,
                project: caller.project.clone(),
                source: order.source.clone(),
                target: target.clone(),
                name: order.name.clone(),
                state: CopyState::Waiting,
                created_unix_ms: now_unix_ms,
                ended_unix_ms: 0,
            };
            self.change(Change::Image(Arc::new(image)));
            self.change(Change::Copy(Arc::new(copy)));
            legs.push(Leg { job: fresh.job, target: target.clone() });
        }
        if let Some(token) = &order.token {
            let key = (token.scope.clone(), token.text.clone());
            let used = TokenUse {
                request: token.request,
                legs: legs.clone(),
                created_unix_ms: now_unix_ms,
            };
            self.change(Change::Token(key, Arc::new(used)));
        }
        Ok(legs)
    }

    /// Gives waiting copies their turn, the earliest first. Returns those that run from now on.
    pub(crate) fn promote(&mut self) -> Vec<JobId> {
        let mut begun = Vec::new();
        let regions: Vec<_> = self.regions.iter().map(|(name, l)| (name.clone(), *l)).collect();
        for (region, limits) in regions {
            while let Some(line) = self.lines.get(&region)
                && line.running.len() < limits.copies_max
                && let Some((_, job)) = line.waiting.first_key_value()
                && let Some(copy) = self.copies.get(job)
            {
                let job = copy.job;
                let running = Copy { state: CopyState::Running, ..Copy::clone(copy) };
                self.change(Change::Copy(Arc::new(running)));
                begun.push(job);
            }
        }
        begun
    }

    /// Begins to cancel the copy that makes an image.
    pub(crate) fn cancel(
        &mut self,
        caller: &Caller,
        target: &Endpoint,
        now_unix_ms: u64,
    ) -> Answer<CancelStep> {
        let image = self.image(&target.region, &target.image).ok_or(Refusal::NoImage)?;
        let relation = caller.sees(image).ok_or(Refusal::NoImage)?;
        if relation != Relation::Own {
            return Err(Refusal::NotACopy);
        }
        let job = image.copied_by.ok_or(Refusal::NotACopy)?;
        match image.state {
            ImageState::Available => return Err(Refusal::Finished),
            ImageState::Deleting => return Err(Refusal::NoImage),
            ImageState::CreateFailed => return Err(Refusal::HadFailed),
            ImageState::Creating => {}
        }
        match self.copies.get(&job).map(|copy| copy.state.clone()) {
            Some(CopyState::Waiting) => {
                self.settle(job, Ending::Cancelled, now_unix_ms);
                Ok(CancelStep::Cancelled(job))
            }
            Some(CopyState::Running) => Ok(CancelStep::Ask(job)),
            Some(CopyState::Done) => Err(Refusal::Finished),
            Some(CopyState::Failed { .. }) => Err(Refusal::HadFailed),
            Some(CopyState::Cancelled) | None => Err(Refusal::NoImage),
        }
    }

    /// Ends a copy, unless it has ended. Returns how it stands then.
    pub(crate) fn settle(
        &mut self,
        job: JobId,
        ending: Ending,
        now_unix_ms: u64,
    ) -> Option<CopyState> {
        let copy = self.copies.get(&job)?.clone();
        if copy.state.is_final() {
            return Some(copy.state.clone());
        }
        let made = self.image(&copy.target.region, &copy.target.image).cloned();
        let made = made.filter(|image| image.copied_by == Some(job));
        let state = match ending {
            Ending::Done { image_bytes } => {
                if let Some(image) = made {
                    let state = ImageState::Available;
                    let image = Image { state, image_bytes, ..Image::clone(&image) };
                    self.change(Change::Image(Arc::new(image)));
                }
                CopyState::Done
            }
            Ending::Failed { kind, message } => {
                if let Some(image) = made {
                    let state = ImageState::CreateFailed;
                    let image = Image { state, ..Image::clone(&image) };
                    self.change(Change::Image(Arc::new(image)));
                }
                CopyState::Failed { kind, message }
            }
            Ending::Cancelled => {
                if made.is_some() {
                    self.change(Change::NoImage(copy.target.clone()));
                }
                CopyState::Cancelled
            }
        };
        let ended = Copy { state: state.clone(), ended_unix_ms: now_unix_ms, ..Copy::clone(&copy) };
        self.change(Change::Copy(Arc::new(ended)));
        Some(state)
    }

    /// Marks an image as on its way out; `false` when there are no bytes to remove and it is gone.
    pub(crate) fn begin_delete(
        &mut self,
        caller: &Caller,
        end: &Endpoint,
        shared_too: bool,
    ) -> Answer<bool> {
        let image = self.image(&end.region, &end.image).ok_or(Refusal::NoImage)?.clone();
        let relation = caller.sees(&image).ok_or(Refusal::NoImage)?;
        if relation != Relation::Own {
            return Err(Refusal::NotOwn);
        }
        match image.state {
            ImageState::Creating => return Err(Refusal::BeingCopied),
            ImageState::CreateFailed => {
                self.change(Change::NoImage(end.clone()));
                return Ok(false);
            }
            ImageState::Available | ImageState::Deleting => {}
        }
        if self.readers.contains_key(&(end.region.clone(), end.image.clone())) {
            return Err(Refusal::BeingRead);
        }
        if !shared_too && !image.shared_with.is_empty() {
            return Err(Refusal::SharedWithOthers);
        }
        let deleting = Image { state: ImageState::Deleting, ..Image::clone(&image) };
        self.change(Change::Image(Arc::new(deleting)));
        Ok(true)
    }

    /// Forgets an image whose bytes are gone.
    pub(crate) fn end_delete(&mut self, end: &Endpoint) {
        if self.image(&end.region, &end.image).is_some_and(|i| i.state == ImageState::Deleting) {
            self.change(Change::NoImage(end.clone()));
        }
    }

    /// Makes an image known that is there in full; one that is known keeps its size and time.
    pub(crate) fn put(&mut self, image: Image) {
        self.change(Change::Image(Arc::new(image)));
    }

    /// Forgets copies that ended before `before_unix_ms`, and tokens of that age whose copies are
    /// all forgotten.
    pub(crate) fn forget(&mut self, before_unix_ms: u64) {
        let old = |copy: &&Arc<Copy>| copy.state.is_final() && copy.ended_unix_ms < before_unix_ms;
        let jobs: Vec<_> = self.copies.values().filter(old).map(|copy| copy.job).collect();
        for job in jobs {
            self.change(Change::NoCopy(job));
        }
        let unused = |used: &TokenUse| {
            used.created_unix_ms < before_unix_ms
                && !used.legs.iter().any(|leg| self.copies.contains_key(&leg.job))
        };
        let keys: Vec<_> =
            self.tokens.iter().filter(|(_, used)| unused(used)).map(|(k, _)| k.clone()).collect();
        for key in keys {
            self.change(Change::NoToken(key));
        }
    }
}

/// How a copy ends.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Done { image_bytes: u64 },
    Failed { kind: ErrorKind, message: String },
    Cancelled,
}

#[cfg(test)]
mod tests;
