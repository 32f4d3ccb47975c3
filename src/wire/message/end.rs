//! How jobs stand and were decided, and errors as they travel. Pure.

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder, cut};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId, RegionName};

use super::open::{decode_digest, decode_flag, decode_image, decode_region, encode_digest};

/// A job and where its image is, or will be: what a query and a cancel name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The job.
    pub job: JobId,
    /// The region of the daemon that is asked.
    pub region: RegionName,
    /// The image in it.
    pub image: ImageId,
}

impl Name {
    pub(super) fn encode(&self, out: &mut Encoder) {
        out.raw(self.job.as_bytes());
        out.block(self.region.as_str().as_bytes()).block(self.image.as_str().as_bytes());
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let job = JobId::from_bytes(from.array()?);
        Ok(Self { job, region: decode_region(from)?, image: decode_image(from)? })
    }
}

/// How a job was decided: by the receiving daemon's journal and rename, once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The image is visible, complete and durable.
    Committed {
        /// Its root, where the region keeps one.
        root: Option<Digest>,
    },
    /// The job can never commit.
    Cancelled {
        /// Whether the cancel that this answers decided it.
        first: bool,
        /// Whether nothing of the job is left.
        clean: bool,
    },
    /// There is no stage of this job and no image made by it.
    Unknown,
}

impl Decision {
    pub(super) fn encode(self, out: &mut Encoder) {
        match self {
            Self::Unknown => {
                out.u8(0);
            }
            Self::Committed { root } => {
                out.u8(1);
                encode_digest(root, out);
            }
            Self::Cancelled { first, clean } => {
                out.u8(2).u8(u8::from(first)).u8(u8::from(clean));
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        match from.u8()? {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Committed { root: decode_digest(from)? }),
            2 => Ok(Self::Cancelled { first: decode_flag(from)?, clean: decode_flag(from)? }),
            _ => Err(from.corrupt("it is decided in no known way")),
        }
    }
}

/// How a job stands at the receiving daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is decided, or not known.
    Decided(Decision),
    /// It is staged and undecided.
    Staged {
        /// The number of its last attempt; 0 before the first. The next begins with one more.
        epoch: u32,
        /// Whether somebody works on it now.
        owned: bool,
    },
}

impl Standing {
    pub(super) fn encode(self, out: &mut Encoder) {
        match self {
            Self::Decided(decision) => decision.encode(out.u8(0)),
            Self::Staged { epoch, owned } => {
                out.u8(1).u32(epoch).u8(u8::from(owned));
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        match from.u8()? {
            0 => Decision::decode(from).map(Self::Decided),
            1 => Ok(Self::Staged { epoch: from.u32()?, owned: decode_flag(from)? }),
            _ => Err(from.corrupt("it stands in no known way")),
        }
    }
}

/// An error on its way to the other side: what it can do, and words for a person. No cause and no
/// place travel: they may name what is none of the other side's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the other side can do about it.
    pub kind: ErrorKind,
    /// Whether the same request may succeed when it is made again.
    pub retryable: bool,
    /// Where in the image, in bytes.
    pub offset: Option<u64>,
    /// What was being done.
    pub action: String,
}

impl Refusal {
    /// The most bytes of words.
    pub const ACTION_LEN_MAX: usize = 512;

    /// What travels of that error.
    pub fn new(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            retryable: error.is_retryable(),
            offset: error.offset(),
            action: cut(error.action(), Self::ACTION_LEN_MAX).to_owned(),
        }
    }

    /// The error that it is on this side.
    pub fn into_error(self) -> Error {
        let action = format!("hear from the peer: {}", self.action.escape_debug());
        let error = Error::new(self.kind, action).retryable(self.retryable);
        match self.offset {
            Some(offset) => error.at("the image", offset),
            None => error,
        }
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u8(kind_code(self.kind)).u8(u8::from(self.retryable));
        out.option(self.offset, |out, offset| {
            out.u64(offset);
        });
        out.block(self.action.as_bytes());
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let code = from.u8()?;
        let kind = ErrorKind::ALL.into_iter().find(|kind| kind_code(*kind) == code);
        let kind = kind.ok_or_else(|| from.corrupt("its kind is unknown"))?;
        let (retryable, offset) = (decode_flag(from)?, from.option(|from| from.u64())?);
        Ok(Self { kind, retryable, offset, action: from.text(Self::ACTION_LEN_MAX)?.to_owned() })
    }
}

/// Held still here: the order of the kinds may change, what travels may not.
fn kind_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Busy => 1,
        ErrorKind::Corrupt => 2,
        ErrorKind::Denied => 3,
        ErrorKind::Exists => 4,
        ErrorKind::Fenced => 5,
        ErrorKind::Invalid => 6,
        ErrorKind::Io => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::NotACopy => 9,
        ErrorKind::NotFound => 10,
        ErrorKind::SourceChanged => 11,
        ErrorKind::Unavailable => 12,
        ErrorKind::Unsupported => 13,
    }
}
