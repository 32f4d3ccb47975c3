//! Messages: what the frames say, and the one place that turns them into bytes and back. Pure.
//!
//! A message either makes a request (its frame carries an id greater than any that its side has
//! used on the connection), answers one (the id of that request), or does neither (id 0).

mod data;
mod end;
mod hello;
mod open;
mod runs;

use bytes::Bytes;

use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::ChunkRun;
use crate::job::Fingerprint;
use crate::plan::Extent;

use super::frame::{Frame, Packet};

pub(crate) use data::EXTENTS_MAX;
pub use data::{Ask, CHUNK_PREFIX, Chunk, Codec};
pub use end::{Decision, Name, Refusal, Standing};
pub use hello::{Agreed, FEATURE_DELTA, FEATURE_ZSTD, Hello};
pub use open::{Begin, Begun, Fetch, Join, Offer, Session, Token};
pub(crate) use open::{decode_digest, decode_flag, decode_image, decode_region, encode_digest};
pub(crate) use runs::PIECE_RUNS_MAX;
pub use runs::{DIGESTS_PER_PIECE_MAX, Piece, PieceRun, RUNS_MAX};

/// What a frame can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the message of that name, described there")]
pub enum Kind {
    Hello,
    Error,
    Ping,
    Pong,
    Query,
    Answer,
    Cancel,
    Decision,
    Call,
    Told,
    Begin,
    Fetch,
    Offer,
    Begun,
    Join,
    Joined,
    Held,
    Ready,
    Chunk,
    Zeroes,
    Same,
    Written,
    Credit,
    Durable,
    Sync,
    Synced,
    Seal,
    Want,
    Ask,
    Extents,
    Facts,
    Table,
}

/// How a frame uses its request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It asks: the id is new.
    Request,
    /// It answers: the id is that of the request.
    Reply,
    /// Neither: the id is 0.
    Notice,
}

impl Kind {
    /// Every kind with its code.
    pub const ALL: [(Self, u8); 32] = [
        (Self::Hello, 1),
        (Self::Error, 2),
        (Self::Ping, 3),
        (Self::Pong, 4),
        (Self::Query, 16),
        (Self::Answer, 17),
        (Self::Cancel, 18),
        (Self::Decision, 19),
        (Self::Call, 20),
        (Self::Told, 21),
        (Self::Begin, 32),
        (Self::Fetch, 33),
        (Self::Offer, 34),
        (Self::Begun, 35),
        (Self::Join, 36),
        (Self::Held, 37),
        (Self::Ready, 38),
        (Self::Joined, 39),
        (Self::Chunk, 48),
        (Self::Zeroes, 49),
        (Self::Same, 50),
        (Self::Written, 51),
        (Self::Credit, 52),
        (Self::Durable, 53),
        (Self::Sync, 54),
        (Self::Synced, 55),
        (Self::Seal, 56),
        (Self::Want, 64),
        (Self::Ask, 65),
        (Self::Extents, 66),
        (Self::Facts, 67),
        (Self::Table, 68),
    ];

    /// The code in the header.
    pub fn code(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, code)| *code)
    }

    /// The kind of that code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, of)| *of == code).map(|(kind, _)| *kind)
    }

    /// How its frame uses the request id. A decision or a refusal may also come unasked, with id 0.
    pub fn role(self) -> Role {
        match self {
            Self::Hello | Self::Held | Self::Ready | Self::Credit | Self::Durable | Self::Table => {
                Role::Notice
            }
            Self::Ping
            | Self::Query
            | Self::Cancel
            | Self::Call
            | Self::Begin
            | Self::Fetch
            | Self::Join
            | Self::Chunk
            | Self::Zeroes
            | Self::Same
            | Self::Sync
            | Self::Seal
            | Self::Want
            | Self::Ask => Role::Request,
            Self::Error
            | Self::Pong
            | Self::Answer
            | Self::Decision
            | Self::Told
            | Self::Offer
            | Self::Begun
            | Self::Joined
            | Self::Written
            | Self::Synced
            | Self::Extents
            | Self::Facts => Role::Reply,
        }
    }
}

