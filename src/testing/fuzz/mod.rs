//! Bodies of the fuzz targets: what must hold of any bytes that come from outside.
//!
//! `fuzz/` runs each over what a fuzzer thinks up, `tests/corpus.rs` over the files that are
//! checked in. A body that takes checksummed bytes looks at them twice: as they are, and with their
//! sums put right, because no fuzzer finds a hash. The sums are computed here, from the manual's
//! byte tables, so that the code under test stays as it ships.

#[cfg(feature = "clouds")]
mod cloud;
#[cfg(feature = "encrypt")]
mod encrypted;
mod image_path;
mod journal;
mod manifest;
#[cfg(feature = "object")]
mod object;
mod record;
mod slot;
mod text;

#[cfg(feature = "peer")]
use super::fuzz_wire;
use crate::error::{Error, ErrorKind};

/// One target.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Body {
    /// Its name: that of the target, and of the folder of its corpus.
    pub name: &'static str,
    /// Asserts what must hold of those bytes.
    pub run: fn(&[u8], Effort),
    /// How many bytes of heap a decoder may hold for an input of that length: what is configured,
    /// and what the input pays for. A run may take twice as much, since it also looks on. Asked
    /// before the run, so that what all runs share can be made first.
    pub window: fn(usize) -> usize,
    /// Inputs to begin with, made by the crate's own writers.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// How much is tried with one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Cut at one place: a fuzzer has other inputs to try.
    Quick,
    /// Cut at every place.
    Thorough,
}

/// Every target.
pub const BODIES: &[Body] = &[
    // The request, and what one dialect after the other reads of it: a list of short texts takes
    // more room than they.
    #[cfg(feature = "clouds")]
    Body {
        name: "cloud_body",
        run: |bytes, _| cloud::check_body(bytes),
        window: |len| (32 << 10) + 32 * len,
        seeds: cloud::body_seeds,
    },
    // The request itself, and for each scheme what it signs: names and values, three times as long.
    #[cfg(feature = "clouds")]
    Body {
        name: "cloud_request",
        run: |bytes, _| cloud::check(bytes),
        window: |len| (64 << 10) + 64 * len,
        seeds: cloud::seeds,
    },
    // The cell, the record, and each once more.
    #[cfg(feature = "encrypt")]
    Body {
        name: "encrypted_chunk",
        run: encrypted::check_chunk,
        window: |len| (512 << 10) + 8 * len,
        seeds: encrypted::chunk_seeds,
    },
    // One frame at its longest, in pieces and whole, and as often decoded.
    #[cfg(feature = "peer")]
    Body {
        name: "frame_stream",
        run: |bytes, _| fuzz_wire::frame_stream(bytes),
        window: |len| (16 << 10) + 8 * len,
        seeds: fuzz_wire::of_frames,
    },
    #[cfg(feature = "object")]
    Body {
        name: "head_record",
        run: object::check_head,
        window: |len| (16 << 10) + 4 * len,
        seeds: object::head_seeds,
    },
    Body {
        name: "image_path",
        run: image_path::check,
        window: |len| (16 << 10) + 8 * len,
        seeds: image_path::seeds,
    },
    Body {
        name: "job_record",
        run: record::check,
        window: |len| (16 << 10) + 4 * len,
        seeds: record::seeds,
    },
    Body { name: "journal", run: journal::check, window: journal::window, seeds: journal::seeds },
    #[cfg(feature = "encrypt")]
    Body {
        name: "key_file",
        run: encrypted::check_key_file,
        window: |len| (32 << 10) + 4 * len,
        seeds: encrypted::key_file_seeds,
    },
    #[cfg(feature = "encrypt")]
    Body {
        name: "keyring",
        run: encrypted::check_keyring,
        window: |len| (16 << 10) + 16 * len,
        seeds: encrypted::keyring_seeds,
    },
    #[cfg(feature = "object")]
    Body {
        name: "listing",
        run: object::check_listing,
        window: |len| (16 << 10) + 8 * len,
        seeds: object::listing_seeds,
    },
    Body {
        name: "location",
        run: text::check_location,
        window: |len| (4 << 10) + 8 * len,
        seeds: text::location_seeds,
    },
    // What `Manifest::decode_from` promises is 33 MiB in all: half of it here.
    Body {
        name: "manifest",
        run: manifest::check,
        window: |len| (33 << 19) + 2 * len,
        seeds: manifest::seeds,
    },
    #[cfg(feature = "object")]
    Body {
        name: "sealed_image",
        run: object::check_sealed_image,
        window: |len| (16 << 10) + 8 * len,
        seeds: object::sealed_image_seeds,
    },
    #[cfg(feature = "peer")]
    Body {
        name: "session_pair",
        run: |bytes, _| fuzz_wire::session_pair(bytes),
        window: |_| fuzz_wire::session_window(512 << 10),
        seeds: fuzz_wire::of_scripts,
    },
    #[cfg(feature = "peer")]
    Body {
        name: "session_receiver",
        run: |bytes, _| fuzz_wire::session_receiver(bytes),
        window: |_| fuzz_wire::session_window(512 << 10),
        seeds: fuzz_wire::of_scripts,
    },
    #[cfg(feature = "peer")]
    Body {
        name: "session_sender",
        run: |bytes, _| fuzz_wire::session_sender(bytes),
        window: |_| fuzz_wire::session_window(512 << 10),
        seeds: fuzz_wire::of_scripts,
    },
    Body {
        name: "size",
        run: text::check_size,
        window: |len| (4 << 10) + 4 * len,
        seeds: text::size_seeds,
    },
    Body { name: "slot", run: slot::check, window: |_| 4 << 10, seeds: slot::seeds },
    #[cfg(feature = "peer")]
    Body {
        name: "zstd_chunk",
        run: |bytes, _| fuzz_wire::zstd_chunk(bytes),
        window: |len| (128 << 10) + 4 * len,
        seeds: fuzz_wire::of_chunks,
    },
];

