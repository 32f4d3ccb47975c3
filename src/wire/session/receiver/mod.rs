//! The machine that receives one image, for one attempt. Pure.

mod arrive;
mod heard;
mod speak;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry};
use crate::job::Fingerprint;
use crate::manifest::{ChunkTable, Manifest, TableBuilder};
use crate::plan::Extent;
use crate::wire::frame::Expect;
use crate::wire::message::{
    Ask, Begin, FEATURE_DELTA, Fetch, Join, Message, Name, Offer, Refusal, Session, Token,
};

use super::chunks::ChunkSet;
use super::links::Links;
use super::table::Telling;
use super::{Bounds, Link, LinkId};

pub use arrive::{Arrived, Ticket};

/// Where a [`Receiver`] stands.
///
/// ```text
/// answer: Offered ── accept ──► Receiving ── seal, cancel ──► Deciding ── decided ──► Decided
/// fetch:  Fetching ── offer ──► Offered ── accept ──► Receiving
///         any ── breach, error, control link lost, driver ──► Closed          (before Decided)
///         Offered ── cancel ──► Deciding;  Receiving ── decided by others ──► Decided
///         Deciding ── commit failed ──► Closed                         (the stage is kept)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverState {
    /// The fetch is on its way.
    Fetching,
    /// It is known what is to come; the driver accepts or refuses.
    Offered,
    /// Chunks travel.
    Receiving,
    /// The driver commits or cancels.
    Deciding,
    /// It is decided. Final.
    Decided,
    /// The session is over without a decision. Final.
    Closed,
}

impl ReceiverState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Fetching,
        Self::Offered,
        Self::Receiving,
        Self::Deciding,
        Self::Decided,
        Self::Closed,
    ];

    /// Whether a receiver in this state may go to `next`. The one table of legal moves.
    pub fn may_become(self, next: Self) -> bool {
        use ReceiverState as S;
        match self {
            S::Fetching => matches!(next, S::Offered | S::Closed),
            S::Offered => matches!(next, S::Receiving | S::Deciding | S::Closed),
            S::Receiving => matches!(next, S::Deciding | S::Decided | S::Closed),
            S::Deciding => matches!(next, S::Decided | S::Closed),
            S::Decided | S::Closed => false,
        }
    }

    /// Whether nothing can happen any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Decided | Self::Closed)
    }
}

/// What a [`Receiver`] tells its driver.
#[derive(Debug)]
pub enum ReceiverEvent {
    /// Fetch only: what the image is. [`Receiver::accept`] it, or [`Receiver::close`].
    Offered(Box<Offer>),
    /// A chunk: [`Arrived::open`] it on a worker thread, write it, then [`Receiver::written`].
    Arrived(Arrived),
    /// Runs of zeros: write them, then [`Receiver::written`].
    Zeroes(Ticket),
    /// Runs that the base holds: copy them from it and hash them, then [`Receiver::written`]; or
    /// [`Receiver::refused`], when the base does not hold them after all.
    Same(Ticket),
    /// All digests of the image are known, and their root is the one that was announced.
    Table(Box<ChunkTable>),
    /// Sync and checkpoint what was written so far, [`Receiver::durable`], then
    /// [`Receiver::synced`].
    Sync {
        /// The request.
        id: u64,
    },
    /// Everything arrived, and the root is the sealed one. Sync, checkpoint, commit, and then
    /// [`Receiver::decided`], or [`Receiver::not_decided`].
    Commit(Box<Manifest>),
    /// The sender cancels: decide it where the stage is, and then [`Receiver::decided`].
    Cancel,
    /// Fetch only: the answer to an [`Receiver::ask_extents`].
    Extents {
        /// The request.
        id: u64,
        /// Neighbours.
        extents: Vec<Extent>,
    },
    /// Fetch only: the answer to an [`Receiver::ask_facts`].
    Facts {
        /// The request.
        id: u64,
        /// What the source looks like now.
        facts: Fingerprint,
    },
    /// Fetch only: every chunk of that [`Receiver::want`] has arrived.
    Fulfilled {
        /// The request.
        id: u64,
    },
    /// Fetch only: the sender declines a request.
    Declined {
        /// The request.
        id: u64,
        /// Why.
        error: Error,
    },
    /// A data link is given up: hang it up.
    LinkClosed(LinkId, Error),
    /// The session is over: flush all links, hang up, checkpoint what was written, drop the
    /// target. The last event.
    Closed(Error),
}

