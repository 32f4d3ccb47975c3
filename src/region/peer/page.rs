//! Lists that come in pages, and what stands in them. Pure.

use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobSpec, Progress, decode_limits, encode_limits};
use crate::region::{ImageInfo, Located, Recovered, Settled, StagedJob};
use crate::wire::message::{Refusal, decode_digest, decode_flag, decode_image, encode_digest};

use super::call::{put_image, put_job, take_job};

/// The most entries of a page.
const PAGE_COUNT_MAX: usize = 256;
/// A page that is so long takes no further entry.
const PAGE_BYTES: usize = 32 << 10;

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

pub(super) fn put_page<T>(
    out: &mut Encoder,
    page: &[T],
    more: bool,
    put: impl Fn(&mut Encoder, &T),
) {
    debug_assert!(page.len() <= PAGE_COUNT_MAX, "{} entries in a page", page.len());
    out.u8(u8::from(more)).u16(u16::try_from(page.len()).unwrap_or(u16::MAX));
    page.iter().for_each(|entry| put(out, entry));
}

pub(super) fn take_page<T>(
    from: &mut Decoder<'_>,
    take: impl Fn(&mut Decoder<'_>) -> Result<T>,
) -> Result<(Vec<T>, bool)> {
    let (more, count) = (decode_flag(from)?, usize::from(from.u16()?));
    if count > PAGE_COUNT_MAX || (more && count == 0) {
        return Err(from.corrupt("a page is too long, or empty and not the last"));
    }
    Ok(((0..count).map(|_| take(from)).collect::<Result<_>>()?, more))
}

/// Counts the pages of a list: one side must not have the other read for ever.
#[derive(Debug, Default)]
pub(crate) struct Pages(usize);

impl Pages {
    /// One more came.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for more than a million entries, as far as full pages go.
    pub(crate) fn turn(&mut self) -> Result<()> {
        self.0 += 1;
        if self.0 <= PAGES_MAX {
            return Ok(());
        }
        let action = format!("read a list of another daemon: it has more than {PAGES_MAX} pages");
        Err(Error::new(ErrorKind::Unsupported, action))
    }
}

const PAGES_MAX: usize = 4096;

pub(super) fn put_info(out: &mut Encoder, info: &ImageInfo) {
    put_image(out, &info.image);
    encode_digest(info.root, out.u64(info.image_bytes));
    out.option(info.job, put_job);
}

pub(super) fn take_info(from: &mut Decoder<'_>) -> Result<ImageInfo> {
    let mut info = ImageInfo::new(decode_image(from)?, from.u64()?);
    info.root = decode_digest(from)?;
    info.job = from.option(take_job)?;
    Ok(info)
}

pub(super) fn put_located(out: &mut Encoder, located: Located) {
    match located {
        // Peers have no word for what is remembered.
        Located::Absent | Located::Cancelled(_) => drop(out.u8(0)),
        Located::Staged(job) => put_job(out.u8(1), job),
        Located::Committed(job) => drop(out.u8(2).option(job, put_job)),
    }
}

pub(super) fn take_located(from: &mut Decoder<'_>) -> Result<Located> {
    match from.u8()? {
        0 => Ok(Located::Absent),
        1 => take_job(from).map(Located::Staged),
        2 => from.option(take_job).map(Located::Committed),
        _ => Err(from.corrupt("it is located nowhere")),
    }
}

pub(super) fn put_staged(out: &mut Encoder, job: &StagedJob) {
    job.spec.encode(out);
    out.u32(job.epoch).u8(u8::from(job.owned)).u8(u8::from(job.cancelled));
    encode_limits(job.limits, out);
    out.option(job.progress.as_ref(), |out, progress| progress.encode(out));
}

pub(super) fn take_staged(from: &mut Decoder<'_>) -> Result<StagedJob> {
    let mut job = StagedJob::new(JobSpec::decode(from)?);
    job.epoch = from.u32()?;
    (job.owned, job.cancelled) = (decode_flag(from)?, decode_flag(from)?);
    job.limits = decode_limits(from)?;
    job.progress = from.option(Progress::decode)?;
    Ok(job)
}

pub(super) fn put_recovered(out: &mut Encoder, recovered: &Recovered) {
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

pub(super) fn take_recovered(from: &mut Decoder<'_>) -> Result<Recovered> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_by_count_and_by_length() {
        let (page, more) = page_of(0..1000, |_| 1);
        assert_eq!((page.len(), more), (PAGE_COUNT_MAX, true));
        let (page, more) = page_of(0..3, |_| PAGE_BYTES);
        assert_eq!((page.len(), more), (1, true), "one always fits");
        let (page, more) = page_of(0..3, |_| 1);
        assert_eq!((page.len(), more), (3, false));
    }

    #[test]
    fn a_list_ends_some_time() {
        let mut pages = Pages::default();
        for _ in 0..PAGES_MAX {
            pages.turn().unwrap();
        }
        assert_eq!(pages.turn().unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
