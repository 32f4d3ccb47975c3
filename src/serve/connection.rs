//! One connection from its first byte: who it is, what it asks, and the session it opens or joins.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::peer::{Identity, Knock, Lease, Operation, Policy};
use crate::pump::{Conn, Duplex, Pump, Side, Socket, greet, say};
use crate::region::peer::CHUNK_BYTES_MAX;
use crate::region::peer::call::{Call, Told};
use crate::region::{Base, Located, Region, Restored, Settled, Vote};
use crate::sync::time::{Duration, Instant, timeout};
use crate::wire::message::{Begin, Decision, Hello, Join, Name, Refusal, Session, Standing};
use crate::wire::session::{Accepted, Bounds, Greeting, GreetingEvent, Opener, Receiver};

use super::holds::{Hold, Instead, fenced};
use super::push::{self, Push};
use super::visitor::{Visitor, lease};
use super::{House, Incoming, Joinable, calls, pull};

/// How long a peer has to hear why it is not let in.
const PARTING_TIME: Duration = Duration::from_secs(1);

/// Serves a connection that was accepted, to its end.
pub(super) async fn run(house: Arc<House>, policy: watch::Receiver<Policy>, incoming: Incoming) {
    // As many as there may be are open: hung up at once.
    let Ok(knock) = house.door.knock() else { return };
    let Ok((stream, socket, identity)) = shake_hands(&knock, incoming).await else { return };
    let mut conn = Conn::new(stream, socket.clone(), Instant::now());
    let bounds = Bounds { session_bytes: house.options.window_bytes, ..Bounds::default() };
    let (hello, pace) = (Hello::new(CHUNK_BYTES_MAX), house.options.pace);
    let now = Instant::now().into_std();
    let mut greeting = Greeting::listen(house.next_link(), hello, bounds, pace, now);
    let ceilings = policy.borrow().ceilings(&identity);
    let seated = ceilings.and_then(|ceilings| knock.admit(&identity, &ceilings));
    let seat = match seated {
        Ok(seat) => seat,
        Err(error) => return part(&mut conn, &mut greeting, error).await,
    };
    let closing = house.closing.child_token();
    let visitor = Visitor { house: house.clone(), policy, identity, seat, socket, closing };
    let mut held = Held { house, hold: None };
    tokio::select! {
        () = converse(&visitor, conn, greeting, &mut held.hold) => {}
        () = visitor.watch() => {}
    }
    if let Some(hold) = held.hold.take() {
        visitor.house.holds.release(&hold).await;
    }
}

/// A stage that is let go also when its connection ends by a panic.
struct Held {
    house: Arc<House>,
    hold: Option<Arc<Hold>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let house = self.house.clone();
        self.house.tasks.spawn(async move { house.holds.release(&hold).await });
    }
}

async fn shake_hands(
    knock: &Knock,
    incoming: Incoming,
) -> Result<(Box<dyn Duplex>, Socket, Identity)> {
    let failed = |error| Error::io("take a connection", error);
    match incoming {
        Incoming::Unix(stream) => {
            let user = stream.peer_cred().map_err(failed)?.uid();
            let socket = Socket::of(&stream)?;
            Ok((Box::new(stream), socket, Identity::of_user(user)))
        }
        Incoming::Tcp(stream, tls) => {
            // Acknowledgements are short and must not wait for more.
            stream.set_nodelay(true).map_err(failed)?;
            let socket = Socket::of(&stream)?;
            let (stream, identity) = knock.until_turned_out(tls.accept(stream)).await?;
            Ok((Box::new(stream), socket, identity))
        }
    }
}

/// Tells a peer why it is not let in, or not let go on, and hangs up.
async fn part(conn: &mut Conn, greeting: &mut Greeting, error: Error) {
    greeting.close(error);
    let parted = async {
        say(conn, greeting).await.ok();
        conn.writer.end().await;
        // What it has said meanwhile is read, or the system would take our words back.
        conn.reader.ended().await;
    };
    timeout(PARTING_TIME, parted).await.ok();
}

