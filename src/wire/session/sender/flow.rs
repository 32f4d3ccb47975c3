//! What the driver gives a sender, and how it goes out over the links. Pure.

use std::time::Instant;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun};
use crate::job::Fingerprint;
use crate::plan::Extent;
use crate::wire::frame::Packet;
use crate::wire::message::{Chunk, Codec, EXTENTS_MAX, FEATURE_ZSTD, Message, RUNS_MAX, Refusal};

use super::super::LinkId;
use super::{Flow, Item, Load, Sender, SenderState};

impl Sender {
    /// How many chunks may be given now: what the links have credit for, less what waits.
    pub fn room(&self) -> usize {
        if self.state != SenderState::Sending {
            return 0;
        }
        let chunk_bytes = self.geometry.chunk_size().bytes();
        let credit = |flow: &Flow| flow.credit_bytes / chunk_bytes;
        let chunks: u64 = self.links.iter().map(|(_, flow)| credit(flow)).sum();
        let waiting = self.queue.len();
        crate::geometry::to_usize(chunks).saturating_sub(waiting)
    }

    /// Gives one chunk: `bytes` are the chunk itself, or its zstd frame
    /// ([`Packer`](crate::compress::Packer)). They are kept, not copied, until they are
    /// acknowledged.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while there is no [`Sender::room`]; [`ErrorKind::Invalid`] for what
    /// breaks the rules: no such chunk, a wrong length, zstd where it was not agreed on, a chunk
    /// that is not wanted.
    pub fn send_chunk(
        &mut self,
        index: ChunkIndex,
        digest: Digest,
        codec: Codec,
        bytes: Bytes,
    ) -> Result<Item> {
        self.check_room()?;
        let run = ChunkRun::new(index, 1);
        self.check_runs(&[run])?;
        let len = self.geometry.range(index).len;
        let fits = match codec {
            Codec::Raw => crate::geometry::to_u64(bytes.len()) == len,
            Codec::Zstd => crate::geometry::to_u64(bytes.len()) < len && self.has(FEATURE_ZSTD),
        };
        if !fits {
            return Err(Error::new(ErrorKind::Invalid, "send a chunk of a wrong length or codec"));
        }
        Ok(self.give(&[run], Load::Chunk(Chunk { index, codec, digest, bytes })))
    }

    /// Gives runs of chunks that hold only zeros: ascending, apart, at most
    /// [`RUNS_MAX`](crate::wire::message::RUNS_MAX).
    ///
    /// # Errors
    /// As [`Sender::send_chunk`].
    pub fn send_zeroes(&mut self, runs: Vec<ChunkRun>) -> Result<Item> {
        self.check_sending()?;
        self.check_runs(&runs)?;
        Ok(self.give(&runs.clone(), Load::Zeroes(runs)))
    }

    /// Gives runs of chunks that hold what they hold in the base.
    ///
    /// # Errors
    /// As [`Sender::send_chunk`].
    pub fn send_same(&mut self, runs: Vec<ChunkRun>) -> Result<Item> {
        self.check_sending()?;
        self.check_runs(&runs)?;
        if !self.base_holds(&runs) {
            return Err(Error::new(ErrorKind::Invalid, "send chunks that no base holds"));
        }
        Ok(self.give(&runs.clone(), Load::Same(runs)))
    }

    fn has(&self, feature: u64) -> bool {
        self.links.iter().all(|(link, _)| link.agreed().features & feature != 0)
    }

    fn check_sending(&self) -> Result<()> {
        match self.state {
            SenderState::Sending => Ok(()),
            SenderState::Closed => {
                Err(Error::new(ErrorKind::Unavailable, "send on a session that is over"))
            }
            _ => Err(Error::new(ErrorKind::Invalid, "send before the receiver is ready")),
        }
    }

    fn check_room(&self) -> Result<()> {
        self.check_sending()?;
        if self.room() == 0 {
            return Err(Error::new(ErrorKind::Busy, "send more than there are credits for"));
        }
        Ok(())
    }

    fn check_runs(&self, runs: &[ChunkRun]) -> Result<()> {
        let apart = runs.windows(2).all(|pair| pair[0].end() < pair[1].first.get());
        let inside = runs.iter().all(|run| run.count > 0 && self.geometry.holds(*run));
        let count_fits = !runs.is_empty() && runs.len() <= RUNS_MAX;
        if !apart || !inside || !count_fits {
            return Err(Error::new(ErrorKind::Invalid, "send chunks outside the image"));
        }
        if self.on_demand && !runs.iter().all(|run| self.wanted.covers(*run)) {
            return Err(Error::new(ErrorKind::Invalid, "send chunks that nobody wants"));
        }
        Ok(())
    }

    fn give(&mut self, runs: &[ChunkRun], load: Load) -> Item {
        self.last_item += 1;
        let item = Item(self.last_item);
        self.queue.push_back((item, load));
        runs.iter().for_each(|run| self.wanted.remove(*run));
        if self.on_demand {
            self.settle_wants();
        }
        item
    }

    /// Requests whose chunks were all given are answered as far as this side goes.
    fn settle_wants(&mut self) {
        let wanted = &self.wanted;
        let done: Vec<u64> =
            self.wants.iter().filter(|(_, run)| !wanted.meets(**run)).map(|(id, _)| *id).collect();
        for id in done {
            self.wants.remove(&id);
            if let Ok(control) = self.links.control() {
                control.settled(id);
            }
        }
    }

