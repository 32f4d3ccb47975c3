//! What opens a session, and what is answered. Pure.

use std::fmt;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkSize, Geometry};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{Fingerprint, JobSpec};

/// One attempt at one job: what every connection of a session names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// The job; of a fetch, a random number that the initiator draws.
    pub job: JobId,
    /// The number of the attempt, from 1. A later one fences all earlier ones.
    pub epoch: u32,
}

impl Session {
    /// That attempt at that job.
    pub fn new(job: JobId, epoch: u32) -> Self {
        Self { job, epoch }
    }

    fn encode(self, out: &mut Encoder) {
        out.raw(self.job.as_bytes()).u32(self.epoch);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { job: JobId::from_bytes(from.array()?), epoch: decode_epoch(from)? })
    }
}

fn decode_epoch(from: &mut Decoder<'_>) -> Result<u32> {
    match from.u32()? {
        0 => Err(from.corrupt("its epoch is 0")),
        epoch => Ok(epoch),
    }
}

/// What lets further connections into a session: 32 secret bytes of the side that was dialled.
///
/// Never shown, and compared in constant time.
#[derive(Clone, Copy)]
pub struct Token([u8; 32]);

impl Token {
    /// A token of these bytes, where others than [`Token::derive`] draw them.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.raw(&self.0);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        from.array().map(Self)
    }

    /// The token of a session for that identity. `secret` is random, of this process, and never
    /// leaves it: so a token cannot be guessed, and is worth nothing to another identity or epoch.
    pub fn derive(secret: &[u8; 32], identity: &str, session: Session) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(session.job.as_bytes()).update(&session.epoch.to_le_bytes());
        Self(*hasher.update(identity.as_bytes()).finalize().as_bytes())
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        // BLAKE3's own comparison takes the same time wherever the two differ.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The sender opens a session: take this image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The number of the attempt: greater than any the receiver knows of this job.
    pub epoch: u32,
    /// The root of the image, when the sender has its digests: it sends them in `Table`s, and the
    /// receiver checks each chunk against them as it arrives.
    pub root: Option<Digest>,
    /// The job: what is to be staged where, how it is cut, its base, its attributes.
    pub spec: JobSpec,
}

impl Begin {
    /// The session that it opens.
    pub fn session(&self) -> Session {
        Session::new(self.spec.job, self.epoch)
    }

    pub(super) fn encode(&self, out: &mut Encoder) {
        out.u32(self.epoch);
        encode_digest(self.root, out);
        self.spec.encode(out);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            epoch: decode_epoch(from)?,
            root: decode_digest(from)?,
            spec: JobSpec::decode(from)?,
        })
    }
}

/// The receiver opens a session: give me that image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The session's name: a job number drawn for it, and epoch 1.
    pub session: Session,
    /// The region of the other daemon.
    pub region: RegionName,
    /// The image in it.
    pub image: ImageId,
    /// Whether the image's digests are wanted, where there are any.
    pub table: bool,
}

impl Fetch {
    pub(super) fn encode(&self, out: &mut Encoder) {
        self.session.encode(out);
        out.block(self.region.as_str().as_bytes()).block(self.image.as_str().as_bytes());
        out.u8(u8::from(self.table));
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self {
            session: Session::decode(from)?,
            region: decode_region(from)?,
            image: decode_image(from)?,
            table: decode_flag(from)?,
        })
    }
}

/// The sender's answer to a fetch: what the image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Lets further connections in.
    pub token: Token,
    /// How the image is cut for this session: as in its manifest, where it has one.
    pub geometry: Geometry,
    /// The root of the image, when its digests follow in `Table`s.
    pub root: Option<Digest>,
    /// What the source looks like now.
    pub facts: Fingerprint,
}

impl Offer {
    pub(super) fn encode(&self, out: &mut Encoder) {
        out.raw(&self.token.0);
        out.u64(self.geometry.image_bytes()).u8(self.geometry.chunk_size().shift());
        encode_digest(self.root, out);
        self.facts.encode(out);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let token = Token(from.array()?);
        let image_bytes = from.u64()?;
        let chunk_size = ChunkSize::from_shift(from.u8()?)
            .map_err(|()| from.corrupt("its chunk size is out of range"))?;
        let geometry = Geometry::new(image_bytes, chunk_size)
            .map_err(|error| from.corrupt("its image has too many bytes").because(error))?;
        let root = decode_digest(from)?;
        Ok(Self { token, geometry, root, facts: Fingerprint::decode(from)? })
    }
}

/// The receiver's answer to a begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Lets further connections in.
    pub token: Token,
    /// Whether it holds the base: its digests follow in `Table`s.
    pub base: bool,
}

impl Begun {
    pub(super) fn encode(self, out: &mut Encoder) {
        out.raw(&self.token.0).u8(u8::from(self.base));
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { token: Token(from.array()?), base: decode_flag(from)? })
    }
}

/// One more connection for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The session.
    pub session: Session,
    /// What it was told when it was opened.
    pub token: Token,
}

impl Join {
    pub(super) fn encode(self, out: &mut Encoder) {
        self.session.encode(out);
        out.raw(&self.token.0);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { session: Session::decode(from)?, token: Token(from.array()?) })
    }
}

pub(crate) fn encode_digest(digest: Option<Digest>, out: &mut Encoder) {
    out.option(digest, |out, digest| {
        out.raw(digest.as_bytes());
    });
}

pub(crate) fn decode_digest(from: &mut Decoder<'_>) -> Result<Option<Digest>> {
    from.option(|from| from.array().map(Digest::from_bytes))
}

pub(crate) fn decode_image(from: &mut Decoder<'_>) -> Result<ImageId> {
    from.text(ImageId::LEN_MAX)?.parse().map_err(unnamed)
}

pub(crate) fn decode_region(from: &mut Decoder<'_>) -> Result<RegionName> {
    from.text(RegionName::LEN_MAX)?.parse().map_err(unnamed)
}

fn unnamed(cause: Error) -> Error {
    Error::new(ErrorKind::Corrupt, "read message: a name is malformed").because(cause)
}

pub(crate) fn decode_flag(from: &mut Decoder<'_>) -> Result<bool> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(from.corrupt("a flag is neither 0 nor 1")),
    }
}
