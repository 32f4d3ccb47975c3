//! Chunks as they arrive, what proves them, and what comes of them. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::chunk::{Content, Digest, Durable, Sealed, Written};
use crate::compress;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::seal::{Seal, seal};
use crate::wire::message::{Chunk, Codec, FEATURE_ZSTD, Message, Refusal};

use super::super::LinkId;
use super::{Expected, Image, InHand, Receiver, ReceiverEvent};

/// What the driver has in hand, until it says what came of it. Each holds back credit.
#[derive(Debug)]
#[must_use = "the sender waits for what comes of it"]
pub struct Ticket {
    number: u64,
    runs: Arc<[ChunkRun]>,
}

impl Ticket {
    /// Which chunks it is about.
    pub fn runs(&self) -> &[ChunkRun] {
        &self.runs
    }
}

/// A chunk that arrived. Nothing that is claimed of its bytes has been checked.
#[derive(Debug)]
#[must_use = "the sender waits for what comes of it"]
pub struct Arrived {
    ticket: Ticket,
    geometry: Geometry,
    chunk: Chunk,
}

impl Arrived {
    /// The chunk's number.
    pub fn index(&self) -> ChunkIndex {
        self.chunk.index
    }

    /// Unpacks and hashes it: work for a worker thread. `Err` goes to [`Receiver::refused`] with
    /// the ticket.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for bytes that do not unpack to exactly the chunk, that are not what
    /// their digest says, or that are all zero, which never travels as bytes.
    pub fn open(self) -> (Ticket, Result<Sealed>) {
        let Self { ticket, geometry, chunk } = self;
        let sealed = open(geometry, &chunk);
        (ticket, sealed)
    }
}

fn open(geometry: Geometry, chunk: &Chunk) -> Result<Sealed> {
    let range = geometry.range(chunk.index);
    let corrupt =
        |action: &'static str| Error::new(ErrorKind::Corrupt, action).at("the image", range.offset);
    let bytes: Bytes = match chunk.codec {
        Codec::Raw => chunk.bytes.clone(),
        Codec::Zstd => {
            let mut bytes = BytesMut::zeroed(to_usize(range.len));
            compress::unpack(&chunk.bytes, &mut bytes)?;
            bytes.freeze()
        }
    };
    if to_u64(bytes.len()) != range.len {
        return Err(corrupt("take chunk: its length is another"));
    }
    match seal(geometry, chunk.index, bytes) {
        Seal::Zero(_) => Err(corrupt("take chunk: its bytes are zeros")),
        Seal::Data(sealed) if sealed.digest() != chunk.digest => {
            Err(corrupt("take chunk: its digest is another"))
        }
        Seal::Data(sealed) => Ok(sealed),
    }
}

impl Receiver {
    /// A chunk came on that link, as that request.
    pub(super) fn chunk(&mut self, link: LinkId, id: u64, chunk: Chunk) -> Result<()> {
        let run = ChunkRun::new(chunk.index, 1);
        let Some((connection, grant)) = self.links.get(link) else { return Ok(()) };
        let zstd = connection.agreed().features & FEATURE_ZSTD != 0;
        let Some(image) = &self.image else { return Ok(()) };
        let (geometry, cost_bytes) = (image.geometry, image.geometry.chunk_size().bytes());
        if grant.open_bytes < cost_bytes {
            return Err(Error::new(ErrorKind::Invalid, "take a chunk past its credit"));
        }
        image.admit(&[run], self.on_demand, &self.flying)?;
        image.check_chunk(&chunk, zstd, self.on_demand)?;
        grant.open_bytes -= cost_bytes;
        grant.in_hand_bytes += cost_bytes;
        let is_declined = self.on_demand && !image.wanted.holds(chunk.index);
        if self.collides(run, false, |_| Some(chunk.digest)) || self.is_being_taken(run) {
            return Err(hurried());
        }
        let content = Expected::Chunk(chunk.index, chunk.digest);
        let ticket = self.take_in_hand(link, id, cost_bytes, content, [run].into());
        // Nobody wants it any more.
        if is_declined {
            return self.acknowledge(ticket);
        }
        self.fulfil(&[run]);
        self.events.push_back(ReceiverEvent::Arrived(Arrived { ticket, geometry, chunk }));
        Ok(())
    }

