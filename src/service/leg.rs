//! One task per running copy: hands it to the engine, tries again what may pass, and puts its end
//! on record.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::engine::{CopyRequest, Job, JobOutcome};
use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::Endpoint;
use crate::options::{CopyOptions, Encryption};
use crate::region::Vote;
use crate::service::catalog::Ending;
use crate::service::inner::Inner;
use crate::service::model::{Copy, CopyState};
use crate::service::refusal::{Answer, Refusal};

/// Attempts at a copy whose region does not answer, and the time before the second; it doubles.
const ATTEMPTS_MAX: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long a cancel that is decided waits for the last byte to go before it answers.
const CLEAN_WAIT: Duration = Duration::from_millis(150);
/// How often a cancel looks for a job that is about to begin or to end.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(50);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// Between attempts to put an end on record.
const RECORD_DELAY: Duration = Duration::from_secs(1);

/// A running copy, for those who want to know of it.
#[derive(Debug)]
pub(crate) struct LegTask {
    /// The engine's job, once it has one.
    pub(crate) job: watch::Sender<Option<Job>>,
    /// How many copies of its image began with it.
    legs: u32,
    /// The engine is not being asked to take it in: between attempts.
    rests: watch::Sender<bool>,
    /// Its task does nothing more.
    ended: CancellationToken,
    cancel: watch::Sender<Cancel>,
}

/// How far a cancel of a running copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    /// Nobody asks for one, or it could not be decided.
    No,
    /// It is being decided: what fails now waits for that.
    Asked,
    /// The copy is not tried again, however it ends.
    Decided,
}

impl LegTask {
    pub(crate) fn new(legs: u32) -> Self {
        Self {
            job: watch::Sender::new(None),
            legs,
            rests: watch::Sender::new(false),
            ended: CancellationToken::new(),
            cancel: watch::Sender::new(Cancel::No),
        }
    }

    /// Waits until no cancel is being decided; whether one was.
    async fn is_cancelled(&self) -> bool {
        let mut cancel = self.cancel.subscribe();
        match cancel.wait_for(|cancel| *cancel != Cancel::Asked).await {
            Ok(cancel) => *cancel == Cancel::Decided,
            // Unreachable: the sender lives in `self`.
            Err(_) => false,
        }
    }

    /// Waits for a cancel to be asked for.
    async fn is_asked(&self) {
        let mut cancel = self.cancel.subscribe();
        drop(cancel.wait_for(|cancel| *cancel != Cancel::No).await);
    }

    /// Waits until the engine has the job, or never will.
    async fn is_settled(&self) {
        let (mut job, mut rests) = (self.job.subscribe(), self.rests.subscribe());
        tokio::select! {
            biased;
            _known = job.wait_for(Option::is_some) => {}
            _rests = rests.wait_for(|rests| *rests) => {}
            () = self.ended.cancelled() => {}
        }
    }
}

/// Brings a running copy to its end. Dropping the service stops it as a crash would.
pub(crate) async fn run(inner: Arc<Inner>, copy: Arc<Copy>, leg: Arc<LegTask>) {
    let crash = inner.crash.clone();
    tokio::select! {
        biased;
        () = crash.cancelled() => {}
        () = live(&inner, &copy, &leg) => {}
    }
    inner.legs().remove(&copy.job);
    leg.ended.cancel();
}

async fn live(inner: &Arc<Inner>, copy: &Arc<Copy>, leg: &LegTask) {
    let mut attempt = 1;
    loop {
        leg.rests.send_replace(false);
        let outcome = attempt_at(inner, copy, leg).await;
        leg.rests.send_replace(true);
        let error = match outcome {
            Ok(JobOutcome::Committed(receipt)) => {
                let image_bytes = receipt.image_bytes;
                return put_on_record(inner, copy.job, Ending::Done { image_bytes }).await;
            }
            Ok(JobOutcome::RolledBack { .. }) => {
                return put_on_record(inner, copy.job, Ending::Cancelled).await;
            }
            // The service ends, or somebody wants it to rest: it goes on when the service is opened
            // again.
            Ok(JobOutcome::Suspended) => return,
            Ok(JobOutcome::Failed { error, .. }) => error,
            Err(error) => Arc::new(error),
        };
        if inner.is_closing() || leg.is_cancelled().await {
            return;
        }
        let may_pass = error.is_retryable()
            || matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy);
        if !may_pass || attempt == ATTEMPTS_MAX {
            return give_up(inner, copy, &error).await;
        }
        let again = Instant::now() + RETRY_DELAY * 2_u32.pow(attempt - 1);
        while let Ok(()) = timeout_at(again, leg.is_asked()).await {
            if leg.is_cancelled().await {
                return;
            }
        }
        attempt += 1;
    }
}

/// Starts the job, or goes on with it: the token makes it the same one.
async fn attempt_at(inner: &Arc<Inner>, copy: &Copy, leg: &LegTask) -> Result<JobOutcome> {
    let encryption = encryption_of(inner, copy)?;
    let options = CopyOptions::new()
        .with_token(&*copy.engine_token)
        .with_encryption(encryption)
        .with_legs(leg.legs);
    let request = CopyRequest::new(copy.source.clone(), copy.target.clone(), options);
    let job = inner.engine.copy(request).await?;
    debug_assert_eq!(job.id(), copy.job, "the engine numbers jobs by their token");
    leg.job.send_replace(Some(job.clone()));
    let mut progress = job.watch();
    loop {
        tokio::select! {
            biased;
            outcome = job.wait() => return Ok(outcome),
            changed = progress.changed() => match changed {
                Ok(()) => inner.tell_followers(copy.job),
                Err(_) => return Ok(job.wait().await),
            },
        }
    }
}