/// What the driver knows of a stage when it accepts.
#[derive(Debug)]
pub struct Accepted {
    /// The chunks that are durable already.
    pub held: TableBuilder,
    /// How many of those bytes are data.
    pub data_bytes: u64,
    /// What may be taken over from the base, if one was named and it is here: the digests of as
    /// many chunks as it has in common with the image, cut as the image is.
    pub base: Option<TableBuilder>,
    /// What lets further connections in, where this side was dialled.
    pub token: Token,
}

/// Receives one image, for one attempt.
///
/// It does not matter who dialled. [`Receiver::answer`] takes what a peer pushes;
/// [`Receiver::fetch`] asks a peer for an image and then for its chunks.
#[derive(Debug)]
pub struct Receiver {
    state: ReceiverState,
    session: Session,
    bounds: Bounds,
    /// Chunks come only when they were asked for.
    on_demand: bool,
    /// Of what is pushed: the request that opened it.
    begin: Option<(u64, Box<Begin>)>,
    fetch: Option<Fetch>,
    token: Option<Token>,
    links: Links<Grant>,
    events: VecDeque<ReceiverEvent>,
    image: Option<Image>,
    last_ticket: u64,
    /// What the driver has in hand.
    in_hand: BTreeMap<u64, InHand>,
    /// The chunks among it that came as bytes, each with how often.
    flying: BTreeMap<ChunkIndex, (Digest, u32)>,
    /// Who is told of the decision.
    seal: Option<(u64, Digest)>,
    cancel: Option<u64>,
    asks: BTreeMap<u64, Ask>,
    wants: BTreeMap<u64, ChunkRun>,
}

/// What is known of the image, once it is.
#[derive(Debug)]
struct Image {
    geometry: Geometry,
    root: Option<Digest>,
    /// Its digests as the sender tells them.
    expected: Option<TableBuilder>,
    /// What the target has accepted.
    table: TableBuilder,
    base: Option<TableBuilder>,
    /// Durable, and not told yet.
    durable: ChunkSet,
    /// On record, or about to be: what these hold can no longer be replaced.
    recorded: ChunkSet,
    wanted: ChunkSet,
    /// Wanted, and declined: they may be under way all the same.
    declined: ChunkSet,
    held: Option<Telling>,
    base_telling: Option<Telling>,
    data_bytes: u64,
    /// Everything held was told.
    ready: bool,
}

/// What a receiver keeps beside a link.
#[derive(Debug, Default)]
struct Grant {
    /// Granted, and not used.
    open_bytes: u64,
    /// Arrived, and in the driver's hands.
    in_hand_bytes: u64,
    /// Granted, and not told yet.
    untold_bytes: u64,
    joined: bool,
}

#[derive(Debug)]
struct InHand {
    link: LinkId,
    id: u64,
    cost_bytes: u64,
    content: Expected,
    /// Of what came without bytes.
    runs: Arc<[ChunkRun]>,
}

/// What a ticket stands for.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Chunk(ChunkIndex, Digest),
    Zeroes,
    Same,
}

impl Receiver {
    /// Takes what a peer pushes: `id`, `begin` and the link come from an
    /// [`Opened`](super::GreetingEvent::Opened). The driver checks policy, stages, and then calls
    /// [`Receiver::accept`], or [`Receiver::close`] with what is wrong.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for chunks that are longer, or more, than this side takes.
    pub fn answer(link: Link, id: u64, begin: Box<Begin>) -> Result<Self> {
        let geometry = begin.spec.geometry;
        check_geometry(&link, geometry)?;
        let mut receiver = Self::new(link, begin.session());
        receiver.state = ReceiverState::Offered;
        receiver.image = Some(Image::new(geometry, begin.root));
        receiver.begin = Some((id, begin));
        Ok(receiver)
    }

