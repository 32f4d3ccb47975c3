//! A stage at another daemon, as a target: what the engine calls.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use crate::chunk::{Digest, Durable, Sealed, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, to_u64};
use crate::job::{JobSpec, Progress};
use crate::manifest::{Manifest, TableBuilder};
use crate::pump::{Packing, Pump, Socket};
use crate::region::{Base, BoxFuture, LocalFile, Outcome, Restored, Settled, Target, Vote, Wishes};
use crate::sync::time::{Instant, sleep, timeout_at};
use crate::sync::{Mutex, MutexGuard};
use crate::wire::message::Token;
use crate::wire::session::{Item, Sender, SenderState};

use super::Far;
use super::call::{Call, Owned, Told, astray};
use super::net::backoff;

mod anchor;
mod attempt;
mod base;

/// How long a call about a stage waits for its owner to be found again.
const OWNER_TIME: Duration = Duration::from_secs(60);
/// How long one waits for a cancelled stage to be clean.
const CLEAN_TIME: Duration = Duration::from_secs(30);
const CLEAN_POLL: Duration = Duration::from_millis(50);

/// Stages at the other daemon, and owns it.
pub(super) async fn stage(far: Far, spec: &JobSpec, reopen: bool) -> Result<Arc<dyn Target>> {
    let mut spec = far.spec_there(spec);
    let anchored = anchor::anchor(&far, &mut spec, reopen, None).await?;
    let location = far.location_of(&spec.target.image);
    let state = State {
        token: anchored.token,
        epoch: anchored.epoch,
        socket: anchored.desk.conn.socket.clone(),
        pump: None,
        waiting: HashMap::new(),
        begun: false,
        restored: None,
        base: None,
        sealing: None,
        outcome: None,
        refused: None,
        failed: None,
        told: false,
        cut: false,
    };
    let (begin, begun) = oneshot::channel();
    let stage = Stage {
        far,
        spec,
        location,
        packing: Arc::new(Packing::new()),
        state: Mutex::new(state),
        changed: Notify::new(),
    };
    let stage = Arc::new(stage);
    let mut tasks = JoinSet::new();
    tasks.spawn(attempt::drive(stage.clone(), anchored.desk, begun));
    Ok(Arc::new(PeerTarget { stage, begin: Mutex::new(Some(begin)), _tasks: tasks }))
}

/// A stage at another daemon. Dropping it hangs its connection up: the other side lets go.
struct PeerTarget {
    stage: Arc<Stage>,
    begin: Mutex<Option<oneshot::Sender<()>>>,
    /// Ends with the target.
    _tasks: JoinSet<()>,
}

impl Drop for PeerTarget {
    fn drop(&mut self) {
        // Order: hung up before this returns, so that whoever stages next finds no owner.
        self.stage.state().socket.hang_up();
    }
}

impl std::fmt::Debug for PeerTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PeerTarget").field(&self.stage.location).finish()
    }
}

/// What the target and its driver share.
#[derive(Debug)]
struct Stage {
    far: Far,
    /// By the other daemon's names.
    spec: JobSpec,
    location: String,
    packing: Arc<Packing>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Of the owner that this side is, at the other daemon.
    token: Token,
    /// Of the last attempt.
    epoch: u32,
    socket: Socket,
    /// Of the attempt that runs, while chunks may be sent.
    pump: Option<Arc<Pump<Sender>>>,
    /// Who waits for what was given to a sender. Outlives attempts, as what was given does.
    waiting: HashMap<Item, oneshot::Sender<Result<()>>>,
    /// An attempt has begun.
    begun: bool,
    /// What the first one found, for `begin`.
    restored: Option<Restored>,
    /// What the other side has told of the base, for `begin`.
    base: Option<TableBuilder>,
    /// It is to be committed.
    sealing: Option<Digest>,
    outcome: Option<Outcome>,
    /// It could not be decided; for `commit`.
    refused: Option<Error>,
    /// The stage is lost to this side for good.
    failed: Option<Error>,
    /// The engine has heard that others cancelled.
    told: bool,
    /// Writes fail: others cancelled, and the engine has had time to hear of it.
    cut: bool,
}

