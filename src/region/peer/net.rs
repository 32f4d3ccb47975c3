//! How a daemon is reached: dialling it, asking it one thing at a time, and more links for a
//! session.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::peer::Tls;
use crate::pump::{Conn, Duplex, Machine, Pump, Side, Socket, greet};
use crate::sync::Mutex;
use crate::sync::time::{Instant, sleep, timeout};
use crate::wire::message::{Decision, FEATURE_ZSTD, Hello, Name, Standing};
use crate::wire::session::{Bounds, Greeting, GreetingEvent, Link, LinkId, Pace};

use super::call::{Call, Told};

/// The longest chunk that travels.
pub(crate) const CHUNK_BYTES_MAX: u32 = 64 << 20;
/// How long it may take until a daemon can be spoken with, its certificates aside.
const DIAL_TIME: Duration = Duration::from_secs(10);
/// How many connections wait for the next question.
const IDLE_COUNT_MAX: usize = 4;
/// How long one waits: shorter than the other side does, which hangs up after 10 s.
const IDLE_TIME: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// How a [`PeerRegion`](super::PeerRegion) uses the network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerOptions {
    /// Connections over which the bytes of one image travel: 1 to 8.
    pub connections: usize,
    /// Bytes of an image that may be under way to this side, whatever asks for them.
    pub window_bytes: u64,
    /// How often in a row one tries to get through again before a copy fails.
    pub attempts_max: u32,
    /// Whether chunks may travel compressed, where that is found to be faster.
    pub compression: bool,
    /// How long everything may take.
    pub pace: Pace,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            window_bytes: 64 << 20,
            attempts_max: 12,
            compression: true,
            pace: Pace::default(),
        }
    }
}

impl PeerOptions {
    /// With that many connections, from 1 to 8.
    #[must_use]
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections.clamp(1, Bounds::default().links_max);
        self
    }

    /// With a window of that many bytes. One chunk always fits.
    #[must_use]
    pub fn with_window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = bytes.max(u64::from(CHUNK_BYTES_MAX));
        self
    }

    /// With that many attempts in a row.
    #[must_use]
    pub fn with_attempts_max(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts.max(1);
        self
    }

    /// With chunks that may travel compressed, or never do, either way.
    #[must_use]
    pub fn with_compression(mut self, compression: bool) -> Self {
        self.compression = compression;
        self
    }

    fn hello(&self) -> Hello {
        let mut hello = Hello::new(CHUNK_BYTES_MAX);
        if !self.compression {
            hello.features &= !FEATURE_ZSTD;
        }
        hello
    }
}

/// One daemon, as seen from here.
pub(crate) struct Net {
    pub(super) address: Address,
    pub(super) options: PeerOptions,
    tls: Option<Tls>,
    /// With the moments when they became idle.
    idle: Mutex<Vec<(Instant, Desk)>>,
    /// A further link of a session is to make room for a connection that is needed more.
    crowded: Notify,
    last_link: AtomicU32,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A connection that is asked one thing after the other.
pub(super) struct Desk {
    pub(super) conn: Conn,
    pub(super) greeting: Greeting,
}

/// What a daemon is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Call(Call),
    Query(Name),
    Cancel(Name),
}

/// What it answers.
#[derive(Debug)]
pub(super) enum Answer {
    Told(Told),
    Standing(Standing),
    Decided(Decision),
}

/// What was answered, and on which connection.
pub(super) struct Spoken {
    pub(super) desk: Desk,
    pub(super) answer: Result<Answer>,
    /// It was asked before, on a connection that broke: the other side may have heard that.
    pub(super) again: bool,
}

impl Net {
    pub(super) fn new(address: Address, tls: Option<Tls>, options: PeerOptions) -> Self {
        let (idle, crowded) = (Mutex::default(), Notify::new());
        Self { address, options, tls, idle, crowded, last_link: AtomicU32::new(0) }
    }

    /// Dials, and agrees on a version. Where this side has as many connections there as it may, it
    /// gives one up that is needed less, and tries again.
    pub(super) async fn dial(&self) -> Result<Desk> {
        let mut attempt = 0;
        loop {
            let error = match self.dial_once().await {
                Err(error) if error.kind() == ErrorKind::Busy && error.is_retryable() => error,
                dialled => return dialled,
            };
            attempt += 1;
            if attempt >= self.options.attempts_max {
                return Err(error);
            }
            self.make_room();
            sleep(backoff(attempt)).await;
        }
    }