/// The target of that name.
pub fn body(name: &str) -> Option<&'static Body> {
    BODIES.iter().find(|body| body.name == name)
}

/// Lengths to which an input of `bytes` is cut.
fn cuts(bytes: &[u8], effort: Effort) -> impl Iterator<Item = usize> {
    const CUTS_MAX: usize = 4096;
    let (first, step) = match effort {
        Effort::Thorough => (0, bytes.len().div_ceil(CUTS_MAX).max(1)),
        Effort::Quick => {
            let mix =
                |hash: usize, byte: &u8| hash.wrapping_mul(31).wrapping_add(usize::from(*byte));
            let at = bytes.iter().fold(7, mix).checked_rem(bytes.len()).unwrap_or(0);
            (at, bytes.len().max(1))
        }
    };
    (first..bytes.len()).step_by(step)
}

/// Puts a checksum right that ends the bytes.
fn mend_sum(bytes: &mut [u8], sum_len: usize, context: &str) {
    if let Some(body_len) = bytes.len().checked_sub(sum_len) {
        let (body, sum) = bytes.split_at_mut(body_len);
        sum.copy_from_slice(&blake3::derive_key(context, body)[..sum_len]);
    }
}

/// A decoder refuses with one of two kinds, and in few words.
fn assert_refusal(error: &Error) {
    let kind = error.kind();
    assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{}", error.report());
    assert_brief(error);
}

/// An error message has a bound, whatever it quotes.
fn assert_brief(error: &Error) {
    assert!(error.report().len() < 2048, "an error of {} bytes", error.report().len());
}

/// A job with something in each of its fields.
fn sample_spec() -> Option<crate::job::JobSpec> {
    use crate::geometry::{ChunkSize, Geometry};
    use crate::job::{Endpoint, Fingerprint, JobSpec};
    let source = Endpoint::new("file:///a".parse().ok()?, "image".parse().ok()?);
    let target = Endpoint::new("dir:///b".parse().ok()?, "m-1".parse().ok()?);
    let geometry = Geometry::new(1_000_003, ChunkSize::MIN).ok()?;
    let fingerprint = Fingerprint::new().with("inode", 7).with("size", 1_000_003);
    let job = crate::id::JobId::from_bytes([0x11; 16]);
    let mut spec = JobSpec::new(job, source, target, geometry, fingerprint);
    spec.verify = crate::options::Verify::Sample { per_million: 50_000 };
    spec.limits = crate::options::Limits::NONE.with_bytes_per_sec(1 << 20);
    spec.token = Some(crate::chunk::Digest::from_bytes([9; 32]));
    spec.attributes.insert("arch".into(), "x86_64".into());
    spec.attributes.insert("os".into(), String::new());
    Some(spec)
}
