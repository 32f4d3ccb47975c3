//! What a receiver says: credits, what is durable, what it wants, how it was decided. Pure.

use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun};
use crate::wire::frame::Packet;
use crate::wire::message::{Ask, Decision, Message, RUNS_MAX, Refusal};

use super::super::LinkId;
use super::{Receiver, ReceiverState};

impl Receiver {
    /// Grants what may be granted, a chunk at a time, each to the link that has least.
    pub(super) fn grant(&mut self) {
        let (ReceiverState::Receiving, Some(image)) = (self.state, &self.image) else { return };
        let chunk_bytes = image.geometry.chunk_size().bytes();
        let in_hand: u64 = self.in_hand.values().map(|in_hand| in_hand.cost_bytes).sum();
        let open: u64 = self.links.iter().map(|(_, grant)| grant.open_bytes).sum();
        let mut free_bytes = self.bounds.session_bytes.saturating_sub(in_hand + open);
        while free_bytes >= chunk_bytes {
            let link_bytes = self.bounds.link_bytes;
            let poorest = self
                .links
                .iter_mut()
                .map(|(_, grant)| grant)
                .filter(|grant| grant.joined)
                .min_by_key(|grant| grant.open_bytes + grant.in_hand_bytes);
            let Some(grant) = poorest else { return };
            if grant.open_bytes + grant.in_hand_bytes + chunk_bytes > link_bytes {
                return;
            }
            grant.open_bytes += chunk_bytes;
            grant.untold_bytes += chunk_bytes;
            free_bytes -= chunk_bytes;
        }
    }

    /// Bytes granted and not used, or arrived and in the driver's hands: never more than
    /// [`Bounds::session_bytes`](super::super::Bounds::session_bytes).
    pub fn committed_bytes(&self) -> u64 {
        let in_hand: u64 = self.in_hand.values().map(|in_hand| in_hand.cost_bytes).sum();
        in_hand + self.links.iter().map(|(_, grant)| grant.open_bytes).sum::<u64>()
    }

    /// Answers a `Sync`. Order: sync, checkpoint, [`Receiver::durable`], then this.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the session is over.
    pub fn synced(&mut self, id: u64) -> Result<()> {
        // The sender learns what is durable before it learns that all is.
        while let Some(message) = self.next_durable() {
            self.links.control()?.notice(&message)?;
        }
        self.links.control()?.reply(id, &Message::Synced)
    }

    /// Answers a `Sync` that failed: nothing since the last one may be taken as durable.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the session is over.
    pub fn sync_failed(&mut self, id: u64, error: &Error) -> Result<()> {
        self.links.control()?.reply(id, &Message::Error(Refusal::new(error)))
    }

    /// It is decided where the stage is, by whomever: the answer to a `Commit`, to a `Cancel`, or
    /// to none, when others decided.
    ///
    /// Order: the decision is durable before this is called.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it is `Receiving` or `Deciding`.
    pub fn decided(&mut self, decision: Decision) -> Result<()> {
        if !matches!(self.state, ReceiverState::Receiving | ReceiverState::Deciding) {
            return Err(Error::new(ErrorKind::Invalid, "decide what is over"));
        }
        let asked: Vec<u64> = self.asked();
        let control = self.links.control()?;
        if asked.is_empty() {
            control.notice(&Message::Decision(decision))?;
        }
        for id in asked {
            control.reply(id, &Message::Decision(decision))?;
        }
        self.become_state(ReceiverState::Decided);
        Ok(())
    }

    /// The requests that wait for a decision.
    fn asked(&mut self) -> Vec<u64> {
        let seal = self.seal.take().map(|(id, _)| id);
        seal.into_iter().chain(self.cancel.take()).collect()
    }

    /// It could not be decided: the stage is kept, and the session is over.
    pub fn not_decided(&mut self, error: Error) {
        let asked: Vec<u64> = self.asked();
        let refusal = Message::Error(Refusal::new(&error));
        for id in asked {
            // A lost link is found out by a query.
            let told = self.links.control().and_then(|control| control.reply(id, &refusal));
            if let Err(lost) = told {
                return self.fail(error.and(lost));
            }
        }
        if !self.state.is_final() {
            self.end(error);
        }
    }

