//! A push as this side sees it: chunks are checked, written, put on record, and then decided about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chunk::{Durable, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, to_u64};
use crate::manifest::Manifest;
use crate::peer::Lease;
use crate::pump::{Conn, Events, Pump};
use crate::region::{Base, Outcome, Target, blocking};
use crate::sync::time::{Instant, sleep, sleep_until, timeout};
use crate::throttle::{Take, ThrottlePath};
use crate::wire::message::Decision;
use crate::wire::session::{Arrived, LinkId, Receiver, ReceiverEvent, ReceiverState, Ticket};

use super::holds::{Hold, fenced};
use super::keep::{Book, bytes_of};
use super::visitor::Visitor;

/// Chunks of one session that are being hashed or written at a time.
const WORK_COUNT_MAX: usize = 8;
/// How often this side looks whether somebody cancels the job.
const ATTEND_INTERVAL: Duration = Duration::from_millis(100);
/// How long the peer, who owns the stage, has to see that it was cancelled and to clean up, before
/// this side does: so long as it lives it is the one who knows what is under way.
const GRACE_TIME: Duration = Duration::from_secs(2);
/// How long a connection stands for a stage whose push is over.
const LINGER_TIME: Duration = Duration::from_secs(120);
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// One attempt.
pub(super) struct Push {
    pub(super) pump: Arc<Pump<Receiver>>,
    target: Arc<dyn Target>,
    base: Option<Arc<dyn Base>>,
    /// Chunks are taken over from the base one after the other.
    base_turn: tokio::sync::Mutex<()>,
    book: Book,
    /// So much waits for a sync that one is due.
    due: Notify,
    checkpoint_bytes: u64,
    work: Semaphore,
    rate: ThrottlePath,
    /// A commit and a cancel may be asked for at once: one after the other.
    deciding: tokio::sync::Mutex<()>,
    /// It is decided, or cannot be: the stage stays with its owner, and nothing is written.
    over: CancellationToken,
    /// The driver ends: background work does, too.
    stopping: CancellationToken,
    failed: AtomicBool,
}

/// What ended an attempt.
enum End {
    /// Its machine says so; the error is the peer's, or its connection's.
    Closed,
    Over,
    Fenced,
    Closing,
    /// Others cancel the job.
    Cancelled,
}

impl Push {
    pub(super) fn new(
        visitor: &Visitor,
        pump: Arc<Pump<Receiver>>,
        target: Arc<dyn Target>,
        base: Option<Arc<dyn Base>>,
    ) -> Self {
        Self {
            pump,
            target,
            base,
            base_turn: tokio::sync::Mutex::default(),
            book: Book::default(),
            due: Notify::new(),
            checkpoint_bytes: visitor.house.options.checkpoint_bytes,
            work: Semaphore::new(WORK_COUNT_MAX),
            rate: ThrottlePath::new([visitor.seat.throttle().clone()]),
            deciding: tokio::sync::Mutex::default(),
            over: CancellationToken::new(),
            stopping: CancellationToken::new(),
            failed: AtomicBool::new(false),
        }
    }

    /// A chunk: checked, written, acknowledged.
    async fn take(self: Arc<Self>, arrived: Arrived, bytes: u64) {
        tokio::select! {
            () = pass(&self.rate, bytes) => {}
            // It was never acknowledged: it comes again.
            () = self.stopping.cancelled() => return,
        }
        let Ok(_turn) = self.work.acquire().await else { return };
        let opened = blocking(move || Ok(arrived.open())).await;
        let Ok((ticket, sealed)) = opened else {
            return self.fail(Error::new(ErrorKind::Io, "check a chunk: its thread is gone"));
        };
        let written = match sealed {
            Ok(sealed) => self.target.write(sealed).await,
            Err(error) => Err(error),
        };
        self.acknowledge(ticket, written.map(|written| vec![written]));
    }