/// Answers questions until the connection ends, or opens a session.
async fn converse(visitor: &Visitor, conn: Conn, greeting: Greeting, hold: &mut Option<Arc<Hold>>) {
    let (mut conn, mut greeting) = (conn, greeting);
    loop {
        let out = hold.as_ref().map(|hold| hold.fenced.clone()).unwrap_or_default();
        // Of what is told, until it is said.
        let mut room = None;
        let event = tokio::select! {
            biased;
            () = visitor.closing.cancelled() => {
                return part(&mut conn, &mut greeting, visitor.parting()).await;
            }
            () = out.cancelled() => return part(&mut conn, &mut greeting, fenced()).await,
            event = greet(&mut conn, &mut greeting, Side::Listens) => event,
        };
        let (id, told) = match event {
            GreetingEvent::Agreed => continue,
            GreetingEvent::Queried { id, name } => {
                (id, stands(visitor, &name).await.map(Reply::Standing))
            }
            GreetingEvent::Cancelled { id, name } => {
                (id, cancel(visitor, &name).await.map(Reply::Decision))
            }
            GreetingEvent::Called { id, body } => {
                let told = match Call::decode(&body) {
                    Ok(Call::Stage { reopen, instead, spec }) => {
                        let instead = instead.map_or(Instead::Nobody, Instead::Holder);
                        let staged = stage(visitor, &spec, reopen, instead, hold).await;
                        if hold.is_some() {
                            greeting.keep();
                        }
                        staged
                    }
                    Ok(Call::ReadBack(owned, range)) => {
                        let back = calls::read_back(visitor, &owned, range).await;
                        back.map(|(bytes, taken)| {
                            room = Some(taken);
                            Told::Bytes(bytes)
                        })
                    }
                    Ok(call) => calls::answer(visitor, call).await,
                    Err(error) => Err(error),
                };
                (id, told.map(Reply::Told))
            }
            GreetingEvent::Opened { id, opener } => {
                match open(visitor, conn, greeting, id, opener, hold).await {
                    Some(kept) => (conn, greeting) = kept,
                    None => return,
                }
                continue;
            }
            // Its last words, or ours, are said.
            _ => {
                say(&mut conn, &mut greeting).await.ok();
                return conn.writer.end().await;
            }
        };
        let replied = match told {
            Ok(Reply::Standing(standing)) => greeting.answer(id, standing),
            Ok(Reply::Decision(decision)) => greeting.decided(id, decision),
            Ok(Reply::Told(told)) => greeting.tell(id, told.encode()),
            Err(error) => greeting.refuse(id, Refusal::new(&error)),
        };
        if replied.is_err() || (room.is_some() && say(&mut conn, &mut greeting).await.is_err()) {
            return;
        }
        drop(room);
    }
}

enum Reply {
    Standing(Standing),
    Decision(Decision),
    Told(Told),
}

/// Stages for the peer: it owns the stage for as long as this connection lives.
async fn stage(
    visitor: &Visitor,
    spec: &crate::job::JobSpec,
    reopen: bool,
    instead: Instead,
    hold: &mut Option<Arc<Hold>>,
) -> Result<Told> {
    let target = &spec.target;
    visitor.may(Operation::Push, &target.region, &target.image)?;
    may_take_base(visitor, spec)?;
    if hold.is_some() {
        return Err(Error::new(ErrorKind::Invalid, "stage twice on one connection"));
    }
    let claimed =
        visitor.house.claim(&visitor.identity, &visitor.socket, spec, reopen, instead).await?;
    *hold = Some(claimed.clone());
    let epoch = visitor.house.epoch(&target.region, spec.job).await?;
    let token = *claimed.token();
    Ok(Told::Staged { token, epoch })
}

/// How a job stands here.
async fn stands(visitor: &Visitor, name: &Name) -> Result<Standing> {
    let may = |operation| visitor.may(operation, &name.region, &name.image);
    may(Operation::Push).or_else(|_| may(Operation::List))?;
    let house = &visitor.house;
    house.holds.settle(&name.region).await;
    let region = house.region(&name.region)?;
    if names_another(&**region, name).await? {
        return Ok(Standing::Decided(Decision::Unknown));
    }
    let mut settled = None;
    for found in region.recover(Some(name.job)).await? {
        settled = Some(found.settled);
    }
    let staged = match settled {
        Some(Settled::Committed) => {
            return Ok(Standing::Decided(Decision::Committed { root: None }));
        }
        Some(Settled::RolledBack) => {
            let cancelled = Decision::Cancelled { first: false, clean: true };
            return Ok(Standing::Decided(cancelled));
        }
        Some(Settled::Failed(error)) => return Err(error),
        Some(Settled::Running | Settled::Kept) => region.job(name.job).await?,
        // What is gone may have committed just before: that shows by the image alone.
        Some(Settled::Forgotten) | None => None,
    };
    match (region.locate(&name.image).await?, staged) {
        (Located::Committed(Some(job)), _) if job == name.job => {
            // Order: durable before it is told; its owner may not have come to that. It is decided,
            // so this vote decides nothing.
            let vote = region.cancel(name.job, &name.image).await?;
            Ok(Standing::Decided(decision_of(vote)))
        }
        (_, Some(staged)) if staged.spec.target.image == name.image => {
            Ok(Standing::Staged { epoch: staged.epoch, owned: staged.owned })
        }
        _ => Ok(Standing::Decided(Decision::Unknown)),
    }
}