    /// Asks a peer for an image. The link's other end listens.
    pub fn fetch(mut link: Link, fetch: Fetch, now: Instant) -> Self {
        link.request(&Message::Fetch(fetch.clone()), now);
        let mut receiver = Self::new(link, fetch.session);
        receiver.on_demand = true;
        receiver.fetch = Some(fetch);
        receiver
    }

    fn new(link: Link, session: Session) -> Self {
        Self {
            state: ReceiverState::Fetching,
            session,
            bounds: link.bounds(),
            on_demand: false,
            begin: None,
            fetch: None,
            token: None,
            links: Links::new(link, Grant { joined: true, ..Grant::default() }),
            events: VecDeque::new(),
            image: None,
            last_ticket: 0,
            in_hand: BTreeMap::new(),
            flying: BTreeMap::new(),
            seal: None,
            cancel: None,
            asks: BTreeMap::new(),
            wants: BTreeMap::new(),
        }
    }

    /// Accepts what is to come, and tells the sender what is held.
    ///
    /// Order: the epoch is on record at the stage before this is called
    /// ([`Target::begin`](crate::region::Target::begin)), so that a later attempt fences this one.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it is `Offered`, or for tables of another image.
    pub fn accept(&mut self, accepted: Accepted) -> Result<()> {
        let (ReceiverState::Offered, Some(image)) = (self.state, &mut self.image) else {
            return Err(Error::new(ErrorKind::Invalid, "accept what is not offered"));
        };
        let Accepted { held, data_bytes, base, token } = accepted;
        let base_fits = base.as_ref().is_none_or(|base| base.geometry() == image.geometry);
        if held.geometry() != image.geometry || !base_fits {
            return Err(Error::new(ErrorKind::Invalid, "accept an image that is cut otherwise"));
        }
        for index in image.geometry.chunks().iter().filter(|index| held.holds(*index)) {
            image.recorded.insert(ChunkRun::new(index, 1));
        }
        image.table = held.clone();
        image.data_bytes = data_bytes;
        match self.begin.as_ref().map(|(id, _)| *id) {
            Some(id) => {
                let control = self.links.control()?;
                let base = base.filter(|_| control.agreed().features & FEATURE_DELTA != 0);
                let begun = crate::wire::message::Begun { token, base: base.is_some() };
                control.reply(id, &Message::Begun(begun))?;
                self.token = Some(token);
                image.held = Some(Telling::part(held));
                image.base_telling = base.clone().map(Telling::part);
                image.base = base;
            }
            // A fetch: the token came with the offer, and the sender need not know what is held.
            None => {
                image.ready = true;
                self.links.control()?.notice(&Message::Ready { data_bytes: 0 })?;
            }
        }
        self.become_state(ReceiverState::Receiving);
        self.grant();
        Ok(())
    }

    /// Has less room than its links allow: never more than that many bytes are granted, or in the
    /// driver's hands.
    pub fn narrow(&mut self, session_bytes: u64) {
        self.bounds.session_bytes = self.bounds.session_bytes.min(session_bytes);
    }

    /// Where it stands.
    pub fn state(&self) -> ReceiverState {
        self.state
    }

    /// The session it is.
    pub fn session(&self) -> Session {
        self.session
    }

    /// What the peer pushes; `None` of a fetch.
    pub fn begin(&self) -> Option<&Begin> {
        self.begin.as_ref().map(|(_, begin)| begin.as_ref())
    }

    /// How the image is cut, once that is known.
    pub fn geometry(&self) -> Option<Geometry> {
        self.image.as_ref().map(|image| image.geometry)
    }

    /// Whether a join belongs here. In constant time, as far as the token goes.
    pub fn admits(&self, join: &Join) -> bool {
        self.session == join.session && self.token == Some(join.token)
    }