    async fn take_zeroes(self: Arc<Self>, ticket: Ticket) {
        let Ok(_turn) = self.work.acquire().await else { return };
        let mut written = Ok(Vec::new());
        for run in ticket.runs() {
            match (self.target.write_zeroes(*run).await, &mut written) {
                (Ok(run), Ok(written)) => written.push(run),
                (Err(error), _) => {
                    written = Err(error);
                    break;
                }
                (Ok(_), Err(_)) => {}
            }
        }
        self.acknowledge(ticket, written);
    }

    /// Chunks of the base: taken over where they lie, and hashed.
    async fn take_same(self: Arc<Self>, ticket: Ticket) {
        let Ok(_turn) = self.work.acquire().await else { return };
        // Order: what comes twice, as after a lost connection, is found to be held the second time.
        // It may be on record by then, and must not be touched again.
        let _base_turn = self.base_turn.lock().await;
        let mut written = Ok(Vec::new());
        for index in ticket.runs().iter().flat_map(|run| run.iter()) {
            // It may be a run of a million: who ends does not wait for it. It was never
            // acknowledged.
            if self.stopping.is_cancelled() {
                return;
            }
            match self.take_from_base(index).await {
                Ok(taken) => written.iter_mut().for_each(|written| written.push(taken)),
                Err(error) => {
                    written = Err(error);
                    break;
                }
            }
        }
        self.acknowledge(ticket, written);
    }

    async fn take_from_base(&self, index: ChunkIndex) -> Result<Written> {
        let damaged = || Error::new(ErrorKind::Corrupt, "take a chunk over: the base is damaged");
        let Some(base) = &self.base else { return Err(damaged()) };
        let digest = base.table().digest(index).flatten().ok_or_else(damaged)?;
        let held = self.pump.look(|receiver| receiver.table()?.digest(index)).flatten();
        if held == Some(Some(digest)) {
            let len = base.table().geometry().range(index).len;
            return Ok(Written::data(index, digest, u32::try_from(len).unwrap_or(u32::MAX)));
        }
        base.take(ChunkRun::new(index, 1), true).await?.pop().ok_or_else(damaged)
    }

    fn acknowledge(&self, ticket: Ticket, written: Result<Vec<Written>>) {
        let waiting = self.pump.act(|receiver, _| match written {
            Ok(written) => {
                let told = receiver.written(ticket, &written);
                // Order: in the book before the sender can hear that it is written, and not before
                // the machine's table says so, for only what that says is recorded.
                let waiting = self.book.enter(&written, bytes_of(&written));
                told.map(|()| waiting).unwrap_or(waiting)
            }
            Err(error) => {
                receiver.refused(ticket, error);
                0
            }
        });
        if waiting.is_some_and(|waiting| waiting >= self.checkpoint_bytes / 2) {
            self.due.notify_one();
        }
    }

    pub(super) async fn sync(&self) -> Result<()> {
        let synced = self.book.sync(&*self.target).await;
        self.ended_by(synced)
    }

    pub(super) async fn record(&self) -> Result<()> {
        let recorded = self.book.record(&*self.target, |all| self.admit(all), |c| self.tell(c));
        let recorded = recorded.await;
        self.ended_by(recorded)
    }

    /// Makes durable what was written, and puts it on record.
    async fn keep(&self) -> Result<()> {
        let kept = self.book.keep(&*self.target, |all| self.admit(all), |c| self.tell(c)).await;
        self.ended_by(kept)
    }

    fn admit(&self, durable: Vec<Durable>) -> Vec<Durable> {
        self.pump.act(|receiver, _| receiver.record(durable)).unwrap_or_default()
    }

    fn tell(&self, chunks: &[Durable]) -> Result<()> {
        self.pump.act(|receiver, _| receiver.durable(chunks)).unwrap_or(Ok(()))
    }

