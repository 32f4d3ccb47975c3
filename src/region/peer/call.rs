//! What daemons ask of each other's regions beside the bytes of images, and what is answered: the
//! bodies of *call* and *told*. Pure.
//!
//! Every body begins with a code; `manual::protocol` has the bytes of each. Lists come in pages.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkSize, Geometry, IMAGE_BYTES_MAX};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{
    JobSpec, Progress, decode_attributes, decode_limits, encode_attributes, encode_limits,
};
use crate::region::{
    Capabilities, ImageInfo, Located, Outcome, Recovered, StagedJob, Wish, Wishes,
};
use crate::wire::message::{Token, decode_flag, decode_image, decode_region};

use super::page::{
    put_info, put_located, put_page, put_recovered, put_staged, take_info, take_located, take_page,
    take_recovered, take_staged,
};

/// The longest answer that is not bytes of an image: a page, with an entry that began before its
/// end, which the specification of a job bounds.
const TOLD_LEN_MAX: usize = 128 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    /// What can that region promise?
    Describe(RegionName),
    /// Its images, after that one.
    List(RegionName, Option<ImageId>),
    /// Remove that image.
    Remove(RegionName, ImageId),
    /// What is under that id?
    Locate(RegionName, ImageId),
    /// Its staged jobs, after that one.
    Jobs(RegionName, Option<JobId>),
    /// That staged job.
    Job(RegionName, JobId),
    /// Put that wish before the owner.
    Wish(RegionName, JobId, Wish),
    /// Settle what nobody owns: that job or all, and tell of those after that one.
    Recover { region: RegionName, only: Option<JobId>, after: Option<JobId> },
    /// What the image's manifest says beside its table.
    About(RegionName, ImageId),
    /// Read the image there, from that chunk on, and compare it with its manifest.
    Verify(RegionName, ImageId, u32),
    /// Stage or reopen, and own it for as long as this connection lives. `instead`: of the owner
    /// that holds this token, if it is still there.
    Stage { reopen: bool, instead: Option<Token>, spec: Box<JobSpec> },
    /// What do others ask of the owner?
    Wishes(Owned),
    /// So far it is.
    Report(Owned, Progress),
    /// Make what was written durable.
    Sync(Owned),
    /// Put on record what is durable.
    Checkpoint(Owned),
    /// Read staged bytes back.
    ReadBack(Owned, ByteRange),
    /// Remove what is left after the commit.
    Finish(Owned),
    /// Cancel, and remove everything.
    Discard(Owned),
}

/// A stage that the caller owns, as the token of its owner proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) region: RegionName,
    pub(crate) job: JobId,
    pub(crate) token: Token,
}

/// What is answered.
#[derive(Debug)]
pub(crate) enum Told {
    Done,
    Capabilities(Capabilities),
    Images { images: Vec<ImageInfo>, more: bool },
    Located(Located),
    Jobs { jobs: Vec<StagedJob>, more: bool },
    Wished(bool),
    Recovered { settled: Vec<Recovered>, more: bool },
    About(Option<About>),
    Staged { token: Token, epoch: u32 },
    Wishes(Wishes),
    Bytes(Bytes),
    Outcome(Outcome),
    Verified(Verified),
}

/// So far an image was compared with its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) root: Digest,
    pub(crate) geometry: Geometry,
    /// The first chunk that was not looked at yet; past the last one: it is done.
    pub(crate) next: u32,
    /// Bytes that were read.
    pub(crate) read_bytes: u64,
    /// Chunks that are not as the manifest says, and the first of them.
    pub(crate) bad: u32,
    pub(crate) first_bad: Option<u32>,
}

/// What a manifest says beside its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) root: Digest,
    pub(crate) job: Option<JobId>,
    pub(crate) attributes: BTreeMap<String, String>,
}

