//! The daemon that stages, in a simulated world: what `serve` does around a receiver, over a stage
//! that loses at a crash what was not synced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::chunk::{AwaitingSync, Content, Digest, Durable, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::manifest::{Manifest, TableBuilder};
use crate::wire::frame::{Expect, Frame, Packet};
use crate::wire::message::{Begin, Decision, Hello, Refusal, Standing, Token};
use crate::wire::session::{
    Accepted, Arrived, Bounds, Greeting, GreetingEvent, LinkId, Opener, Pace, Receiver,
    ReceiverEvent, ReceiverState, Ticket,
};

use super::picture::{Picture, zeroes};

/// What survives a crash of the daemon, and what does not.
#[derive(Debug, Default)]
struct Stage {
    exists: bool,
    epoch: u32,
    decision: Option<Decision>,
    /// Every attempt that was let in: what only the oracle knows.
    let_in: BTreeSet<u32>,
    /// Written and not synced: a crash takes it.
    volatile: BTreeMap<u32, (Option<Digest>, Bytes)>,
    durable: BTreeMap<u32, (Option<Digest>, Bytes)>,
}

#[derive(Debug)]
enum Work {
    Chunk(Arrived),
    Zeroes(Ticket),
    Same(Ticket),
    Sync(u64),
    Commit(Box<Manifest>),
    Cancel,
}

/// The daemon.
#[derive(Debug)]
pub(super) struct Server {
    picture: Picture,
    /// What lies under the base's name now, and the chunks of it that are damaged.
    pub(super) base: Option<Picture>,
    rotten: BTreeSet<u32>,
    /// The base of the attempt that runs: it was opened when that began.
    opened: Option<Picture>,
    bounds: Bounds,
    stage: Stage,
    greetings: BTreeMap<u32, Greeting>,
    buffers: BTreeMap<u32, BytesMut>,
    links: BTreeSet<u32>,
    pub(super) receiver: Option<Receiver>,
    work: VecDeque<Work>,
    unsynced: Vec<Written>,
}

impl Server {
    pub(super) fn new(picture: Picture, base: Option<Picture>, bounds: Bounds) -> Self {
        Self {
            picture,
            base,
            rotten: BTreeSet::new(),
            opened: None,
            bounds,
            stage: Stage::default(),
            greetings: BTreeMap::new(),
            buffers: BTreeMap::new(),
            links: BTreeSet::new(),
            receiver: None,
            work: VecDeque::new(),
            unsynced: Vec::new(),
        }
    }

    pub(super) fn decision(&self) -> Option<Decision> {
        self.stage.decision
    }

    /// Loses everything but what is durable. Its connections are to be cut.
    pub(super) fn crash(&mut self) -> Vec<u32> {
        let connections = self.connections().collect();
        let stage = Stage { volatile: BTreeMap::new(), ..std::mem::take(&mut self.stage) };
        let fresh = Self::new(self.picture.clone(), self.base.take(), self.bounds);
        *self = Self { stage, rotten: std::mem::take(&mut self.rotten), ..fresh };
        connections
    }

