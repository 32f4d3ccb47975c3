//! Frames: a header of 32 bytes, checked before a byte of the body is waited for, then the body.
//! Pure.
//!
//! ```text
//! | bytes | field |
//! |---|---|
//! | 4 | magic `BFRY` |
//! | 2 | version: the one agreed on; 0 in whatever is sent before an agreement |
//! | 1 | kind of the message |
//! | 1 | flags: 0 |
//! | 8 | request id |
//! | 4 | length of the body |
//! | 4 | 0 |
//! | 8 | checksum: the first 8 bytes of BLAKE3 over the 24 before, derive-key mode |
//! ```
//!
//! The checksum finds a stream that has lost its step. It does not authenticate: TLS does, and a
//! chunk's digest does for its bytes.

use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use bytes::{Bytes, BytesMut};

use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{to_u64, to_usize};

use super::message::Kind;

/// The length of a header in bytes.
pub const HEADER_LEN: usize = 32;
/// The only version so far.
pub const VERSION: u16 = 1;
/// In the header of what is sent before a version is agreed on.
pub const VERSION_NONE: u16 = 0;
/// The longest body of any frame but a chunk, in bytes.
pub const CONTROL_LEN_MAX: u32 = 64 << 10;
/// What a chunk's body holds before its bytes.
pub const CHUNK_PREFIX_LEN: u32 = 40;

const MAGIC: [u8; 4] = *b"BFRY";
const CHECKED_LEN: usize = 24;
/// What the context comes to, hashed once and not for every header.
static CHECKSUM_KEY: LazyLock<ContextKey> =
    LazyLock::new(|| hash_derive_key_context("blockferry 2026-11-25 frame header v1"));

/// What a reader of frames insists on, at this moment of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    version: u16,
    chunk_bytes_max: u32,
}

impl Expect {
    /// Before an agreement: a hello, or an error, of version 0.
    pub const fn hello() -> Self {
        Self { version: VERSION_NONE, chunk_bytes_max: 0 }
    }

    /// After an agreement on that version, and on chunks of at most that many bytes.
    pub const fn agreed(version: u16, chunk_bytes_max: u32) -> Self {
        Self { version, chunk_bytes_max }
    }

    /// The same, while nothing as long as a chunk can come.
    #[must_use]
    pub const fn brief(self) -> Self {
        Self { chunk_bytes_max: 0, ..self }
    }

    /// Whether nothing as long as a chunk can come.
    pub(crate) const fn is_brief(self) -> bool {
        self.chunk_bytes_max == 0
    }

    fn body_len_max(self, kind: Kind) -> u32 {
        match kind {
            Kind::Chunk => CHUNK_PREFIX_LEN.saturating_add(self.chunk_bytes_max),
            // What is read back of a stage is told a chunk at a time.
            Kind::Told => CONTROL_LEN_MAX.saturating_add(self.chunk_bytes_max),
            _ => CONTROL_LEN_MAX,
        }
    }
}

/// One frame as it was read. Its body shares the memory it was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What its body is.
    pub kind: Kind,
    /// The request that it makes or answers; 0 where it does neither.
    pub id: u64,
    /// The body, undecoded.
    pub body: Bytes,
}

impl Frame {
    /// Takes the first frame of `buffer`; `None` asks for more bytes.
    ///
    /// `buffer` is left as it is unless a frame is returned. The length a header announces is
    /// checked before any byte of its body is asked for, so a reader that appends to `buffer` no
    /// more than [`wanted`] says never holds more than one frame at its longest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for what is no header, [`ErrorKind::Unsupported`] for a version, kind
    /// or flag that this side does not know, [`ErrorKind::Invalid`] for a body that is too long.
    /// The connection cannot be read any further.
    pub fn decode(buffer: &mut BytesMut, expect: Expect) -> Result<Option<Self>> {
        let Some(header) = Header::peek(buffer, expect)? else { return Ok(None) };
        let len = HEADER_LEN + to_usize(u64::from(header.len));
        if buffer.len() < len {
            return Ok(None);
        }
        let body = buffer.split_to(len).freeze().split_off(HEADER_LEN);
        Ok(Some(Self { kind: header.kind, id: header.id, body }))
    }
}