const DESCRIBE: u8 = 1;
const LIST: u8 = 2;
const REMOVE: u8 = 3;
const LOCATE: u8 = 4;
const JOBS: u8 = 5;
const JOB: u8 = 6;
const WISH: u8 = 7;
const RECOVER: u8 = 8;
const ABOUT: u8 = 9;
const VERIFY: u8 = 10;
const STAGE: u8 = 16;
const WISHES: u8 = 17;
const REPORT: u8 = 18;
const SYNC: u8 = 19;
const CHECKPOINT: u8 = 20;
const READ_BACK: u8 = 21;
const FINISH: u8 = 22;
const DISCARD: u8 = 23;

impl Call {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        match self {
            Self::Describe(region) => put_region(out.u8(DESCRIBE), region),
            Self::List(region, after) => {
                put_region(out.u8(LIST), region);
                out.option(after.as_ref(), put_image);
            }
            Self::Remove(region, image) => put_place(out.u8(REMOVE), region, image),
            Self::Locate(region, image) => put_place(out.u8(LOCATE), region, image),
            Self::Jobs(region, after) => {
                put_region(out.u8(JOBS), region);
                out.option(*after, put_job);
            }
            Self::Job(region, job) => {
                put_region(out.u8(JOB), region);
                put_job(&mut out, *job);
            }
            Self::Wish(region, job, wish) => {
                put_region(out.u8(WISH), region);
                put_job(&mut out, *job);
                match wish {
                    Wish::Suspend => drop(out.u8(0)),
                    Wish::Limit(limits) => encode_limits(*limits, out.u8(1)),
                }
            }
            Self::Recover { region, only, after } => {
                put_region(out.u8(RECOVER), region);
                out.option(*only, put_job).option(*after, put_job);
            }
            Self::About(region, image) => put_place(out.u8(ABOUT), region, image),
            Self::Verify(region, image, first) => {
                put_place(out.u8(VERIFY), region, image);
                out.u32(*first);
            }
            Self::Stage { reopen, instead, spec } => {
                out.u8(STAGE).u8(u8::from(*reopen));
                out.option(*instead, |out, token| token.encode(out));
                spec.encode(&mut out);
            }
            Self::Wishes(owned) => owned.encode(out.u8(WISHES)),
            Self::Report(owned, progress) => {
                owned.encode(out.u8(REPORT));
                progress.encode(&mut out);
            }
            Self::Sync(owned) => owned.encode(out.u8(SYNC)),
            Self::Checkpoint(owned) => owned.encode(out.u8(CHECKPOINT)),
            Self::ReadBack(owned, range) => {
                owned.encode(out.u8(READ_BACK));
                out.u64(range.offset).u64(range.len);
            }
            Self::Finish(owned) => owned.encode(out.u8(FINISH)),
            Self::Discard(owned) => owned.encode(out.u8(DISCARD)),
        }
        out.finish().into()
    }

    /// # Errors
    /// [`ErrorKind::Corrupt`] for what [`Call::encode`] would not make.
    pub(crate) fn decode(body: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(body, "call");
        let call = Self::decode_fields(&mut from)?;
        from.finish()?;
        Ok(call)
    }

    fn decode_fields(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(match from.u8()? {
            DESCRIBE => Self::Describe(decode_region(from)?),
            LIST => Self::List(decode_region(from)?, from.option(decode_image)?),
            REMOVE => Self::Remove(decode_region(from)?, decode_image(from)?),
            LOCATE => Self::Locate(decode_region(from)?, decode_image(from)?),
            JOBS => Self::Jobs(decode_region(from)?, from.option(take_job)?),
            JOB => Self::Job(decode_region(from)?, take_job(from)?),
            WISH => {
                let (region, job) = (decode_region(from)?, take_job(from)?);
                let wish = match from.u8()? {
                    0 => Wish::Suspend,
                    1 => Wish::Limit(decode_limits(from)?),
                    _ => return Err(from.corrupt("it wishes for what nobody knows")),
                };
                Self::Wish(region, job, wish)
            }
            RECOVER => Self::Recover {
                region: decode_region(from)?,
                only: from.option(take_job)?,
                after: from.option(take_job)?,
            },
            ABOUT => Self::About(decode_region(from)?, decode_image(from)?),
            VERIFY => Self::Verify(decode_region(from)?, decode_image(from)?, from.u32()?),
            STAGE => Self::Stage {
                reopen: decode_flag(from)?,
                instead: from.option(Token::decode)?,
                spec: Box::new(JobSpec::decode(from)?),
            },
            WISHES => Self::Wishes(Owned::decode(from)?),
            REPORT => Self::Report(Owned::decode(from)?, Progress::decode(from)?),
            SYNC => Self::Sync(Owned::decode(from)?),
            CHECKPOINT => Self::Checkpoint(Owned::decode(from)?),
            READ_BACK => Self::ReadBack(Owned::decode(from)?, take_range(from)?),
            FINISH => Self::Finish(Owned::decode(from)?),
            DISCARD => Self::Discard(Owned::decode(from)?),
            _ => return Err(from.corrupt("nobody knows such a call")),
        })
    }
}