async fn cancel(visitor: &Visitor, name: &Name) -> Result<Decision> {
    visitor.may(Operation::Cancel, &name.region, &name.image)?;
    let house = &visitor.house;
    house.holds.settle(&name.region).await;
    let region = house.region(&name.region)?;
    if names_another(&**region, name).await? {
        return Ok(Decision::Unknown);
    }
    Ok(decision_of(region.cancel(name.job, &name.image).await?))
}

/// Whether the job is staged for another image than the one named, which alone was looked up in the
/// policy. A job never changes its image.
async fn names_another(region: &dyn Region, name: &Name) -> Result<bool> {
    let staged = region.job(name.job).await?;
    Ok(staged.is_some_and(|staged| staged.spec.target.image != name.image))
}

fn decision_of(vote: Vote) -> Decision {
    match vote {
        Vote::Committed => Decision::Committed { root: None },
        Vote::Cancelled { first, clean } => Decision::Cancelled { first, clean },
        Vote::Unknown => Decision::Unknown,
    }
}

/// Opens or joins a session, and serves it to its end. Gives the connection back where the request
/// was refused.
async fn open(
    visitor: &Visitor,
    conn: Conn,
    greeting: Greeting,
    id: u64,
    opener: Opener,
    hold: &mut Option<Arc<Hold>>,
) -> Option<(Conn, Greeting)> {
    let (mut conn, mut greeting) = (conn, greeting);
    let refused = match opener {
        Opener::Begin(begin) => {
            let prepared = match greeting.check(&begin) {
                Ok(()) => prepare(visitor, &begin, hold).await,
                Err(error) => Err(error),
            };
            match prepared {
                Ok(prepared) => {
                    take_push(visitor, &mut conn, greeting, id, begin, prepared).await;
                    return None;
                }
                Err(error) => error,
            }
        }
        Opener::Fetch(fetch) => match pull::prepare(visitor, &fetch).await {
            Ok(prepared) => {
                pull::run(visitor, &mut conn, greeting, id, fetch, prepared).await;
                return None;
            }
            Err(error) => error,
        },
        Opener::Join(join) => match visitor.house.find_session(&visitor.identity, &join) {
            Some(session) => {
                lend(visitor, &mut conn, greeting, id, session, &join).await;
                return None;
            }
            None => Error::new(ErrorKind::Denied, "join a session"),
        },
    };
    match greeting.refuse(id, Refusal::new(&refused)) {
        Ok(()) => Some((conn, greeting)),
        Err(_) => None,
    }
}

/// What a push starts from.
struct Prepared {
    hold: Arc<Hold>,
    lease: Lease,
    accepted: Accepted,
    base: Option<Arc<dyn Base>>,
}

