//! Images with names and states above the engine: what a daemon needs behind a cloud's calls.
//!
//! An [`ImageService`] owns an [`Engine`] and keeps, in a database of its own, what regions do not
//! hold: whose an image is, how it is called, which copy makes it, which request a token has
//! started. It knows nothing of HTTP and of no cloud's wire; what clouds insist on is in
//! [`Rules`], how they call each state is in one table, [`WORDS`].
//!
//! * A start answers when it is durable, and before a byte has moved. So many copies to a region
//!   run at once; the others wait in the order in which they came.
//! * A list of targets makes one copy each, in one transaction. Each is a job of its own in the
//!   engine and commits, lags, fails or is cancelled on its own; the source is read and hashed once
//!   for all that begin together, as far as [`legs`](crate::options::CopyOptions) says.
//! * Each target's image is encrypted under a key of its own region, if it is to be. A copy of an
//!   encrypted image stays encrypted: under a key that is asked for, or under the same one where
//!   the target's region knows it. It comes to lie in clear in no way.
//! * A cancel and the end of a copy have one winner: the engine's, put on record before anybody is
//!   told. A cancelled copy's image is gone at the next look, from anywhere.
//! * A copy that fails for good leaves its image as a name in state
//!   [`ImageState::CreateFailed`], and no bytes.
//! * After a crash, what ran goes on, what waited waits on, and what was being deleted is deleted.
//!
//! Dropping the service equals a crash; [`ImageService::shutdown`] suspends what runs.

mod catalog;
mod event;
mod inner;
mod leg;
mod model;
mod names;
mod options;
mod refusal;
mod status;
mod store;
mod view;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::{Engine, Shutdown};
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::id::{ImageId, JobId, RegionName};
use crate::job::Endpoint;
use crate::region::{Located, blocking};
use crate::service::catalog::{CancelStep, Catalog, Fresh, RegionLimits};
use crate::service::inner::Inner;
use crate::service::store::Store;

pub use event::Event;
pub use model::{
    Caller, Copy, CopyOrder, CopyState, CopyView, Image, ImageKind, ImageState, ImageView, Leg,
    Relation, Rules, SameRegion, Token,
};
pub use names::{
    Fault, IdShape, alibaba_description, alibaba_name, alibaba_tag_key, alibaba_tag_value,
    alibaba_token, baidu_name, huawei_description, huawei_name, is_uuid, uuid,
};
pub use options::{ServiceOptions, ServiceRegion};
pub use refusal::{Answer, Refusal};
pub use status::{Stage, WORDS, Words};
pub use view::Counts;

/// The most targets of one start.
pub const TARGET_COUNT_MAX: usize = 64;
/// Attempts at an image id that is free: more than one is needed once in a lifetime.
const ID_ATTEMPTS: usize = 8;

/// Images, and the copies that make them. See the [module](self).
#[derive(Debug)]
pub struct ImageService {
    inner: Arc<Inner>,
}

