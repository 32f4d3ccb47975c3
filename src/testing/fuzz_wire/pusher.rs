//! The daemon that pushes, in a simulated world: what `region::peer` does around a sender.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::BytesMut;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::id::ImageId;
use crate::manifest::TableBuilder;
use crate::wire::frame::{Expect, Frame, Packet};
use crate::wire::message::{Begin, Codec, Decision, Hello, Name, Standing};
use crate::wire::session::{
    Bounds, Greeting, GreetingEvent, Item, LinkId, Pace, Rest, Sender, SenderEvent, SenderState,
};

use super::dice::Dice;
use super::picture::Picture;

/// What the pusher knows. A crash takes all but what it is to do.
#[derive(Debug)]
pub(super) struct Pusher {
    pub(super) picture: Picture,
    /// What it sends instead, if it lies.
    pub(super) lies: Option<Picture>,
    pub(super) names_root: bool,
    pub(super) names_base: bool,
    pub(super) wants_cancel: bool,
    pub(super) decision: Option<Decision>,
    /// The last error that no other attempt would mend.
    pub(super) refused: Option<Error>,
    pub(super) bounds: Bounds,
    greetings: BTreeMap<u32, (Greeting, bool)>,
    buffers: BTreeMap<u32, BytesMut>,
    links: BTreeSet<u32>,
    pub(super) sender: Option<Sender>,
    rest: Rest,
    todo: BTreeSet<u32>,
    in_flight: BTreeMap<Item, Vec<u32>>,
    /// What the server has told of the base.
    base: Option<TableBuilder>,
    /// What it could not take over after all.
    lost: BTreeSet<u32>,
    epoch: u32,
    cancel_sent: bool,
    has_synced: bool,
}

