//! The one way by which anything changes: decided, stored, shown, acted upon; and what an opening
//! of the service goes on with.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Engine, job_of_token};
use crate::error::{ErrorKind, Result};
use crate::host;
use crate::id::{JobId, RegionName};
use crate::job::Endpoint;
use crate::region::{Settled, blocking};
use crate::service::catalog::{Catalog, Change, Ending, Fresh};
use crate::service::event::Event;
use crate::service::leg::{self, LegTask};
use crate::service::model::{Copy, CopyState, CopyView, ImageState};
use crate::service::store::Store;

/// Events that a slow reader may lag behind before it loses some.
const EVENTS_MAX: usize = 4096;
/// How often old copies and tokens are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) engine: Engine,
    keep_ended: Duration,
    /// Decides and stores, one change at a time.
    writer: Mutex<Writer>,
    /// Held while a change is under way, so that those that wait hold no thread.
    turn: tokio::sync::Mutex<()>,
    /// What is durable, for whoever looks.
    shown: RwLock<Catalog>,
    legs: Mutex<BTreeMap<JobId, Arc<LegTask>>>,
    followers: Mutex<BTreeMap<JobId, watch::Sender<CopyView>>>,
    pub(crate) events: broadcast::Sender<Arc<Event>>,
    pub(crate) event_count: AtomicU64,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: AtomicBool,
    pub(crate) crash: CancellationToken,
}

#[derive(Debug)]
struct Writer {
    catalog: Catalog,
    store: Store,
}

impl Fresh {
    pub(crate) fn draw() -> Result<Self> {
        let random = u128::from_le_bytes(host::random()?);
        let engine_token = format!("service:{random:032x}");
        Ok(Self { job: job_of_token(&engine_token), engine_token })
    }
}

impl Inner {
    pub(crate) fn new(
        engine: Engine,
        keep_ended: Duration,
        catalog: Catalog,
        store: Store,
    ) -> Arc<Self> {
        Arc::new(Self {
            engine,
            keep_ended,
            shown: RwLock::new(catalog.clone()),
            writer: Mutex::new(Writer { catalog, store }),
            turn: tokio::sync::Mutex::default(),
            legs: Mutex::default(),
            followers: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            event_count: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            crash: CancellationToken::new(),
        })
    }

    pub(crate) fn shown(&self) -> RwLockReadGuard<'_, Catalog> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn legs(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<LegTask>>> {
        self.legs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn followers(&self) -> MutexGuard<'_, BTreeMap<JobId, watch::Sender<CopyView>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Decides, stores what was decided, and shows it; then copies get their turns. Runs to its end
    /// even when nobody waits for it.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        decide: impl FnOnce(&mut Catalog) -> T + Send + 'static,
    ) -> Result<T> {
        let inner = self.clone();
        let _turn = self.turn.lock().await;
        blocking(move || inner.change_now(decide)).await
    }

    fn change_now<T>(self: &Arc<Self>, decide: impl FnOnce(&mut Catalog) -> T) -> Result<T> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let value = decide(&mut writer.catalog);
        let begun = if self.is_closing() { Vec::new() } else { writer.catalog.promote() };
        let changes = writer.catalog.take_changes();
        // Order: durable, then shown, then acted upon.
        if let Err(error) = writer.store.commit(&changes) {
            writer.catalog = self.shown().clone();
            return Err(error);
        }
        let now = host::unix_ms();
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        changes.iter().for_each(|change| shown.apply(change));
        let begun: Vec<_> = begun.iter().filter_map(|job| shown.copy(*job).cloned()).collect();
        drop(shown);
        self.begin_together(begun);
        for change in &changes {
            let number = self.event_count.load(Ordering::Relaxed) + 1;
            if let Some(event) = Event::of(change, number, now) {
                self.event_count.store(number, Ordering::Relaxed);
                // Nobody need be listening.
                self.events.send(Arc::new(event)).ok();
            }
            if let Change::Copy(copy) = change {
                self.tell_followers(copy.job);
            }
        }
        Ok(value)
    }

    /// Puts running copies on their way. Those of one image have it read once for all of them.
    fn begin_together(self: &Arc<Self>, copies: Vec<Arc<Copy>>) {
        let mut legs: HashMap<Endpoint, u32> = HashMap::new();
        copies.iter().for_each(|copy| *legs.entry(copy.source.clone()).or_default() += 1);
        for copy in copies {
            let legs = legs.get(&copy.source).copied().unwrap_or(1);
            self.begin(copy, legs);
        }
    }

    /// Puts a running copy on its way, as one of that many of its image that begin now.
    pub(crate) fn begin(self: &Arc<Self>, copy: Arc<Copy>, legs: u32) {
        let leg = Arc::new(LegTask::new(legs));
        self.legs().insert(copy.job, leg.clone());
        self.tasks.spawn(leg::run(self.clone(), copy, leg));
    }

    /// Ends a copy, unless it has ended. Returns how it stands then.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        job: JobId,
        ending: Ending,
    ) -> Result<Option<CopyState>> {
        let now = host::unix_ms();
        self.change(move |catalog| catalog.settle(job, ending, now)).await
    }

    pub(crate) async fn remove(self: &Arc<Self>, end: Endpoint) -> Result<()> {
        let region = self.engine.region(&end.region)?;
        match region.remove(&end.image).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.change(move |catalog| catalog.end_delete(&end)).await
    }

    /// Settles what an earlier life left staged in a region: what was decided is finished, and what
    /// belongs to a copy that has ended here goes.
    pub(crate) async fn sweep(self: &Arc<Self>, region: &RegionName) -> Result<()> {
        for found in self.engine.recover(region).await? {
            let ended = self.shown().copy(found.job).is_some_and(|copy| copy.state.is_final());
            if ended && matches!(found.settled, Settled::Kept) {
                // What cannot be cleaned now the engine goes on with.
                self.engine.cancel(found.job).await.ok();
            }
        }
        Ok(())
    }

    /// Goes on where an earlier life stopped.
    pub(crate) async fn go_on(self: &Arc<Self>) -> Result<()> {
        let running: Vec<_> = {
            let shown = self.shown();
            let running = shown.copies().filter(|copy| copy.state == CopyState::Running);
            running.cloned().collect()
        };
        self.begin_together(running);
        let deleting: Vec<_> = {
            let shown = self.shown();
            let deleting = shown.images().filter(|image| image.state == ImageState::Deleting);
            deleting.map(|image| image.endpoint()).collect()
        };
        for end in deleting {
            self.remove(end).await?;
        }
        self.forget_old().await?;
        let inner = self.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = inner.crash.cancelled() => return,
                    () = sleep(FORGET_INTERVAL) => {}
                }
                // What cannot be forgotten now is tried again.
                inner.forget_old().await.ok();
            }
        });
        Ok(())
    }

    async fn forget_old(self: &Arc<Self>) -> Result<()> {
        let kept = u64::try_from(self.keep_ended.as_millis()).unwrap_or(u64::MAX);
        let before = host::unix_ms().saturating_sub(kept);
        self.change(move |catalog| catalog.forget(before)).await
    }
}
