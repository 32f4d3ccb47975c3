//! One connection after its hello: request ids both ways, what waits to be written, liveness. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::{Expect, Frame, Packet};
use crate::wire::message::{Agreed, Kind, Message, Refusal, Role};

use super::{Bounds, LinkId, Pace};

/// One connection whose two ends have agreed on a version. Made by a
/// [`Greeting`](super::Greeting), given to a machine.
#[derive(Debug)]
pub struct Link {
    id: LinkId,
    agreed: Agreed,
    bounds: Bounds,
    pace: Pace,
    outbox: VecDeque<Packet>,
    /// The id of the last request made here.
    last_made: u64,
    /// The id of the last request that came.
    last_came: u64,
    /// Requests made here that are not answered, and until when they are waited for.
    waiting: BTreeMap<u64, (Kind, Instant)>,
    /// Requests that came and are not answered.
    owed: BTreeSet<u64>,
    heard_at: Instant,
    pinged: bool,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        agreed: Agreed,
        bounds: Bounds,
        pace: Pace,
        now: Instant,
    ) -> Self {
        Self {
            id,
            agreed,
            bounds,
            pace,
            outbox: VecDeque::new(),
            last_made: 0,
            last_came: 0,
            waiting: BTreeMap::new(),
            owed: BTreeSet::new(),
            heard_at: now,
            pinged: false,
        }
    }

    /// Its number.
    pub fn id(&self) -> LinkId {
        self.id
    }

    /// What both sides agreed on.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// What its frames must be like.
    pub fn expects(&self) -> Expect {
        Expect::agreed(self.agreed.version, self.agreed.chunk_bytes_max)
    }

    /// These go out before all else.
    pub(super) fn send_first(&mut self, mut packets: VecDeque<Packet>) {
        packets.append(&mut self.outbox);
        self.outbox = packets;
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Takes a frame in. `None`: it was about the link alone.
    pub(super) fn receive(&mut self, frame: &Frame, now: Instant) -> Result<Option<Message>> {
        self.heard_at = now;
        self.pinged = false;
        let message = Message::decode(frame)?;
        match frame.kind.role() {
            Role::Request => self.came(frame)?,
            Role::Reply => self.answered(frame)?,
            Role::Notice => {}
        }
        match message {
            Message::Ping => {
                self.reply(frame.id, &Message::Pong)?;
                Ok(None)
            }
            Message::Pong => Ok(None),
            message => Ok(Some(message)),
        }
    }

    fn came(&mut self, frame: &Frame) -> Result<()> {
        if frame.id <= self.last_came {
            let action = format!("take request {} after {}", frame.id, self.last_came);
            return Err(Error::new(ErrorKind::Invalid, action));
        }
        self.last_came = frame.id;
        if frame.kind == Kind::Ping {
            return Ok(());
        }
        self.owed.insert(frame.id);
        if self.owed.len() > self.bounds.requests_max {
            return Err(Error::new(ErrorKind::Invalid, "take more requests than are allowed"));
        }
        Ok(())
    }

    fn answered(&mut self, frame: &Frame) -> Result<()> {
        if frame.id == 0 {
            return Ok(());
        }
        let made = self.waiting.remove(&frame.id).map(|(kind, _)| kind);
        let fits = made.is_some_and(|made| answers(made, frame.kind));
        if fits { Ok(()) } else { Err(unasked(frame.kind, frame.id)) }
    }

    /// How many requests may be made now.
    pub(super) fn free_requests(&self) -> usize {
        self.bounds.requests_max.saturating_sub(self.waiting.len())
    }

    /// Makes a request, and returns its id.
    pub(super) fn request(&mut self, message: &Message, now: Instant) -> u64 {
        let (id, packet) = self.prepare(message, now);
        self.outbox.push_back(packet);
        id
    }

    /// Makes a request that the caller sends at once.
    pub(super) fn prepare(&mut self, message: &Message, now: Instant) -> (u64, Packet) {
        debug_assert_eq!(message.kind().role(), Role::Request);
        debug_assert!(self.free_requests() > 0 || message.kind() == Kind::Ping);
        self.last_made += 1;
        let until = now + self.pace.answer_max;
        self.waiting.insert(self.last_made, (message.kind(), until));
        (self.last_made, message.packet(self.agreed.version, self.last_made))
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, id: u64, message: &Message) -> Result<()> {
        debug_assert_eq!(message.kind().role(), Role::Reply);
        self.owed.remove(&id);
        self.put(id, message)
    }

    /// Says something that is no answer.
    pub(super) fn notice(&mut self, message: &Message) -> Result<()> {
        self.put(0, message)
    }

    fn put(&mut self, id: u64, message: &Message) -> Result<()> {
        // Only one who asks without ever reading the answers gets here.
        if self.outbox.len() >= OUTBOX_MAX {
            return Err(Error::new(ErrorKind::Invalid, "answer a peer that does not read"));
        }
        self.outbox.push_back(message.packet(self.agreed.version, id));
        Ok(())
    }

    /// The last words on this link.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.outbox.clear();
        self.outbox.push_back(Message::Error(refusal).packet(self.agreed.version, 0));
    }

    /// A request of ours that is answered by other frames than a reply is answered.
    pub(super) fn settle(&mut self, id: u64) {
        self.waiting.remove(&id);
    }

    /// A request that came is answered by other frames than a reply.
    pub(super) fn settled(&mut self, id: u64) {
        self.owed.remove(&id);
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Packet> {
        self.outbox.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let liveness = match self.pinged {
            false => self.pace.ping_after.min(self.pace.silence_max),
            true => self.pace.silence_max,
        };
        let answers = self.waiting.values().map(|(_, until)| *until).min();
        answers.map_or(self.heard_at + liveness, |until| until.min(self.heard_at + liveness))
    }

    /// Asks whether the other side lives, or finds that it does not, or does not answer.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<()> {
        if now >= self.heard_at + self.pace.silence_max {
            return Err(Error::new(ErrorKind::Unavailable, "hear from the peer: it is silent"));
        }
        if let Some((kind, _)) = self.waiting.values().find(|(_, until)| now >= *until) {
            let action = format!("hear from the peer: it does not answer a {kind:?}");
            return Err(Error::new(ErrorKind::Unavailable, action));
        }
        if !self.pinged && now >= self.heard_at + self.pace.ping_after {
            self.pinged = true;
            self.request(&Message::Ping, now);
        }
        Ok(())
    }
}

/// Whether a reply of that kind answers that request.
fn answers(request: Kind, reply: Kind) -> bool {
    use Kind as K;
    match request {
        K::Ping => reply == K::Pong,
        K::Query => matches!(reply, K::Answer | K::Error),
        K::Call => matches!(reply, K::Told | K::Error),
        K::Cancel | K::Seal => matches!(reply, K::Decision | K::Error),
        K::Begin => matches!(reply, K::Begun | K::Error),
        K::Fetch => matches!(reply, K::Offer | K::Error),
        K::Chunk | K::Zeroes | K::Same => matches!(reply, K::Written | K::Error),
        K::Sync => matches!(reply, K::Synced | K::Error),
        K::Join => matches!(reply, K::Joined | K::Error),
        K::Want => reply == K::Error,
        K::Ask => matches!(reply, K::Extents | K::Facts | K::Error),
        _ => false,
    }
}

fn unasked(kind: Kind, id: u64) -> Error {
    Error::new(ErrorKind::Invalid, format!("take {kind:?} for a request {id} that waits for none"))
}

/// Frames that wait on one link: those that are not drawn up on demand are few.
const OUTBOX_MAX: usize = 1024;
