//! The keys of a region in an object store: what is where below its prefix. Pure.
//!
//! ```text
//! images/<image>/head                              who stages it, how that was decided
//! images/<image>/head.<seq>                        the same, where heads are numbered
//! images/<image>/<job>.<epoch>/<index>-<digest>    one chunk, sealed
//! images/<image>/<job>.<epoch>/<index>-<mark>      one chunk of an encrypted image
//! images/<image>/<job>.<epoch>/key-<digest>        the wrapped key of an encrypted image
//! images/<image>/<job>.<epoch>/zeros.<n>           runs of chunks that hold only zeros
//! images/<image>/<job>.<epoch>/manifest            what the image is, where its chunks are
//! jobs/<job>/pulse                                 which image, sign of life, progress
//! jobs/<job>/limits, jobs/<job>/suspend            what others ask of its owner
//! way                                              which way heads are kept, once and for good
//! ```
//!
//! `<seq>` has 16 hexadecimal digits, `<epoch>`, `<index>` and `<n>` have 8, `<digest>` has 64,
//! `<mark>` has 144.

use crate::chunk::Digest;
use crate::geometry::ChunkIndex;
use crate::id::{ImageId, JobId};
use crate::sabotage;

/// What stands for a chunk's digest in the name of an encrypted one.
pub(crate) type Mark = [u8; 72];

/// The most bytes of a wrapped key.
pub(crate) const WRAPPED_KEY_LEN_MAX: u64 = 16 << 10;

/// Where the images are.
pub(crate) const IMAGES: &str = "images/";
/// Where the jobs are.
pub(crate) const JOBS: &str = "jobs/";

/// Where everything of an image is.
pub(crate) fn image(image: &ImageId) -> String {
    format!("{IMAGES}{image}/")
}

/// The head that is swapped in place; what numbered ones begin with, too.
pub(crate) fn head(image: &ImageId) -> String {
    format!("{IMAGES}{image}/head")
}

/// One of the heads that are numbered.
pub(crate) fn numbered_head(image: &ImageId, seq: u64) -> String {
    format!("{IMAGES}{image}/head.{seq:016x}")
}

/// What everything that a job has written of the image begins with.
pub(crate) fn written(image: &ImageId, job: JobId) -> String {
    format!("{IMAGES}{image}/{job}.")
}

/// What everything that one attempt has written begins with.
pub(crate) fn attempt(image: &ImageId, job: JobId, epoch: u32) -> String {
    let epoch = if sabotage::is("M12") { 1 } else { epoch };
    format!("{IMAGES}{image}/{job}.{epoch:08x}/")
}

/// A chunk.
pub(crate) fn chunk(attempt: &str, index: ChunkIndex, digest: &Digest) -> String {
    format!("{}{digest}", chunk_at(attempt, index))
}

/// A chunk of an encrypted image.
pub(crate) fn sealed_chunk(attempt: &str, index: ChunkIndex, mark: &Mark) -> String {
    let mut key = chunk_at(attempt, index);
    mark.iter().for_each(|byte| key.push_str(&format!("{byte:02x}")));
    key
}

/// The wrapped key of an encrypted image, whose bytes have that BLAKE3.
pub(crate) fn wrapped_key(attempt: &str, digest: &Digest) -> String {
    format!("{}{digest}", wrapped_keys(attempt))
}

/// By what a wrapped key is named.
pub(crate) fn digest_of(wrapped: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(wrapped).as_bytes())
}

/// What the keys of wrapped keys begin with.
pub(crate) fn wrapped_keys(attempt: &str) -> String {
    format!("{attempt}key-")
}

/// What the keys of a chunk begin with, whatever its digest.
pub(crate) fn chunk_at(attempt: &str, index: ChunkIndex) -> String {
    format!("{attempt}{:08x}-", index.get())
}

/// A record of zero chunks.
pub(crate) fn zeros(attempt: &str, n: u32) -> String {
    format!("{attempt}zeros.{n:08x}")
}

/// The manifest.
pub(crate) fn manifest(attempt: &str) -> String {
    format!("{attempt}manifest")
}

/// Where what concerns a job is.
pub(crate) fn job(job: JobId) -> String {
    format!("{JOBS}{job}/")
}

/// That its owner lives.
pub(crate) fn pulse(job: JobId) -> String {
    format!("{JOBS}{job}/pulse")
}

/// The ceilings that somebody has set since.
pub(crate) fn limits(job: JobId) -> String {
    format!("{JOBS}{job}/limits")
}

/// The wish to suspend.
pub(crate) fn suspend(job: JobId) -> String {
    format!("{JOBS}{job}/suspend")
}

/// Which way heads are kept here: made once, by whoever claims the first image.
pub(crate) const WAY: &str = "way";

/// Where the store's clock is read off; what is left of it goes with the next look.
pub(crate) const CLOCK: &str = "clock";

/// What a key below an image's folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// A head; its number where it has one.
    Head(Option<u64>),
    /// Something that an attempt has written.
    Part { job: JobId, epoch: u32, part: Part },
    /// Not ours.
    Foreign,
}

/// Something that an attempt has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Chunk {
        index: ChunkIndex,
        digest: Digest,
    },
    /// A chunk of an encrypted image.
    Sealed {
        index: ChunkIndex,
        mark: Mark,
    },
    /// A wrapped key, by the digest of its bytes.
    Key(Digest),
    Zeros(u32),
    Manifest,
    Foreign,
}

