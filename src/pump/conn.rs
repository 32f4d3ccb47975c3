//! One connection, whatever is below it: frames in, packets out, and a peer that must keep pace.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::error::{Error, ErrorKind, Result};
use crate::peer::{MinRate, stream_error};
use crate::sync::time::{Instant, sleep_until};
use crate::wire::frame::{Expect, Frame, Packet, wanted};

/// How many bytes are read ahead of a header, and gathered before they are written.
const GATHER_BYTES: usize = 16 << 10;

/// Buffers of such lengths are used again: fresh pages for one would cost as much as hashing its
/// bytes. The longest would hold too much memory while they wait.
const LONG: RangeInclusive<usize> = 256 << 10..=8 << 20;

/// How many long buffers of a connection may be in use and come back: one being read into, one
/// that waits, one being worked on.
const LONG_COUNT_MAX: usize = 3;

/// What a connection runs over.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The socket below a connection, to hang it up from outside, and to see that the other side has.
#[derive(Clone)]
pub(crate) struct Socket(Arc<OwnedFd>);

impl Socket {
    /// Of that socket, which stays with its owner.
    pub(crate) fn of(socket: &impl AsFd) -> Result<Self> {
        let fd = socket.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Error::io("keep hold of a connection", error))?;
        Ok(Self(Arc::new(fd)))
    }

    /// Hangs up, at once: the other side is told by its own system.
    pub(crate) fn hang_up(&self) {
        // One that is hung up already is what was wanted.
        shutdown(&*self.0, Shutdown::Both).ok();
    }

    /// Whether the other side has hung up, whatever of what it said is still to be read.
    pub(crate) fn is_hung_up(&self) -> bool {
        let flags = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled = [PollFd::new(&*self.0, flags)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A system that cannot tell leaves it to the reader of the connection.
        poll(&mut polled, Some(&at_once)).is_ok_and(|count| count > 0)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

/// One connection.
pub(crate) struct Conn {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) socket: Socket,
}

impl Conn {
    pub(crate) fn new(stream: Box<dyn Duplex>, socket: Socket, now: Instant) -> Self {
        let (read, write) = split(stream);
        let reader = Reader {
            from: read,
            buffer: BytesMut::new(),
            lent: VecDeque::new(),
            pace: Pacer::new(now),
        };
        let writer = Writer {
            to: write,
            gathered: BytesMut::new(),
            waiting: VecDeque::new(),
            pace: Pacer::new(now),
        };
        Self { reader, writer, socket }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conn")
    }
}

/// The side of a connection that frames come from.
pub(crate) struct Reader {
    from: ReadHalf<Box<dyn Duplex>>,
    buffer: BytesMut,
    /// The ends, of no length, of long buffers whose bytes are out: what keeps their memory.
    lent: VecDeque<BytesMut>,
    pace: Pacer,
}

impl Reader {
    /// The next frame. Never holds more than one at its longest, what is read ahead, and the memory
    /// of a few long ones before it.
    ///
    /// Dropped, it loses nothing: what has been read waits for the next call.
    pub(crate) async fn frame(&mut self, expect: Expect) -> Result<Frame> {
        if expect.is_brief() {
            self.lent.clear();
        }
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, expect)? {
                self.pace.rest();
                if LONG.contains(&frame.body.len()) && self.buffer.is_empty() {
                    self.lent.push_back(std::mem::take(&mut self.buffer));
                }
                if self.lent.len() > LONG_COUNT_MAX {
                    self.lent.pop_front();
                }
                return Ok(frame);
            }
            let mut missing = wanted(&self.buffer, expect)?;
            // Bytes come in pieces of a TLS record: the header is looked at once, not for each.
            while missing > 0 {
                if !self.buffer.is_empty() {
                    self.pace.owed();
                }
                let ahead = GATHER_BYTES.saturating_sub(self.buffer.len());
                missing = missing.saturating_sub(self.fill(missing.max(ahead)).await?);
            }
        }
    }

    async fn fill(&mut self, len: usize) -> Result<usize> {
        self.make_room(len);
        let mut room = (&mut self.buffer).limit(len);
        let count = tokio::select! {
            // Looked at first: while there are bytes no timer is set.
            biased;
            read = self.from.read_buf(&mut room) => {
                read.map_err(|error| stream_error("read from the peer", error))?
            }
            error = self.pace.too_slow() => return Err(error),
        };
        if count == 0 {
            return Err(ended());
        }
        self.pace.moved(count);
        Ok(count)
    }

    /// Room for `len` more bytes, in a long buffer that came back if they are many.
    fn make_room(&mut self, len: usize) {
        let whole = self.buffer.len() + len;
        if LONG.contains(&whole) && self.buffer.capacity() < whole {
            let back = self.lent.iter_mut().position(|lent| lent.try_reclaim(whole));
            if let Some(mut long) = back.and_then(|at| self.lent.remove(at)) {
                long.extend_from_slice(&self.buffer);
                self.buffer = long;
            }
        }
        self.buffer.reserve(len);
    }

    /// Waits for the other side to hang up; whatever else it says goes nowhere.
    pub(crate) async fn ended(&mut self) {
        let mut waste = [0; 512];
        while self.from.read(&mut waste).await.is_ok_and(|count| count > 0) {}
    }
}