    /// What could not be synced or recorded ends the attempt: the next one starts from the record.
    fn ended_by(&self, done: Result<()>) -> Result<()> {
        if let Err(error) = &done {
            self.fail(Error::new(error.kind(), error.action().to_owned()).retryable(false));
        }
        done
    }

    fn fail(&self, error: Error) {
        self.failed.store(true, Relaxed);
        self.pump.act(|receiver, _| receiver.close(error));
    }

    async fn synced(self: Arc<Self>, id: u64) {
        let kept = self.keep().await;
        self.pump.act(|receiver, _| {
            let told = match &kept {
                Ok(()) => receiver.synced(id),
                Err(error) => receiver.sync_failed(id, error),
            };
            // The session is over: who asked finds out by a query.
            told.ok();
        });
    }

    async fn commit(self: Arc<Self>, manifest: Box<Manifest>) {
        let committed = async {
            self.keep().await?;
            let _turn = self.deciding.lock().await;
            self.target.commit(&manifest).await
        };
        match committed.await {
            Ok(outcome) => self.decide(outcome, false, false),
            Err(error) => {
                self.over.cancel();
                self.pump.act(|receiver, _| receiver.not_decided(error));
            }
        }
    }

    async fn cancel(self: Arc<Self>) {
        if let Err(error) = self.discard(true).await {
            self.over.cancel();
            self.pump.act(|receiver, _| receiver.not_decided(error));
        }
    }

    /// Cancels, unless it has committed, and removes everything; the sender is told. `first`: it is
    /// this that decides.
    pub(super) async fn discard(&self, first: bool) -> Result<Outcome> {
        let _turn = self.deciding.lock().await;
        let outcome = self.target.discard().await?;
        self.decide(outcome, first, true);
        Ok(outcome)
    }

    /// Removes what others cancelled: nobody may be left to but us. Gives whether it is clean.
    async fn clean_up(&self) -> bool {
        let Err(error) = self.discard(false).await else { return true };
        // It is cancelled all the same: whoever recovers the stage cleans up, once this side has
        // let it go.
        self.pump.act(|receiver, _| receiver.close(error));
        false
    }

    /// Tells the sender how it was decided. `first`: by this very cancel. `clean`: nothing is left.
    fn decide(&self, outcome: Outcome, first: bool, clean: bool) {
        let decision = match outcome {
            Outcome::Committed => Decision::Committed { root: None },
            Outcome::Cancelled => Decision::Cancelled { first, clean },
        };
        self.over.cancel();
        self.pump.act(|receiver, _| {
            let state = receiver.state();
            if matches!(state, ReceiverState::Receiving | ReceiverState::Deciding)
                && let Err(error) = receiver.decided(decision)
            {
                receiver.close(error);
            }
        });
    }

    /// A checkpoint every so many bytes or so long, until it stops.
    async fn keep_up(self: Arc<Self>, interval: Duration) {
        while !self.stopping.is_cancelled() {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                due = timeout(interval, self.due.notified()) => drop(due),
            }
            if !self.book.is_empty() && self.keep().await.is_err() {
                return;
            }
        }
    }

    /// Waits until somebody cancels the job, or it stops.
    async fn heed(self: Arc<Self>, cancelled: CancellationToken) {
        let mut next = Instant::now();
        while !self.stopping.is_cancelled() {
            next += ATTEND_INTERVAL;
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep_until(next) => {}
            }
            next = next.max(Instant::now());
            // A look that fails is no loss: the next one comes soon.
            if self.target.wishes().await.is_ok_and(|wishes| wishes.cancelled) {
                tokio::select! {
                    () = self.stopping.cancelled() => {}
                    () = sleep(GRACE_TIME) => cancelled.cancel(),
                }
                return;
            }
        }
    }
}

/// Waits until the identity's rate lets that much pass.
pub(super) async fn pass(rate: &ThrottlePath, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let grant = rate.grant_bytes(left);
        match rate.take(Instant::now().into_std(), grant, 0) {
            Take::Granted => left -= grant,
            Take::At(when) => sleep_until(when.into()).await,
        }
    }
}