impl Stage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    fn within(&self, error: Error) -> Error {
        error.within(self.location.clone())
    }

    fn owned(&self) -> Owned {
        let token = self.state().token;
        Owned { region: self.far.name.clone(), job: self.spec.job, token }
    }

    /// Whether the stage can still be worked on.
    fn check(&self) -> Result<()> {
        let state = self.state();
        if let Some(error) = &state.failed {
            let again = Error::new(error.kind(), error.action().to_owned()).retryable(false);
            return Err(self.within(again));
        }
        if state.cut {
            let error = Error::new(ErrorKind::Fenced, "write to a stage that others cancelled");
            return Err(self.within(error));
        }
        Ok(())
    }

    /// Waits until `look` finds what it looks for, or the stage is lost.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Order: listening before looking, or a change in between is missed.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.state()) {
                return Ok(found);
            }
            self.check()?;
            changed.await;
        }
    }

    /// Gives the sender something, and waits until the other side has it.
    async fn give(&self, put: impl Fn(&mut Sender) -> Result<Item>) -> Result<()> {
        let given = self.until(|state| {
            let pump = state.pump.clone()?;
            let waiting = &mut state.waiting;
            pump.act(|sender, _| {
                if sender.state() != SenderState::Sending {
                    return None;
                }
                match put(sender) {
                    Ok(item) => {
                        let (done, wait) = oneshot::channel();
                        waiting.insert(item, done);
                        Some(Ok(wait))
                    }
                    // There will be room.
                    Err(error) if error.kind() == ErrorKind::Busy => None,
                    Err(error) => Some(Err(error)),
                }
            })?
        });
        match given.await?.map_err(|error| self.within(error))?.await {
            Ok(done) => done.map_err(|error| self.within(error)),
            Err(_) => {
                self.check()?;
                Err(self.within(Error::new(ErrorKind::Unavailable, "write to the stage")))
            }
        }
    }

    /// Calls about the stage. `patient`: also when the owner has to be found again first, or the
    /// other side does not answer; then it gives up no sooner than the session does.
    async fn call(&self, make: impl Fn(Owned) -> Call, patient: bool) -> Result<Told> {
        let (mut attempt, mut owned_by) = (0, None);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let owned = self.owned();
            let error = match self.far.call(make(owned.clone())).await {
                Err(error) if patient => error,
                told => return told.map_err(|error| self.within(error)),
            };
            let is_fenced = error.kind() == ErrorKind::Fenced;
            // Only from the first such answer on: before it, there may have been none for long.
            let end = is_fenced.then(|| *owned_by.get_or_insert(Instant::now() + OWNER_TIME));
            let may_pass = end.map_or(error.is_retryable(), |end| Instant::now() < end);
            attempt += 1;
            if !may_pass || attempt > self.far.net.options.attempts_max {
                return Err(self.within(error));
            }
            self.check()?;
            match end {
                // The driver is about to find that its connection is lost.
                Some(end) if self.state().token == owned.token => {
                    timeout_at(end, changed).await.ok();
                }
                _ => sleep(backoff(attempt)).await,
            }
        }
    }

    async fn done(&self, make: impl Fn(Owned) -> Call, patient: bool) -> Result<()> {
        match self.call(make, patient).await? {
            Told::Done => Ok(()),
            told => Err(self.within(astray(&told))),
        }
    }

    async fn commit(&self, root: Digest) -> Result<Outcome> {
        self.change(|state| state.sealing = Some(root));
        self.seal();
        let decided = self.until(|state| match (state.outcome, state.refused.take()) {
            (Some(outcome), _) => Some(Ok(outcome)),
            (None, refused) => refused.map(Err),
        });
        decided.await?.map_err(|error| self.within(error))
    }

    /// Asks the other side to commit, if it is to and can.
    fn seal(&self) {
        let (pump, root) = {
            let state = self.state();
            let (Some(pump), Some(root)) = (state.pump.clone(), state.sealing) else { return };
            (pump, root)
        };
        pump.act(|sender, now| {
            if sender.state() == SenderState::Sending
                && let Err(error) = sender.seal(root, now)
            {
                sender.close(error);
            }
        });
    }

    async fn finish(&self) -> Result<()> {
        match self.done(Call::Finish, false).await {
            // The owner is gone: whoever recovers the job finishes it.
            Err(error) if error.kind() == ErrorKind::Fenced => {
                for found in self.far.recover(Some(self.spec.job)).await? {
                    if let Settled::Failed(error) = found.settled {
                        return Err(error);
                    }
                }
                Ok(())
            }
            done => done,
        }
    }

    async fn discard(&self) -> Result<Outcome> {
        if self.state().outcome == Some(Outcome::Committed) {
            return Ok(Outcome::Committed);
        }
        match self.call(Call::Discard, false).await {
            Ok(Told::Outcome(outcome)) => {
                self.change(|state| state.outcome = Some(outcome));
                Ok(outcome)
            }
            Ok(told) => Err(self.within(astray(&told))),
            // Not the owner any more: anybody may cancel.
            Err(error) if error.kind() == ErrorKind::Fenced || error.is_retryable() => {
                self.cancel().await
            }
            Err(error) => Err(error),
        }
    }

    async fn cancel(&self) -> Result<Outcome> {
        // The other side must not take this one for an owner that is about to clean up.
        self.state().socket.hang_up();
        let end = Instant::now() + CLEAN_TIME;
        let mut attempt = 0;
        loop {
            let outcome = match self.far.cancel(self.spec.job, &self.spec.target.image).await {
                Ok(Vote::Committed) => Outcome::Committed,
                Ok(Vote::Cancelled { clean: true, .. } | Vote::Unknown) => Outcome::Cancelled,
                Ok(Vote::Cancelled { clean: false, .. }) if Instant::now() < end => {
                    sleep(CLEAN_POLL).await;
                    continue;
                }
                Ok(Vote::Cancelled { clean: false, .. }) => {
                    let error = Error::new(ErrorKind::Busy, "clean a cancelled stage");
                    return Err(self.within(error));
                }
                Err(error) if error.is_retryable() && Instant::now() < end => {
                    attempt += 1;
                    sleep(backoff(attempt)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.change(|state| state.outcome = Some(outcome));
            return Ok(outcome);
        }
    }

    async fn wishes(&self) -> Result<Wishes> {
        let cancelled = {
            let mut state = self.state();
            let cancelled = state.outcome == Some(Outcome::Cancelled);
            state.told |= cancelled;
            cancelled
        };
        if cancelled {
            self.changed.notify_waiters();
            return Ok(Wishes { cancelled, ..Wishes::default() });
        }
        if self.state().outcome.is_some() {
            return Ok(Wishes::default());
        }
        match self.call(Call::Wishes, false).await? {
            Told::Wishes(wishes) => Ok(wishes),
            told => Err(self.within(astray(&told))),
        }
    }

    async fn read_back(&self, range: ByteRange) -> Result<Bytes> {
        let mut whole = BytesMut::new();
        loop {
            let got = to_u64(whole.len());
            let rest = ByteRange::new(range.offset + got, range.len - got);
            let bytes = match self.call(|owned| Call::ReadBack(owned, rest), true).await? {
                Told::Bytes(bytes) => bytes,
                told => return Err(self.within(astray(&told))),
            };
            // The other side gives as much as it has room for.
            match to_u64(bytes.len()) {
                len if len == range.len => return Ok(bytes),
                len if len <= rest.len && len > 0 => whole.extend_from_slice(&bytes),
                _ => {
                    let error = Error::new(ErrorKind::Corrupt, "read a stage back: what came");
                    return Err(
                        self.within(error.hint("it is more than was asked for, or nothing"))
                    );
                }
            }
            if to_u64(whole.len()) == range.len {
                return Ok(whole.freeze());
            }
        }
    }
}

impl Target for PeerTarget {
    fn location(&self) -> String {
        self.stage.location.clone()
    }

    fn begin(&self) -> BoxFuture<'_, Result<Restored>> {
        Box::pin(async move {
            let begin = self.begin.lock().unwrap_or_else(PoisonError::into_inner).take();
            let begin = begin.ok_or_else(|| {
                self.stage.within(Error::new(ErrorKind::Invalid, "begin the same target twice"))
            })?;
            // A driver that is gone has said why.
            begin.send(()).ok();
            let found = |state: &mut State| Some((state.restored.take()?, state.base.take()));
            let (mut restored, base) = self.stage.until(found).await?;
            restored.base = base.map(|table| -> Arc<dyn Base> {
                Arc::new(base::PeerBase::new(self.stage.clone(), table))
            });
            Ok(restored)
        })
    }

    fn write(&self, chunk: Sealed) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let (index, digest) = (chunk.index(), chunk.digest());
            let (codec, bytes) = self.stage.packing.clone().pack(chunk.data().clone()).await;
            let send = |sender: &mut Sender| sender.send_chunk(index, digest, codec, bytes.clone());
            self.stage.give(send).await?;
            self.stage.packing.arrived(to_u64(bytes.len()));
            Ok(chunk.written())
        })
    }

    fn write_zeroes(&self, run: ChunkRun) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            self.stage.give(|sender| sender.send_zeroes(vec![run])).await?;
            Ok(Written::zeroes(run))
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.stage.done(Call::Sync, true))
    }

    fn checkpoint<'a>(&'a self, chunks: &'a [Durable]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match chunks.is_empty() {
                true => Ok(()),
                false => self.stage.done(Call::Checkpoint, true).await,
            }
        })
    }

    fn read_back(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.stage.read_back(range))
    }

    fn commit<'a>(&'a self, manifest: &'a Manifest) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.stage.commit(manifest.root()))
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.stage.finish())
    }

    fn discard(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.stage.discard())
    }

    fn wishes(&self) -> BoxFuture<'_, Result<Wishes>> {
        Box::pin(self.stage.wishes())
    }

    fn report<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, Result<()>> {
        let report = |owned| Call::Report(owned, progress.clone());
        Box::pin(async move { self.stage.done(report, false).await })
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