    /// Fetch only: asks for these chunks. They arrive in any order.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for chunks outside the image, that are asked for already, or before
    /// it was accepted; [`ErrorKind::Busy`] with as many requests under way as there may be.
    pub fn want(&mut self, run: ChunkRun, now: Instant) -> Result<u64> {
        let (ReceiverState::Receiving, Some(image)) = (self.state, &mut self.image) else {
            return Err(Error::new(ErrorKind::Invalid, "want chunks of no image"));
        };
        let fits = self.on_demand && run.count > 0 && image.geometry.holds(run);
        if !fits || image.wanted.meets(run) {
            return Err(Error::new(ErrorKind::Invalid, "want chunks twice, or outside the image"));
        }
        let control = self.links.control()?;
        if control.free_requests() == 0 {
            return Err(Error::new(ErrorKind::Busy, "ask more than is allowed at a time"));
        }
        let id = control.request(&Message::Want(run), now);
        image.wanted.insert(run);
        self.wants.insert(id, run);
        Ok(id)
    }

    /// Fetch only: asks which bytes of that range are known to be zero.
    ///
    /// # Errors
    /// As [`Receiver::want`].
    pub fn ask_extents(&mut self, range: ByteRange, now: Instant) -> Result<u64> {
        let fits = |image: &super::Image| range.end() <= image.geometry.image_bytes();
        if range.is_empty() || !self.image.as_ref().is_some_and(fits) {
            return Err(Error::new(ErrorKind::Invalid, "ask for bytes outside the image"));
        }
        self.ask(Ask::Extents(range), now)
    }

    /// Fetch only: asks what the source looks like now.
    ///
    /// # Errors
    /// As [`Receiver::want`].
    pub fn ask_facts(&mut self, now: Instant) -> Result<u64> {
        self.ask(Ask::Facts, now)
    }

    fn ask(&mut self, ask: Ask, now: Instant) -> Result<u64> {
        if self.state != ReceiverState::Receiving || !self.on_demand {
            return Err(Error::new(ErrorKind::Invalid, "ask about no image"));
        }
        let control = self.links.control()?;
        if control.free_requests() == 0 {
            return Err(Error::new(ErrorKind::Busy, "ask more than is allowed at a time"));
        }
        let id = control.request(&Message::Ask(ask), now);
        self.asks.insert(id, ask);
        Ok(id)
    }

    /// The next frame to write on that link.
    pub fn poll_transmit(&mut self, link: LinkId) -> Option<Packet> {
        let is_control = link == self.links.control_id();
        let (connection, _) = self.links.get(link)?;
        if let Some(packet) = connection.poll_transmit() {
            return Some(packet);
        }
        let version = connection.agreed().version;
        let living = matches!(self.state, ReceiverState::Receiving | ReceiverState::Deciding);
        if !living {
            return None;
        }
        if is_control && let Some(message) = self.next_notice() {
            return Some(message.packet(version, 0));
        }
        // Not before the sender knows what is held: until then it may send nothing.
        let ready = self.image.as_ref().is_some_and(|image| image.ready);
        let (_, grant) =
            self.links.get(link).filter(|(_, grant)| ready && grant.untold_bytes > 0)?;
        let bytes = std::mem::take(&mut grant.untold_bytes);
        Some(Message::Credit { bytes }.packet(version, 0))
    }

    /// What is held, what the base holds, that this was all; then what has become durable.
    fn next_notice(&mut self) -> Option<Message> {
        let image = self.image.as_mut()?;
        if let Some(piece) = image.held.as_mut().and_then(|telling| telling.next_piece()) {
            return Some(Message::Held(piece));
        }
        image.held = None;
        if let Some(piece) = image.base_telling.as_mut().and_then(|telling| telling.next_piece()) {
            return Some(Message::Table(piece));
        }
        image.base_telling = None;
        if !image.ready {
            image.ready = true;
            return Some(Message::Ready { data_bytes: image.data_bytes });
        }
        self.next_durable()
    }

    fn next_durable(&mut self) -> Option<Message> {
        let image = self.image.as_mut().filter(|image| image.ready)?;
        let runs = image.durable.take_runs(RUNS_MAX);
        (!runs.is_empty()).then_some(Message::Durable(runs))
    }
}
