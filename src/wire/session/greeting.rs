//! The first words on a connection: hellos, requests that need no session, and the one that opens
//! one. Pure.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::{Expect, Frame, Packet, VERSION_NONE};
use crate::wire::message::{
    Agreed, Begin, Decision, Fetch, Hello, Join, Message, Name, Refusal, Standing,
};

use super::receiver::check_geometry;
use super::{Bounds, Link, LinkId, Pace};

/// One connection until it belongs to a session.
///
/// ```text
/// dialled:   Hailing ── hello ──► Agreed ── (query, cancel ⇄ answers) ──► a machine
/// listening: Waiting ── hello ──► Agreed ── (the same) ── opener ──► Opened ──► a machine
///            any ── breach of the rules, or too late ──► Closed
/// ```
///
/// The side that dialled speaks first. Both ends have [`Pace::greeting_max`] to agree, and the side
/// that was dialled gives up a connection that then asks nothing for as long.
#[derive(Debug)]
pub struct Greeting {
    id: LinkId,
    hello: Hello,
    bounds: Bounds,
    pace: Pace,
    state: State,
    outbox: VecDeque<Packet>,
    events: VecDeque<GreetingEvent>,
    until: Instant,
    /// The connection stands for something: it lives as long as the other side does.
    kept: bool,
}

#[derive(Debug)]
enum State {
    Hailing,
    Waiting,
    Agreed(Box<Link>),
    Opened(Box<Link>),
    Closed,
}

/// What a [`Greeting`] tells its driver.
#[derive(Debug)]
pub enum GreetingEvent {
    /// The two sides have a version in common.
    Agreed,
    /// The other side asks how a job stands: [`Greeting::answer`].
    Queried {
        /// The request.
        id: u64,
        /// The job.
        name: Name,
    },
    /// The other side cancels a job: [`Greeting::decided`].
    Cancelled {
        /// The request.
        id: u64,
        /// The job.
        name: Name,
    },
    /// The other side calls: [`Greeting::tell`], or [`Greeting::refuse`].
    Called {
        /// The request.
        id: u64,
        /// What it says.
        body: Bytes,
    },
    /// The answer to [`Greeting::call`].
    Told(Bytes),
    /// So that job stands: the answer to [`Greeting::query`].
    Standing(Standing),
    /// So that job is decided: the answer to [`Greeting::cancel`].
    Decided(Decision),
    /// The other side refused a query, a cancel or a call.
    Refused(Error),
    /// The other side opens a session, or joins one: take [`Greeting::into_link`] and give it to a
    /// machine with the request.
    Opened {
        /// The request.
        id: u64,
        /// What it asks.
        opener: Opener,
    },
    /// The connection is of no use: flush, hang up.
    Closed(Error),
}

/// What opens or joins a session.
#[derive(Debug)]
pub enum Opener {
    /// To a [`Receiver`](super::Receiver).
    Begin(Box<Begin>),
    /// To a [`Sender`](super::Sender).
    Fetch(Fetch),
    /// To the machine of that session, if it [admits](super::Sender::admits) the token.
    Join(Join),
}

impl Greeting {
    /// Of a connection that this side dialled. `hello` says what this side can do.
    pub fn dial(id: LinkId, hello: Hello, bounds: Bounds, pace: Pace, now: Instant) -> Self {
        let mut greeting = Self::listen(id, hello, bounds, pace, now);
        greeting.state = State::Hailing;
        greeting.outbox.push_back(Message::Hello(hello).packet(VERSION_NONE, 0));
        greeting
    }

    /// Of a connection that the other side dialled.
    pub fn listen(id: LinkId, hello: Hello, bounds: Bounds, pace: Pace, now: Instant) -> Self {
        Self {
            id,
            hello,
            bounds,
            pace,
            state: State::Waiting,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            until: now + pace.greeting_max,
            kept: false,
        }
    }

    /// What both sides have agreed on; `None` before that, and after the end.
    pub fn agreed(&self) -> Option<Agreed> {
        match &self.state {
            State::Agreed(link) | State::Opened(link) => Some(link.agreed()),
            State::Hailing | State::Waiting | State::Closed => None,
        }
    }