    /// Asks the receiver to make durable what was written so far.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless chunks may be sent; [`ErrorKind::Busy`] with too many requests
    /// under way.
    pub fn sync(&mut self, now: Instant) -> Result<Item> {
        self.check_sending()?;
        self.last_item += 1;
        let item = Item(self.last_item);
        let id = self.control_request(&Message::Sync, KEPT_OF_SYNCS, now)?;
        self.syncs.insert(id, item);
        Ok(item)
    }

    /// Asks the receiver to commit the image of that root. When every item is `Written`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] while items are under way, or unless chunks may be sent.
    pub fn seal(&mut self, root: Digest, now: Instant) -> Result<()> {
        self.check_sending()?;
        let flying = self.links.iter().any(|(_, flow)| !flow.in_flight.is_empty());
        if flying || !self.queue.is_empty() || self.on_demand {
            return Err(Error::new(ErrorKind::Invalid, "seal an image that is still on its way"));
        }
        self.control_request(&Message::Seal { root }, 1, now)?;
        self.become_state(SenderState::Deciding);
        Ok(())
    }

    /// Cancels the job, unless it has committed: also after a seal. What waits is not sent any
    /// more.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is decided, or over, or an offer.
    pub fn cancel(&mut self, now: Instant) -> Result<()> {
        let Some(name) = self.name.clone().filter(|_| !self.state.is_final()) else {
            return Err(Error::new(ErrorKind::Invalid, "cancel what is over, or not a job"));
        };
        self.control_request(&Message::Cancel(name), 0, now)?;
        self.queue.clear();
        if self.state != SenderState::Deciding {
            self.become_state(SenderState::Deciding);
        }
        Ok(())
    }

    fn control_request(&mut self, message: &Message, kept: usize, now: Instant) -> Result<u64> {
        let control = self.links.control()?;
        if control.free_requests() <= kept {
            return Err(Error::new(ErrorKind::Busy, "ask more than is allowed at a time"));
        }
        Ok(control.request(message, now))
    }

    /// Answers an `AskedExtents`: at most 1,024 neighbours that cover at least the start of the
    /// range.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for none or too many; [`ErrorKind::Unavailable`] on a lost link.
    pub fn tell_extents(&mut self, id: u64, extents: Vec<Extent>) -> Result<()> {
        if extents.is_empty() || extents.len() > usize::from(EXTENTS_MAX) {
            return Err(Error::new(ErrorKind::Invalid, "tell of no extents, or too many"));
        }
        self.links.control()?.reply(id, &Message::Extents(extents))
    }

    /// Answers an `AskedFacts`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] on a lost link.
    pub fn tell_facts(&mut self, id: u64, facts: Fingerprint) -> Result<()> {
        self.links.control()?.reply(id, &Message::Facts(facts))
    }

    /// Answers a `Wanted`, an `AskedExtents` or an `AskedFacts` with an error. The session goes on.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] on a lost link.
    pub fn decline(&mut self, id: u64, refusal: Refusal) -> Result<()> {
        if let Some(run) = self.wants.remove(&id) {
            self.wanted.remove(run);
        }
        self.links.control()?.reply(id, &Message::Error(refusal))
    }

    /// The next frame to write on that link; `None` until there is more to say, or more credit.
    ///
    /// Asks only when the connection can be written: a link takes as much of the image as it gets
    /// rid of, so several links share it by their speed.
    pub fn poll_transmit(&mut self, link: LinkId, now: Instant) -> Option<Packet> {
        let is_control = link == self.links.control_id();
        let (connection, _) = self.links.get(link)?;
        if let Some(packet) = connection.poll_transmit() {
            return Some(packet);
        }
        if self.state.is_final() {
            return None;
        }
        if is_control && let Some(packet) = self.next_piece() {
            return Some(packet);
        }
        self.next_load(link, now)
    }

    fn next_piece(&mut self) -> Option<Packet> {
        let piece = self.telling.as_mut()?.next_piece();
        let Some(piece) = piece else {
            self.telling = None;
            return None;
        };
        let control = self.links.control().ok()?;
        Some(Message::Table(piece).packet(control.agreed().version, 0))
    }

    fn next_load(&mut self, link: LinkId, now: Instant) -> Option<Packet> {
        if self.state != SenderState::Sending {
            return None;
        }
        let cost = match &self.queue.front()?.1 {
            Load::Chunk(_) => self.geometry.chunk_size().bytes(),
            Load::Zeroes(_) | Load::Same(_) => 0,
        };
        let (connection, flow) = self.links.get(link)?;
        if !flow.joined || flow.credit_bytes < cost || connection.free_requests() <= KEPT_OF_LOADS {
            return None;
        }
        flow.credit_bytes -= cost;
        let (item, load) = self.queue.pop_front()?;
        let (id, packet) = connection.prepare(&load.message(), now);
        flow.in_flight.insert(id, (item, load));
        Some(packet)
    }
}

/// Requests that chunks leave free, so that a sync, a seal and a cancel can always be made.
const KEPT_OF_LOADS: usize = 3;
/// Requests that syncs leave free.
const KEPT_OF_SYNCS: usize = 2;

impl Load {
    fn message(&self) -> Message {
        match self {
            Self::Chunk(chunk) => Message::Chunk(chunk.clone()),
            Self::Zeroes(runs) => Message::Zeroes(runs.clone()),
            Self::Same(runs) => Message::Same(runs.clone()),
        }
    }

    pub(super) fn runs(&self) -> Vec<ChunkRun> {
        match self {
            Self::Chunk(chunk) => vec![ChunkRun::new(chunk.index, 1)],
            Self::Zeroes(runs) | Self::Same(runs) => runs.clone(),
        }
    }
}