/// Checks and begins an attempt: from here on earlier ones are fenced.
async fn prepare(
    visitor: &Visitor,
    begin: &Begin,
    hold: &mut Option<Arc<Hold>>,
) -> Result<Prepared> {
    let (house, target) = (&visitor.house, &begin.spec.target);
    visitor.may(Operation::Push, &target.region, &target.image)?;
    may_take_base(visitor, &begin.spec)?;
    house.holds.settle(&target.region).await;
    let epoch = house.epoch(&target.region, begin.spec.job).await?;
    if begin.epoch <= epoch {
        return Err(fenced());
    }
    if begin.epoch > epoch + 1 {
        let action = format!("begin attempt {} after {epoch}", begin.epoch);
        return Err(Error::new(ErrorKind::Invalid, action));
    }
    let held = match hold.take() {
        Some(held) => held,
        None => {
            let (identity, socket) = (&visitor.identity, &visitor.socket);
            let instead = Instead::Earlier;
            house.claim(identity, socket, &begin.spec, false, instead).await?
        }
    };
    *hold = Some(held.clone());
    if !held.spec.same_request(&begin.spec) || held.spec.job != begin.spec.job {
        return Err(Error::new(ErrorKind::Invalid, "begin another job than was staged"));
    }
    // Of two that begin at once one is too late by now: the claim lets one after the other in.
    if begin.epoch != house.epoch(&begin.spec.target.region, begin.spec.job).await? + 1 {
        return Err(fenced());
    }
    // Order: room first, and without waiting for it, or the attempt before would be over while this
    // one cannot go on; but after the claim, which makes that one give its own room back.
    let lease = lease(visitor, begin.spec.geometry.chunk_size())?;
    let target = held.live.read().await.as_ref().map(|live| live.target.clone());
    // Order: the attempt is on record before the peer hears that it has begun.
    let Restored { table, data_bytes, base, .. } = target.ok_or_else(fenced)?.begin().await?;
    let token = house.token(&visitor.identity, begin.session());
    *held.token() = token;
    let told = base.as_ref().map(|base| base.table().clone());
    let accepted = Accepted { held: table, data_bytes, base: told, token };
    Ok(Prepared { hold: held, lease, accepted, base })
}

/// Who takes chunks of an image over learns its digests, and has its bytes: as if it were pulled.
fn may_take_base(visitor: &Visitor, spec: &crate::job::JobSpec) -> Result<()> {
    let Some(base) = &spec.base else { return Ok(()) };
    let region = &spec.target.region;
    visitor.may(Operation::Pull, region, base)?;
    match visitor.house.region(region)?.capabilities().takes_base {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unsupported, "stage with a base")),
    }
}

async fn take_push(
    visitor: &Visitor,
    conn: &mut Conn,
    greeting: Greeting,
    id: u64,
    begin: Box<Begin>,
    prepared: Prepared,
) {
    let Prepared { hold, lease, accepted, base } = prepared;
    let session = begin.session();
    let Some(link) = greeting.into_link() else { return };
    let link_id = link.id();
    let Ok(mut receiver) = Receiver::answer(link, id, begin) else { return };
    receiver.narrow(lease.bytes());
    if receiver.accept(accepted).is_err() {
        return;
    }
    let (pump, events) = Pump::new(receiver);
    let pump = Arc::new(pump);
    let push = {
        let mut live = hold.live.write().await;
        let Some(live) = live.as_mut() else { return };
        let target = live.target.clone();
        let push = Arc::new(Push::new(visitor, pump.clone(), target, base));
        live.push = Some(push.clone());
        push
    };
    let _listed = Listed::enter(visitor, session, Joinable::Push(pump));
    push::run(visitor, &hold, push, lease, events, conn, link_id).await;
    conn.writer.end().await;
}

/// A session that can be joined, for as long as this lives.
pub(super) struct Listed<'a> {
    visitor: &'a Visitor,
    /// A peer chooses the numbers of what it fetches: one session never hides another's.
    key: (Identity, Session),
    joinable: Joinable,
}

impl<'a> Listed<'a> {
    pub(super) fn enter(visitor: &'a Visitor, session: Session, joinable: Joinable) -> Self {
        let key = (visitor.identity.clone(), session);
        visitor.house.sessions().insert(key.clone(), joinable.clone());
        Self { visitor, key, joinable }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut sessions = self.visitor.house.sessions();
        // A later one of the same number is not this one.
        if sessions.get(&self.key).is_some_and(|listed| listed.is(&self.joinable)) {
            sessions.remove(&self.key);
        }
    }
}

/// Adds this connection to a session, and serves it there.
async fn lend(
    visitor: &Visitor,
    conn: &mut Conn,
    greeting: Greeting,
    id: u64,
    session: Joinable,
    _join: &Join,
) {
    let Some(link) = greeting.into_link() else { return };
    let (link_id, closing) = (link.id(), &visitor.closing);
    let served = async {
        match &session {
            Joinable::Push(pump) => {
                let attached = pump.act(|receiver, now| receiver.attach(link, Some(id), now));
                matches!(attached, Some(Ok(()))) && pump.serve(link_id, conn).await
            }
            Joinable::Pull(pump) => {
                let attached = pump.act(|sender, now| sender.attach(link, Some(id), now));
                matches!(attached, Some(Ok(()))) && pump.serve(link_id, conn).await
            }
        }
    };
    let over = tokio::select! {
        over = served => over,
        () = closing.cancelled() => false,
    };
    if over {
        conn.writer.end().await;
    }
}