    /// What the next frame must be like.
    pub fn expects(&self) -> Expect {
        match &self.state {
            State::Agreed(link) | State::Opened(link) => link.expects(),
            State::Hailing | State::Waiting | State::Closed => Expect::hello(),
        }
    }

    /// Takes a frame in. Hand in none after `Opened` or `Closed`: they are for the machine.
    pub fn handle_frame(&mut self, frame: &Frame, now: Instant) {
        if let Err(error) = self.take(frame, now) {
            self.close(error);
        }
    }

    fn take(&mut self, frame: &Frame, now: Instant) -> Result<()> {
        match &mut self.state {
            State::Hailing | State::Waiting => self.greet(frame, now),
            State::Agreed(link) => {
                let Some(message) = link.receive(frame, now)? else { return Ok(()) };
                self.until = now + self.pace.greeting_max;
                self.hear(frame.id, message)
            }
            State::Opened(_) => Err(out_of_turn(frame)),
            State::Closed => Ok(()),
        }
    }

    fn greet(&mut self, frame: &Frame, now: Instant) -> Result<()> {
        let other = match Message::decode(frame)? {
            Message::Hello(hello) => hello,
            Message::Error(refusal) => return Err(refusal.into_error()),
            _ => return Err(out_of_turn(frame)),
        };
        // Answered before it is judged, so that the other side learns what this one speaks.
        if matches!(self.state, State::Waiting) {
            self.outbox.push_back(Message::Hello(self.hello).packet(VERSION_NONE, 0));
        }
        let agreed = self.hello.agree(other)?;
        let link = Link::new(self.id, agreed, self.bounds, self.pace, now);
        self.state = State::Agreed(Box::new(link));
        self.until = now + self.pace.greeting_max;
        self.events.push_back(GreetingEvent::Agreed);
        Ok(())
    }

    fn hear(&mut self, id: u64, message: Message) -> Result<()> {
        let event = match message {
            Message::Query(name) => GreetingEvent::Queried { id, name },
            Message::Cancel(name) => GreetingEvent::Cancelled { id, name },
            Message::Answer(standing) => GreetingEvent::Standing(standing),
            Message::Call(body) => GreetingEvent::Called { id, body },
            Message::Told(body) => GreetingEvent::Told(body),
            Message::Decision(decision) if id != 0 => GreetingEvent::Decided(decision),
            Message::Error(refusal) if id != 0 => GreetingEvent::Refused(refusal.into_error()),
            Message::Error(refusal) => return Err(refusal.into_error()),
            Message::Begin(begin) => self.open(id, Opener::Begin(begin)),
            Message::Fetch(fetch) => self.open(id, Opener::Fetch(fetch)),
            Message::Join(join) => self.open(id, Opener::Join(join)),
            message => {
                let action = format!("take {:?} outside a session", message.kind());
                return Err(Error::new(ErrorKind::Invalid, action));
            }
        };
        self.events.push_back(event);
        Ok(())
    }