impl Pusher {
    pub(super) fn new(picture: Picture, bounds: Bounds) -> Self {
        Self {
            picture,
            lies: None,
            names_root: false,
            names_base: false,
            wants_cancel: false,
            decision: None,
            refused: None,
            bounds,
            greetings: BTreeMap::new(),
            buffers: BTreeMap::new(),
            links: BTreeSet::new(),
            sender: None,
            rest: Rest::default(),
            todo: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            base: None,
            lost: BTreeSet::new(),
            epoch: 0,
            cancel_sent: false,
            has_synced: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.decision.is_some() || self.refused.is_some()
    }

    /// Forgets everything but what it is to do. Its connections are to be cut.
    pub(super) fn crash(&mut self) -> Vec<u32> {
        let connections = self.connections().collect();
        let picture = self.picture.clone();
        let fresh = Self::new(picture, self.bounds);
        let old = std::mem::replace(self, fresh);
        self.lies = old.lies;
        self.names_root = old.names_root;
        self.names_base = old.names_base;
        self.wants_cancel = old.wants_cancel;
        self.decision = old.decision;
        self.refused = old.refused;
        connections
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = u32> {
        self.buffers.keys().copied()
    }

    /// Whether it needs a control connection, and has none under way.
    pub(super) fn wants_control(&self) -> bool {
        !self.is_done() && self.sender.is_none() && self.greetings.is_empty()
    }

    /// Whether one more data connection would be of use.
    pub(super) fn wants_data(&self) -> bool {
        let sending = |sender: &Sender| sender.state() == SenderState::Sending;
        self.sender.as_ref().is_some_and(sending) && self.buffers.len() < self.bounds.links_max
    }

    pub(super) fn dialled(&mut self, id: u32, is_control: bool, now: Instant) {
        let hello = Hello::new(64 << 10);
        let greeting = Greeting::dial(LinkId(id), hello, self.bounds, Pace::default(), now);
        self.greetings.insert(id, (greeting, is_control));
        self.buffers.insert(id, BytesMut::new());
    }

    pub(super) fn lost(&mut self, id: u32) {
        self.buffers.remove(&id);
        self.greetings.remove(&id);
        if self.links.remove(&id)
            && let Some(sender) = &mut self.sender
        {
            sender.link_lost(LinkId(id), Error::new(ErrorKind::Unavailable, "read connection"));
        }
        self.tidy();
    }

    fn expects(&self, id: u32) -> Option<Expect> {
        match self.greetings.get(&id) {
            Some((greeting, _)) => Some(greeting.expects()),
            None => self.sender.as_ref().and_then(|sender| sender.expects(LinkId(id))),
        }
    }

    /// Bytes came. Gives the connections that are to be hung up.
    pub(super) fn hear(&mut self, id: u32, bytes: BytesMut, now: Instant) -> Result<Vec<u32>> {
        if let Some(buffer) = self.buffers.get_mut(&id) {
            buffer.unsplit(bytes);
        }
        let mut hung_up = Vec::new();
        while let (Some(expect), Some(buffer)) = (self.expects(id), self.buffers.get_mut(&id)) {
            let frame = match Frame::decode(buffer, expect) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return Ok(vec![id]),
            };
            if let Some((greeting, _)) = self.greetings.get_mut(&id) {
                greeting.handle_frame(&frame, now);
                hung_up.extend(self.attend_greeting(id, now)?);
            } else if let Some(sender) = &mut self.sender {
                sender.handle_frame(LinkId(id), &frame, now);
                hung_up.extend(self.attend());
            }
        }
        Ok(hung_up)
    }

    fn attend_greeting(&mut self, id: u32, now: Instant) -> Result<Vec<u32>> {
        while let Some((greeting, is_control)) = self.greetings.get_mut(&id) {
            let Some(event) = greeting.poll_event() else { break };
            let is_control = *is_control;
            match event {
                GreetingEvent::Agreed if is_control => greeting.query(self.picture.name()?, now)?,
                GreetingEvent::Agreed => self.attach(id, now),
                GreetingEvent::Standing(Standing::Decided(Decision::Unknown)) => {
                    self.begin(id, 0, now)?;
                }
                GreetingEvent::Standing(Standing::Staged { epoch, .. }) => {
                    self.begin(id, epoch, now)?;
                }
                GreetingEvent::Standing(Standing::Decided(decision)) => {
                    self.decision = Some(decision);
                    return Ok(vec![id]);
                }
                _ => return Ok(vec![id]),
            }
        }
        Ok(Vec::new())
    }

    fn begin(&mut self, id: u32, epoch: u32, now: Instant) -> Result<()> {
        let Some((greeting, _)) = self.greetings.remove(&id) else { return Ok(()) };
        let Some(link) = greeting.into_link() else { return Ok(()) };
        self.epoch = self.epoch.max(epoch) + 1;
        let shown = self.lies.as_ref().unwrap_or(&self.picture);
        let manifest = self.names_root.then_some(&shown.manifest);
        let mut spec = self.picture.spec()?;
        if self.names_base {
            spec.base = Some(ImageId::try_from("base")?);
        }
        let root = manifest.map(|manifest| manifest.root());
        let begin = Begin { epoch: self.epoch, root, spec };
        let rest = std::mem::take(&mut self.rest);
        self.sender = Some(Sender::push(link, begin, manifest, rest, now)?);
        self.links.insert(id);
        self.cancel_sent = false;
        Ok(())
    }

    fn attach(&mut self, id: u32, now: Instant) {
        let Some((greeting, _)) = self.greetings.remove(&id) else { return };
        let (Some(link), Some(sender)) = (greeting.into_link(), &mut self.sender) else { return };
        if sender.attach(link, None, now).is_ok() {
            self.links.insert(id);
        }
    }

    /// Takes every event of the sender.
    pub(super) fn attend(&mut self) -> Vec<u32> {
        let mut hung_up = Vec::new();
        while let Some(event) = self.sender.as_mut().and_then(Sender::poll_event) {
            match event {
                SenderEvent::Ready { held, base, .. } => {
                    // As a driver that goes on from one attempt to the next, it believes the first.
                    if self.base.is_none() {
                        self.base = base.map(|base| *base);
                    }
                    let flying: BTreeSet<u32> =
                        self.in_flight.values().flatten().copied().collect();
                    let missing = |index: &u32| held.digest(ChunkIndex::new(*index)).is_none();
                    let all = 0..self.picture.geometry.chunk_count();
                    let left = all.filter(missing).filter(|index| !flying.contains(index));
                    self.todo.extend(left);
                }
                SenderEvent::Written(item) => {
                    assert!(self.in_flight.remove(&item).is_some(), "acknowledged twice: {item:?}");
                }
                SenderEvent::Refused(item, _) => {
                    let chunks = self.in_flight.remove(&item).unwrap_or_default();
                    self.lost.extend(&chunks);
                    self.todo.extend(chunks);
                }
                SenderEvent::Lost(runs) => {
                    self.todo.extend(runs.iter().flat_map(|run| run.iter().map(ChunkIndex::get)));
                }
                SenderEvent::Decided(decision) => self.decision = Some(decision),
                SenderEvent::LinkClosed(link, _) => hung_up.push(link.0),
                SenderEvent::Closed(error) | SenderEvent::NotDecided(error) => {
                    if self.lies.is_some() && error.kind() == ErrorKind::Corrupt {
                        self.refused = Some(error);
                    }
                }
                SenderEvent::SyncFailed(..) | SenderEvent::Room | SenderEvent::Durable(_) => {}
                SenderEvent::Synced(_) => self.has_synced = true,
                SenderEvent::Wanted { .. }
                | SenderEvent::AskedExtents { .. }
                | SenderEvent::AskedFacts { .. } => unreachable!("asked about a push"),
            }
        }
        hung_up
    }

    /// Does one thing that it has to do.
    pub(super) fn work(&mut self, dice: &mut Dice<'_>, now: Instant) -> Result<()> {
        self.tidy();
        let Some(sender) = &mut self.sender else { return Ok(()) };
        if self.wants_cancel && !self.cancel_sent && !sender.state().is_final() {
            self.cancel_sent = true;
            return sender.cancel(now);
        }
        if sender.state() != SenderState::Sending {
            return Ok(());
        }
        if dice.one_in(16) {
            // Too many are under way: one of those will do.
            return match sender.sync(now) {
                Err(error) if error.kind() != ErrorKind::Busy => Err(error),
                _ => Ok(()),
            };
        }
        match self.todo.first().copied() {
            Some(index) => self.send(ChunkIndex::new(index), dice),
            None if self.in_flight.is_empty() => sender.seal(self.picture.manifest.root(), now),
            None => Ok(()),
        }
    }

    fn send(&mut self, index: ChunkIndex, dice: &mut Dice<'_>) -> Result<()> {
        let Some(sender) = &mut self.sender else { return Ok(()) };
        let shown = self.lies.as_ref().unwrap_or(&self.picture);
        let drawn = shown.chunk(index);
        let run = ChunkRun::new(index, 1);
        let in_base = self.base.as_ref().and_then(|base| base.digest(index)).flatten();
        let is_same = drawn.digest.is_some() && in_base == drawn.digest;
        // A later attempt may have found another base, or none: that is refused here already.
        let same = (is_same && !self.lost.contains(&index.get()))
            .then(|| sender.send_same(vec![run]).ok())
            .flatten();
        let item = if let Some(item) = same {
            item
        } else if let Some(digest) = drawn.digest {
            if sender.room() == 0 {
                return Ok(());
            }
            let (codec, bytes) = match &drawn.packed {
                Some(packed) if dice.one_in(4) => (Codec::Zstd, packed.clone()),
                _ => (Codec::Raw, drawn.bytes.clone()),
            };
            sender.send_chunk(index, digest, codec, bytes)?
        } else {
            sender.send_zeroes(vec![run])?
        };
        self.todo.remove(&index.get());
        self.in_flight.insert(item, vec![index.get()]);
        Ok(())
    }

    /// A sender that is over leaves what it had in hand to the next.
    fn tidy(&mut self) {
        let over = |sender: &Sender| sender.state().is_final();
        if self.is_done() || !self.sender.as_ref().is_some_and(over) {
            return;
        }
        if let Some(mut sender) = self.sender.take() {
            while let Some(event) = sender.poll_event() {
                assert!(matches!(event, SenderEvent::Closed(_)), "an event was left: {event:?}");
            }
            self.rest = sender.into_rest();
            self.links.clear();
        }
    }

    /// A connection that serves no session any more.
    pub(super) fn idle(&self) -> Option<u32> {
        let of_use = |id: &u32| self.greetings.contains_key(id) || self.links.contains(id);
        self.connections().find(|id| !of_use(id))
    }

    pub(super) fn poll_transmit(&mut self, id: u32, now: Instant) -> Option<Packet> {
        match self.greetings.get_mut(&id) {
            Some((greeting, _)) => greeting.poll_transmit(),
            None => self.sender.as_mut()?.poll_transmit(LinkId(id), now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let greetings = self.greetings.values().filter_map(|(greeting, _)| greeting.poll_timeout());
        greetings.chain(self.sender.as_ref().and_then(Sender::poll_timeout)).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<u32> {
        let mut hung_up = Vec::new();
        for (id, (greeting, _)) in &mut self.greetings {
            greeting.handle_timeout(now);
            if matches!(greeting.poll_event(), Some(GreetingEvent::Closed(_))) {
                hung_up.push(*id);
            }
        }
        if let Some(sender) = &mut self.sender {
            sender.handle_timeout(now);
            hung_up.extend(self.attend());
        }
        hung_up
    }
}

impl Picture {
    pub(super) fn name(&self) -> Result<Name> {
        let spec = self.spec()?;
        Ok(Name { job: spec.job, region: spec.target.region, image: spec.target.image })
    }
}