/// How the new image is encrypted: under the key that is on record with it. Where there is none,
/// the engine still lets no encrypted source lie in clear.
fn encryption_of(inner: &Inner, copy: &Copy) -> Result<Encryption> {
    let target = &copy.target;
    let image = inner.shown().image(&target.region, &target.image).cloned();
    let image = image.filter(|image| image.copied_by == Some(copy.job));
    // Without its record nobody knows how it is to lie.
    let image = image.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "copy to an image that was given up")
            .within(target.to_string())
    })?;
    let key = image.key.as_deref().map(str::parse).transpose()?;
    Ok(key.map_or(Encryption::Keep, Encryption::Key))
}

/// Ends a copy that failed: its image stays as a name, its bytes go.
async fn give_up(inner: &Arc<Inner>, copy: &Copy, error: &Error) {
    // Order: the end first, so that a crash in between finds a failed copy and sweeps its stage.
    let ending = Ending::Failed { kind: error.kind(), message: error.report() };
    put_on_record(inner, copy.job, ending).await;
    // What cannot be cleaned now the engine goes on with, and so does the next opening.
    inner.engine.cancel(copy.job).await.ok();
}

async fn put_on_record(inner: &Arc<Inner>, job: JobId, ending: Ending) {
    // The region has decided; what cannot be recorded now is found out again after a restart.
    while inner.settle(job, ending.clone()).await.is_err() {
        sleep(RECORD_DELAY).await;
    }
}

/// Lets the engine decide between a cancel and the end of a running copy.
///
/// Answers when it is decided and on record; the clean-up may go on.
pub(crate) async fn cancel(inner: Arc<Inner>, job: JobId, target: Endpoint) -> Answer<()> {
    let region = inner.engine.region(&target.region)?;
    let leg = inner.legs().get(&job).cloned();
    if let Some(leg) = &leg {
        // What fails from now on is not tried again before this is decided.
        leg.cancel.send_replace(Cancel::Asked);
        // While the engine takes it in there is nothing yet that could be cancelled.
        leg.is_settled().await;
    }
    let mut vote = region.cancel(job, &target.image).await;
    let mut pause = LOOK_AGAIN_FIRST;
    while let (Ok(Vote::Unknown), Some(leg)) = (&vote, &leg) {
        // It ends at this moment, is about to begin, or never will: its own task puts an end on
        // record, if it is one.
        leg.cancel.send_replace(Cancel::Decided);
        let ended = timeout(pause, leg.ended.cancelled()).await.is_ok();
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
        vote = region.cancel(job, &target.image).await;
        if ended {
            break;
        }
    }
    let ending = match vote {
        Ok(Vote::Cancelled { .. } | Vote::Unknown) => Ending::Cancelled,
        Ok(Vote::Committed) => {
            let known = inner.shown().image(&target.region, &target.image).map(|i| i.image_bytes);
            Ending::Done { image_bytes: known.unwrap_or(0) }
        }
        Err(error) => {
            inner.go_on_with(job, leg.as_deref()).await;
            return Err(error.into());
        }
    };
    if let Some(leg) = &leg {
        leg.cancel.send_replace(Cancel::Decided);
    }
    let state = inner.settle(job, ending).await?;
    if state == Some(CopyState::Cancelled) {
        let cleaner = inner.clone();
        let cleaning = inner.tasks.spawn(async move { cleaner.engine.cancel(job).await });
        // Nobody has to wait for it; what cannot be cleaned now the engine goes on with.
        timeout(CLEAN_WAIT, cleaning).await.ok();
    }
    answer_of(state)
}

impl Inner {
    /// Goes on with a copy whose cancel could not be decided.
    async fn go_on_with(self: &Arc<Self>, job: JobId, leg: Option<&LegTask>) {
        if let Some(leg) = leg {
            let before = leg.cancel.send_replace(Cancel::No);
            // Its own task goes on, or ends it as if nobody had asked, where it has not heard yet
            // that this was decided; who has, ends at once.
            let ended = timeout(LOOK_AGAIN_MAX, leg.ended.cancelled());
            if before == Cancel::Asked || ended.await.is_err() {
                return;
            }
        }
        let running = self.shown().copy(job).filter(|c| c.state == CopyState::Running).cloned();
        let begun = self.legs().contains_key(&job);
        if let Some(copy) = running.filter(|_| !begun && !self.is_closing()) {
            self.begin(copy, 1);
        }
    }
}

fn answer_of(state: Option<CopyState>) -> Answer<()> {
    match state {
        Some(CopyState::Cancelled) => Ok(()),
        Some(CopyState::Done) => Err(Refusal::Finished),
        Some(CopyState::Failed { .. }) => Err(Refusal::HadFailed),
        Some(CopyState::Waiting | CopyState::Running) => {
            Err(Error::new(ErrorKind::Unavailable, "cancel a copy")
                .hint("the service is ending; ask again once it is back")
                .into())
        }
        None => Err(Refusal::NoImage),
    }
}