    fn make_room(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.is_empty() {
            self.crowded.notify_one();
        }
        idle.clear();
    }

    async fn dial_once(&self) -> Result<Desk> {
        let dialled = timeout(DIAL_TIME, self.connect()).await;
        let late = |_| Error::new(ErrorKind::Unavailable, "connect to the daemon: it is late");
        let (stream, socket) = dialled.map_err(late)??;
        let now = Instant::now();
        let mut conn = Conn::new(stream, socket, now);
        let bounds = Bounds { session_bytes: self.options.window_bytes, ..Bounds::default() };
        let link = LinkId(self.last_link.fetch_add(1, Relaxed));
        let (hello, pace) = (self.options.hello(), self.options.pace);
        let mut greeting = Greeting::dial(link, hello, bounds, pace, now.into_std());
        match greet(&mut conn, &mut greeting, Side::Dials).await {
            GreetingEvent::Agreed => Ok(Desk { conn, greeting }),
            GreetingEvent::Closed(error) => Err(error),
            event => Err(astray(&event)),
        }
    }

    async fn connect(&self) -> Result<(Box<dyn Duplex>, Socket)> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "connect to the daemon").because(error)
        };
        match (&self.address, &self.tls) {
            (Address::Unix(path), _) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                let socket = Socket::of(&stream)?;
                Ok((Box::new(stream), socket))
            }
            (Address::Tcp { host, port }, Some(tls)) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let stream = TcpStream::connect((bare, *port)).await.map_err(failed)?;
                // Acknowledgements are short and must not wait for more.
                stream.set_nodelay(true).map_err(failed)?;
                let socket = Socket::of(&stream)?;
                let (stream, _) = tls.dial(stream, host).await?;
                Ok((Box::new(stream), socket))
            }
            (Address::Tcp { .. }, None) => Err(without_certificate()),
        }
    }

    /// Asks one thing. What was asked on a connection that had gone stale is asked again.
    pub(super) async fn ask(&self, question: Question) -> Result<Answer> {
        let Spoken { desk, answer, .. } = self.speak(|_| question.clone()).await?;
        self.keep(desk);
        answer
    }

    /// Asks one thing, and gives the connection that it was answered on to the caller. One that was
    /// asked something just before saves the round trips of dialling.
    pub(super) async fn speak(&self, question: impl Fn(&Greeting) -> Question) -> Result<Spoken> {
        let mut again = false;
        while let Some(mut desk) = self.idle_desk() {
            match desk.ask(question(&desk.greeting)).await {
                Asked::Answered(answer) => return Ok(Spoken { desk, answer, again }),
                Asked::Broken(_) => again = true,
            }
        }
        let mut desk = self.dial().await?;
        match desk.ask(question(&desk.greeting)).await {
            Asked::Answered(answer) => Ok(Spoken { desk, answer, again }),
            Asked::Broken(error) => Err(error),
        }
    }

    pub(super) async fn call(&self, call: Call) -> Result<Told> {
        self.ask(Question::Call(call)).await?.into_told()
    }

    /// A connection that was asked something just before, and may have gone stale.
    pub(super) fn idle_desk(&self) -> Option<Desk> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |(since, desk): &(Instant, Desk)| {
            since.elapsed() < IDLE_TIME && !desk.conn.socket.is_hung_up()
        };
        std::iter::from_fn(|| idle.pop()).find(is_good).map(|(_, desk)| desk)
    }

    /// Keeps a connection for whoever asks next.
    pub(super) fn keep(&self, desk: Desk) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < IDLE_TIME);
        if idle.len() < IDLE_COUNT_MAX {
            idle.push((Instant::now(), desk));
        }
    }

    /// Adds a link to a session and serves it, again and again, for as long as the session lives;
    /// or until there are connections enough, or others need it more.
    pub(super) async fn lend_link<M: Machine>(
        self: Arc<Self>,
        pump: Arc<Pump<M>>,
        attach: fn(&mut M, Link, std::time::Instant) -> Result<()>,
    ) {
        let mut attempt = 0;
        while attempt < self.options.attempts_max && pump.look(|m| !m.is_over()) == Some(true) {
            if attempt > 0 {
                sleep(backoff(attempt)).await;
            }
            attempt += 1;
            // One link less costs nothing but time.
            let Desk { mut conn, greeting } = match self.dial_once().await {
                Ok(desk) => desk,
                Err(error) if error.kind() == ErrorKind::Busy => return,
                Err(_) => continue,
            };
            let Some(link) = greeting.into_link() else { continue };
            let id = link.id();
            match pump.act(|machine, now| attach(machine, link, now)) {
                Some(Ok(())) => {}
                Some(Err(error)) if error.kind() == ErrorKind::Busy => return,
                _ => continue,
            }
            let since = Instant::now();
            let served = tokio::select! {
                served = pump.serve(id, &mut conn) => served,
                () = self.crowded.notified() => {
                    // Order: hung up first, so that the other side has a seat free.
                    conn.socket.hang_up();
                    let error = Error::new(ErrorKind::Unavailable, "keep a further connection");
                    pump.act(|machine, _| machine.link_lost(id, error));
                    return;
                }
            };
            if served {
                conn.writer.end().await;
            }
            if since.elapsed() > BACKOFF_MAX {
                attempt = 0;
            }
        }
    }
}