    /// Runs came that carry no bytes.
    pub(super) fn runs(
        &mut self,
        link: LinkId,
        id: u64,
        runs: Vec<ChunkRun>,
        zero: bool,
    ) -> Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        image.admit(&runs, self.on_demand, &self.flying)?;
        let in_base = |index| image.base.as_ref().is_some_and(|base| base.holds(index));
        let chunks = || runs.iter().flat_map(|run| run.iter());
        if !zero && !chunks().all(in_base) {
            return Err(Error::new(ErrorKind::Invalid, "take chunks that no base holds"));
        }
        let content = |index| if zero { None } else { image.in_base(index) };
        let is_flying = |run: &ChunkRun| {
            self.flying.range(run.first..ChunkIndex::new(run.end())).next().is_some()
        };
        let is_met =
            |run: &ChunkRun| self.collides(*run, zero, content) || (!zero && is_flying(run));
        if runs.iter().any(is_met) {
            return Err(hurried());
        }
        if chunks().any(|index| image.contradicts(index, content(index), self.on_demand)) {
            return Err(lied());
        }
        let content = if zero { Expected::Zeroes } else { Expected::Same };
        let ticket = self.take_in_hand(link, id, 0, content, runs.into());
        self.fulfil(&ticket.runs);
        self.events.push_back(match zero {
            true => ReceiverEvent::Zeroes(ticket),
            false => ReceiverEvent::Same(ticket),
        });
        Ok(())
    }

    fn take_in_hand(
        &mut self,
        link: LinkId,
        id: u64,
        cost_bytes: u64,
        content: Expected,
        runs: Arc<[ChunkRun]>,
    ) -> Ticket {
        self.last_ticket += 1;
        if let Expected::Chunk(index, digest) = content {
            self.flying.entry(index).or_insert((digest, 0)).1 += 1;
        }
        let in_hand = InHand { link, id, cost_bytes, content, runs: runs.clone() };
        self.in_hand.insert(self.last_ticket, in_hand);
        Ticket { number: self.last_ticket, runs }
    }

    /// Whether a chunk of the run is in the driver's hands with another content: of two that are
    /// written at once nobody knows which one stays.
    fn collides(
        &self,
        run: ChunkRun,
        is_zero: bool,
        content: impl Fn(ChunkIndex) -> Option<Digest>,
    ) -> bool {
        let (first, end) = (run.first, ChunkIndex::new(run.end()));
        let mut chunks = self.flying.range(first..end);
        if chunks.any(|(index, (digest, _))| content(*index) != Some(*digest)) {
            return true;
        }
        // Those that came without bytes are few.
        if self.in_hand.len() == self.flying.len() {
            return false;
        }
        let image = self.image.as_ref();
        self.in_hand.values().any(|in_hand| {
            // Zeros agree with zeros: a run of a million of them is not walked to see that.
            if is_zero && matches!(in_hand.content, Expected::Zeroes) {
                return false;
            }
            let held = |index| match in_hand.content {
                Expected::Chunk(_, digest) => Some(digest),
                Expected::Zeroes => None,
                Expected::Same => image.and_then(|image| image.in_base(index)),
            };
            let met = |held: &&ChunkRun| held.first < end && first.get() < held.end();
            let both = in_hand.runs.iter().filter(met).flat_map(|run| {
                let (from, to) = (run.first.max(first), run.end().min(end.get()));
                (from.get()..to).map(ChunkIndex::new)
            });
            both.into_iter().any(|index| held(index) != content(index))
        })
    }

    /// Whether a chunk of the run is being taken over from the base: that is no mere write, and may
    /// undo itself.
    fn is_being_taken(&self, run: ChunkRun) -> bool {
        let met = |held: &ChunkRun| held.first.get() < run.end() && run.first.get() < held.end();
        let mut in_hand = self.in_hand.values();
        self.in_hand.len() > self.flying.len()
            && in_hand.any(|one| matches!(one.content, Expected::Same) && one.runs.iter().any(met))
    }

    /// Wants of which everything has arrived.
    fn fulfil(&mut self, runs: &[ChunkRun]) {
        let (true, Some(image)) = (self.on_demand, &mut self.image) else { return };
        runs.iter().for_each(|run| image.wanted.remove(*run));
        let done: Vec<u64> = self
            .wants
            .iter()
            .filter(|(_, run)| !image.wanted.meets(**run))
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            self.wants.remove(&id);
            if let Ok(control) = self.links.control() {
                control.settle(id);
            }
            self.events.push_back(ReceiverEvent::Fulfilled { id });
        }
    }

    /// The target accepted what the ticket stands for: every chunk of it, and nothing else. Once
    /// the session is over this does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when `written` is not what the ticket stands for: nothing is
    /// acknowledged then, and the session is closed.
    pub fn written(&mut self, ticket: Ticket, written: &[Written]) -> Result<()> {
        if self.state.is_final() {
            return Ok(());
        }
        let Some(in_hand) = self.in_hand.get(&ticket.number) else { return Ok(()) };
        let Some(image) = &mut self.image else { return Ok(()) };
        if !covers(&ticket.runs, written) || !image.matches(&in_hand.content, written) {
            let told = "acknowledge chunks: they are not those that came";
            self.fail(Error::new(ErrorKind::Io, told));
            return Err(Error::new(ErrorKind::Invalid, told));
        }
        for chunk in written {
            image.table.put(chunk.run(), chunk.content());
        }
        self.acknowledge(ticket)
    }

    fn acknowledge(&mut self, ticket: Ticket) -> Result<()> {
        self.answer_ticket(ticket, &Message::Written)
    }

    /// What the ticket stands for could not be opened or written. Bytes that are not what their
    /// digest says close the session, as nothing the peer says can be trusted then; a failure of
    /// this side, such as a base that is damaged, refuses the request alone, and the sender may
    /// send the chunks again.
    pub fn refused(&mut self, ticket: Ticket, error: Error) {
        let in_hand = self.in_hand.get(&ticket.number);
        let is_ours = in_hand.is_some_and(|found| matches!(found.content, Expected::Same));
        let is_lie = error.kind() == ErrorKind::Corrupt && !is_ours;
        // What was there before may be half written over: it must not go on record as it was.
        if is_lie || self.replaces(&ticket) {
            return self.fail(error);
        }
        let refusal = Message::Error(Refusal::new(&error));
        if let Err(error) = self.answer_ticket(ticket, &refusal) {
            self.fail(error);
        }
    }

    /// Whether the ticket was to put another content into the place of one that is written.
    fn replaces(&self, ticket: &Ticket) -> bool {
        let (Some(image), Some(in_hand)) = (&self.image, self.in_hand.get(&ticket.number)) else {
            return false;
        };
        let content = |index| match in_hand.content {
            Expected::Chunk(_, digest) => Some(digest),
            Expected::Zeroes => None,
            Expected::Same => image.in_base(index),
        };
        let mut chunks = ticket.runs.iter().flat_map(|run| run.iter());
        chunks.any(|index| image.table.digest(index).is_some_and(|known| known != content(index)))
    }

    fn answer_ticket(&mut self, ticket: Ticket, reply: &Message) -> Result<()> {
        let Some(in_hand) = self.in_hand.remove(&ticket.number) else { return Ok(()) };
        if let Expected::Chunk(index, _) = in_hand.content
            && let Some((_, count)) = self.flying.get_mut(&index)
        {
            *count -= 1;
            if *count == 0 {
                self.flying.remove(&index);
            }
        }
        if let Some((link, grant)) = self.links.get(in_hand.link) {
            grant.in_hand_bytes -= in_hand.cost_bytes;
            link.reply(in_hand.id, reply)?;
        }
        self.grant();
        if self.seal.is_some() && self.in_hand.is_empty() { self.settle_seal() } else { Ok(()) }
    }

    /// A seal waited for this. Chunks that were refused are missing now: the sender is told.
    fn settle_seal(&mut self) -> Result<()> {
        if let Err(error) = self.commit() {
            self.fail(error);
        }
        Ok(())
    }

    /// What of these durable chunks may be put on record: not those that have been replaced since,
    /// or that are just being. From here on the others cannot be replaced any more.
    ///
    /// Order: this, then the record ([`Target::checkpoint`](crate::region::Target::checkpoint)),
    /// then [`Receiver::durable`]. A record of what has been written over would outlive the bytes.
    #[must_use]
    pub fn record(&mut self, chunks: Vec<Durable>) -> Vec<Durable> {
        let stays = |chunk: &Durable| {
            let content = content_of(chunk);
            let Some(image) = &self.image else { return false };
            let holds = |index| image.table.digest(index) == Some(content);
            image.geometry.holds(chunk.run())
                && chunk.run().iter().all(holds)
                && !self.collides(chunk.run(), content.is_none(), |_| content)
        };
        let kept: Vec<Durable> = chunks.into_iter().filter(stays).collect();
        if let Some(image) = &mut self.image {
            kept.iter().for_each(|chunk| image.recorded.insert(chunk.run()));
        }
        kept
    }

    /// These chunks are durable and on record at the stage: the sender is told.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for chunks that [`Receiver::record`] did not let pass.
    pub fn durable(&mut self, chunks: &[Durable]) -> Result<()> {
        let Some(image) = &mut self.image else { return Ok(()) };
        for chunk in chunks {
            let run = chunk.run();
            if !image.geometry.holds(run) || !image.recorded.covers(run) {
                return Err(Error::new(ErrorKind::Invalid, "record chunks that did not come"));
            }
            image.durable.insert(run);
        }
        Ok(())
    }

    /// The digest of what may be taken over from the base there, if there is a base that has it.
    pub fn in_base(&self, index: ChunkIndex) -> Option<Digest> {
        self.image.as_ref().and_then(|image| image.in_base(index))
    }

    /// What the target has accepted so far, with its digests.
    pub fn table(&self) -> Option<&crate::manifest::TableBuilder> {
        self.image.as_ref().map(|image| &image.table)
    }
}