impl Owned {
    fn encode(&self, out: &mut Encoder) {
        put_region(out, &self.region);
        put_job(out, self.job);
        self.token.encode(out);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self { region: decode_region(from)?, job: take_job(from)?, token: Token::decode(from)? })
    }
}

const TOLD_DONE: u8 = 0;
const TOLD_CAPABILITIES: u8 = 1;
const TOLD_IMAGES: u8 = 2;
const TOLD_LOCATED: u8 = 3;
const TOLD_JOBS: u8 = 4;
const TOLD_WISHED: u8 = 5;
const TOLD_RECOVERED: u8 = 6;
const TOLD_ABOUT: u8 = 7;
const TOLD_STAGED: u8 = 8;
const TOLD_WISHES: u8 = 9;
const TOLD_BYTES: u8 = 10;
const TOLD_OUTCOME: u8 = 11;
const TOLD_VERIFIED: u8 = 12;

impl Told {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        match self {
            Self::Done => drop(out.u8(TOLD_DONE)),
            Self::Capabilities(told) => {
                out.u8(TOLD_CAPABILITIES);
                out.u8(u8::from(told.atomic_commit)).u8(u8::from(told.preserves_previous));
            }
            Self::Images { images, more } => {
                put_page(out.u8(TOLD_IMAGES), images, *more, put_info);
            }
            Self::Located(located) => put_located(out.u8(TOLD_LOCATED), *located),
            Self::Jobs { jobs, more } => put_page(out.u8(TOLD_JOBS), jobs, *more, put_staged),
            Self::Wished(found) => drop(out.u8(TOLD_WISHED).u8(u8::from(*found))),
            Self::Recovered { settled, more } => {
                put_page(out.u8(TOLD_RECOVERED), settled, *more, put_recovered);
            }
            Self::About(about) => {
                out.u8(TOLD_ABOUT).option(about.as_ref(), |out, about| {
                    out.raw(about.root.as_bytes()).option(about.job, put_job);
                    encode_attributes(&about.attributes, out);
                });
            }
            Self::Staged { token, epoch } => {
                token.encode(out.u8(TOLD_STAGED));
                out.u32(*epoch);
            }
            Self::Wishes(wishes) => {
                out.u8(TOLD_WISHES).u8(u8::from(wishes.cancelled)).u8(u8::from(wishes.suspend));
                out.option(wishes.limits, |out, limits| encode_limits(limits, out));
            }
            Self::Bytes(bytes) => drop(out.u8(TOLD_BYTES).raw(bytes)),
            Self::Outcome(outcome) => {
                out.u8(TOLD_OUTCOME).u8(u8::from(*outcome == Outcome::Committed));
            }
            Self::Verified(verified) => verified.encode(out.u8(TOLD_VERIFIED)),
        }
        out.finish().into()
    }

    /// # Errors
    /// [`ErrorKind::Corrupt`] for what [`Told::encode`] would not make.
    pub(crate) fn decode(body: &Bytes) -> Result<Self> {
        if body.first() == Some(&TOLD_BYTES) {
            return Ok(Self::Bytes(body.slice(1..)));
        }
        if body.len() > TOLD_LEN_MAX {
            let what = format!("take an answer to a call: it has {} bytes", body.len());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let mut from = Decoder::new(body, "answer");
        let told = Self::decode_fields(&mut from)?;
        from.finish()?;
        Ok(told)
    }

    /// What it is, in few words.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Done => "that it is done",
            Self::Capabilities(_) => "capabilities",
            Self::Images { .. } => "a list of images",
            Self::Located(_) => "what is under an id",
            Self::Jobs { .. } => "a list of jobs",
            Self::Wished(_) => "whether a wish was put",
            Self::Recovered { .. } => "what was settled",
            Self::About(_) => "what a manifest says",
            Self::Staged { .. } => "a stage",
            Self::Wishes(_) => "wishes",
            Self::Bytes(_) => "bytes",
            Self::Outcome(_) => "an outcome",
            Self::Verified(_) => "how an image compares",
        }
    }

    fn decode_fields(from: &mut Decoder<'_>) -> Result<Self> {
        Ok(match from.u8()? {
            TOLD_DONE => Self::Done,
            TOLD_CAPABILITIES => {
                Self::Capabilities(Capabilities::of_peer(decode_flag(from)?, decode_flag(from)?))
            }
            TOLD_IMAGES => {
                let (images, more) = take_page(from, take_info)?;
                Self::Images { images, more }
            }
            TOLD_LOCATED => Self::Located(take_located(from)?),
            TOLD_JOBS => {
                let (jobs, more) = take_page(from, take_staged)?;
                Self::Jobs { jobs, more }
            }
            TOLD_WISHED => Self::Wished(decode_flag(from)?),
            TOLD_RECOVERED => {
                let (settled, more) = take_page(from, take_recovered)?;
                Self::Recovered { settled, more }
            }
            TOLD_ABOUT => Self::About(from.option(|from| {
                Ok(About {
                    root: Digest::from_bytes(from.array()?),
                    job: from.option(take_job)?,
                    attributes: decode_attributes(from)?,
                })
            })?),
            TOLD_STAGED => Self::Staged { token: Token::decode(from)?, epoch: from.u32()? },
            TOLD_WISHES => Self::Wishes(Wishes {
                cancelled: decode_flag(from)?,
                suspend: decode_flag(from)?,
                limits: from.option(decode_limits)?,
            }),
            TOLD_OUTCOME => Self::Outcome(match decode_flag(from)? {
                true => Outcome::Committed,
                false => Outcome::Cancelled,
            }),
            TOLD_VERIFIED => Self::Verified(Verified::decode(from)?),
            _ => return Err(from.corrupt("nobody knows such an answer")),
        })
    }
}