enum Asked {
    /// Whatever it says, the connection is good.
    Answered(Result<Answer>),
    Broken(Error),
}

impl Answer {
    /// What answers a call, if it does.
    pub(super) fn into_told(self) -> Result<Told> {
        let what = match self {
            Self::Told(told) => return Ok(told),
            Self::Standing(_) => "how a job stands",
            Self::Decided(_) => "a decision",
        };
        Err(Error::new(
            ErrorKind::Invalid,
            format!("hear an answer to a call: what came is {what}"),
        ))
    }
}

impl Desk {
    async fn ask(&mut self, question: Question) -> Asked {
        match self.exchange(question).await {
            Ok(GreetingEvent::Told(body)) => Asked::Answered(Told::decode(&body).map(Answer::Told)),
            Ok(GreetingEvent::Standing(standing)) => {
                Asked::Answered(Ok(Answer::Standing(standing)))
            }
            Ok(GreetingEvent::Decided(decision)) => Asked::Answered(Ok(Answer::Decided(decision))),
            Ok(GreetingEvent::Refused(error)) => Asked::Answered(Err(error)),
            Ok(GreetingEvent::Closed(error)) | Err(error) => Asked::Broken(error),
            Ok(event) => Asked::Broken(astray(&event)),
        }
    }

    /// Calls, on a connection that is to stay with the caller.
    pub(super) async fn call(&mut self, call: Call) -> Result<Told> {
        match self.ask(Question::Call(call)).await {
            Asked::Answered(answer) => answer?.into_told(),
            Asked::Broken(error) => Err(error),
        }
    }

    async fn exchange(&mut self, question: Question) -> Result<GreetingEvent> {
        let now = Instant::now().into_std();
        match question {
            Question::Call(call) => self.greeting.call(call.encode(), now)?,
            Question::Query(name) => self.greeting.query(name, now)?,
            Question::Cancel(name) => self.greeting.cancel(name, now)?,
        }
        Ok(greet(&mut self.conn, &mut self.greeting, Side::Dials).await)
    }
}

/// How long to wait before that attempt, from 1: longer each time, and never the same for all.
pub(super) fn backoff(attempt: u32) -> Duration {
    let most = BACKOFF_FIRST.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    let byte = host::random().map_or(0, |bytes| bytes[0]);
    most / 2 + most / 2 * u32::from(byte) / 255
}

fn without_certificate() -> Error {
    Error::new(ErrorKind::Invalid, "connect to the daemon: without a certificate")
        .hint("a certificate, its key and the authority of the other side are needed")
}

/// Told by its name alone: what came may be as long as a chunk.
fn astray(event: &GreetingEvent) -> Error {
    let what = match event {
        GreetingEvent::Agreed => "a hello",
        GreetingEvent::Queried { .. } => "a query",
        GreetingEvent::Cancelled { .. } => "a cancel",
        GreetingEvent::Called { .. } => "a call",
        GreetingEvent::Told(_) => "what answers a call",
        GreetingEvent::Standing(_) => "what answers a query",
        GreetingEvent::Decided(_) => "a decision",
        GreetingEvent::Refused(_) => "a refusal",
        GreetingEvent::Opened { .. } => "a session",
        GreetingEvent::Closed(_) => "the end",
    };
    Error::new(ErrorKind::Invalid, format!("hear an answer: what came is {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_compression_does_not_offer_it() {
        let offers = |options: PeerOptions| options.hello().features & FEATURE_ZSTD != 0;
        assert!(offers(PeerOptions::default()));
        assert!(!offers(PeerOptions::default().with_compression(false)));
    }
}