impl Image {
    /// Whether these chunks exist, and were asked for if they had to be. One that came already may
    /// come again: the connection was lost on which the sender would have heard that it had.
    fn admit(
        &self,
        runs: &[ChunkRun],
        on_demand: bool,
        flying: &BTreeMap<ChunkIndex, (Digest, u32)>,
    ) -> Result<()> {
        if !runs.iter().all(|run| self.geometry.holds(*run)) {
            return Err(Error::new(ErrorKind::Invalid, "take a chunk outside the image"));
        }
        let awaited = |index| {
            let came = self.table.digest(index).is_some() || flying.contains_key(&index);
            came || self.wanted.holds(index) || self.declined.holds(index)
        };
        if on_demand && !runs.iter().flat_map(|run| run.iter()).all(awaited) {
            return Err(Error::new(ErrorKind::Invalid, "take a chunk that nobody wants"));
        }
        Ok(())
    }

    fn check_chunk(&self, chunk: &Chunk, zstd: bool, on_demand: bool) -> Result<()> {
        let (len, plain_len) = (to_u64(chunk.bytes.len()), self.geometry.range(chunk.index).len);
        let fits = match chunk.codec {
            Codec::Raw => len == plain_len,
            Codec::Zstd => zstd && len < plain_len,
        };
        if !fits {
            return Err(Error::new(ErrorKind::Invalid, "take a chunk of a wrong length or codec"));
        }
        match self.contradicts(chunk.index, Some(chunk.digest), on_demand) {
            true => Err(lied()),
            false => Ok(()),
        }
    }

