//! Drives a push: one attempt after the other, until it is decided, given up, or dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::pump::{Events, Pump, Side, greet};
use crate::region::{Outcome, Restored};
use crate::sync::time::{Instant, sleep, timeout, timeout_at};
use crate::wire::message::{Begin, Decision, FEATURE_ZSTD, Standing};
use crate::wire::session::{GreetingEvent, Item, Rest, Sender, SenderEvent};

use super::super::net::{Answer, Desk, Question, backoff};
use super::Stage;
use super::anchor::{Anchored, anchor};

/// How long the engine has to hear that others cancelled, before its writes fail.
const HEAR_TIME: Duration = Duration::from_secs(3);
const HEARD_TIME: Duration = Duration::from_millis(50);
/// How long the last words of an attempt may take.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// How an attempt ended.
enum End {
    Decided(Outcome),
    /// It could not be decided: the stage is kept, and this side still owns it.
    NotDecided(Error),
    Lost(Error, Rest),
}

/// Owns the stage at the other daemon, and pushes to it once `begun` says so.
pub(super) async fn drive(stage: Arc<Stage>, desk: Desk, begun: oneshot::Receiver<()>) {
    let Some(mut desk) = hold(&stage, desk, begun).await else { return };
    let (mut rest, mut attempt) = (Rest::default(), 0);
    loop {
        let (end, conn) = push(&stage, desk, rest, &mut attempt).await;
        stage.change(|state| state.pump = None);
        let error = match end {
            End::Decided(outcome) => {
                decided(&stage, outcome).await;
                // The connection stands for the stage until the target is dropped.
                return conn_ended(conn).await;
            }
            End::NotDecided(error) => {
                stage.change(|state| {
                    state.sealing = None;
                    state.refused = Some(error);
                    // Whoever waits for more than this answer waits for nothing: nobody pushes now.
                    let what = "go on with a stage that could not be decided";
                    state.failed = Some(Error::new(ErrorKind::Unavailable, what));
                    state.waiting.clear();
                });
                return conn_ended(conn).await;
            }
            End::Lost(error, left) => {
                rest = left;
                error
            }
        };
        // Order: hung up before this is told on or dials again. The stage keeps a hand on the
        // socket: dropping the connection alone would leave the other side with an owner.
        stage.state().socket.hang_up();
        drop(conn);
        if !may_go_on(&error) {
            return fail(&stage, error);
        }
        match find_again(&stage, &mut attempt, error).await {
            Ok(Found::Owned(found)) => desk = *found,
            Ok(Found::Decided(outcome)) => return decided(&stage, outcome).await,
            Err(error) => return fail(&stage, error),
        }
    }
}

async fn conn_ended(conn: Option<crate::pump::Conn>) {
    if let Some(mut conn) = conn {
        conn.reader.ended().await;
    }
}

/// Keeps the stage until the engine begins. A connection that is lost meanwhile is made again.
async fn hold(stage: &Arc<Stage>, desk: Desk, begun: oneshot::Receiver<()>) -> Option<Desk> {
    let mut desk = desk;
    let mut begun = begun;
    let mut attempt = 0;
    loop {
        let lost = tokio::select! {
            biased;
            begun = &mut begun => return begun.ok().map(|()| desk),
            event = greet(&mut desk.conn, &mut desk.greeting, Side::Dials) => match event {
                GreetingEvent::Closed(error) => error,
                _ => continue,
            },
        };
        desk.conn.socket.hang_up();
        drop(desk);
        if !may_go_on(&lost) {
            fail(stage, lost);
            return None;
        }
        match find_again(stage, &mut attempt, lost).await {
            Ok(Found::Owned(found)) => desk = *found,
            Ok(Found::Decided(outcome)) => {
                decided(stage, outcome).await;
                return None;
            }
            Err(error) => {
                fail(stage, error);
                return None;
            }
        }
    }
}

fn fail(stage: &Stage, error: Error) {
    stage.change(|state| {
        state.failed = Some(error);
        // Who waits is told by `check`.
        state.waiting.clear();
    });
}