impl ImageService {
    /// Opens the service over an engine that it alone uses: registers the regions, settles what an
    /// earlier life left, and goes on with what ran.
    ///
    /// # Errors
    /// `Busy` while another process has the database open; `Corrupt` when it is damaged; otherwise
    /// the regions' own.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn open(engine: Engine, options: ServiceOptions) -> Result<Self> {
        let limits = options.regions.iter().map(|(name, region)| {
            let limits = RegionLimits {
                copies_max: region.copies_max,
                queue_max: region.queue_max,
                images_max: region.images_max,
            };
            (name.clone(), limits)
        });
        let keys = options.regions.iter().map(|(name, region)| (name.clone(), region.keys.clone()));
        let mut catalog = Catalog::new(limits.collect()).with_keys(keys.collect());
        let state_dir = options.state_dir.clone();
        let (catalog, store) = blocking(move || {
            let store = Store::open(&state_dir)?;
            store.load(&mut catalog)?;
            Ok((catalog, store))
        })
        .await?;
        let inner = Inner::new(engine, options.keep_ended, catalog, store);
        let service = Self { inner };
        for (name, region) in options.regions {
            service.inner.engine.register(name.clone(), region.region).await?;
            service.inner.sweep(&name).await?;
        }
        service.inner.go_on().await?;
        Ok(service)
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Makes an image known that a region holds already, or changes what is kept of it. Its state,
    /// its size, its key and its time are found out here.
    ///
    /// # Errors
    /// `NotFound` for an unknown region and for an image that is not there; `Busy` for one that is
    /// being made or deleted.
    ///
    /// # Durability
    /// Survives power loss when this returns.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn put_image(&self, mut image: Image) -> Result<()> {
        let region = self.inner.engine.region(&image.region)?;
        let place = image.endpoint().to_string();
        if !matches!(region.locate(&image.id).await?, Located::Committed(_)) {
            let error = Error::new(ErrorKind::NotFound, "make an image known").within(place);
            return Err(error.hint("copy it there first"));
        }
        let opened = region.open(&image.id).await?;
        image.image_bytes = opened.size_bytes();
        image.key = opened.key().map(|key| key.to_string());
        image.state = ImageState::Available;
        image.created_unix_ms = host::unix_ms();
        let put = self.inner.change(move |catalog| {
            let known = catalog.image(&image.region, &image.id).cloned();
            if let Some(known) = known {
                if known.state != ImageState::Available {
                    return Err(Error::new(ErrorKind::Busy, "change an image").within(place));
                }
                image.created_unix_ms = known.created_unix_ms;
                image.copied_by = known.copied_by;
                image.made_by = known.made_by.clone();
                if image == *known {
                    return Ok(());
                }
            }
            catalog.put(image);
            Ok(())
        });
        put.await?
    }

    /// Whether an order could be started now. What it checks, and in which order, is what
    /// [`ImageService::start`] does; nothing is changed.
    ///
    /// # Errors
    /// Those of [`ImageService::start`].
    pub fn check(&self, caller: &Caller, order: &CopyOrder) -> Answer<()> {
        self.inner.shown().check(caller, order).map(|_| ())
    }

    /// What a token has started before; `None`: nothing.
    ///
    /// # Errors
    /// [`Refusal::TokenReused`] when it came with another request.
    pub fn replayed(&self, token: &Token) -> Answer<Option<Vec<Leg>>> {
        self.inner.shown().replayed(token)
    }

    /// Starts one copy for each target of the order. Answers when they are durable.
    ///
    /// All start or none does. With a token that was used for the same request before, the same
    /// copies are answered, also after they have ended.
    ///
    /// # Errors
    /// The first reason of [`Refusal`]'s that holds.
    ///
    /// # Durability
    /// The copies survive power loss when this returns.
    ///
    /// # Cancel safety
    /// Restartable with the same token; without one the copies may have been started.
    pub async fn start(&self, caller: &Caller, order: CopyOrder) -> Answer<Vec<Leg>> {
        let all = order.targets.iter();
        let apart = all.collect::<std::collections::HashSet<_>>().len() == order.targets.len();
        if order.targets.is_empty() || order.targets.len() > TARGET_COUNT_MAX || !apart {
            let error = Error::new(ErrorKind::Invalid, "copy to these regions");
            return Err(error.hint("give 1 to 64 targets, each of them once").into());
        }
        let fresh = order.targets.iter().map(|_| Fresh::draw()).collect::<Result<Vec<_>>>()?;
        let (caller, now) = (caller.clone(), host::unix_ms());
        self.inner.change(move |catalog| catalog.start(&caller, &order, &fresh, now)).await?
    }

    /// Cancels the copy that makes an image. When this returns, the image is gone for every reader,
    /// and the copy can never commit; its last bytes go soon after, if they have not gone yet.
    ///
    /// # Errors
    /// [`Refusal::NoImage`], also for one that was cancelled before; [`Refusal::NotACopy`];
    /// [`Refusal::Finished`] when the copy came first: the image stays; [`Refusal::HadFailed`].
    ///
    /// # Durability
    /// The answer survives power loss.
    ///
    /// # Cancel safety
    /// Restartable: it may have been decided.
    pub async fn cancel(
        &self,
        caller: &Caller,
        region: &RegionName,
        image: &ImageId,
    ) -> Answer<JobId> {
        let target = Endpoint::new(region.clone(), image.clone());
        let (who, what, now) = (caller.clone(), target.clone(), host::unix_ms());
        match self.inner.change(move |catalog| catalog.cancel(&who, &what, now)).await?? {
            CancelStep::Cancelled(job) => Ok(job),
            CancelStep::Ask(job) => {
                // A task of its own: a caller that hangs up does not stop it half way.
                let asked = self.inner.tasks.spawn(leg::cancel(self.inner.clone(), job, target));
                let ended = asked
                    .await
                    .map_err(|error| Error::new(ErrorKind::Io, "cancel a copy").because(error))?;
                ended.map(|()| job)
            }
        }
    }

    /// Removes an image of the caller's own.
    ///
    /// # Errors
    /// [`Refusal::BeingCopied`] while it is being made: that is for cancel; [`Refusal::BeingRead`]
    /// while a copy reads it; [`Refusal::NotOwn`]; unless `shared_too`,
    /// [`Refusal::SharedWithOthers`].
    ///
    /// # Durability
    /// The image is gone for good when this returns.
    ///
    /// # Cancel safety
    /// Restartable: it is gone for readers, and goes for good sooner or later.
    pub async fn delete(
        &self,
        caller: &Caller,
        region: &RegionName,
        image: &ImageId,
        shared_too: bool,
    ) -> Answer<()> {
        let end = Endpoint::new(region.clone(), image.clone());
        let (who, what) = (caller.clone(), end.clone());
        let begun = self.inner.change(move |c| c.begin_delete(&who, &what, shared_too)).await??;
        if begun { Ok(self.inner.remove(end).await?) } else { Ok(()) }
    }

    /// Whether that image may be the source of a copy, and what is kept of it.
    ///
    /// # Errors
    /// [`Refusal::NoSourceRegion`], [`Refusal::NoImage`].
    pub fn source(&self, caller: &Caller, source: &Endpoint) -> Answer<(Arc<Image>, Relation)> {
        self.inner.shown().source(caller, source)
    }

    /// An id for a new image in that region that no image has.
    ///
    /// # Errors
    /// That the host gives no random bytes.
    pub fn new_image_id(&self, shape: IdShape, region: &RegionName) -> Result<ImageId> {
        for _ in 0..ID_ATTEMPTS {
            let id = shape.image_id(host::random()?)?;
            if self.inner.shown().image(region, &id).is_none() {
                return Ok(id);
            }
        }
        Err(Error::new(ErrorKind::Exists, "draw an image id").within(region.to_string()))
    }

    /// Events from now on: one for each durable change. A reader that lags behind by more than
    /// 4,096 loses the oldest, and is told how many.
    pub fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.inner.events.subscribe()
    }

    /// Stops in an orderly way: running copies are suspended, and go on when the service is opened
    /// again. Returns whether all had come to rest by the deadline. Nothing can be started
    /// afterwards.
    ///
    /// # Cancel safety
    /// Restartable.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.inner.closing.store(true, Ordering::SeqCst);
        let late = self.inner.engine.shutdown(Shutdown::Suspend, deadline).await;
        self.inner.tasks.close();
        let idle = || async {
            while !self.inner.legs().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        late.is_empty() && timeout_at(until, idle()).await.is_ok()
    }
}

impl Drop for ImageService {
    fn drop(&mut self) {
        // As a crash: one path to test, recovery. The engine goes with the last of its legs.
        self.inner.closing.store(true, Ordering::SeqCst);
        self.inner.crash.cancel();
    }
}