/// A message. `manual::protocol` has the bytes of each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Each side's first word.
    Hello(Hello),
    /// A request failed (its id), or the session did (id 0): what the other side can do about it.
    Error(Refusal),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// How does that job stand?
    Query(Name),
    /// It stands so.
    Answer(Standing),
    /// That job shall not commit, unless it has.
    Cancel(Name),
    /// How it was decided: the answer to a cancel and to a seal; with id 0 where others decided.
    Decision(Decision),
    /// A call that the region of the other daemon answers: what it says, its room knows.
    Call(Bytes),
    /// The answer to a call.
    Told(Bytes),
    /// The sender opens a session: take this image.
    Begin(Box<Begin>),
    /// The receiver opens a session: give me that image.
    Fetch(Fetch),
    /// The sender's answer to a fetch: what the image is.
    Offer(Offer),
    /// The receiver's answer to a begin.
    Begun(Begun),
    /// One more connection for a session.
    Join(Join),
    /// It belongs to the session now.
    Joined,
    /// What the receiver holds durably already, piece by piece.
    Held(Piece),
    /// Everything held was told; `data_bytes` of it are data. Chunks may come.
    Ready {
        /// How many bytes of the held chunks are data.
        data_bytes: u64,
    },
    /// The bytes of one chunk.
    Chunk(Chunk),
    /// Runs of chunks that hold only zeros.
    Zeroes(Vec<ChunkRun>),
    /// Runs of chunks that hold what they hold in the base.
    Same(Vec<ChunkRun>),
    /// The target accepted what that request brought. Not durable yet.
    Written,
    /// So many bytes more may be sent on this connection.
    Credit {
        /// A multiple of the chunk size.
        bytes: u64,
    },
    /// These runs of chunks are durable and on record.
    Durable(Vec<ChunkRun>),
    /// Make durable what was written.
    Sync,
    /// What was written before that request is durable.
    Synced,
    /// All is sent: commit the image of this root.
    Seal {
        /// The root of its chunk table.
        root: crate::chunk::Digest,
    },
    /// The receiver asks for these chunks.
    Want(ChunkRun),
    /// The receiver asks about the image.
    Ask(Ask),
    /// Neighbouring extents: the answer to `Ask::Extents`.
    Extents(Vec<Extent>),
    /// What the source looks like now: the answer to `Ask::Facts`.
    Facts(Fingerprint),
    /// Digests, piece by piece: of the image, from the sender; of the base, from the receiver.
    Table(Piece),
}

