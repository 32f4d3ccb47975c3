//! The key file of an encrypted image: its data key, wrapped, and what that is bound to. Pure.

use crate::cipher::Uuid;
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::id::{ImageId, JobId, KeyId};
use crate::keys::WRAPPED_LEN_MAX;

const MAGIC: [u8; 8] = *b"BFKEYBX\0";
const VERSION: u16 = 1;
const SUM_CONTEXT: &str = "blockferry 2026-11-26 key box v1";
const CONTEXT_LABEL: &[u8] = b"blockferry/v1/data-key";
const OBJECT_CONTEXT_LABEL: &[u8] = b"blockferry/v1/object-data-key";

/// A wrapped data key. It is replaced when the image is given another key, and nothing else is.
///
/// | bytes | field |
/// |---|---|
/// | 8 | magic `BFKEYBX\0` |
/// | 2 | version: 1 |
/// | 16 | random name of the encrypted image |
/// | 32 | commitment to the data key |
/// | … | length (4) and bytes of the key's id |
/// | … | length (4) and bytes of the wrapped data key: at most 8,192 |
/// | 32 | checksum: BLAKE3 over everything before |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyBox {
    pub(crate) uuid: Uuid,
    pub(crate) commitment: [u8; 32],
    pub(crate) key: KeyId,
    pub(crate) wrapped: Vec<u8>,
}

/// What a wrapped data key is bound to: an image of that name and shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'a> {
    pub(crate) image: &'a ImageId,
    pub(crate) geometry: Geometry,
    /// In an object store also the job that makes it: there a resume takes up whatever lies in the
    /// folder of an attempt, and what an earlier job has made is not to be put there.
    pub(crate) job: Option<JobId>,
}

/// The same as bytes, with the name of the encrypted image and the commitment to its data key.
pub(crate) fn context_of(uuid: &Uuid, commitment: &[u8; 32], bound: &Bound<'_>) -> Vec<u8> {
    let mut out = Encoder::new();
    out.block(bound.job.map_or(CONTEXT_LABEL, |_| OBJECT_CONTEXT_LABEL)).raw(uuid).raw(commitment);
    out.u64(bound.geometry.image_bytes()).u8(bound.geometry.chunk_size().shift());
    out.block(bound.image.as_str().as_bytes());
    if let Some(job) = bound.job {
        out.raw(job.as_bytes());
    }
    out.finish()
}

impl KeyBox {
    /// The most bytes of a key file.
    pub(crate) const LEN_MAX: u64 = 16 << 10;

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        if self.wrapped.len() > WRAPPED_LEN_MAX {
            return Err(Error::new(ErrorKind::Unsupported, "keep a wrapped data key")
                .hint("its provider wraps keys in more than 8192 bytes"));
        }
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(VERSION).raw(&self.uuid).raw(&self.commitment);
        out.block(self.key.as_str().as_bytes()).block(&self.wrapped);
        let mut bytes = out.finish();
        let sum = blake3::derive_key(SUM_CONTEXT, &bytes);
        bytes.extend_from_slice(&sum);
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(bytes, "key file");
        if from.array()? != MAGIC {
            return Err(from.corrupt("it does not start like one"));
        }
        from.version(VERSION)?;
        let mut from = from.checked(bytes, SUM_CONTEXT)?;
        let (uuid, commitment) = (from.array()?, from.array()?);
        let key = from.text(KeyId::LEN_MAX)?;
        let key = key.parse().map_err(|e| from.corrupt("a key id is malformed").because(e))?;
        let wrapped = from.block(WRAPPED_LEN_MAX)?.to_vec();
        from.finish()?;
        Ok(Self { uuid, commitment, key, wrapped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::samples::{UUID, geometry, hex};

    fn sample() -> KeyBox {
        let key = "k-1".parse().unwrap();
        KeyBox { uuid: UUID, commitment: [2; 32], key, wrapped: vec![9; 5] }
    }

    #[test]
    fn golden_bytes_hold_the_layout_still() {
        let bytes = sample().encode().unwrap();
        assert_eq!(hex(&bytes), GOLDEN.split_whitespace().collect::<String>());
        assert_eq!(KeyBox::decode(&bytes).unwrap(), sample());
        let image = "m".parse().unwrap();
        let bound = Bound { image: &image, geometry: geometry(), job: None };
        let made = Bound { job: Some(JobId::from_bytes([3; 16])), ..bound };
        for (bound, golden) in [(bound, CONTEXT), (made, OBJECT_CONTEXT)] {
            let context = context_of(&UUID, &[2; 32], &bound);
            assert_eq!(hex(&context), golden.split_whitespace().collect::<String>());
        }
    }

    const GOLDEN: &str = "
        42464b4559425800 0100 757569642d757569642d757569642d75
        0202020202020202020202020202020202020202020202020202020202020202
        03000000 6b2d31 05000000 0909090909
        d8ec57f9d8f0d9e4c8f250aa0b5db6a25031413ce24ddb7a4547ed313e30c1a4
    ";
    const CONTEXT: &str = "
        16000000 626c6f636b66657272792f76312f646174612d6b6579 757569642d757569642d757569642d75
        0202020202020202020202020202020202020202020202020202020202020202
        e803040000000000 11 01000000 6d
    ";
    const OBJECT_CONTEXT: &str = "
        1d000000 626c6f636b66657272792f76312f6f626a6563742d646174612d6b6579
        757569642d757569642d757569642d75
        0202020202020202020202020202020202020202020202020202020202020202
        e803040000000000 11 01000000 6d 03030303030303030303030303030303
    ";

    #[test]
    fn damage_anywhere_is_seen_and_a_newer_version_is_told() {
        let bytes = sample().encode().unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let kind = KeyBox::decode(&flipped).unwrap_err().kind();
                let expected = match at {
                    8..=9 if flipped[8..10] != [0, 0] => ErrorKind::Unsupported,
                    _ => ErrorKind::Corrupt,
                };
                assert_eq!(kind, expected, "bit {bit} of byte {at}");
            }
            assert!(KeyBox::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut large = sample();
        large.wrapped = vec![0; WRAPPED_LEN_MAX + 1];
        assert!(large.encode().is_err());
        large.wrapped.pop();
        assert!(crate::geometry::to_u64(large.encode().unwrap().len()) <= KeyBox::LEN_MAX);
    }
}