fn ended() -> Error {
    let cause = io::Error::from(io::ErrorKind::UnexpectedEof);
    Error::new(ErrorKind::Unavailable, "read from the peer: it has hung up").because(cause)
}

/// The side of a connection that packets go to.
pub(crate) struct Writer {
    to: WriteHalf<Box<dyn Duplex>>,
    /// Short packets in one piece.
    gathered: BytesMut,
    /// What is to be written, in this order, before what is gathered.
    waiting: VecDeque<Bytes>,
    pace: Pacer,
}

impl Writer {
    /// Takes a packet, to be written by [`Writer::drain`] or [`Writer::flush`]. Gives whether it is
    /// time to.
    pub(crate) fn put(&mut self, packet: &Packet) -> bool {
        self.gathered.extend_from_slice(&packet.head);
        if packet.body.len() + self.gathered.len() < GATHER_BYTES {
            self.gathered.extend_from_slice(&packet.body);
            return false;
        }
        self.waiting.push_back(self.gathered.split().freeze());
        self.waiting.push_back(packet.body.clone());
        true
    }

    /// Writes what cannot be gathered any further.
    ///
    /// Dropped, it loses nothing: what was not written waits for the next call.
    pub(crate) async fn drain(&mut self) -> Result<()> {
        while let Some(bytes) = self.waiting.front_mut() {
            if bytes.is_empty() {
                self.waiting.pop_front();
                continue;
            }
            self.pace.owed();
            let count = tokio::select! {
                biased;
                wrote = self.to.write_buf(bytes) => {
                    wrote.map_err(|error| stream_error("write to the peer", error))?
                }
                error = self.pace.too_slow() => return Err(error),
            };
            if count == 0 {
                return Err(ended());
            }
            self.pace.moved(count);
        }
        Ok(())
    }

    /// Writes everything, all the way down to the socket.
    ///
    /// Dropped, it loses nothing either.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            self.waiting.push_back(self.gathered.split().freeze());
        }
        self.drain().await?;
        let flushed = tokio::select! {
            flushed = self.to.flush() => flushed,
            error = self.pace.too_slow() => return Err(error),
        };
        self.pace.rest();
        flushed.map_err(|error| stream_error("write to the peer", error))
    }

    /// Says nothing more. What was written is still delivered.
    pub(crate) async fn end(&mut self) {
        // The other side may be gone: then there is nobody to be told.
        tokio::time::timeout(END_TIME, self.to.shutdown()).await.ok();
    }
}

/// How long the end of a connection may take.
const END_TIME: Duration = Duration::from_secs(2);

/// Keeps watch over a peer that owes bytes, or that has to take some.
struct Pacer(MinRate);

impl Pacer {
    fn new(now: Instant) -> Self {
        let now = now.into_std();
        Self(MinRate::new(MinRate::BYTES_PER_SEC, MinRate::OVER, now))
    }

    fn owed(&mut self) {
        self.0.owed(Instant::now().into_std());
    }

    fn rest(&mut self) {
        self.0.rest(Instant::now().into_std());
    }

    fn moved(&mut self, count: usize) {
        self.0.moved(crate::geometry::to_u64(count), Instant::now().into_std());
    }

