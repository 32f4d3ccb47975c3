//! The machine that sends one image, for one attempt. Pure.

mod flow;
mod heard;
mod rest;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun, Geometry};
use crate::manifest::{Manifest, TableBuilder};
use crate::wire::frame::Expect;
use crate::wire::message::{
    Begin, Chunk, Decision, FEATURE_DELTA, Fetch, Join, Message, Name, Offer, Refusal, Session,
    Token,
};

use super::chunks::ChunkSet;
use super::links::Links;
use super::table::Telling;
use super::{Link, LinkId};

pub use rest::Rest;

/// Where a [`Sender`] stands.
///
/// ```text
/// push:  Opening ── begun ──► Learning ── ready ──► Sending ── seal, cancel ──► Deciding
/// offer: Opening ─────────────────────── ready ──► Sending
///        Opening, Learning ── cancel ──► Deciding ── decision ──► Decided
///        any ── breach, error, control link lost, offer's end ──► Closed        (before Decided)
///        Opening, Learning, Sending ── decided by others ──► Decided
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderState {
    /// The begin, or the offer, is on its way.
    Opening,
    /// The receiver tells what it holds.
    Learning,
    /// Chunks travel.
    Sending,
    /// The receiver decides.
    Deciding,
    /// It is decided. Final.
    Decided,
    /// The session is over without a decision that is known here. Final.
    Closed,
}

impl SenderState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Opening, Self::Learning, Self::Sending, Self::Deciding, Self::Decided, Self::Closed];

    /// Whether a sender in this state may go to `next`. The one table of legal moves.
    pub fn may_become(self, next: Self) -> bool {
        use SenderState as S;
        match self {
            S::Opening => matches!(next, S::Learning | S::Sending | S::Deciding) || next.is_final(),
            S::Learning => matches!(next, S::Sending | S::Deciding) || next.is_final(),
            S::Sending => next == S::Deciding || next.is_final(),
            S::Deciding => next.is_final(),
            S::Decided | S::Closed => false,
        }
    }

    /// Whether nothing can happen any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Decided | Self::Closed)
    }
}

/// What a sender was given and the receiver has not acknowledged, by the number its driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item(pub u64);

/// What a [`Sender`] tells its driver.
#[derive(Debug)]
pub enum SenderEvent {
    /// Chunks may be given. Once.
    Ready {
        /// What the receiver holds durably.
        held: Box<TableBuilder>,
        /// How many of those bytes are data.
        data_bytes: u64,
        /// What the base has in common with the image, if one was named and the receiver has it.
        base: Option<Box<TableBuilder>>,
    },
    /// [`Sender::room`] has grown.
    Room,
    /// The receiver's target accepted that item. It is not durable yet.
    Written(Item),
    /// The receiver could not take that item, and says why; or it is of a base that the receiver
    /// does not have any more. The session goes on.
    Refused(Item, Error),
    /// These chunks are durable and on record at the receiver.
    Durable(Vec<ChunkRun>),
    /// The receiver had accepted these chunks in an earlier attempt, and lost them: send again.
    Lost(Vec<ChunkRun>),
    /// What was written before that [`Sender::sync`] is durable.
    Synced(Item),
    /// The receiver could not sync: nothing since the last sync may be taken as durable.
    SyncFailed(Item, Error),
    /// Offer only: send these chunks, or [`Sender::decline`].
    Wanted {
        /// The request.
        id: u64,
        /// Chunks of the image.
        run: ChunkRun,
    },
    /// Offer only: [`Sender::tell_extents`], or [`Sender::decline`].
    AskedExtents {
        /// The request.
        id: u64,
        /// Bytes of the image.
        range: ByteRange,
    },
    /// Offer only: [`Sender::tell_facts`], or [`Sender::decline`].
    AskedFacts {
        /// The request.
        id: u64,
    },
    /// It is decided, by this side's seal or cancel or by others. The last event but `Closed`.
    Decided(Decision),
    /// The receiver refuses to commit now, and keeps the stage. The last event but `Closed`.
    NotDecided(Error),
    /// A data link is given up: hang it up. What was in flight on it is sent again.
    LinkClosed(LinkId, Error),
    /// The session is over: flush all links, hang up. The last event.
    Closed(Error),
}