impl Verified {
    fn encode(&self, out: &mut Encoder) {
        out.raw(self.root.as_bytes()).u64(self.geometry.image_bytes());
        out.u8(self.geometry.chunk_size().shift()).u32(self.next).u64(self.read_bytes);
        out.u32(self.bad).option(self.first_bad, |out, index| {
            out.u32(index);
        });
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let (root, image_bytes) = (Digest::from_bytes(from.array()?), from.u64()?);
        let chunk_size = ChunkSize::from_shift(from.u8()?)
            .map_err(|()| from.corrupt("the chunk size is out of range"))?;
        let geometry = Geometry::new(image_bytes, chunk_size)
            .map_err(|error| from.corrupt("the geometry is impossible").because(error))?;
        let (next, read_bytes, bad) = (from.u32()?, from.u64()?, from.u32()?);
        let first_bad = from.option(|from| from.u32())?;
        let chunk_count = geometry.chunk_count();
        let fits = next <= chunk_count
            && read_bytes <= image_bytes
            && bad <= chunk_count
            && first_bad.is_none_or(|index| index < next)
            && (bad > 0) == first_bad.is_some();
        match fits {
            true => Ok(Self { root, geometry, next, read_bytes, bad, first_bad }),
            false => Err(from.corrupt("more was compared than there is")),
        }
    }
}

pub(super) fn put_region(out: &mut Encoder, region: &RegionName) {
    out.block(region.as_str().as_bytes());
}

pub(super) fn put_image(out: &mut Encoder, image: &ImageId) {
    out.block(image.as_str().as_bytes());
}