    /// Ends when the peer is too slow; never, while it owes nothing.
    async fn too_slow(&self) -> Error {
        loop {
            match self.0.ends_at() {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
            if let Err(error) = self.0.check(Instant::now().into_std()) {
                return error;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use tokio::io::DuplexStream;

    use super::*;
    use crate::wire::frame::VERSION;
    use crate::wire::message::Message;

    /// A connection, what is at its other end, and the socket that it says is its own.
    fn conn(room: usize) -> (Conn, DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        let (socket, _) = UnixStream::pair().unwrap();
        (Conn::new(Box::new(near), Socket::of(&socket).unwrap(), Instant::now()), far)
    }

    fn call(len: usize) -> Packet {
        Message::Call(vec![7; len].into()).packet(VERSION, 1)
    }

    /// Sends the first bytes of a frame that is long, and then so many each second.
    async fn lasts(first: usize, each: usize) -> Option<Duration> {
        let (mut conn, mut far) = conn(1 << 20);
        let bytes = call(60 << 10).to_bytes().freeze();
        far.write_all(&bytes[..first]).await.unwrap();
        let start = Instant::now();
        let trickle = async {
            for piece in bytes[first..].chunks(each.max(1)) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if each > 0 {
                    far.write_all(piece).await.unwrap();
                }
            }
            std::future::pending::<()>().await;
        };
        let read = tokio::select! {
            read = conn.reader.frame(Expect::agreed(VERSION, 64 << 10)) => read,
            () = trickle => unreachable!("it never ends"),
        };
        match read {
            Ok(_) => None,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                Some(start.elapsed())
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_or_trickles_within_a_frame_is_given_up() {
        let (span, sec) = (MinRate::OVER, Duration::from_secs(1));
        let stopped = lasts(40, 0).await.unwrap();
        assert!(stopped >= span && stopped < span + sec, "{stopped:?}");
        // Half a header is owed as much as a body.
        let stopped = lasts(1, 0).await.unwrap();
        assert!(stopped >= span && stopped < span + sec, "{stopped:?}");
        let trickled = lasts(40, 100).await.unwrap();
        assert!(trickled >= span && trickled < span + 2 * sec, "{trickled:?}");
        let rate = usize::try_from(MinRate::BYTES_PER_SEC).unwrap();
        assert_eq!(lasts(40, rate).await, None, "fast enough");
    }

    #[tokio::test]
    async fn memory_of_long_frames_is_used_again_once_nobody_holds_it() {
        let (mut conn, mut far) = conn(1 << 20);
        let expect = Expect::agreed(VERSION, 1 << 20);
        let mut next = async |byte: u8| {
            let long = Message::Told(vec![byte; *LONG.start()].into()).packet(VERSION, 1);
            far.write_all(&long.to_bytes()).await.unwrap();
            let body = conn.reader.frame(expect).await.unwrap().body;
            assert!(body.iter().all(|held| *held == byte));
            body
        };
        let first = next(1).await;
        let place = first.as_ptr();
        let second = next(2).await;
        assert_ne!(second.as_ptr(), place, "it is held");
        drop(first);
        assert_eq!(next(3).await.as_ptr(), place);
        assert!(second.iter().all(|held| *held == 2));
        far.write_all(&Message::Ping.packet(VERSION, 1).to_bytes()).await.unwrap();
        conn.reader.frame(expect.brief()).await.unwrap();
        assert!(conn.reader.lent.is_empty(), "an idle connection holds no memory");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_at_all_owes_nothing() {
        let (mut conn, _far) = conn(1 << 20);
        let silent = conn.reader.frame(Expect::agreed(VERSION, 64 << 10));
        let waited = tokio::time::timeout(MinRate::OVER * 10, silent).await;
        assert!(waited.is_err(), "a session's own deadlines see to it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_what_is_written_is_given_up() {
        let (mut conn, _far) = conn(1 << 10);
        let start = Instant::now();
        conn.writer.put(&call(60 << 10));
        let error = conn.writer.flush().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(start.elapsed() >= MinRate::OVER, "{:?}", start.elapsed());
        assert!(start.elapsed() < MinRate::OVER + Duration::from_secs(1));
    }
}
