//! Looking, which never waits: images and copies as a caller may see them, followers, counts.

use std::sync::Arc;

use tokio::sync::watch;

use crate::id::{ImageId, JobId, RegionName};
use crate::job::Progress;
use crate::service::ImageService;
use crate::service::inner::Inner;
use crate::service::model::{Caller, Copy, CopyView, Image, ImageState, ImageView, Relation};
use crate::service::refusal::{Answer, Refusal};
use crate::service::status::Stage;

/// How many copies and images there are, for an exporter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Region, copies that wait for it, copies to it that run, images in it.
    pub regions: Vec<(RegionName, usize, usize, usize)>,
    /// Copies that are remembered, by where they stand, in the order of [`Stage::ALL`].
    pub copies: [u64; 6],
    /// Events so far.
    pub events: u64,
}

impl ImageService {
    /// One image, if the caller may see it.
    pub fn image(&self, caller: &Caller, region: &RegionName, id: &ImageId) -> Option<ImageView> {
        let image = self.inner.shown().image(region, id).cloned()?;
        let relation = caller.sees(&image)?;
        self.inner.view_of_image(&image, relation)
    }

    /// Those of these images that there are and that the caller may see, in that order. Unlike
    /// [`ImageService::images`] it looks at no other.
    ///
    /// # Errors
    /// [`Refusal::NoSourceRegion`].
    pub fn images_by_id(
        &self,
        caller: &Caller,
        region: &RegionName,
        ids: &[ImageId],
    ) -> Answer<Vec<ImageView>> {
        if !caller.may_use(region) || !self.inner.shown().regions().any(|known| known == region) {
            return Err(Refusal::NoSourceRegion);
        }
        Ok(ids.iter().filter_map(|id| self.image(caller, region, id)).collect())
    }

    /// The images of a region that the caller may see and that `wanted` takes, in the order of
    /// their ids.
    ///
    /// # Errors
    /// [`Refusal::NoSourceRegion`].
    pub fn images(
        &self,
        caller: &Caller,
        region: &RegionName,
        wanted: impl Fn(&Image, Relation) -> bool,
    ) -> Answer<Vec<ImageView>> {
        let found: Vec<(Arc<Image>, Relation)> = {
            let shown = self.inner.shown();
            if !caller.may_use(region) || !shown.regions().any(|known| known == region) {
                return Err(Refusal::NoSourceRegion);
            }
            let seen = shown.images_of(region).filter_map(|image| {
                let relation = caller.sees(image)?;
                wanted(image, relation).then(|| (image.clone(), relation))
            });
            seen.collect()
        };
        let views = found.iter().filter_map(|(i, relation)| self.inner.view_of_image(i, *relation));
        Ok(views.collect())
    }

    /// The regions that the caller may use.
    pub fn regions(&self, caller: &Caller) -> Vec<RegionName> {
        let shown = self.inner.shown();
        shown.regions().filter(|region| caller.may_use(region)).cloned().collect()
    }

    /// One copy of the caller's project.
    pub fn copy(&self, caller: &Caller, job: JobId) -> Option<CopyView> {
        let copy = self.inner.shown().copy(job).cloned()?;
        let own = copy.project == caller.project && caller.may_use(&copy.target.region);
        own.then(|| self.inner.view_of_copy(&copy))
    }

    /// Follows a copy of the caller's project: the receiver is told of every change, and about ten
    /// times a second how far it is. It closes after the last.
    ///
    /// # Errors
    /// [`Refusal::NoJob`].
    pub fn watch(&self, caller: &Caller, job: JobId) -> Answer<watch::Receiver<CopyView>> {
        self.copy(caller, job).ok_or(Refusal::NoJob)?;
        let mut followers = self.inner.followers();
        // Looked at under the lock, so that its end is not missed.
        let now = self.inner.view(job).ok_or(Refusal::NoJob)?;
        if now.stage.is_final() {
            return Ok(watch::Sender::new(now).subscribe());
        }
        Ok(followers.entry(job).or_insert_with(|| watch::Sender::new(now)).subscribe())
    }

    /// How many of everything there are.
    pub fn counts(&self) -> Counts {
        let shown = self.inner.shown();
        let mut counts = Counts::default();
        for region in shown.regions() {
            let (waiting, running) = shown.line(region);
            let images = shown.images_of(region).count();
            counts.regions.push((region.clone(), waiting, running, images));
        }
        for copy in shown.copies() {
            let stage = Stage::of(&copy.state, None);
            let mut all = Stage::ALL.iter().zip(&mut counts.copies);
            if let Some((_, count)) = all.find(|(known, _)| **known == stage) {
                *count += 1;
            }
        }
        counts.events = self.inner.event_count.load(std::sync::atomic::Ordering::Relaxed);
        counts
    }
}

impl Inner {
    fn view(&self, job: JobId) -> Option<CopyView> {
        let copy = self.shown().copy(job).cloned()?;
        Some(self.view_of_copy(&copy))
    }

    fn view_of_image(&self, image: &Arc<Image>, relation: Relation) -> Option<ImageView> {
        if image.state == ImageState::Deleting {
            return None;
        }
        let copy = image.copied_by.and_then(|job| self.view(job));
        Some(ImageView { image: Image::clone(image), relation, copy })
    }

    fn view_of_copy(&self, copy: &Copy) -> CopyView {
        let leg = self.legs().get(&copy.job).cloned();
        let progress = leg.and_then(|leg| leg.job.borrow().as_ref().map(|job| job.progress()));
        let stage = Stage::of(&copy.state, progress.as_ref().map(|progress| progress.state));
        let percent = match stage {
            Stage::Done => 100,
            Stage::Queued | Stage::Failed | Stage::Cancelled => 0,
            Stage::Committing => 99,
            Stage::Copying => progress.as_ref().map_or(0, percent_of),
        };
        let eta = progress.filter(|_| stage == Stage::Copying).and_then(|progress| progress.eta);
        let remaining_sec = eta.map(|eta| eta.as_secs());
        CopyView { copy: Copy::clone(copy), stage, percent, remaining_sec }
    }

    /// Shows those who follow a copy where it stands.
    pub(crate) fn tell_followers(&self, job: JobId) {
        let mut followers = self.followers();
        let Some(follower) = followers.get(&job) else { return };
        let Some(now) = self.view(job) else { return };
        let ended = now.stage.is_final();
        follower.send_replace(now);
        if ended || follower.receiver_count() == 0 {
            followers.remove(&job);
        }
    }
}

/// Bytes found to be data or zero, of all; 99 at most, for it is not done yet.
fn percent_of(progress: &Progress) -> u8 {
    let passed = u128::from(progress.data_bytes) + u128::from(progress.zero_bytes);
    let percent = passed * 100 / u128::from(progress.image_bytes.max(1));
    u8::try_from(percent.min(99)).unwrap_or(99)
}