/// Sends one image, for one attempt.
///
/// It does not matter who dialled. [`Sender::push`] begins a session at a peer's target;
/// [`Sender::offer`] answers a peer that fetches from a source.
#[derive(Debug)]
pub struct Sender {
    state: SenderState,
    session: Session,
    geometry: Geometry,
    /// Chunks are sent only when they are wanted.
    on_demand: bool,
    name: Option<Name>,
    token: Option<Token>,
    links: Links<Flow>,
    events: VecDeque<SenderEvent>,
    /// The image's own digests, on their way.
    telling: Option<Telling>,
    /// Given and not yet on any link.
    queue: VecDeque<(Item, Load)>,
    last_item: u64,
    /// Syncs under way.
    syncs: BTreeMap<u64, Item>,
    /// Written at the receiver, and not known to be durable.
    written: ChunkSet,
    /// What came back from an earlier attempt, until the receiver has told what it holds.
    rest: Option<Rest>,
    held: TableBuilder,
    base: Option<TableBuilder>,
    /// What the base of earlier attempts held, from when this one is ready.
    earlier_base: Option<TableBuilder>,
    /// The job has a base, and both sides know what that is.
    names_base: bool,
    /// Offer only: chunks the receiver asked for and that were not given yet, by request.
    wants: BTreeMap<u64, ChunkRun>,
    wanted: ChunkSet,
}

/// What a sender keeps beside a link.
#[derive(Debug, Default)]
struct Flow {
    credit_bytes: u64,
    in_flight: BTreeMap<u64, (Item, Load)>,
    joined: bool,
}

/// What an item brings.
#[derive(Clone, Debug)]
enum Load {
    Chunk(Chunk),
    Zeroes(Vec<ChunkRun>),
    Same(Vec<ChunkRun>),
}

impl Sender {
    /// Begins a session at a peer's target. The link's other end listens.
    ///
    /// `manifest`: the image's digests, where they are known and `begin.root` says so. `rest`: of
    /// the attempt before, after its sender closed; else `Rest::default()`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when `begin.root` is not that of `manifest`, or when chunks are
    /// longer than the two sides have agreed on.
    pub fn push(
        mut link: Link,
        begin: Begin,
        manifest: Option<&Arc<Manifest>>,
        rest: Rest,
        now: Instant,
    ) -> Result<Self> {
        if begin.root != manifest.map(|manifest| manifest.root()) {
            return Err(Error::new(ErrorKind::Invalid, "begin with the root of another image"));
        }
        let (session, geometry) = (begin.session(), begin.spec.geometry);
        check_chunk_size(&link, geometry)?;
        let endpoint = &begin.spec.target;
        let name = Name {
            job: session.job,
            region: endpoint.region.clone(),
            image: endpoint.image.clone(),
        };
        let names_base = begin.spec.base.is_some() && link.agreed().features & FEATURE_DELTA != 0;
        link.request(&Message::Begin(Box::new(begin)), now);
        let telling = manifest.map(|manifest| Telling::whole(manifest.table().clone()));
        let mut sender = Self::new(link, session, geometry, telling);
        sender.name = Some(name);
        sender.names_base = names_base;
        sender.last_item = rest.last_item();
        sender.rest = Some(rest);
        Ok(sender)
    }

    /// Answers a fetch: offers an image. `id` and the link come from an
    /// [`Opened`](super::GreetingEvent::Opened); `manifest` if `offer.root` says so.
    ///
    /// # Errors
    /// As [`Sender::push`].
    pub fn offer(
        mut link: Link,
        id: u64,
        fetch: &Fetch,
        offer: Offer,
        manifest: Option<&Arc<Manifest>>,
    ) -> Result<Self> {
        if offer.root != manifest.map(|manifest| manifest.root()) {
            return Err(Error::new(ErrorKind::Invalid, "offer the root of another image"));
        }
        check_chunk_size(&link, offer.geometry)?;
        let (geometry, token) = (offer.geometry, offer.token);
        link.reply(id, &Message::Offer(offer))?;
        let telling = manifest.map(|manifest| Telling::whole(manifest.table().clone()));
        let mut sender = Self::new(link, fetch.session, geometry, telling);
        sender.on_demand = true;
        sender.token = Some(token);
        Ok(sender)
    }

