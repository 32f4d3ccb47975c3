//! Staging: who may claim an image or take a job over, and what is in the way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::JobSpec;
use crate::region::Target;

use super::Shared;
use super::answers::is_staged;
use super::head::Head;
use super::pulse::Heart;
use super::register::{Held, Swapped, draw};
use super::rules::{self, Life, Owner, Phase, Sight, Start};
use super::target;

/// How long who stages waits for what is in its way to be settled.
const STAGE_TIMEOUT: Duration = Duration::from_secs(60);

impl Shared {
    /// Stages, or only reopens; see [`rules::start`] for who may.
    pub(super) async fn own(
        self: &Arc<Self>,
        spec: &JobSpec,
        reopen: bool,
    ) -> Result<Arc<dyn Target>> {
        // Also for a job that is staged: the crash may have come before its key was kept.
        let fresh = self.keys.make(spec).await?;
        let presence = self.household.enter()?;
        let mut heart = Heart::new(&spec.target.image, spec.job, presence.owner());
        match self.claim(spec, reopen, &mut heart, presence.owner()).await {
            Ok(held) => Ok(target::own(self.clone(), spec, presence, (held, heart), fresh)),
            Err(refused) => {
                // A claim without a clear answer may land yet: then its pulse tells of it.
                let withdrawn = match heart.is_shown() && is_final(&refused) {
                    true => self.withdraw(spec).await,
                    false => Ok(()),
                };
                let refused = withdrawn.err().into_iter().fold(refused, Error::and);
                Err(refused.within(self.location_of(&spec.target.image)))
            }
        }
    }

    async fn withdraw(&self, spec: &JobSpec) -> Result<()> {
        let held = self.register.read(&spec.target.image).await?;
        // A tombstone of the job is not in need of what tells of it.
        if held.sight().is_some_and(|sight| {
            sight.job == spec.job && !matches!(sight.phase, Phase::Aborted | Phase::Removed)
        }) {
            return Ok(());
        }
        self.forget(spec.job).await
    }

    async fn claim(
        &self,
        spec: &JobSpec,
        reopen: bool,
        heart: &mut Heart,
        owner: Owner,
    ) -> Result<Held> {
        let (image, job) = (&spec.target.image, spec.job);
        let deadline = Instant::now() + STAGE_TIMEOUT;
        let mut in_doubt = false;
        while Instant::now() < deadline {
            let held = self.register.read(image).await?;
            let sight = held.sight();
            if reopen && !sight.is_some_and(|sight| is_staged(sight, job)) {
                return Err(Error::new(ErrorKind::NotFound, format!("reopen job {job}")));
            }
            let next = match rules::start(sight, job, self.life_at_start(sight, job).await?) {
                Start::Busy => return Err(Error::new(ErrorKind::Busy, format!("stage {image}"))),
                Start::Exists => {
                    return Err(Error::new(ErrorKind::Exists, format!("stage {image}")));
                }
                Start::Watch => {
                    self.pause().await;
                    continue;
                }
                Start::Clean if reopen => {
                    return Err(Error::new(ErrorKind::Busy, format!("reopen job {job}"))
                        .hint("it was cancelled; `recover` removes what is left of it"));
                }
                Start::Clean | Start::Remove => {
                    self.bury(&held).await?;
                    continue;
                }
                // It may have been this job's, and cancelled or removed since: that is for good.
                Start::Claim if in_doubt => {
                    return Err(Error::new(ErrorKind::Fenced, format!("stage {image}")).hint(
                        "its claim got no answer, and others have decided since; start anew",
                    ));
                }
                Start::Claim => {
                    self.register.check_way(image).await?;
                    let sight = Sight::claimed(sight, job, owner, draw()?);
                    Head::claimed(sight, spec)
                }
                Start::TakeOver => self.taken_over(&held, spec, owner)?,
            };
            // Order: the pulse is there before the claim is, so that a job that exists is found.
            if !heart.is_shown() {
                heart.start(&*self.store).await?;
            }
            match self.register.swap_in_doubt(&held, next).await? {
                (Swapped::Done(held), _) => return Ok(held),
                (Swapped::Lost(_), unclear) => in_doubt |= unclear,
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("stage {image}"))
            .hint("others have been changing its head for a minute")
            .retryable(true))
    }

    fn taken_over(&self, held: &Held, spec: &JobSpec, owner: Owner) -> Result<Head> {
        let taken = format!("take over job {}", spec.job);
        let Some(head) = &held.head else { return Err(Error::new(ErrorKind::NotFound, taken)) };
        if !head.spec.as_ref().is_some_and(|earlier| earlier.same_request(spec)) {
            return Err(
                Error::new(ErrorKind::Invalid, taken).hint("it was started with another request")
            );
        }
        Ok(head.stepped(head.sight.taken_over(owner, draw()?)))
    }

    /// Who lives matters only where somebody may be in the way.
    async fn life_at_start(&self, sight: Option<&Sight>, job: JobId) -> Result<Life> {
        match sight {
            Some(sight)
                if sight.phase == Phase::Aborting
                    || sight.phase == Phase::Active && sight.job == job =>
            {
                self.life_now(sight).await
            }
            _ => Ok(Life::Dead),
        }
    }
}

/// Whether nothing of what was tried can come true any more.
fn is_final(refused: &Error) -> bool {
    use ErrorKind as Kind;
    matches!(
        refused.kind(),
        Kind::Busy | Kind::Exists | Kind::Fenced | Kind::Invalid | Kind::NotFound
    )
}