    /// Whether that chunk was announced, or is on record, with another content. What was only
    /// written may be replaced: a target takes a chunk again. What is fetched never changes.
    fn contradicts(&self, index: ChunkIndex, content: Option<Digest>, on_demand: bool) -> bool {
        let differs = |known: Option<Option<Digest>>| known.is_some_and(|known| known != content);
        let expected = self.expected.as_ref().and_then(|expected| expected.digest(index));
        let is_final = on_demand || self.recorded.holds(index);
        differs(expected) || (is_final && differs(self.table.digest(index)))
    }

    /// The digest of what the base holds there; `None` for zeros, and for nothing.
    fn in_base(&self, index: ChunkIndex) -> Option<Digest> {
        self.base.as_ref().and_then(|base| base.digest(index)).flatten()
    }

    fn matches(&self, content: &Expected, written: &[Written]) -> bool {
        written.iter().all(|chunk| match (content, chunk.content()) {
            (Expected::Chunk(index, digest), Content::Data { digest: written, .. }) => {
                chunk.run() == ChunkRun::new(*index, 1) && written == *digest
            }
            (Expected::Zeroes, Content::Zero) => true,
            (Expected::Same, content) => {
                let digest = match content {
                    Content::Zero => None,
                    Content::Data { digest, .. } => Some(digest),
                };
                chunk.run().iter().all(|index| self.in_base(index) == digest)
            }
            _ => false,
        })
    }
}

/// Whether these chunks, in order, are exactly those of the runs.
fn covers(runs: &[ChunkRun], written: &[Written]) -> bool {
    let of_runs = runs.iter().flat_map(|run| run.iter());
    of_runs.eq(written.iter().flat_map(|chunk| chunk.run().iter()))
}

fn content_of(chunk: &Durable) -> Option<Digest> {
    match chunk.content() {
        Content::Zero => None,
        Content::Data { digest, .. } => Some(digest),
    }
}

fn hurried() -> Error {
    Error::new(ErrorKind::Invalid, "take a chunk: another content of it is being written still")
}

fn lied() -> Error {
    Error::new(ErrorKind::Corrupt, "take a chunk: it is not what was said of it before")
}