    fn open(&mut self, id: u64, opener: Opener) -> GreetingEvent {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Agreed(link) => State::Opened(link),
            other => other,
        };
        GreetingEvent::Opened { id, opener }
    }

    /// Asks how a job stands. After `Agreed`, on the side that dialled.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when there is no agreement, or as many requests as there may be.
    pub fn query(&mut self, name: Name, now: Instant) -> Result<()> {
        self.request(&Message::Query(name), now)
    }

    /// Cancels a job, unless it has committed. After `Agreed`, on the side that dialled.
    ///
    /// # Errors
    /// As [`Greeting::query`].
    pub fn cancel(&mut self, name: Name, now: Instant) -> Result<()> {
        self.request(&Message::Cancel(name), now)
    }

    /// Calls the other side's region. After `Agreed`, on the side that dialled.
    ///
    /// # Errors
    /// As [`Greeting::query`].
    pub fn call(&mut self, body: Bytes, now: Instant) -> Result<()> {
        self.request(&Message::Call(body), now)
    }

    /// The connection stands for something that is kept as long as it lives, such as a stage. From
    /// now on it is given up only when the other side is silent: both sides ping.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    fn request(&mut self, message: &Message, now: Instant) -> Result<()> {
        let link = self.link()?;
        if link.free_requests() == 0 {
            return Err(Error::new(ErrorKind::Invalid, "ask more than is allowed at a time"));
        }
        link.request(message, now);
        self.until = now + self.pace.answer_max;
        Ok(())
    }

    /// Answers a `Queried`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the connection is closed by now.
    pub fn answer(&mut self, id: u64, standing: Standing) -> Result<()> {
        self.link()?.reply(id, &Message::Answer(standing))
    }

    /// Answers a `Cancelled`.
    ///
    /// # Errors
    /// As [`Greeting::answer`].
    pub fn decided(&mut self, id: u64, decision: Decision) -> Result<()> {
        self.link()?.reply(id, &Message::Decision(decision))
    }

    /// Answers a `Called`.
    ///
    /// # Errors
    /// As [`Greeting::answer`].
    pub fn tell(&mut self, id: u64, body: Bytes) -> Result<()> {
        self.link()?.reply(id, &Message::Told(body))
    }

    /// Refuses a request, an opener too. The connection stays.
    ///
    /// # Errors
    /// As [`Greeting::answer`].
    pub fn refuse(&mut self, id: u64, refusal: Refusal) -> Result<()> {
        self.link()?.reply(id, &Message::Error(refusal))?;
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Opened(link) => State::Agreed(link),
            other => other,
        };
        Ok(())
    }

    fn link(&mut self) -> Result<&mut Link> {
        match &mut self.state {
            State::Agreed(link) | State::Opened(link) => Ok(link),
            _ => Err(Error::new(ErrorKind::Invalid, "speak before the hellos, or after the end")),
        }
    }

    /// Whether a [`Receiver`](super::Receiver) on this connection can take what is begun: to be
    /// asked before anything is done about it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for chunks that are longer, or more, than this side takes;
    /// [`ErrorKind::Invalid`] before an agreement.
    pub fn check(&mut self, begin: &Begin) -> Result<()> {
        check_geometry(self.link()?, begin.spec.geometry)
    }

    /// The connection for a machine; `None` before an agreement. What this had still to send, the
    /// machine's `poll_transmit` gives.
    pub fn into_link(self) -> Option<Link> {
        match self.state {
            State::Agreed(mut link) | State::Opened(mut link) => {
                link.send_first(self.outbox);
                Some(*link)
            }
            _ => None,
        }
    }

    /// The next frame to write.
    pub fn poll_transmit(&mut self) -> Option<Packet> {
        let link = match &mut self.state {
            State::Agreed(link) | State::Opened(link) => Some(link),
            _ => None,
        };
        self.outbox.pop_front().or_else(|| link.and_then(|link| link.poll_transmit()))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GreetingEvent> {
        self.events.pop_front()
    }

    /// When [`Greeting::handle_timeout`] is due; `None` once it is closed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Closed => None,
            State::Agreed(link) if self.kept => Some(link.poll_timeout()),
            _ => Some(self.until),
        }
    }

    /// Gives a connection up that has not said in time what it wants.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let (State::Agreed(link), true) = (&mut self.state, self.kept) {
            if let Err(error) = link.handle_timeout(now) {
                self.close(error);
            }
            return;
        }
        if self.poll_timeout().is_some_and(|until| now >= until) {
            self.close(Error::new(ErrorKind::Unavailable, "wait for the peer's first words"));
        }
    }

    /// The driver wants this connection no more: tells the other side why.
    pub fn close(&mut self, error: Error) {
        let refusal = Refusal::new(&error);
        let version = match &self.state {
            State::Agreed(link) | State::Opened(link) => link.agreed().version,
            _ => VERSION_NONE,
        };
        self.outbox.push_back(Message::Error(refusal).packet(version, 0));
        self.state = State::Closed;
        self.events.push_back(GreetingEvent::Closed(error));
    }
}

fn out_of_turn(frame: &Frame) -> Error {
    Error::new(ErrorKind::Invalid, format!("take {:?} out of turn", frame.kind))
}