    /// A chunk of the base is not what its digest says any more.
    pub(super) fn base_rots(&mut self, index: usize) {
        self.rotten.extend(u32::try_from(index));
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = u32> {
        self.buffers.keys().copied()
    }

    pub(super) fn dialled(&mut self, id: u32, now: Instant) {
        let hello = Hello::new(64 << 10);
        let greeting = Greeting::listen(LinkId(id), hello, self.bounds, Pace::default(), now);
        self.greetings.insert(id, greeting);
        self.buffers.insert(id, BytesMut::new());
    }

    pub(super) fn lost(&mut self, id: u32) {
        self.buffers.remove(&id);
        self.greetings.remove(&id);
        if self.links.remove(&id)
            && let Some(receiver) = &mut self.receiver
        {
            receiver.link_lost(LinkId(id), Error::new(ErrorKind::Unavailable, "read connection"));
            self.attend();
        }
    }

    fn expects(&self, id: u32) -> Option<Expect> {
        match self.greetings.get(&id) {
            Some(greeting) => Some(greeting.expects()),
            None => self.receiver.as_ref().and_then(|receiver| receiver.expects(LinkId(id))),
        }
    }

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
            if let Some(greeting) = self.greetings.get_mut(&id) {
                greeting.handle_frame(&frame, now);
                hung_up.extend(self.attend_greeting(id, now)?);
            } else if let Some(receiver) = &mut self.receiver {
                receiver.handle_frame(LinkId(id), &frame, now);
                hung_up.extend(self.attend());
            }
        }
        Ok(hung_up)
    }

    fn attend_greeting(&mut self, id: u32, now: Instant) -> Result<Vec<u32>> {
        while let Some(greeting) = self.greetings.get_mut(&id) {
            let Some(event) = greeting.poll_event() else { break };
            match event {
                GreetingEvent::Agreed => {}
                GreetingEvent::Queried { id: request, name } => {
                    assert_eq!(name, self.picture.name()?, "another job was asked about");
                    let epoch = self.stage.epoch;
                    let standing = match (self.stage.decision, self.stage.exists) {
                        (Some(decision), _) => Standing::Decided(decision),
                        (None, true) => Standing::Staged { epoch, owned: false },
                        (None, false) => Standing::Decided(Decision::Unknown),
                    };
                    greeting.answer(request, standing)?;
                }
                GreetingEvent::Opened { id: request, opener } => {
                    self.open(id, request, opener, now)?;
                }
                _ => return Ok(vec![id]),
            }
        }
        Ok(Vec::new())
    }

    fn open(&mut self, id: u32, request: u64, opener: Opener, now: Instant) -> Result<()> {
        match opener {
            Opener::Begin(begin) if self.stage.decision.is_none() => self.begin(id, request, begin),
            Opener::Join(join) if self.receiver.as_ref().is_some_and(|r| r.admits(&join)) => {
                let greeting = self.greetings.remove(&id).and_then(Greeting::into_link);
                if let (Some(link), Some(receiver)) = (greeting, &mut self.receiver)
                    && receiver.attach(link, Some(request), now).is_ok()
                {
                    self.links.insert(id);
                }
                Ok(())
            }
            _ => self.refuse(id, request, ErrorKind::Denied),
        }
    }

    fn refuse(&mut self, id: u32, request: u64, kind: ErrorKind) -> Result<()> {
        let Some(greeting) = self.greetings.get_mut(&id) else { return Ok(()) };
        greeting.refuse(request, Refusal::new(&Error::new(kind, "open session")))
    }

    /// A later attempt fences the one that runs.
    fn begin(&mut self, id: u32, request: u64, begin: Box<Begin>) -> Result<()> {
        if begin.epoch <= self.stage.epoch {
            return self.refuse(id, request, ErrorKind::Fenced);
        }
        let Some(link) = self.greetings.remove(&id).and_then(Greeting::into_link) else {
            return Ok(());
        };
        let is_latest = self.stage.let_in.last() < Some(&begin.epoch);
        assert!(is_latest, "attempt {} is let in after a later one, or twice", begin.epoch);
        self.stage.let_in.insert(begin.epoch);
        self.stage.exists = true;
        self.stage.epoch = begin.epoch;
        self.work.clear();
        self.links = BTreeSet::from([id]);
        self.sync();
        let token = Token::derive(&[3; 32], "north", begin.session());
        self.opened = self.base.clone().filter(|_| begin.spec.base.is_some());
        let cut = |base: &Picture| base.in_common(self.picture.geometry);
        let base = self.opened.as_ref().map(cut).transpose()?;
        let mut receiver = Receiver::answer(link, request, begin)?;
        let accepted = Accepted { held: self.held(), data_bytes: 0, base, token };
        receiver.accept(accepted)?;
        self.receiver = Some(receiver);
        Ok(())
    }

    fn held(&self) -> TableBuilder {
        let mut held = TableBuilder::new(self.picture.geometry);
        for (index, (digest, _)) in &self.stage.durable {
            let content = match digest {
                Some(digest) => Content::Data { digest: *digest, data_bytes: 0 },
                None => Content::Zero,
            };
            held.put(ChunkRun::new(ChunkIndex::new(*index), 1), content);
        }
        held
    }

    /// Takes every event of the receiver.
    pub(super) fn attend(&mut self) -> Vec<u32> {
        let mut hung_up = Vec::new();
        while let Some(event) = self.receiver.as_mut().and_then(Receiver::poll_event) {
            self.work.push_back(match event {
                ReceiverEvent::Arrived(arrived) => Work::Chunk(arrived),
                ReceiverEvent::Zeroes(ticket) => Work::Zeroes(ticket),
                ReceiverEvent::Same(ticket) => Work::Same(ticket),
                ReceiverEvent::Sync { id } => Work::Sync(id),
                ReceiverEvent::Commit(manifest) => Work::Commit(manifest),
                ReceiverEvent::Cancel => Work::Cancel,
                ReceiverEvent::LinkClosed(link, _) => {
                    hung_up.push(link.0);
                    continue;
                }
                // What the driver of a push need not act on, or finds in the state.
                _ => continue,
            });
        }
        hung_up
    }

    /// Does the `nth` thing that it has to do. `fails`: and it goes wrong.
    pub(super) fn work(&mut self, nth: usize, fails: bool) -> Result<()> {
        if self.work.is_empty() {
            return Ok(());
        }
        let Some(work) = self.work.remove(nth % self.work.len()) else { return Ok(()) };
        let Some(receiver) = &mut self.receiver else { return Ok(()) };
        let failure = || Error::new(ErrorKind::NoSpace, "write chunk");
        match work {
            Work::Chunk(arrived) => {
                let (ticket, sealed) = arrived.open();
                match sealed {
                    Ok(_) if fails => receiver.refused(ticket, failure()),
                    Ok(sealed) => {
                        let (index, bytes) = (sealed.index(), sealed.data().clone());
                        let content = (Some(sealed.digest()), bytes);
                        self.write(ticket, vec![sealed.written()], vec![(index.get(), content)])?;
                    }
                    Err(error) => receiver.refused(ticket, error),
                }
            }
            Work::Zeroes(ticket) => {
                let chunks: Vec<ChunkIndex> = ticket.runs().iter().flat_map(|r| r.iter()).collect();
                let content = |index: &ChunkIndex| (index.get(), (None, zeroes()));
                let stored = chunks.iter().map(content).collect();
                let written = ticket.runs().iter().map(|run| Written::zeroes(*run)).collect();
                self.write(ticket, written, stored)?;
            }
            Work::Same(ticket) => self.copy(ticket)?,
            Work::Sync(id) if fails => receiver.sync_failed(id, &failure())?,
            Work::Sync(id) => {
                self.sync();
                if let Some(receiver) = self.receiver.as_mut().filter(|r| !r.state().is_final()) {
                    receiver.synced(id)?;
                }
            }
            Work::Commit(_) if fails => receiver.not_decided(failure()),
            Work::Commit(manifest) => self.commit(&manifest)?,
            Work::Cancel => {
                let decision = Decision::Cancelled { first: true, clean: true };
                let decision = *self.stage.decision.get_or_insert(decision);
                self.tell(decision)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, ticket: Ticket) -> Result<()> {
        let (mut written, mut stored) = (Vec::new(), Vec::new());
        let Some(base) = &self.opened else { return Ok(()) };
        let is_rotten = |index: ChunkIndex| self.rotten.contains(&index.get());
        if ticket.runs().iter().flat_map(|run| run.iter()).any(is_rotten) {
            let error = Error::new(ErrorKind::Corrupt, "take a chunk over");
            if let Some(receiver) = &mut self.receiver {
                receiver.refused(ticket, error);
            }
            return Ok(());
        }
        for index in ticket.runs().iter().flat_map(|run| run.iter()) {
            let drawn = base.chunk(index);
            stored.push((index.get(), (drawn.digest, drawn.bytes.clone())));
            written.push(match drawn.digest {
                Some(digest) => Written::data(index, digest, 0),
                None => Written::zeroes(ChunkRun::new(index, 1)),
            });
        }
        self.write(ticket, written, stored)
    }

    fn write(
        &mut self,
        ticket: Ticket,
        written: Vec<Written>,
        stored: Vec<(u32, (Option<Digest>, Bytes))>,
    ) -> Result<()> {
        let Some(receiver) = self.receiver.as_mut().filter(|r| !r.state().is_final()) else {
            return Ok(());
        };
        assert_eq!(receiver.session().epoch, self.stage.epoch, "a fenced attempt wrote");
        for (index, content) in stored {
            assert!(index < self.picture.geometry.chunk_count(), "chunk {index} out of range");
            self.stage.volatile.insert(index, content);
        }
        receiver.written(ticket, &written)?;
        self.unsynced.extend(written);
        Ok(())
    }

    /// Sync, then record, then tell.
    pub(super) fn sync(&mut self) {
        self.stage.durable.append(&mut self.stage.volatile);
        let chunks: Vec<Durable> = AwaitingSync::new(std::mem::take(&mut self.unsynced)).synced();
        if let Some(receiver) = self.receiver.as_mut().filter(|r| !r.state().is_final()) {
            let chunks = receiver.record(chunks);
            assert!(receiver.durable(&chunks).is_ok(), "chunks that never came are durable");
        }
    }

    /// The rename: the one place where a job is decided.
    fn commit(&mut self, manifest: &Manifest) -> Result<()> {
        self.sync();
        if self.stage.decision.is_none() {
            assert_eq!(manifest.root(), self.picture.manifest.root(), "another root is committed");
            for (index, drawn) in (0..).zip(&self.picture.chunks) {
                let stored = self.stage.durable.get(&index);
                assert!(stored.is_some_and(|(_, bytes)| *bytes == drawn.bytes), "chunk {index}");
            }
            self.stage.decision = Some(Decision::Committed { root: Some(manifest.root()) });
        }
        match self.stage.decision {
            Some(decision) => self.tell(decision),
            None => Ok(()),
        }
    }

    fn tell(&mut self, decision: Decision) -> Result<()> {
        let open = |receiver: &&mut Receiver| {
            matches!(receiver.state(), ReceiverState::Receiving | ReceiverState::Deciding)
        };
        match self.receiver.as_mut().filter(open) {
            Some(receiver) => receiver.decided(decision),
            None => Ok(()),
        }
    }

    /// A connection that serves no session any more.
    pub(super) fn idle(&self) -> Option<u32> {
        let over = self.receiver.as_ref().is_none_or(|receiver| receiver.state().is_final());
        let of_use =
            |id: &u32| self.greetings.contains_key(id) || (self.links.contains(id) && !over);
        self.connections().find(|id| !of_use(id))
    }

    pub(super) fn poll_transmit(&mut self, id: u32) -> Option<Packet> {
        match self.greetings.get_mut(&id) {
            Some(greeting) => greeting.poll_transmit(),
            None if self.links.contains(&id) => self.receiver.as_mut()?.poll_transmit(LinkId(id)),
            None => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let greetings = self.greetings.values().filter_map(Greeting::poll_timeout);
        greetings.chain(self.receiver.as_ref().and_then(Receiver::poll_timeout)).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<u32> {
        let mut hung_up = Vec::new();
        for (id, greeting) in &mut self.greetings {
            greeting.handle_timeout(now);
            if matches!(greeting.poll_event(), Some(GreetingEvent::Closed(_))) {
                hung_up.push(*id);
            }
        }
        if let Some(receiver) = &mut self.receiver {
            receiver.handle_timeout(now);
            hung_up.extend(self.attend());
        }
        hung_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fuzz_wire::dice::Dice;
    use crate::wire::session::{Rest, Sender, SenderState};

    #[test]
    fn an_attempt_that_is_not_the_latest_is_refused() {
        let picture = Picture::draw(&mut Dice::Script(&[1])).unwrap();
        let mut server = Server::new(picture.clone(), None, Bounds::default());
        // A world of dice hardly ever has a begin overtaken by a later one.
        for (id, epoch, is_let_in) in [(1, 2, true), (2, 1, false), (3, 2, false), (4, 3, true)] {
            let state = begun(&mut server, &picture, id, epoch);
            assert_eq!(state == SenderState::Sending, is_let_in, "attempt {epoch}: {state:?}");
        }
    }

    /// How that attempt fares on a new connection.
    fn begun(server: &mut Server, picture: &Picture, id: u32, epoch: u32) -> SenderState {
        let (now, link) = (Instant::now(), LinkId(id));
        server.dialled(id, now);
        let (hello, bounds) = (Hello::new(64 << 10), Bounds::default());
        let mut north = Greeting::dial(link, hello, bounds, Pace::default(), now);
        server.hear(id, north.poll_transmit().unwrap().to_bytes(), now).unwrap();
        let mut answer = server.poll_transmit(id).unwrap().to_bytes();
        let answer = Frame::decode(&mut answer, north.expects()).unwrap().unwrap();
        north.handle_frame(&answer, now);
        let begin = Begin { epoch, root: None, spec: picture.spec().unwrap() };
        let rest = Rest::default();
        let mut sender = Sender::push(north.into_link().unwrap(), begin, None, rest, now).unwrap();
        server.hear(id, sender.poll_transmit(link, now).unwrap().to_bytes(), now).unwrap();
        while let Some(packet) = server.poll_transmit(id) {
            let expect = sender.expects(link).unwrap();
            let frame = Frame::decode(&mut packet.to_bytes(), expect).unwrap().unwrap();
            sender.handle_frame(link, &frame, now);
        }
        sender.state()
    }
}