/// Serves one attempt to its end. The caller lets the stage go.
pub(super) async fn run(
    visitor: &Visitor,
    hold: &Arc<Hold>,
    push: Arc<Push>,
    lease: Lease,
    mut events: Events<ReceiverEvent>,
    conn: &mut Conn,
    link: LinkId,
) {
    let mut tasks = JoinSet::new();
    let cancelled = CancellationToken::new();
    tasks.spawn(push.clone().keep_up(visitor.house.options.checkpoint_interval));
    tasks.spawn(push.clone().heed(cancelled.clone()));
    let end = {
        // However the connection ends, an event tells.
        let served = async {
            tokio::join!(push.pump.serve(link, conn), push.pump.pass_time());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = push.over.cancelled() => End::Over,
            () = hold.fenced.cancelled() => End::Fenced,
            () = visitor.closing.cancelled() => End::Closing,
            () = cancelled.cancelled() => End::Cancelled,
            end = attend(&push, &mut events, &mut tasks) => end,
            () = served => End::Closed,
        }
    };
    let why = match end {
        End::Fenced => Some(fenced()),
        End::Closing => Some(visitor.parting()),
        End::Closed | End::Over | End::Cancelled => None,
    };
    if let Some(why) = why {
        push.pump.act(|receiver, _| receiver.close(why));
    }
    // Order: everything in hand is written before the last record, and that before the stage is let
    // go: nothing is written after.
    push.stopping.cancel();
    while tasks.join_next().await.is_some() {}
    // Order: what arrived and was not taken goes before the room that it had. Whatever stays of
    // this connection needs none.
    drop(events);
    drop(lease);
    let lingers = match end {
        End::Cancelled => push.clean_up().await,
        _ if push.over.is_cancelled() => true,
        _ => {
            if !push.failed.load(Relaxed) {
                // One that fails is told to whoever comes next: its chunks are not on record.
                push.keep().await.ok();
            }
            false
        }
    };
    timeout(LAST_WORDS_TIME, push.pump.serve(link, conn)).await.ok();
    if lingers {
        // The connection stands for the stage until the peer hangs up.
        tokio::select! {
            () = hold.fenced.cancelled() => {}
            () = visitor.closing.cancelled() => {}
            ended = timeout(LINGER_TIME, conn.reader.ended()) => drop(ended),
        }
    }
}

pub(super) fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "go on: the daemon is stopping")
}

async fn attend(
    push: &Arc<Push>,
    events: &mut Events<ReceiverEvent>,
    tasks: &mut JoinSet<()>,
) -> End {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Some(_) = tasks.join_next() => continue,
        };
        match event {
            Some(ReceiverEvent::Arrived(arrived)) => {
                let geometry = push.pump.look(Receiver::geometry).flatten();
                let bytes = geometry.map_or(0, |geometry| geometry.range(arrived.index()).len);
                tasks.spawn(push.clone().take(arrived, bytes));
            }
            Some(ReceiverEvent::Zeroes(ticket)) => {
                tasks.spawn(push.clone().take_zeroes(ticket));
            }
            Some(ReceiverEvent::Sync { id }) => {
                tasks.spawn(push.clone().synced(id));
            }
            Some(ReceiverEvent::Commit(manifest)) => {
                tasks.spawn(push.clone().commit(manifest));
            }
            Some(ReceiverEvent::Cancel) => {
                tasks.spawn(push.clone().cancel());
            }
            Some(ReceiverEvent::Same(ticket)) => {
                tasks.spawn(push.clone().take_same(ticket));
            }
            Some(ReceiverEvent::Closed(_)) | None => return End::Closed,
            // Links end by themselves; the rest is about what is fetched.
            Some(_) => {}
        }
        debug_assert!(to_u64(tasks.len()) < 1 << 20, "credits and requests bound what is in hand");
    }
}
