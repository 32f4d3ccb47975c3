//! Stages that peers own here: each as long as the connection that stands for it lives.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{JobId, RegionName};
use crate::job::JobSpec;
use crate::peer::Identity;
use crate::pump::Socket;
use crate::region::{Region, Target};
use crate::sync::time::{Instant, timeout, timeout_at};
use crate::sync::{Mutex, MutexGuard};
use crate::wire::message::{Session, Token};

use super::House;
use super::push::Push;

/// How long one waits for an owner that is gone to have let go.
const RELEASE_TIME: Duration = Duration::from_secs(10);

type Key = (RegionName, JobId);

/// The stages that are owned by peers, by region and job.
#[derive(Default)]
pub(super) struct Holds(Mutex<HashMap<Key, Arc<Hold>>>);

/// A stage that a peer owns.
pub(super) struct Hold {
    key: Key,
    pub(super) identity: Identity,
    pub(super) spec: JobSpec,
    token: Mutex<Token>,
    /// Of the connection that stands for it.
    socket: Socket,
    /// Whoever uses the stage holds this to read: it is let go when nobody does.
    pub(super) live: RwLock<Option<Live>>,
    /// A later owner has come: end.
    pub(super) fenced: CancellationToken,
    gone: CancellationToken,
}

/// A stage that is still owned.
pub(super) struct Live {
    pub(super) target: Arc<dyn Target>,
    /// The attempt that runs.
    pub(super) push: Option<Arc<Push>>,
}

/// Who of those that own the stage already makes room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instead {
    Nobody,
    /// Who holds that token.
    Holder(Token),
    /// Whoever it is: the caller has the number of a later attempt.
    Earlier,
}

impl Hold {
    pub(super) fn holds(&self, token: Token) -> bool {
        *self.token() == token
    }

    pub(super) fn token(&self) -> MutexGuard<'_, Token> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, region: &RegionName, job: JobId) -> Option<Arc<Hold>> {
        self.lock().get(&(region.clone(), job)).cloned()
    }

    /// Lets the stage go, once nobody uses it any more.
    pub(super) async fn release(&self, hold: &Arc<Hold>) {
        let live = hold.live.write().await.take();
        // Order: the stage is free before anybody is told that it is.
        drop(live);
        let mut holds = self.lock();
        if holds.get(&hold.key).is_some_and(|known| Arc::ptr_eq(known, hold)) {
            holds.remove(&hold.key);
        }
        drop(holds);
        hold.gone.cancel();
    }

    /// Waits for the owners in that region whose peers have hung up to have let go: whoever asks
    /// after that must not find them.
    pub(super) async fn settle(&self, region: &RegionName) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        // All of them have the same time, however many there are.
        let end = Instant::now() + RELEASE_TIME;
        for hold in all.iter().filter(|hold| hold.key.0 == *region && hold.socket.is_hung_up()) {
            // One that takes longer still owns its stage.
            timeout_at(end, hold.gone.cancelled()).await.ok();
        }
    }
}

impl House {
    /// Stages, or reopens, for a peer: it owns the stage from here on.
    pub(super) async fn claim(
        &self,
        identity: &Identity,
        socket: &Socket,
        spec: &JobSpec,
        reopen: bool,
        instead: Instead,
    ) -> Result<Arc<Hold>> {
        let region = self.region(&spec.target.region)?;
        self.holds.settle(&spec.target.region).await;
        let target = match stage(&**region, spec, reopen).await {
            Err(error) if error.kind() == ErrorKind::Busy => {
                let old = self.holds.find(&spec.target.region, spec.job);
                let old = old.filter(|old| old.identity == *identity && instead.takes(old));
                let Some(old) = old else { return Err(error) };
                // Order: the earlier owner has drained, recorded and let go before the next one
                // begins, so that no write of its comes after.
                old.fenced.cancel();
                timeout(RELEASE_TIME, old.gone.cancelled()).await.ok();
                stage(&**region, spec, true).await?
            }
            staged => staged?,
        };
        let key = (spec.target.region.clone(), spec.job);
        // Every owner has a token of its own: of no attempt, but of its turn.
        let turn = self.next_link().0;
        let token = self.token(identity, Session::new(spec.job, u32::MAX - turn));
        let hold = Arc::new(Hold {
            key: key.clone(),
            identity: identity.clone(),
            spec: spec.clone(),
            token: Mutex::new(token),
            socket: socket.clone(),
            live: RwLock::new(Some(Live { target, push: None })),
            fenced: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        self.holds.lock().insert(key, hold.clone());
        Ok(hold)
    }

    /// The number of the last attempt at a staged job.
    pub(super) async fn epoch(&self, region: &RegionName, job: JobId) -> Result<u32> {
        Ok(self.region(region)?.job(job).await?.map_or(0, |staged| staged.epoch))
    }
}

impl Instead {
    fn takes(self, old: &Hold) -> bool {
        match self {
            Self::Nobody => false,
            Self::Holder(token) => old.holds(token),
            Self::Earlier => true,
        }
    }
}

async fn stage(region: &dyn Region, spec: &JobSpec, reopen: bool) -> Result<Arc<dyn Target>> {
    match reopen {
        true => region.reopen(spec).await,
        false => region.stage(spec).await,
    }
}

/// An owner that is none any more.
pub(super) fn fenced() -> Error {
    Error::new(ErrorKind::Fenced, "go on with a stage: another attempt owns it, or nobody")
}
