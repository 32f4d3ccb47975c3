//! Endings from outside: cancel, remove, and what recovery does about jobs without an owner.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::error::Result;
use crate::id::{ImageId, JobId};
use crate::region::{Recovered, Settled, Vote};

use super::Shared;
use super::answers::missing;
use super::register::{Swapped, draw};
use super::rules::{self, Cancel, Life, Phase, Settle};

/// How long a cancel that finds a live owner again waits before it says so again.
const CANCEL_PAUSE: Duration = Duration::from_millis(100);

impl Shared {
    pub(super) async fn remove(&self, image: &ImageId) -> Result<()> {
        let mut asked = None;
        loop {
            let held = self.register.read(image).await?;
            let Some(head) = &held.head else { return Err(missing("remove", image)) };
            // Whoever was faster may have removed it, and another image may have come since.
            if *asked.get_or_insert(head.sight.job) != head.sight.job {
                return Err(missing("remove", image));
            }
            match head.sight.phase {
                Phase::Removing => return self.bury(&held).await,
                Phase::Committed => {}
                _ => return Err(missing("remove", image)),
            }
            // Order: it is no image any more, then what it is made of goes.
            let next = head.moved(Phase::Removing, None, draw()?);
            if let Swapped::Done(held) = self.register.swap(&held, next).await? {
                return self.bury(&held).await;
            }
        }
    }

    pub(super) async fn cancel(&self, job: JobId, image: &ImageId) -> Result<Vote> {
        loop {
            let held = self.register.read(image).await?;
            let (held, first) = match (rules::cancel(held.sight(), job), &held.head) {
                (Cancel::Decide, Some(head)) => {
                    let next = head.moved(Phase::Aborting, None, draw()?);
                    match self.register.swap(&held, next).await? {
                        Swapped::Done(held) => (held, true),
                        Swapped::Lost(_) => continue,
                    }
                }
                (Cancel::Decided, _) => (held, false),
                (Cancel::Committed, _) => return Ok(Vote::Committed),
                (Cancel::Unknown | Cancel::Decide, _) => {
                    // Who wrote the tombstone may have died before what spoke of the job was gone.
                    if held.sight().is_some_and(|at| at.job == job && at.phase == Phase::Aborted) {
                        self.forget(job).await?;
                    }
                    return Ok(Vote::Unknown);
                }
            };
            let Some(sight) = held.sight() else { return Ok(Vote::Unknown) };
            if self.life_now(sight).await? != Life::Dead {
                // Decided it is. Whoever asks again and again is slowed down to what a store bears.
                if !first {
                    sleep(CANCEL_PAUSE).await;
                }
                return Ok(Vote::Cancelled { first, clean: false });
            }
            self.bury(&held).await?;
            return Ok(Vote::Cancelled { first, clean: true });
        }
    }

    /// Settles one job; `None`: there is nothing of it.
    async fn settle(&self, job: JobId) -> Result<Option<Recovered>> {
        loop {
            let Some((pulse, _)) = self.pulse(job).await? else { return Ok(None) };
            let held = self.register.read(&pulse.image).await?;
            let life = match held.sight().filter(|sight| sight.job == job) {
                Some(sight) => self.life(sight, Some(&pulse)).await,
                None => Life::Dead,
            };
            let settled = match rules::settle(held.sight(), job, life) {
                Settle::Watch => {
                    self.pause().await;
                    continue;
                }
                Settle::Stray => {
                    // One whose claim is on its way may look like this: only what is decided goes.
                    if held.sight().is_some_and(|sight| sight.job == job) {
                        self.forget(job).await?;
                    }
                    return Ok(None);
                }
                Settle::Running => Settled::Running,
                Settle::Keep => Settled::Kept,
                Settle::Finish => {
                    let made = self.made(&held).await?;
                    if let Some(sight) = held.sight() {
                        self.tidy(sight, &pulse.image, &made).await?;
                    }
                    Settled::Committed
                }
                Settle::Clean => {
                    self.bury(&held).await?;
                    Settled::RolledBack
                }
            };
            let spec = held.head.and_then(|head| head.spec).map(|spec| *spec);
            return Ok(Some(Recovered::new(job, spec, settled)));
        }
    }

    pub(super) async fn recover(self: &Arc<Self>, only: Option<JobId>) -> Result<Vec<Recovered>> {
        let jobs = match only {
            Some(job) => vec![job],
            None => self.job_ids().await?,
        };
        let told = self.each(jobs, |shared, job| async move {
            Ok(match shared.settle(job).await {
                Ok(settled) => settled,
                // One job that cannot be settled does not keep the others from it.
                Err(error) => Some(Recovered::new(job, None, Settled::Failed(error))),
            })
        });
        Ok(told.await?.into_iter().flatten().collect())
    }
}
