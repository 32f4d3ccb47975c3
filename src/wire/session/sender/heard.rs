//! What a sender hears from the receiver, and when it may. Pure.

use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkRun};
use crate::manifest::TableBuilder;
use crate::wire::frame::Frame;
use crate::wire::message::{Ask, Begun, Decision, Message, Piece, Refusal};

use super::super::LinkId;
use super::super::table::take_piece;
use super::{Sender, SenderEvent, SenderState};

impl Sender {
    /// Takes a frame in that came on that link.
    pub fn handle_frame(&mut self, link: LinkId, frame: &Frame, now: Instant) {
        if self.state.is_final() {
            return;
        }
        match self.take(link, frame, now) {
            Ok(()) => {}
            Err(Heard::Breach(error)) => self.fail(error),
            Err(Heard::Over(error)) => self.end(error),
        }
    }

    fn take(&mut self, link: LinkId, frame: &Frame, now: Instant) -> Result<(), Heard> {
        let Some((connection, _)) = self.links.get(link) else { return Ok(()) };
        let Some(message) = connection.receive(frame, now)? else { return Ok(()) };
        let is_control = link == self.links.control_id();
        let id = frame.id;
        match (message, self.state) {
            // What either side may say at any time.
            (Message::Error(refusal), _) => return self.refused(link, id, refusal),
            (Message::Joined, _) => self.joined(link),
            (Message::Credit { bytes }, SenderState::Sending | SenderState::Deciding) => {
                self.credit(link, bytes)?;
            }
            (Message::Written, SenderState::Sending | SenderState::Deciding) => {
                self.acknowledged(link, id);
            }
            // What is said on the control link alone.
            (message, _) if !is_control => return Err(out_of_turn(&message).into()),
            (Message::Begun(begun), SenderState::Opening) if !self.on_demand => {
                self.begun(begun)?;
            }
            (Message::Held(piece), SenderState::Learning) => take_piece(&mut self.held, &piece)?,
            (Message::Table(piece), SenderState::Learning) => self.told_base(&piece)?,
            // Cancelled before the receiver was ready: what it holds matters no more.
            (
                Message::Begun(_) | Message::Held(_) | Message::Table(_) | Message::Ready { .. },
                SenderState::Deciding,
            ) => {}
            (Message::Ready { data_bytes }, SenderState::Learning) => self.ready(data_bytes)?,
            (Message::Ready { .. }, SenderState::Opening) if self.on_demand => self.ready(0)?,
            (Message::Durable(runs), SenderState::Sending | SenderState::Deciding) => {
                self.durable(runs)?;
            }
            (Message::Synced, SenderState::Sending | SenderState::Deciding) => self.synced(id),
            (Message::Want(run), SenderState::Sending) if self.on_demand => self.want(id, run)?,
            (Message::Ask(ask), SenderState::Sending) if self.on_demand => self.asked(id, ask)?,
            (Message::Decision(decision), _) if !self.on_demand => self.decided(decision),
            (message, _) => return Err(out_of_turn(&message).into()),
        }
        Ok(())
    }

    fn begun(&mut self, begun: Begun) -> Result<()> {
        if begun.base && !self.names_base {
            return Err(Error::new(ErrorKind::Invalid, "take a base that was not named"));
        }
        self.token = Some(begun.token);
        self.base = begun.base.then(|| TableBuilder::new(self.geometry));
        self.become_state(SenderState::Learning);
        Ok(())
    }

    fn told_base(&mut self, piece: &Piece) -> Result<()> {
        match &mut self.base {
            Some(base) => take_piece(base, piece),
            None => Err(Error::new(ErrorKind::Invalid, "take digests of no base")),
        }
    }

    fn ready(&mut self, data_bytes: u64) -> Result<()> {
        if data_bytes > self.geometry.image_bytes() {
            return Err(Error::new(ErrorKind::Invalid, "take more bytes as held than there are"));
        }
        self.become_state(SenderState::Sending);
        self.settle_rest();
        let base = self.base.clone().map(Box::new);
        let held = Box::new(self.held_table());
        // Before the events of what is left: the driver learns first that it may send.
        self.events.push_front(SenderEvent::Ready { held, data_bytes, base });
        Ok(())
    }

    fn joined(&mut self, link: LinkId) {
        if let Some((_, flow)) = self.links.get(link) {
            flow.joined = true;
        }
        self.events.push_back(SenderEvent::Room);
    }