/// It is decided. Where it was not this side that asked, the engine hears of it by its next look at
/// the wishes, before its writes fail: it has been cancelled, and has not failed.
async fn decided(stage: &Stage, outcome: Outcome) {
    stage.change(|state| state.outcome = Some(outcome));
    if outcome == Outcome::Cancelled {
        let heard = stage.until(|state| state.told.then_some(()));
        if timeout(HEAR_TIME, heard).await.is_ok() {
            sleep(HEARD_TIME).await;
        }
    }
    stage.change(|state| {
        state.cut = true;
        state.waiting.clear();
    });
}

/// Whether another connection may mend it.
fn may_go_on(error: &Error) -> bool {
    error.is_retryable()
}

enum Found {
    Owned(Box<Desk>),
    Decided(Outcome),
}

/// Dials again, asks how the job stands, and takes the stage over from the lost connection.
async fn find_again(stage: &Stage, attempt: &mut u32, lost: Error) -> Result<Found> {
    let mut last = lost;
    while *attempt < stage.far.net.options.attempts_max {
        *attempt += 1;
        sleep(backoff(*attempt)).await;
        match look(stage).await {
            Ok(found) => return Ok(found),
            // A stage that is gone by now, or has committed, is decided: the next look tells how.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists) => {
                last = error;
            }
            Err(error) if may_go_on(&error) || error.kind() == ErrorKind::Busy => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn look(stage: &Stage) -> Result<Found> {
    let name = stage.far.name_of(stage.spec.job, &stage.spec.target.image);
    match stage.far.ask(Question::Query(name)).await? {
        Answer::Standing(Standing::Decided(decision)) => Ok(Found::Decided(outcome_of(decision))),
        Answer::Standing(Standing::Staged { .. }) => {
            let instead = Some(stage.state().token);
            let mut spec = stage.spec.clone();
            let Anchored { desk, token, epoch } =
                anchor(&stage.far, &mut spec, true, instead).await?;
            let socket = desk.conn.socket.clone();
            stage.change(|state| {
                (state.token, state.epoch, state.socket) = (token, epoch, socket);
            });
            Ok(Found::Owned(Box::new(desk)))
        }
        _ => Err(Error::new(ErrorKind::Invalid, "hear an answer to a query")),
    }
}

/// What nobody knows of any more was cancelled and cleaned.
fn outcome_of(decision: Decision) -> Outcome {
    match decision {
        Decision::Committed { .. } => Outcome::Committed,
        Decision::Cancelled { .. } | Decision::Unknown => Outcome::Cancelled,
    }
}

/// One attempt. Gives the control connection back where it still stands for the stage.
async fn push(
    stage: &Arc<Stage>,
    desk: Desk,
    rest: Rest,
    attempt: &mut u32,
) -> (End, Option<crate::pump::Conn>) {
    let Desk { conn, greeting } = desk;
    let Some(link) = greeting.into_link() else {
        let error = Error::new(ErrorKind::Unavailable, "push on a connection that was lost");
        return (End::Lost(error, rest), None);
    };
    let id = link.id();
    stage.packing.allow(link.agreed().features & FEATURE_ZSTD != 0);
    let begin = Begin { epoch: stage.state().epoch + 1, root: None, spec: stage.spec.clone() };
    let now = crate::sync::time::Instant::now().into_std();
    let sender = match Sender::push(link, begin, None, rest, now) {
        Ok(sender) => sender,
        Err(error) => return (End::Lost(error, Rest::default()), Some(conn)),
    };
    let (pump, mut events) = Pump::new(sender);
    let pump = Arc::new(pump);
    let mut control = conn;
    let end = {
        // However the connection ends, an event tells.
        let served = async {
            tokio::join!(pump.serve(id, &mut control), pump.pass_time());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = attend(stage, &pump, &mut events, attempt) => end,
            () = served => return (End::Lost(gone(), Rest::default()), None),
        }
    };
    match end {
        Ended::Decided(outcome) => (End::Decided(outcome), Some(control)),
        Ended::NotDecided(error) => (End::NotDecided(error), Some(control)),
        Ended::Closed(error) => {
            // What is still to be said, such as why, is said as far as the other side listens.
            pump.act(|sender, _| sender.close(gone()));
            timeout(LAST_WORDS_TIME, pump.serve(id, &mut control)).await.ok();
            let rest = pump.take().map(Sender::into_rest).unwrap_or_default();
            (End::Lost(error, rest), None)
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "push on a connection that is gone")
}

/// What ended the events.
enum Ended {
    Decided(Outcome),
    NotDecided(Error),
    Closed(Error),
}

/// Takes the events of one attempt.
async fn attend(
    stage: &Arc<Stage>,
    pump: &Arc<Pump<Sender>>,
    events: &mut Events<SenderEvent>,
    attempt: &mut u32,
) -> Ended {
    // More links, for as long as this attempt lasts.
    let mut links = JoinSet::new();
    // The requests of a session have their deadline; what is held is told in no answer.
    let net = &stage.far.net;
    let opened_by = Instant::now() + net.options.pace.answer_max;
    let mut is_open = false;
    loop {
        let event = match is_open {
            true => events.recv().await,
            false => match timeout_at(opened_by, events.recv()).await {
                Ok(event) => event,
                Err(_) => return Ended::Closed(late()),
            },
        };
        let Some(event) = event else { return Ended::Closed(gone()) };
        match event {
            SenderEvent::Ready { held, data_bytes, base } => {
                is_open = true;
                let token = pump.look(Sender::token).flatten();
                stage.change(|state| {
                    state.epoch += 1;
                    state.token = token.unwrap_or(state.token);
                    if !std::mem::replace(&mut state.begun, true) {
                        state.base = base.map(|base| *base);
                        state.restored = Some(Restored { table: *held, data_bytes, base: None });
                    }
                    state.pump = Some(pump.clone());
                });
                for _ in 1..net.options.connections {
                    links.spawn(net.clone().lend_link(pump.clone(), Sender::attach_dialled));
                }
            }
            SenderEvent::Written(item) => {
                *attempt = 0;
                answer(stage, item, Ok(()));
            }
            SenderEvent::Refused(item, error) => answer(stage, item, Err(error)),
            SenderEvent::Lost(runs) => {
                let what = format!("go on with the push: {} runs of chunks are gone", runs.len());
                let error = Error::new(ErrorKind::Unavailable, what)
                    .retryable(false)
                    .hint("the other side accepted them and then crashed; resume the job");
                return Ended::Closed(error);
            }
            SenderEvent::Decided(decision) => return Ended::Decided(outcome_of(decision)),
            SenderEvent::NotDecided(error) => return Ended::NotDecided(error),
            SenderEvent::Closed(error) => return Ended::Closed(error),
            SenderEvent::Room => stage.changed.notify_waiters(),
            // What is durable is told to those who ask for a checkpoint; links end by themselves.
            SenderEvent::Durable(_)
            | SenderEvent::LinkClosed(..)
            | SenderEvent::Synced(_)
            | SenderEvent::SyncFailed(..)
            | SenderEvent::Wanted { .. }
            | SenderEvent::AskedExtents { .. }
            | SenderEvent::AskedFacts { .. } => {}
        }
        // Everything may have arrived before the connection was lost; or, as an event that is still
        // to be taken tells, have been lost itself.
        if events.is_empty() {
            reseal(stage);
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Unavailable, "hear what the other side holds: it is late")
}

/// A seal whose answer was lost is asked for again once nothing is under way.
fn reseal(stage: &Stage) {
    let is_due = {
        let state = stage.state();
        state.sealing.is_some() && state.waiting.is_empty()
    };
    if is_due {
        stage.seal();
    }
}

fn answer(stage: &Stage, item: Item, done: Result<()>) {
    let waiting = stage.state().waiting.remove(&item);
    if let Some(waiting) = waiting {
        // Who does not wait any more has been stopped.
        waiting.send(done).ok();
    }
}
