//! What daemons ask of each other's regions beside the bytes of images, and what is answered: the
//! bodies of *call* and *told*. Pure.
//!
//! Every body begins with a code; `manual::protocol` has the bytes of each. Lists come in pages.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder, cut};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, IMAGE_BYTES_MAX};
use crate::id::{ImageId, JobId, RegionName};
use crate::job::{
    JobSpec, Progress, decode_attributes, decode_limits, encode_attributes, encode_limits,
};
use crate::region::{
    Capabilities, ImageInfo, Located, Outcome, Recovered, Settled, StagedJob, Wish, Wishes,
};
use crate::wire::message::{
    Refusal, Token, decode_digest, decode_flag, decode_image, decode_region, encode_digest,
};

/// The most entries of a page.
pub(crate) const PAGE_COUNT_MAX: usize = 256;
/// A page that is so long takes no further entry.
const PAGE_BYTES: usize = 32 << 10;

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
        }
        out.finish().into()
    }

    /// # Errors
    /// [`ErrorKind::Corrupt`] for what [`Told::encode`] would not make.
    pub(crate) fn decode(body: &Bytes) -> Result<Self> {
        if body.first() == Some(&TOLD_BYTES) {
            return Ok(Self::Bytes(body.slice(1..)));
        }
        let mut from = Decoder::new(body, "answer");
        let told = Self::decode_fields(&mut from)?;
        from.finish()?;
        Ok(told)
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
            _ => return Err(from.corrupt("nobody knows such an answer")),
        })
    }
}

/// The first entries of a list that fit a page, and whether there are more. The list ascends.
pub(crate) fn page_of<T>(
    all: impl Iterator<Item = T>,
    len: impl Fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    let mut all = all.peekable();
    while page.len() < PAGE_COUNT_MAX && bytes < PAGE_BYTES {
        let Some(entry) = all.next() else { break };
        bytes += len(&entry);
        page.push(entry);
    }
    (page, all.peek().is_some())
}

/// How long an entry is on its way.
pub(crate) fn staged_len(job: &StagedJob) -> usize {
    let mut out = Encoder::new();
    put_staged(&mut out, job);
    out.finish().len()
}

/// How long an entry is on its way.
pub(crate) fn recovered_len(settled: &Recovered) -> usize {
    let mut out = Encoder::new();
    put_recovered(&mut out, settled);
    out.finish().len()
}

fn put_page<T>(out: &mut Encoder, page: &[T], more: bool, put: impl Fn(&mut Encoder, &T)) {
    debug_assert!(page.len() <= PAGE_COUNT_MAX, "{} entries in a page", page.len());
    out.u8(u8::from(more)).u16(u16::try_from(page.len()).unwrap_or(u16::MAX));
    page.iter().for_each(|entry| put(out, entry));
}