    /// Adds a connection, as [`Sender::attach`](super::Sender::attach) does.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when there are enough; [`ErrorKind::Invalid`] unless it is `Receiving`.
    pub fn attach(&mut self, mut link: Link, joined: Option<u64>, now: Instant) -> Result<()> {
        let receiving = self.state == ReceiverState::Receiving;
        let Some(token) = self.token.filter(|_| receiving) else {
            return Err(Error::new(ErrorKind::Invalid, "join a session that is not open"));
        };
        match joined {
            Some(id) => link.reply(id, &Message::Joined)?,
            None => {
                link.request(&Message::Join(Join { session: self.session, token }), now);
            }
        }
        self.links.add(link, Grant { joined: joined.is_some(), ..Grant::default() })?;
        self.grant();
        Ok(())
    }

    /// Adds a connection that this side dialled, once it is accepted.
    ///
    /// # Errors
    /// As [`Receiver::attach`].
    pub fn attach_dialled(&mut self, link: Link, now: Instant) -> Result<()> {
        self.attach(link, None, now)
    }

    /// What the next frame on that link must be like; `None` when it is no link of this session.
    pub fn expects(&self, link: LinkId) -> Option<Expect> {
        self.links.iter().find(|(known, _)| known.id() == link).map(|(known, _)| known.expects())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent> {
        self.events.pop_front()
    }

    /// When [`Receiver::handle_timeout`] is due; `None` when it never is.
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

    /// That connection ended, and the driver knows why. Tickets of what came on it stay good.
    pub fn link_lost(&mut self, link: LinkId, error: Error) {
        if !self.state.is_final() {
            self.lose(link, error, false);
        }
    }

    /// The driver can go on no longer, or refuses what is offered: tells the sender, and closes.
    pub fn close(&mut self, error: Error) {
        self.fail(error);
    }

    fn name(&self) -> Option<Name> {
        let (_, begin) = self.begin.as_ref()?;
        let target = &begin.spec.target;
        let (region, image) = (target.region.clone(), target.image.clone());
        Some(Name { job: self.session.job, region, image })
    }

    fn become_state(&mut self, next: ReceiverState) {
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
        self.become_state(ReceiverState::Closed);
        self.events.push_back(ReceiverEvent::Closed(error));
    }

    fn lose(&mut self, link: LinkId, error: Error, ours: bool) {
        if link == self.links.control_id() {
            let lost = Error::new(ErrorKind::Unavailable, "go on without the control connection");
            return self.end(lost.because(error));
        }
        if self.links.remove(link).is_some() && ours {
            self.events.push_back(ReceiverEvent::LinkClosed(link, error));
        }
        self.grant();
    }
}

impl Image {
    fn new(geometry: Geometry, root: Option<Digest>) -> Self {
        let chunk_count = geometry.chunk_count();
        Self {
            geometry,
            root,
            expected: root.map(|_| TableBuilder::new(geometry)),
            table: TableBuilder::new(geometry),
            base: None,
            durable: ChunkSet::new(chunk_count),
            recorded: ChunkSet::new(chunk_count),
            wanted: ChunkSet::new(chunk_count),
            declined: ChunkSet::new(chunk_count),
            held: None,
            base_telling: None,
            data_bytes: 0,
            ready: false,
        }
    }
}

pub(in super::super) fn check_geometry(link: &Link, geometry: Geometry) -> Result<()> {
    let bounds = link.bounds();
    let chunk_bytes = geometry.chunk_size().bytes();
    let fits = chunk_bytes.min(geometry.image_bytes()) <= u64::from(link.agreed().chunk_bytes_max)
        && chunk_bytes <= bounds.link_bytes.min(bounds.session_bytes)
        && geometry.chunk_count() <= bounds.chunk_count_max;
    if !fits {
        let action = format!("take {} chunks of {}", geometry.chunk_count(), geometry.chunk_size());
        return Err(Error::new(ErrorKind::Unsupported, action)
            .hint("this side takes fewer or shorter ones only"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ReceiverState as S;

    #[test]
    fn every_pair_of_states_is_as_drawn() {
        let drawn = [
            (S::Fetching, vec![S::Offered, S::Closed]),
            (S::Offered, vec![S::Receiving, S::Deciding, S::Closed]),
            (S::Receiving, vec![S::Deciding, S::Decided, S::Closed]),
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