/// How many more bytes `buffer` needs before [`Frame::decode`] can return a frame; 0 when it can.
///
/// # Errors
/// As [`Frame::decode`].
pub fn wanted(buffer: &[u8], expect: Expect) -> Result<usize> {
    let len = match Header::peek(buffer, expect)? {
        Some(header) => HEADER_LEN + to_usize(u64::from(header.len)),
        None => HEADER_LEN,
    };
    Ok(len.saturating_sub(buffer.len()))
}

/// One frame ready to be written: `head`, then `body`, which may be large and is never copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The header, and the body of every frame but those that carry bytes.
    pub head: Bytes,
    /// The bytes of a chunk, of a call and of its answer; empty otherwise.
    pub body: Bytes,
}

impl Packet {
    /// A frame of that version. Its body is `fields` and then `bytes`.
    pub(crate) fn new(version: u16, kind: Kind, id: u64, fields: &[u8], bytes: Bytes) -> Self {
        let len = to_u64(fields.len()) + to_u64(bytes.len());
        let is_bulk = matches!(kind, Kind::Chunk | Kind::Told);
        debug_assert!(is_bulk || len <= u64::from(CONTROL_LEN_MAX), "{kind:?}: {len}");
        let mut header = Encoder::new();
        header.raw(&MAGIC).u16(version).u8(kind.code()).u8(FLAGS_NONE).u64(id);
        header.u32(u32::try_from(len).unwrap_or(u32::MAX)).u32(0);
        let mut head = header.finish();
        let checksum = checksum(&head);
        head.reserve_exact(checksum.len() + fields.len());
        head.extend_from_slice(&checksum);
        head.extend_from_slice(fields);
        Self { head: head.into(), body: bytes }
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The frame in one piece, copied: for tests and for transports that cannot gather.
    pub fn to_bytes(&self) -> BytesMut {
        let mut all = BytesMut::with_capacity(self.len());
        all.extend_from_slice(&self.head);
        all.extend_from_slice(&self.body);
        all
    }
}

const FLAGS_NONE: u8 = 0;

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: Kind,
    id: u64,
    len: u32,
}

impl Header {
    /// The header at the start of `bytes`; `None` while it is not all there.
    fn peek(bytes: &[u8], expect: Expect) -> Result<Option<Self>> {
        // A stranger is told apart at its first byte, not after 32.
        let start = bytes.len().min(MAGIC.len());
        if bytes[..start] != MAGIC[..start] {
            return Err(corrupt("it does not start like one"));
        }
        let Some((header, _)) = bytes.split_at_checked(HEADER_LEN) else { return Ok(None) };
        if checksum(&header[..CHECKED_LEN]) != header[CHECKED_LEN..] {
            return Err(corrupt("the checksum of its header does not match"));
        }
        Self::parse(&header[MAGIC.len()..CHECKED_LEN], expect).map(Some)
    }

    fn parse(fields: &[u8], expect: Expect) -> Result<Self> {
        let mut fields = Decoder::new(fields, "frame");
        let (version, kind, flags) = (fields.u16()?, fields.u8()?, fields.u8()?);
        let (id, len, zero) = (fields.u64()?, fields.u32()?, fields.u32()?);
        fields.finish()?;
        let Some(kind) = Kind::from_code(kind) else {
            return Err(unsupported(format!("read frame of kind {kind}")));
        };
        // A refusal may come before an agreement, whatever this side has begun to expect.
        if version != expect.version && !(version == VERSION_NONE && kind == Kind::Error) {
            return Err(unsupported(format!("read frame of version {version}")));
        }
        if version == VERSION_NONE && !matches!(kind, Kind::Hello | Kind::Error) {
            return Err(Error::new(ErrorKind::Invalid, format!("take {kind:?} before a hello")));
        }
        if flags != FLAGS_NONE || zero != 0 {
            return Err(unsupported("read frame with unknown flags".into()));
        }
        let len_max = expect.body_len_max(kind);
        if len > len_max {
            let action = format!("read frame: a {kind:?} of {len} bytes, of at most {len_max}");
            return Err(Error::new(ErrorKind::Invalid, action));
        }
        Ok(Self { kind, id, len })
    }
}