fn take_page<T>(
    from: &mut Decoder<'_>,
    take: impl Fn(&mut Decoder<'_>) -> Result<T>,
) -> Result<(Vec<T>, bool)> {
    let (more, count) = (decode_flag(from)?, usize::from(from.u16()?));
    if count > PAGE_COUNT_MAX || (more && count == 0) {
        return Err(from.corrupt("a page is too long, or empty and not the last"));
    }
    Ok(((0..count).map(|_| take(from)).collect::<Result<_>>()?, more))
}

fn put_region(out: &mut Encoder, region: &RegionName) {
    out.block(region.as_str().as_bytes());
}

fn put_image(out: &mut Encoder, image: &ImageId) {
    out.block(image.as_str().as_bytes());
}

fn put_place(out: &mut Encoder, region: &RegionName, image: &ImageId) {
    put_region(out, region);
    put_image(out, image);
}

fn put_job(out: &mut Encoder, job: JobId) {
    out.raw(job.as_bytes());
}

fn take_job(from: &mut Decoder<'_>) -> Result<JobId> {
    from.array().map(JobId::from_bytes)
}

fn take_range(from: &mut Decoder<'_>) -> Result<ByteRange> {
    let (offset, len) = (from.u64()?, from.u64()?);
    match offset.checked_add(len).is_some_and(|end| end <= IMAGE_BYTES_MAX) {
        true => Ok(ByteRange::new(offset, len)),
        false => Err(from.corrupt("a range ends past any image")),
    }
}

fn put_info(out: &mut Encoder, info: &ImageInfo) {
    put_image(out, &info.image);
    encode_digest(info.root, out.u64(info.image_bytes));
    out.option(info.job, put_job);
}

fn take_info(from: &mut Decoder<'_>) -> Result<ImageInfo> {
    let mut info = ImageInfo::new(decode_image(from)?, from.u64()?);
    info.root = decode_digest(from)?;
    info.job = from.option(take_job)?;
    Ok(info)
}

fn put_located(out: &mut Encoder, located: Located) {
    match located {
        Located::Absent => drop(out.u8(0)),
        Located::Staged(job) => put_job(out.u8(1), job),
        Located::Committed(job) => drop(out.u8(2).option(job, put_job)),
    }
}

fn take_located(from: &mut Decoder<'_>) -> Result<Located> {
    match from.u8()? {
        0 => Ok(Located::Absent),
        1 => take_job(from).map(Located::Staged),
        2 => from.option(take_job).map(Located::Committed),
        _ => Err(from.corrupt("it is located nowhere")),
    }
}

fn put_staged(out: &mut Encoder, job: &StagedJob) {
    job.spec.encode(out);
    out.u32(job.epoch).u8(u8::from(job.owned)).u8(u8::from(job.cancelled));
    encode_limits(job.limits, out);
    out.option(job.progress.as_ref(), |out, progress| progress.encode(out));
}

fn take_staged(from: &mut Decoder<'_>) -> Result<StagedJob> {
    let mut job = StagedJob::new(JobSpec::decode(from)?);
    job.epoch = from.u32()?;
    (job.owned, job.cancelled) = (decode_flag(from)?, decode_flag(from)?);
    job.limits = decode_limits(from)?;
    job.progress = from.option(Progress::decode)?;
    Ok(job)
}

fn put_recovered(out: &mut Encoder, recovered: &Recovered) {
    put_job(out, recovered.job);
    out.option(recovered.spec.as_ref(), |out, spec| spec.encode(out));
    match &recovered.settled {
        Settled::Running => drop(out.u8(0)),
        Settled::Committed => drop(out.u8(1)),
        Settled::RolledBack => drop(out.u8(2)),
        Settled::Forgotten => drop(out.u8(3)),
        Settled::Kept => drop(out.u8(4)),
        Settled::Failed(error) => Refusal::new(error).encode(out.u8(5)),
    }
}

fn take_recovered(from: &mut Decoder<'_>) -> Result<Recovered> {
    let (job, spec) = (take_job(from)?, from.option(JobSpec::decode)?);
    let settled = match from.u8()? {
        0 => Settled::Running,
        1 => Settled::Committed,
        2 => Settled::RolledBack,
        3 => Settled::Forgotten,
        4 => Settled::Kept,
        5 => Settled::Failed(Refusal::decode(from)?.into_error()),
        _ => return Err(from.corrupt("it was settled in no known way")),
    };
    Ok(Recovered::new(job, spec, settled))
}

/// An answer to another question.
pub(crate) fn astray(told: &Told) -> Error {
    let action = format!("take the answer to a call: it is {told:?}");
    Error::new(ErrorKind::Invalid, cut(&action, 200).to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{JobState, sample_spec};
    use crate::options::Limits;

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
            Call::About(region.clone(), image),
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

    #[test]
    fn pages_end_by_count_and_by_length() {
        let (page, more) = page_of(0..1000, |_| 1);
        assert_eq!((page.len(), more), (PAGE_COUNT_MAX, true));
        let (page, more) = page_of(0..3, |_| PAGE_BYTES);
        assert_eq!((page.len(), more), (1, true), "one always fits");
        let (page, more) = page_of(0..3, |_| 1);
        assert_eq!((page.len(), more), (3, false));
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