impl Message {
    /// What kind of frame carries it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Error(_) => Kind::Error,
            Self::Ping => Kind::Ping,
            Self::Pong => Kind::Pong,
            Self::Query(_) => Kind::Query,
            Self::Answer(_) => Kind::Answer,
            Self::Cancel(_) => Kind::Cancel,
            Self::Decision(_) => Kind::Decision,
            Self::Call(_) => Kind::Call,
            Self::Told(_) => Kind::Told,
            Self::Begin(_) => Kind::Begin,
            Self::Fetch(_) => Kind::Fetch,
            Self::Offer(_) => Kind::Offer,
            Self::Begun(_) => Kind::Begun,
            Self::Join(_) => Kind::Join,
            Self::Joined => Kind::Joined,
            Self::Held(_) => Kind::Held,
            Self::Ready { .. } => Kind::Ready,
            Self::Chunk(_) => Kind::Chunk,
            Self::Zeroes(_) => Kind::Zeroes,
            Self::Same(_) => Kind::Same,
            Self::Written => Kind::Written,
            Self::Credit { .. } => Kind::Credit,
            Self::Durable(_) => Kind::Durable,
            Self::Sync => Kind::Sync,
            Self::Synced => Kind::Synced,
            Self::Seal { .. } => Kind::Seal,
            Self::Want(_) => Kind::Want,
            Self::Ask(_) => Kind::Ask,
            Self::Extents(_) => Kind::Extents,
            Self::Facts(_) => Kind::Facts,
            Self::Table(_) => Kind::Table,
        }
    }

    /// Its frame, in that version and with that request id. The bytes of a chunk are not copied.
    pub fn packet(&self, version: u16, id: u64) -> Packet {
        let mut out = Encoder::new();
        let mut bytes = Bytes::new();
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Error(refusal) => refusal.encode(&mut out),
            Self::Ping | Self::Pong | Self::Joined | Self::Written | Self::Sync | Self::Synced => {}
            Self::Query(name) | Self::Cancel(name) => name.encode(&mut out),
            Self::Answer(standing) => standing.encode(&mut out),
            Self::Decision(decision) => decision.encode(&mut out),
            Self::Call(body) | Self::Told(body) => bytes = body.clone(),
            Self::Begin(begin) => begin.encode(&mut out),
            Self::Fetch(fetch) => fetch.encode(&mut out),
            Self::Offer(offer) => offer.encode(&mut out),
            Self::Begun(begun) => begun.encode(&mut out),
            Self::Join(join) => join.encode(&mut out),
            Self::Held(piece) | Self::Table(piece) => piece.encode(&mut out),
            Self::Ready { data_bytes: value } | Self::Credit { bytes: value } => {
                out.u64(*value);
            }
            Self::Chunk(chunk) => {
                chunk.encode_prefix(&mut out);
                bytes = chunk.bytes.clone();
            }
            Self::Zeroes(list) | Self::Same(list) | Self::Durable(list) => {
                runs::encode(list, &mut out);
            }
            Self::Seal { root } => {
                out.raw(root.as_bytes());
            }
            Self::Want(run) => runs::encode_run(*run, &mut out),
            Self::Ask(ask) => ask.encode(&mut out),
            Self::Extents(extents) => data::encode_extents(extents, &mut out),
            Self::Facts(facts) => facts.encode(&mut out),
        }
        Packet::new(version, self.kind(), id, &out.finish(), bytes)
    }

    /// What that frame says. The bytes of a chunk stay where they are.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a body that [`Message::packet`] would not make.
    pub fn decode(frame: &Frame) -> Result<Self> {
        if (frame.kind.role() == Role::Notice) != (frame.id == 0)
            && !matches!(frame.kind, Kind::Error | Kind::Decision)
        {
            let action = format!("read {:?}: its request id is {}", frame.kind, frame.id);
            return Err(Error::new(ErrorKind::Corrupt, action));
        }
        match frame.kind {
            Kind::Chunk => return Chunk::decode(&frame.body).map(Self::Chunk),
            Kind::Call => return Ok(Self::Call(frame.body.clone())),
            Kind::Told => return Ok(Self::Told(frame.body.clone())),
            _ => {}
        }
        let mut from = Decoder::new(&frame.body, "message");
        let message = Self::decode_fields(frame.kind, &mut from)?;
        from.finish()?;
        Ok(message)
    }

    fn decode_fields(kind: Kind, from: &mut Decoder<'_>) -> Result<Self> {
        Ok(match kind {
            Kind::Hello => Self::Hello(Hello::decode(from)?),
            Kind::Error => Self::Error(Refusal::decode(from)?),
            Kind::Ping => Self::Ping,
            Kind::Pong => Self::Pong,
            Kind::Query => Self::Query(Name::decode(from)?),
            Kind::Answer => Self::Answer(Standing::decode(from)?),
            Kind::Cancel => Self::Cancel(Name::decode(from)?),
            Kind::Decision => Self::Decision(Decision::decode(from)?),
            Kind::Begin => Self::Begin(Box::new(Begin::decode(from)?)),
            Kind::Fetch => Self::Fetch(Fetch::decode(from)?),
            Kind::Offer => Self::Offer(Offer::decode(from)?),
            Kind::Begun => Self::Begun(Begun::decode(from)?),
            Kind::Join => Self::Join(Join::decode(from)?),
            Kind::Joined => Self::Joined,
            Kind::Held => Self::Held(Piece::decode(from)?),
            Kind::Ready => Self::Ready { data_bytes: from.u64()? },
            // Taken where their bytes can be shared.
            Kind::Chunk | Kind::Call | Kind::Told => {
                return Err(from.corrupt("it is no list of fields"));
            }
            Kind::Zeroes => Self::Zeroes(runs::decode(from)?),
            Kind::Same => Self::Same(runs::decode(from)?),
            Kind::Written => Self::Written,
            Kind::Credit => Self::Credit { bytes: from.u64()? },
            Kind::Durable => Self::Durable(runs::decode(from)?),
            Kind::Sync => Self::Sync,
            Kind::Synced => Self::Synced,
            Kind::Seal => Self::Seal { root: crate::chunk::Digest::from_bytes(from.array()?) },
            Kind::Want => Self::Want(runs::decode_run(from)?),
            Kind::Ask => Self::Ask(Ask::decode(from)?),
            Kind::Extents => Self::Extents(data::decode_extents(from)?),
            Kind::Facts => Self::Facts(Fingerprint::decode(from)?),
            Kind::Table => Self::Table(Piece::decode(from)?),
        })
    }
}

#[cfg(test)]
mod tests;