fn checksum(fields: &[u8]) -> [u8; HEADER_LEN - CHECKED_LEN] {
    debug_assert_eq!(fields.len(), CHECKED_LEN, "a checksum covers all fields before it");
    let mut hasher = blake3::Hasher::new_from_context_key(&CHECKSUM_KEY);
    hasher.update(fields);
    let mut checksum = [0; HEADER_LEN - CHECKED_LEN];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read frame: {why}"))
}

fn unsupported(action: String) -> Error {
    Error::new(ErrorKind::Unsupported, action)
        .hint("the other side speaks another version; upgrade the older one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Hello, Message};

    const AGREED: Expect = Expect::agreed(VERSION, 1 << 20);

    /// A header with a right checksum over whatever it says.
    fn header(version: u16, kind: u8, flags: u8, len: u32, zero: u32) -> BytesMut {
        let mut fields = Encoder::new();
        fields.raw(&MAGIC).u16(version).u8(kind).u8(flags).u64(1).u32(len).u32(zero);
        let mut bytes = fields.finish();
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        BytesMut::from(&bytes[..])
    }

    #[test]
    fn a_frame_is_asked_for_byte_by_byte_and_never_past_its_end() {
        let whole = Message::Hello(Hello::new(1 << 20)).packet(VERSION_NONE, 0).to_bytes();
        let mut buffer = BytesMut::new();
        for len in 0..whole.len() {
            buffer.clear();
            buffer.extend_from_slice(&whole[..len]);
            assert!(Frame::decode(&mut buffer, Expect::hello()).unwrap().is_none(), "{len} bytes");
            assert_eq!(buffer, whole[..len], "the buffer is left as it is");
            let missing = if len < HEADER_LEN { HEADER_LEN } else { whole.len() } - len;
            assert_eq!(wanted(&buffer, Expect::hello()).unwrap(), missing);
        }
        let mut more = whole.clone();
        more.extend_from_slice(b"BF");
        assert!(Frame::decode(&mut more, Expect::hello()).unwrap().is_some());
        assert_eq!(&more[..], b"BF", "the next frame stays");
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_found() {
        let whole = Message::Ping.packet(VERSION, 1).to_bytes();
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = Frame::decode(&mut bytes, AGREED).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
        }
    }

    #[test]
    fn a_stranger_is_told_apart_at_the_first_bytes() {
        for text in ["GET / HTTP/1.1", "\x16\x03\x01", "BFRX"] {
            let error = Frame::decode(&mut BytesMut::from(text), AGREED).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{text:?}");
        }
    }

    #[test]
    fn a_body_too_long_is_refused_before_it_is_waited_for() {
        let chunk_len_max = CHUNK_PREFIX_LEN + (1 << 20);
        for (kind, len_max) in [(Kind::Chunk, chunk_len_max), (Kind::Begin, CONTROL_LEN_MAX)] {
            let mut fits = header(VERSION, kind.code(), 0, len_max, 0);
            assert!(Frame::decode(&mut fits, AGREED).unwrap().is_none());
            for len in [len_max + 1, u32::MAX] {
                let mut long = header(VERSION, kind.code(), 0, len, 0);
                let error = Frame::decode(&mut long, AGREED).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid, "{kind:?} of {len} bytes");
            }
        }
    }

    #[test]
    fn unknown_versions_kinds_and_flags_are_unsupported() {
        let ping = Kind::Ping.code();
        for mut bytes in [
            header(2, ping, 0, 0, 0),
            header(VERSION, 255, 0, 0, 0),
            header(VERSION, ping, 1, 0, 0),
            header(VERSION, ping, 0, 0, 1),
        ] {
            let error = Frame::decode(&mut bytes, AGREED).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn before_a_hello_nothing_else_is_heard() {
        let error = Frame::decode(&mut header(VERSION_NONE, 48, 0, 0, 0), Expect::hello());
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Invalid);
        let error = Frame::decode(&mut header(VERSION, 1, 0, 16, 0), Expect::hello());
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
