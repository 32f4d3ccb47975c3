//! Who of this process owns claims: within one process nobody needs to guess who lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::Result;

use super::register::draw;
use super::rules::Owner;

/// The owners of one process.
#[derive(Debug)]
pub(super) struct Household {
    process: [u8; 16],
    claims: Mutex<HashMap<[u8; 16], Standing>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Alive,
    /// It has been told to let go, and has something in hand yet.
    Leaving,
}

impl Household {
    /// That of this process.
    pub(super) fn of_process() -> Result<Arc<Self>> {
        static OURS: Mutex<Option<Arc<Household>>> = Mutex::new(None);
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ours) = &*ours {
            return Ok(ours.clone());
        }
        Ok(ours.insert(Self::new()?).clone())
    }

    /// Another one: as another process would be.
    pub(super) fn new() -> Result<Arc<Self>> {
        let (claims, changed) = Default::default();
        Ok(Arc::new(Self { process: draw()?, claims, changed }))
    }

    /// A new owner, alive from now on.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Presence> {
        let claim = draw()?;
        self.claims().insert(claim, Standing::Alive);
        Ok(Presence { household: self.clone(), claim })
    }

    /// Whether that owner lives, if it is one of this process. Waits for one that is just leaving.
    pub(super) async fn lives(&self, owner: &Owner) -> Option<bool> {
        if owner.process != self.process {
            return None;
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Order: listening before looking, or one that leaves in between is missed.
            changed.as_mut().enable();
            match self.claims().get(&owner.claim) {
                None => return Some(false),
                Some(Standing::Alive) => return Some(true),
                Some(Standing::Leaving) => {}
            }
            changed.await;
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<[u8; 16], Standing>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An owner of this process, until dropped.
#[derive(Debug)]
pub(super) struct Presence {
    household: Arc<Household>,
    claim: [u8; 16],
}

impl Presence {
    pub(super) fn owner(&self) -> Owner {
        Owner { process: self.household.process, claim: self.claim }
    }

    /// It owns nothing any more, and is about to be dropped.
    pub(super) fn leave(&self) {
        if let Some(standing) = self.household.claims().get_mut(&self.claim) {
            *standing = Standing::Leaving;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.household.claims().remove(&self.claim);
        self.household.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_owner_lives_until_it_is_gone_and_one_that_leaves_is_waited_for() {
        let (ours, theirs) = (Household::new().unwrap(), Household::new().unwrap());
        let presence = ours.enter().unwrap();
        let owner = presence.owner();
        assert_eq!(ours.lives(&owner).await, Some(true));
        assert_eq!(theirs.lives(&owner).await, None, "another process can only guess");
        presence.leave();
        let (lives, ()) = tokio::join!(ours.lives(&owner), async {
            tokio::task::yield_now().await;
            drop(presence);
        });
        assert_eq!(lives, Some(false));
    }
}