    fn new(link: Link, session: Session, geometry: Geometry, telling: Option<Telling>) -> Self {
        let chunk_count = geometry.chunk_count();
        Self {
            state: SenderState::Opening,
            session,
            geometry,
            on_demand: false,
            name: None,
            token: None,
            links: Links::new(link, Flow { joined: true, ..Flow::default() }),
            events: VecDeque::new(),
            telling,
            queue: VecDeque::new(),
            last_item: 0,
            syncs: BTreeMap::new(),
            written: ChunkSet::new(chunk_count),
            rest: None,
            held: TableBuilder::new(geometry),
            base: None,
            earlier_base: None,
            names_base: false,
            wants: BTreeMap::new(),
            wanted: ChunkSet::new(chunk_count),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> SenderState {
        self.state
    }

    /// The session it is.
    pub fn session(&self) -> Session {
        self.session
    }

    /// How the image is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether a join belongs here. In constant time, as far as the token goes.
    pub fn admits(&self, join: &Join) -> bool {
        self.session == join.session && self.token == Some(join.token)
    }

    /// Adds a connection. With `joined` (request and link of an
    /// [`Opened`](super::GreetingEvent::Opened)) one that was dialled by the other side and is
    /// [admitted](Sender::admits); with `None` one that this side dialled, once it is `Ready`.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when there are enough; [`ErrorKind::Invalid`] before `Ready`.
    pub fn attach(&mut self, mut link: Link, joined: Option<u64>, now: Instant) -> Result<()> {
        let Some(token) = self.token.filter(|_| !self.state.is_final()) else {
            return Err(Error::new(ErrorKind::Invalid, "join a session that is not open"));
        };
        match joined {
            Some(id) => link.reply(id, &Message::Joined)?,
            None => {
                link.request(&Message::Join(Join { session: self.session, token }), now);
            }
        }
        self.links.add(link, Flow { joined: joined.is_some(), ..Flow::default() })
    }

    /// Adds a connection that this side dialled, once it is `Ready`.
    ///
    /// # Errors
    /// As [`Sender::attach`].
    pub fn attach_dialled(&mut self, link: Link, now: Instant) -> Result<()> {
        self.attach(link, None, now)
    }

    /// What lets further connections in, once that is known.
    pub fn token(&self) -> Option<Token> {
        self.token
    }

    /// What the next frame on that link must be like; `None` when it is no link of this session.
    pub fn expects(&self, link: LinkId) -> Option<Expect> {
        self.links.iter().find(|(known, _)| known.id() == link).map(|(known, _)| known.expects())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// When [`Sender::handle_timeout`] is due; `None` when it never is.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.state.is_final() { None } else { self.links.poll_timeout() }
    }

    /// Lets time pass: pings, links that are silent, requests that nobody answers.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state.is_final() {
            return;
        }
        for (link, error) in self.links.handle_timeout(now) {
            self.lose(link, error, true);
        }
    }

    /// That connection ended, and the driver knows why.
    pub fn link_lost(&mut self, link: LinkId, error: Error) {
        if !self.state.is_final() {
            self.lose(link, error, false);
        }
    }

    /// The driver can go on no longer: tells the receiver, and closes.
    pub fn close(&mut self, error: Error) {
        self.fail(error);
    }

    fn become_state(&mut self, next: SenderState) {
        debug_assert!(self.state.may_become(next), "{:?} -> {next:?}", self.state);
        self.state = next;
    }

    fn fail(&mut self, error: Error) {
        if self.state.is_final() {
            return;
        }
        if let Ok(control) = self.links.control() {
            control.refuse(Refusal::new(&error));
        }
        self.end(error);
    }

    /// Closes without a last word.
    fn end(&mut self, error: Error) {
        self.become_state(SenderState::Closed);
        self.events.push_back(SenderEvent::Closed(error));
    }
}

fn check_chunk_size(link: &Link, geometry: Geometry) -> Result<()> {
    let chunk_bytes = geometry.chunk_size().bytes().min(geometry.image_bytes());
    if chunk_bytes > u64::from(link.agreed().chunk_bytes_max) {
        let action = format!("send chunks of {}", geometry.chunk_size());
        return Err(Error::new(ErrorKind::Unsupported, action)
            .hint("the two sides take shorter ones only: choose a smaller chunk size"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::SenderState as S;

    #[test]
    fn every_pair_of_states_is_as_drawn() {
        let drawn = [
            (S::Opening, vec![S::Learning, S::Sending, S::Deciding, S::Decided, S::Closed]),
            (S::Learning, vec![S::Sending, S::Deciding, S::Decided, S::Closed]),
            (S::Sending, vec![S::Deciding, S::Decided, S::Closed]),
            (S::Deciding, vec![S::Decided, S::Closed]),
            (S::Decided, vec![]),
            (S::Closed, vec![]),
        ];
        assert_eq!(drawn.len(), S::ALL.len());
        for (from, to) in drawn {
            for next in S::ALL {
                assert_eq!(from.may_become(next), to.contains(&next), "{from:?} -> {next:?}");
            }
            assert_eq!(from.is_final(), to.is_empty());
        }
    }
}
