//! Sessions: one machine that sends an image and one that receives it, over several connections.
//! Pure.
//!
//! ```text
//!   connection ──► Greeting ──► Link ──► Sender or Receiver ◄── Link ◄── Greeting ◄── connection
//!                  (hello)               (one attempt at one job)        (one more: join)
//! ```
//!
//! # How they are driven
//!
//! The driver owns sockets, timers, threads, policy and the image; a machine owns the order of
//! things, the ids, the credits, the deadlines, and what is in flight. Whatever machine it is:
//!
//! 1. read bytes, [`Frame::decode`](super::frame::Frame::decode) with the link's
//!    [`Expect`](super::frame::Expect), hand each frame in with `handle_frame(.., now)`;
//! 2. take every event with `poll_event` before the next frame is handed in;
//! 3. when a connection can be written, `poll_transmit` for that link until it gives `None`;
//! 4. sleep until `poll_timeout` and then call `handle_timeout(now)`;
//! 5. tell of a connection that ended with `link_lost`.
//!
//! A frame that breaks the rules closes the session: the other side is told in an `Error` of id 0,
//! the driver in a `Closed` event; it flushes what `poll_transmit` still gives and hangs up.
//!
//! # Links
//!
//! The first link of a session is its *control link*. Requests about the whole session travel on
//! it alone; chunks, zeroes, sames and credits travel on every link. A lost data link costs
//! nothing but time: what was in flight on it is sent again on another. A lost control link ends
//! the attempt: the machine closes, and a new one with the next epoch goes on where it stopped
//! ([`Sender::into_rest`]).
//!
//! # Credits
//!
//! The receiver grants bytes link by link, a chunk's size at a time, and a chunk costs its plain
//! size however small it travels, because that is what it takes to unpack it. What is granted and
//! not used, and what is in the hands of the receiver's driver, never exceeds
//! [`Bounds::session_bytes`].

mod chunks;
mod greeting;
mod link;
mod links;
mod receiver;
mod sender;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use greeting::{Greeting, GreetingEvent, Opener};
pub use link::Link;
pub use receiver::{Accepted, Arrived, Receiver, ReceiverEvent, ReceiverState, Ticket};
pub use sender::{Item, Rest, Sender, SenderEvent, SenderState};

/// A connection of a session, as its driver numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of chunks that may be under way on one link: 64 MiB.
    pub link_bytes: u64,
    /// Bytes of chunks that may be under way in the session: 256 MiB. An identity with several
    /// sessions has this divided among them by its driver.
    pub session_bytes: u64,
    /// Links of a session: 8.
    pub links_max: usize,
    /// Unanswered requests on one link, each way: 256.
    pub requests_max: usize,
    /// Chunks an image may have: 2^20. A table of digests takes 33 bytes a chunk.
    pub chunk_count_max: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            link_bytes: 64 << 20,
            session_bytes: 256 << 20,
            links_max: 8,
            requests_max: 256,
            chunk_count_max: crate::geometry::CHUNK_COUNT_MAX,
        }
    }
}

/// How long everything may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A link that was silent for so long is asked whether it lives: 15 s.
    pub ping_after: Duration,
    /// A link that was silent for so long is given up: 60 s.
    pub silence_max: Duration,
    /// A request that was not answered for so long ends the session: 5 min, as a sync of all that
    /// a disk has taken may be among them.
    pub answer_max: Duration,
    /// A connection that has not said what it wants by then is hung up: 10 s.
    pub greeting_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(15),
            silence_max: Duration::from_secs(60),
            answer_max: Duration::from_secs(300),
            greeting_max: Duration::from_secs(10),
        }
    }
}