    fn credit(&mut self, link: LinkId, bytes: u64) -> Result<()> {
        let Some((connection, flow)) = self.links.get(link) else { return Ok(()) };
        let chunk_bytes = self.geometry.chunk_size().bytes();
        if bytes == 0 || !bytes.is_multiple_of(chunk_bytes) {
            return Err(Error::new(ErrorKind::Invalid, "take credit for part of a chunk"));
        }
        // A receiver that grants what nobody has room for would have this side hold as much.
        let bytes_max = connection.bounds().link_bytes.max(chunk_bytes);
        let credit_bytes = flow.credit_bytes.checked_add(bytes).filter(|all| *all <= bytes_max);
        flow.credit_bytes = credit_bytes.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "take more credit than a connection may have")
        })?;
        self.events.push_back(SenderEvent::Room);
        Ok(())
    }

    fn acknowledged(&mut self, link: LinkId, id: u64) {
        let Some((_, flow)) = self.links.get(link) else { return };
        let Some((item, load)) = flow.in_flight.remove(&id) else { return };
        for run in load.runs() {
            self.written.insert(run);
        }
        self.events.push_back(SenderEvent::Written(item));
    }

    fn durable(&mut self, runs: Vec<ChunkRun>) -> Result<()> {
        for run in &runs {
            if !self.geometry.holds(*run) {
                return Err(Error::new(ErrorKind::Invalid, "take chunks that do not exist"));
            }
            self.written.remove(*run);
        }
        self.events.push_back(SenderEvent::Durable(runs));
        Ok(())
    }

    fn synced(&mut self, id: u64) {
        if let Some(item) = self.syncs.remove(&id) {
            self.events.push_back(SenderEvent::Synced(item));
        }
    }

    fn want(&mut self, id: u64, run: ChunkRun) -> Result<()> {
        if !self.geometry.holds(run) || self.wanted.meets(run) {
            return Err(Error::new(ErrorKind::Invalid, "want chunks twice, or outside the image"));
        }
        self.wanted.insert(run);
        self.wants.insert(id, run);
        self.events.push_back(SenderEvent::Wanted { id, run });
        Ok(())
    }

    fn asked(&mut self, id: u64, ask: Ask) -> Result<()> {
        self.events.push_back(match ask {
            Ask::Facts => SenderEvent::AskedFacts { id },
            Ask::Extents(ByteRange { offset, len })
                if offset + len <= self.geometry.image_bytes() =>
            {
                SenderEvent::AskedExtents { id, range: ByteRange::new(offset, len) }
            }
            Ask::Extents(_) => {
                return Err(Error::new(ErrorKind::Invalid, "ask for bytes outside the image"));
            }
        });
        Ok(())
    }

    fn decided(&mut self, decision: Decision) {
        self.become_state(SenderState::Decided);
        self.events.push_back(SenderEvent::Decided(decision));
    }

    /// An error: of the session, of a link that may not join, or of one request.
    fn refused(&mut self, link: LinkId, id: u64, refusal: Refusal) -> Result<(), Heard> {
        let error = refusal.into_error();
        let Some((_, flow)) = self.links.get(link) else { return Ok(()) };
        if !flow.joined {
            self.lose(link, error, true);
            return Ok(());
        }
        if id == 0 {
            return Err(Heard::Over(error));
        }
        let event = if let Some((item, _)) = flow.in_flight.remove(&id) {
            SenderEvent::Refused(item, error)
        } else if let Some(item) = self.syncs.remove(&id) {
            SenderEvent::SyncFailed(item, error)
        } else if self.state == SenderState::Deciding {
            self.become_state(SenderState::Closed);
            SenderEvent::NotDecided(error)
        } else {
            return Err(Heard::Over(error));
        };
        self.events.push_back(event);
        Ok(())
    }

    /// A link is no more. `ours`: it is this side that gives it up.
    pub(super) fn lose(&mut self, link: LinkId, error: Error, ours: bool) {
        if link == self.links.control_id() {
            // Whatever ended it, the same job may succeed on another connection.
            let lost = Error::new(ErrorKind::Unavailable, "go on without the control connection");
            return self.end(lost.because(error));
        }
        let Some((_, flow)) = self.links.remove(link) else { return };
        // At the front: these chunks come before what was not sent yet.
        for entry in flow.in_flight.into_values().rev() {
            self.queue.push_front(entry);
        }
        if ours {
            self.events.push_back(SenderEvent::LinkClosed(link, error));
        }
    }
}

/// Why a frame ends a session.
enum Heard {
    /// The other side broke the rules: it is told.
    Breach(Error),
    /// The other side has said so itself.
    Over(Error),
}

impl From<Error> for Heard {
    fn from(error: Error) -> Self {
        Self::Breach(error)
    }
}

fn out_of_turn(message: &Message) -> Error {
    Error::new(ErrorKind::Invalid, format!("take {:?} out of turn", message.kind()))
}