fn put_place(out: &mut Encoder, region: &RegionName, image: &ImageId) {
    put_region(out, region);
    put_image(out, image);
}

pub(super) fn put_job(out: &mut Encoder, job: JobId) {
    out.raw(job.as_bytes());
}

pub(super) fn take_job(from: &mut Decoder<'_>) -> Result<JobId> {
    from.array().map(JobId::from_bytes)
}

fn take_range(from: &mut Decoder<'_>) -> Result<ByteRange> {
    let (offset, len) = (from.u64()?, from.u64()?);
    match offset.checked_add(len).is_some_and(|end| end <= IMAGE_BYTES_MAX) {
        true => Ok(ByteRange::new(offset, len)),
        false => Err(from.corrupt("a range ends past any image")),
    }
}

/// An answer to another question.
pub(crate) fn astray(told: &Told) -> Error {
    Error::new(ErrorKind::Invalid, format!("take the answer to a call: it is {}", told.name()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{JobState, sample_spec};
    use crate::options::Limits;
    use crate::region::Settled;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn calls() -> Vec<Call> {
        let (region, image): (RegionName, ImageId) = ("b".parse().unwrap(), "m-1".parse().unwrap());
        let (job, token) = (JobId::from_bytes([7; 16]), Token::from_bytes([9; 32]));
        let owned = || Owned { region: region.clone(), job, token };
        let spec = Box::new(sample_spec());
        let limits = Limits::NONE.with_bytes_per_sec(1 << 20);
        vec![
            Call::Describe(region.clone()),
            Call::List(region.clone(), Some(image.clone())),
            Call::Remove(region.clone(), image.clone()),
            Call::Locate(region.clone(), image.clone()),
            Call::Jobs(region.clone(), None),
            Call::Job(region.clone(), job),
            Call::Wish(region.clone(), job, Wish::Suspend),
            Call::Wish(region.clone(), job, Wish::Limit(limits)),
            Call::Recover { region: region.clone(), only: Some(job), after: None },
            Call::About(region.clone(), image.clone()),
            Call::Verify(region.clone(), image, 3),
            Call::Stage { reopen: true, instead: Some(token), spec },
            Call::Wishes(owned()),
            Call::Report(owned(), Progress::new(JobState::Copying, 5)),
            Call::Sync(owned()),
            Call::Checkpoint(owned()),
            Call::ReadBack(owned(), ByteRange::new(1, 2)),
            Call::Finish(owned()),
            Call::Discard(owned()),
        ]
    }

    fn answers() -> Vec<Told> {
        let (image, job): (ImageId, _) = ("m-1".parse().unwrap(), JobId::from_bytes([7; 16]));
        let mut told = StagedJob::new(sample_spec());
        (told.epoch, told.owned) = (3, true);
        told.progress = Some(Progress::new(JobState::Copying, 5));
        let mut info = ImageInfo::new(image, 5);
        info.root = Some(Digest::from_bytes([4; 32]));
        let failed = Settled::Failed(Error::new(ErrorKind::Corrupt, "read"));
        let about =
            About { root: Digest::from_bytes([4; 32]), job: None, attributes: BTreeMap::new() };
        let wishes = Wishes { limits: Some(Limits::NONE), ..Wishes::default() };
        vec![
            Told::Done,
            Told::Capabilities(Capabilities::staged()),
            Told::Images { images: vec![info], more: true },
            Told::Located(Located::Absent),
            Told::Located(Located::Staged(job)),
            Told::Located(Located::Committed(Some(job))),
            Told::Jobs { jobs: vec![told], more: false },
            Told::Wished(true),
            Told::Recovered { settled: vec![Recovered::new(job, None, failed)], more: false },
            Told::About(Some(about)),
            Told::Staged { token: Token::from_bytes([9; 32]), epoch: 3 },
            Told::Wishes(wishes),
            Told::Bytes(Bytes::from_static(b"bytes")),
            Told::Outcome(Outcome::Committed),
            Told::Verified(Verified {
                root: Digest::from_bytes([4; 32]),
                geometry: Geometry::new(300_000, ChunkSize::MIN).unwrap(),
                next: 5,
                read_bytes: 65_536,
                bad: 1,
                first_bad: Some(3),
            }),
        ]
    }

    /// The codes and the order of fields are those of `manual/protocol.md`.
    #[test]
    fn calls_and_answers_have_their_golden_bytes() {
        let mut drawn: Vec<String> = calls().iter().map(|call| hex(&call.encode())).collect();
        drawn.extend(answers().iter().map(|told| hex(&told.encode())));
        let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
        assert_eq!(drawn, golden, "these bytes are out in the world:\n{}", drawn.join("\n"));
    }

    /// Written anew from the manual's tables, and from nothing of the code above but the values.
    struct Drawn(Vec<u8>);

    impl Drawn {
        fn of(parts: &[&[u8]]) -> Vec<u8> {
            parts.concat()
        }

        fn block(text: &str) -> Vec<u8> {
            let len = u32::try_from(text.len()).unwrap();
            [&len.to_le_bytes()[..], text.as_bytes()].concat()
        }

        /// A specification as `manual::formats` draws it.
        fn spec() -> Vec<u8> {
            let spec = sample_spec();
            let mut out = Self(Vec::new());
            out.raw(spec.job.as_bytes()).end(&spec.source).end(&spec.target);
            out.raw(&spec.geometry.image_bytes().to_le_bytes());
            out.raw(&[u8::try_from(spec.geometry.chunk_size().bytes().ilog2()).unwrap()]);
            let facts: Vec<_> = spec.fingerprint.facts().collect();
            out.raw(&u16::try_from(facts.len()).unwrap().to_le_bytes());
            for (name, value) in facts {
                out.raw(&Self::block(name)).raw(&Self::block(value));
            }
            out.0
        }

        fn raw(&mut self, bytes: &[u8]) -> &mut Self {
            self.0.extend_from_slice(bytes);
            self
        }

        fn end(&mut self, end: &crate::job::Endpoint) -> &mut Self {
            self.raw(&Self::block(end.region.as_str())).raw(&Self::block(end.image.as_str()))
        }
    }

    #[test]
    fn a_second_encoder_draws_the_same_bytes() {
        let (b, m) = (Drawn::block("b"), Drawn::block("m-1"));
        let (b, m): (&[u8], &[u8]) = (&b, &m);
        let (job, token): (&[u8], &[u8]) = (&[7; 16], &[9; 32]);
        let owned = |code: u8| Drawn::of(&[&[code], b, job, token]);
        let (none, some): (&[u8], &[u8]) = (&[0], &[1]);
        let calls_drawn: Vec<Option<Vec<u8>>> = vec![
            Some(Drawn::of(&[&[1], b])),
            Some(Drawn::of(&[&[2], b, some, m])),
            Some(Drawn::of(&[&[3], b, m])),
            Some(Drawn::of(&[&[4], b, m])),
            Some(Drawn::of(&[&[5], b, none])),
            Some(Drawn::of(&[&[6], b, job])),
            Some(Drawn::of(&[&[7], b, job, &[0]])),
            Some(Drawn::of(&[&[7], b, job, &[1], &(1_u64 << 20).to_le_bytes(), &[0; 8]])),
            Some(Drawn::of(&[&[8], b, some, job, none])),
            Some(Drawn::of(&[&[9], b, m])),
            Some(Drawn::of(&[&[10], b, m, &3_u32.to_le_bytes()])),
            // What follows the specification's beginning is `manual::formats`', and held there.
            None,
            Some(owned(17)),
            None,
            Some(owned(19)),
            Some(owned(20)),
            Some(Drawn::of(&[&owned(21), &1_u64.to_le_bytes(), &2_u64.to_le_bytes()])),
            Some(owned(22)),
            Some(owned(23)),
        ];
        let root: &[u8] = &[4; 32];
        let answers_drawn: Vec<Option<Vec<u8>>> = vec![
            Some(vec![0]),
            Some(vec![1, 1, 1]),
            Some(Drawn::of(&[&[2, 1, 1, 0], m, &5_u64.to_le_bytes(), some, root, none])),
            Some(vec![3, 0]),
            Some(Drawn::of(&[&[3, 1], job])),
            Some(Drawn::of(&[&[3, 2], some, job])),
            None,
            Some(vec![5, 1]),
            // Settled in the fifth way: corrupt (2), not retryable, nowhere, in one word.
            Some(Drawn::of(&[&[6, 0, 1, 0], job, none, &[5, 2, 0, 0], &Drawn::block("read")])),
            Some(Drawn::of(&[&[7], some, root, none, &[0, 0]])),
            Some(Drawn::of(&[&[8], token, &3_u32.to_le_bytes()])),
            Some(Drawn::of(&[&[9, 0, 0], some, &[0; 16]])),
            Some(Drawn::of(&[&[10], b"bytes"])),
            Some(vec![11, 1]),
            Some(Drawn::of(&[
                &[12],
                root,
                &300_000_u64.to_le_bytes(),
                &[16],
                &5_u32.to_le_bytes(),
                &65_536_u64.to_le_bytes(),
                &1_u32.to_le_bytes(),
                some,
                &3_u32.to_le_bytes(),
            ])),
        ];
        let (calls, answers) = (calls(), answers());
        assert_eq!((calls_drawn.len(), answers_drawn.len()), (calls.len(), answers.len()));
        for (call, drawn) in calls.iter().zip(&calls_drawn) {
            if let Some(drawn) = drawn {
                assert_eq!(hex(&call.encode()), hex(drawn), "{call:?}");
            }
        }
        for (told, drawn) in answers.iter().zip(&answers_drawn) {
            if let Some(drawn) = drawn {
                assert_eq!(hex(&told.encode()), hex(drawn), "{told:?}");
            }
        }
        // Where a specification or a progress is inside, all around it is drawn.
        let spec = Drawn::spec();
        let stage = calls[11].encode();
        assert!(stage.starts_with(&Drawn::of(&[&[16, 1, 1], token, &spec])), "{}", hex(&stage));
        let report = calls[13].encode();
        assert!(report.starts_with(&owned(18)) && report.len() > owned(18).len());
        let jobs = answers[6].encode();
        assert!(jobs.starts_with(&Drawn::of(&[&[4, 0, 1, 0], &spec])), "{}", hex(&jobs));
    }

    #[test]
    fn an_answer_to_another_question_is_told_in_few_words() {
        let long = Told::Bytes(vec![7; 1 << 20].into());
        assert_eq!(
            astray(&long).to_string(),
            "invalid request: take the answer to a call: it is bytes"
        );
        let padded = Bytes::from([&[2][..], &vec![0; TOLD_LEN_MAX][..]].concat());
        let refused = Told::decode(&padded).unwrap_err();
        assert!(refused.to_string().contains("bytes"), "{refused}");
    }

    #[test]
    fn calls_and_answers_come_back_and_nothing_may_miss_or_follow() {
        for call in calls() {
            let bytes = call.encode();
            assert_eq!(Call::decode(&bytes).unwrap(), call);
            for len in 0..bytes.len() {
                assert!(Call::decode(&bytes[..len]).is_err(), "{call:?} of {len} bytes");
            }
            assert!(Call::decode(&[&bytes[..], &[0]].concat()).is_err(), "{call:?} and more");
        }
        for told in answers() {
            let bytes = told.encode();
            // What failed is told on as what was heard of it.
            let heard = matches!(told, Told::Recovered { .. });
            let again = Told::decode(&bytes).unwrap();
            assert!(heard || again.encode() == bytes, "{told:?} comes back as {again:?}");
            if matches!(told, Told::Bytes(_)) {
                continue;
            }
            for len in 0..bytes.len() {
                assert!(Told::decode(&bytes.slice(..len)).is_err(), "{told:?} of {len} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(call) = Call::decode(&bytes) {
                prop_assert_eq!(call.encode(), &bytes[..]);
            }
            // It must not panic; an answer that is taken can be told on.
            if let Ok(told) = Told::decode(&Bytes::from(bytes)) {
                prop_assert!(!told.encode().is_empty());
            }
        }
    }
}