/// Reads a key that begins with [`image`]. Every key that is made here reads as what it is, and no
/// other key does.
pub(crate) fn read(image: &ImageId, key: &str) -> Named {
    let below = key.strip_prefix(IMAGES).and_then(|key| key.strip_prefix(image.as_str()));
    let Some(name) = below.and_then(|key| key.strip_prefix('/')) else { return Named::Foreign };
    if name == "head" {
        return Named::Head(None);
    }
    if let Some(seq) = name.strip_prefix("head.") {
        return hex(seq, 16).map_or(Named::Foreign, |seq| Named::Head(Some(seq)));
    }
    let attempt = name.split_once('/').and_then(|(folder, part)| {
        let (job, epoch) = read_attempt(folder)?;
        Some((job, epoch, part))
    });
    match attempt {
        Some((job, epoch, part)) => Named::Part { job, epoch, part: read_part(part) },
        None => Named::Foreign,
    }
}

/// The job, and the number of its attempt, of a folder below an image's.
pub(crate) fn read_attempt(folder: &str) -> Option<(JobId, u32)> {
    let (job, epoch) = folder.split_once('.')?;
    Some((job.parse().ok()?, hex32(epoch)?))
}

fn read_part(name: &str) -> Part {
    if name == "manifest" {
        return Part::Manifest;
    }
    if let Some(n) = name.strip_prefix("zeros.") {
        return hex32(n).map_or(Part::Foreign, Part::Zeros);
    }
    if let Some(digest) = name.strip_prefix("key-") {
        return read_bytes(digest).map(Digest::from_bytes).map_or(Part::Foreign, Part::Key);
    }
    let chunk = name.split_once('-').and_then(|(index, name)| {
        let index = ChunkIndex::new(hex32(index)?);
        let digest = read_bytes(name).map(Digest::from_bytes);
        let plain = digest.map(|digest| Part::Chunk { index, digest });
        plain.or_else(|| read_bytes(name).map(|mark| Part::Sealed { index, mark }))
    });
    chunk.unwrap_or(Part::Foreign)
}

/// Bytes of exactly that number, two digits each.
fn read_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(hex(std::str::from_utf8(pair).ok()?, 2)?).ok()?;
    }
    Some(bytes)
}

fn hex32(text: &str) -> Option<u32> {
    u32::try_from(hex(text, 8)?).ok()
}

/// A number with exactly that many lower-case digits: it has one spelling.
fn hex(text: &str, digits: usize) -> Option<u64> {
    let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let fits = text.len() == digits && text.bytes().all(plain);
    fits.then(|| u64::from_str_radix(text, 16).ok())?
}

/// The job of a folder below [`JOBS`].
pub(crate) fn read_job(folder: &str) -> Option<JobId> {
    folder.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> ImageId {
        "m-1".parse().unwrap()
    }

    const JOB: JobId = JobId::from_bytes([0xab; 16]);

    #[test]
    fn every_key_reads_as_what_it_is() {
        let attempt = attempt(&id(), JOB, 7);
        let digest = Digest::from_bytes([0x5c; 32]);
        let index = ChunkIndex::new(0x12);
        let part = |part| Named::Part { job: JOB, epoch: 7, part };
        let keys = [
            (head(&id()), Named::Head(None)),
            (numbered_head(&id(), 0x1f), Named::Head(Some(0x1f))),
            (chunk(&attempt, index, &digest), part(Part::Chunk { index, digest })),
            (sealed_chunk(&attempt, index, &[7; 72]), part(Part::Sealed { index, mark: [7; 72] })),
            (wrapped_key(&attempt, &digest), part(Part::Key(digest))),
            (zeros(&attempt, 3), part(Part::Zeros(3))),
            (manifest(&attempt), part(Part::Manifest)),
        ];
        for (key, named) in keys {
            assert!(key.starts_with(&image(&id())), "{key}");
            assert_eq!(read(&id(), &key), named, "{key}");
        }
        assert!(chunk(&attempt, index, &digest).starts_with(&chunk_at(&attempt, index)));
        assert!(attempt.starts_with(&written(&id(), JOB)));
        assert_eq!(
            chunk(&attempt, index, &digest),
            format!("images/m-1/{}.00000007/00000012-{}", "ab".repeat(16), "5c".repeat(32))
        );
    }

    #[test]
    fn what_has_another_spelling_is_not_ours() {
        let job = JOB.to_string();
        for name in [
            "head.1",
            "head.000000000000000G",
            "head.000000000000000A",
            "heads",
            "",
            "x",
            &format!("{job}.7/manifest"),
            &format!("{job}.00000007"),
            &format!("{}.00000007/manifest", job.to_uppercase()),
        ] {
            assert_eq!(read(&id(), &format!("images/m-1/{name}")), Named::Foreign, "{name}");
        }
        let key = format!("key-{}", "5C".repeat(32));
        for part in [
            "",
            "x",
            "zeros.1",
            "00000001-",
            "0000001-00",
            "manifest/x",
            "manifest2",
            "key-",
            "key-00",
            &key,
        ] {
            let key = format!("images/m-1/{job}.00000007/{part}");
            let foreign = Named::Part { job: JOB, epoch: 7, part: Part::Foreign };
            assert_eq!(read(&id(), &key), foreign, "{part}");
        }
        assert_eq!(read(&id(), "images/m-11/head"), Named::Foreign);
        assert_eq!(read(&id(), "jobs/m-1/head"), Named::Foreign);
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in "(images/m-1/)?[a-z0-9./-]{0,40}") {
            read(&id(), &key);
        }
    }
}
