//! What a receiver hears from the sender, and when it may. Pure.

use std::time::Instant;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ChunkRun;
use crate::manifest::Manifest;
use crate::plan::Extent;
use crate::wire::frame::Frame;
use crate::wire::message::{Ask, Message, Name, Offer, Piece, Refusal};

use super::super::LinkId;
use super::super::table::take_piece;
use super::{Image, Receiver, ReceiverEvent, ReceiverState, check_geometry};

impl Receiver {
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
        use ReceiverState as S;
        let Some((connection, _)) = self.links.get(link) else { return Ok(()) };
        let Some(message) = connection.receive(frame, now)? else { return Ok(()) };
        let is_control = link == self.links.control_id();
        let id = frame.id;
        let ready = self.image.as_ref().is_some_and(|image| image.ready);
        match (message, self.state) {
            (Message::Error(refusal), _) => return self.heard_error(link, id, refusal),
            (Message::Joined, _) => self.joined(link),
            (Message::Chunk(chunk), S::Receiving) if ready => self.chunk(link, id, chunk)?,
            (Message::Zeroes(runs), S::Receiving) if ready => self.runs(link, id, runs, true)?,
            (Message::Same(runs), S::Receiving) if ready => self.runs(link, id, runs, false)?,
            // They were under way on another link when the cancel came on the control link.
            (Message::Chunk(_) | Message::Zeroes(_) | Message::Same(_), S::Deciding)
                if self.cancel.is_some() && self.seal.is_none() => {}
            (message, _) if !is_control => return Err(out_of_turn(&message).into()),
            (Message::Offer(offer), S::Fetching) => self.offered(offer)?,
            (Message::Table(piece), S::Offered | S::Receiving) => self.told(&piece)?,
            (Message::Sync, S::Receiving) if ready && !self.on_demand => {
                self.events.push_back(ReceiverEvent::Sync { id });
            }
            (Message::Sync, S::Deciding) if self.cancel.is_some() => {}
            (Message::Seal { root }, S::Receiving) if ready && !self.on_demand => {
                self.sealed(id, root)?;
            }
            (Message::Cancel(name), S::Offered | S::Receiving | S::Deciding) => {
                self.cancelled(id, &name)?;
            }
            (Message::Extents(extents), S::Receiving) => self.extents(id, extents)?,
            (Message::Facts(facts), S::Receiving) => {
                self.answers(id, |ask| *ask == Ask::Facts)?;
                self.events.push_back(ReceiverEvent::Facts { id, facts });
            }
            (message, _) => return Err(out_of_turn(&message).into()),
        }
        Ok(())
    }

    fn joined(&mut self, link: LinkId) {
        if let Some((_, grant)) = self.links.get(link) {
            grant.joined = true;
        }
        self.grant();
    }

    fn offered(&mut self, offer: Offer) -> Result<()> {
        check_geometry(self.links.control()?, offer.geometry)?;
        let wanted = self.fetch.as_ref().is_some_and(|fetch| fetch.table);
        if offer.root.is_some() && !wanted {
            return Err(Error::new(ErrorKind::Invalid, "take digests that nobody wants"));
        }
        self.image = Some(Image::new(offer.geometry, offer.root));
        self.token = Some(offer.token);
        self.become_state(ReceiverState::Offered);
        self.events.push_back(ReceiverEvent::Offered(Box::new(offer)));
        Ok(())
    }

    /// Digests of the image. When all are there, they must have the root that was announced.
    fn told(&mut self, piece: &Piece) -> Result<()> {
        let expected = self.image.as_mut().and_then(|image| image.expected.as_mut());
        let Some(expected) = expected else {
            return Err(Error::new(ErrorKind::Invalid, "take digests that were not announced"));
        };
        take_piece(expected, piece)?;
        if expected.missing() > 0 {
            return Ok(());
        }
        let table = expected.clone().finish();
        let root = self.image.as_ref().and_then(|image| image.root);
        match table {
            Some(table) if Some(table.root()) == root => {
                self.events.push_back(ReceiverEvent::Table(Box::new(table)));
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Corrupt, "take digests: their root is another")),
        }
    }

    fn sealed(&mut self, id: u64, root: Digest) -> Result<()> {
        self.become_state(ReceiverState::Deciding);
        self.seal = Some((id, root));
        self.commit()
    }

    /// Has the image committed once nothing of it is in the driver's hands: a chunk that came
    /// twice may be written still, and nothing is written after a commit.
    pub(super) fn commit(&mut self) -> Result<()> {
        let (Some(image), Some((_, begin))) = (&self.image, &self.begin) else { return Ok(()) };
        let Some((_, root)) = self.seal.filter(|_| self.in_hand.is_empty()) else { return Ok(()) };
        let Some(table) = image.table.clone().finish() else {
            return Err(Error::new(ErrorKind::Invalid, "seal an image: chunks are missing"));
        };
        let attributes = begin.spec.attributes.clone();
        let manifest = Manifest::new(table, Some(self.session.job), attributes)?;
        if manifest.root() != root || image.root.is_some_and(|announced| announced != root) {
            return Err(Error::new(ErrorKind::Corrupt, "seal an image: its root is another"));
        }
        self.events.push_back(ReceiverEvent::Commit(Box::new(manifest)));
        Ok(())
    }

    fn cancelled(&mut self, id: u64, name: &Name) -> Result<()> {
        if self.name().as_ref() != Some(name) || self.cancel.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "cancel another job, or twice"));
        }
        if self.state != ReceiverState::Deciding {
            self.become_state(ReceiverState::Deciding);
        }
        self.cancel = Some(id);
        self.events.push_back(ReceiverEvent::Cancel);
        Ok(())
    }

    fn extents(&mut self, id: u64, extents: Vec<Extent>) -> Result<()> {
        let Some(Ask::Extents(asked)) = self.asks.remove(&id) else { return Err(unasked()) };
        let starts = extents.first().is_some_and(|first| first.range.offset == asked.offset);
        let ends = extents.last().is_some_and(|last| last.range.end() <= asked.end());
        if !starts || !ends {
            return Err(Error::new(ErrorKind::Invalid, "take extents of another range"));
        }
        self.events.push_back(ReceiverEvent::Extents { id, extents });
        Ok(())
    }

    fn answers(&mut self, id: u64, fits: impl FnOnce(&Ask) -> bool) -> Result<()> {
        match self.asks.remove(&id) {
            Some(ask) if fits(&ask) => Ok(()),
            _ => Err(unasked()),
        }
    }

    fn heard_error(&mut self, link: LinkId, id: u64, refusal: Refusal) -> Result<(), Heard> {
        let error = refusal.into_error();
        if self.links.get(link).is_some_and(|(_, grant)| !grant.joined) {
            self.lose(link, error, true);
            return Ok(());
        }
        let want = self.wants.remove(&id);
        if let (Some(run), Some(image)) = (want, &mut self.image) {
            for index in run.iter().filter(|index| image.wanted.holds(*index)) {
                image.declined.insert(ChunkRun::new(index, 1));
            }
            image.wanted.remove(run);
        }
        if want.is_none() && self.asks.remove(&id).is_none() {
            return Err(Heard::Over(error));
        }
        self.events.push_back(ReceiverEvent::Declined { id, error });
        Ok(())
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

fn unasked() -> Error {
    Error::new(ErrorKind::Invalid, "take an answer to another question")
}

fn out_of_turn(message: &Message) -> Error {
    Error::new(ErrorKind::Invalid, format!("take {:?} out of turn", message.kind()))
}
