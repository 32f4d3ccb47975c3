//! Manifests: what is decoded is what would be written, and nothing less is a manifest.

use super::{Effort, assert_refusal, cuts, mend_sum};
use crate::chunk::{Content, Digest};
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_usize};
use crate::id::JobId;
use crate::manifest::{Manifest, TableBuilder};

const ROOT_CONTEXT: &str = "blockferry 2026-11-21 image root v1";
const CHECKSUM_CONTEXT: &str = "blockferry 2026-11-21 manifest v1";

pub(super) fn check(bytes: &[u8], effort: Effort) {
    // The chunk table of a large image takes milliseconds: one input in sixteen may have one.
    let large = chunk_count(bytes).is_some_and(|count| count > 1 << 12);
    if large && bytes.last().is_none_or(|last| last % 16 != 0) {
        return;
    }
    check_cuts(bytes, effort);
    let mended = mended(bytes);
    if mended != bytes {
        check_cuts(&mended, effort);
    }
}

fn check_cuts(bytes: &[u8], effort: Effort) {
    let manifest = match Manifest::decode_from(&mut &bytes[..]) {
        Ok(manifest) => manifest,
        Err(error) => return assert_refusal(&error),
    };
    let mut again = Vec::with_capacity(bytes.len());
    assert!(manifest.encode_to(&mut again).is_ok());
    assert!(again == bytes, "written otherwise: {manifest:?}");
    drop(manifest);
    for len in cuts(bytes, effort) {
        assert!(Manifest::decode_from(&mut &bytes[..len]).is_err(), "cut at {len}");
    }
    again.push(0);
    assert!(Manifest::decode_from(&mut &again[..]).is_err(), "a byte more");
}

fn chunk_count(bytes: &[u8]) -> Option<u64> {
    let shift = u32::from(*bytes.get(10)?);
    let image_bytes = u64::from_le_bytes(bytes.get(12..20)?.try_into().ok()?);
    image_bytes.checked_shr(shift)
}

/// Root and checksum put right.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(root) = root_of(&bytes) {
        let at = bytes.len() - 64;
        bytes[at..at + 32].copy_from_slice(&root);
    }
    mend_sum(&mut bytes, 32, CHECKSUM_CONTEXT);
    bytes
}

/// BLAKE3 over image size, chunk size and runs, wherever these bytes say that the runs are.
fn root_of(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut at = if *bytes.get(20)? == 1 { 37 } else { 21 };
    let attributes = u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    at += 2;
    for _ in 0..u32::from(attributes) * 2 {
        let len = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
        at = at.checked_add(4 + to_usize(u64::from(len)))?;
    }
    let runs = bytes.get(at.checked_add(4)?..bytes.len().checked_sub(64)?)?;
    let chunk_bytes = 1_u64.checked_shl(u32::from(bytes[10]))?;
    let covered = [&bytes[12..20], &chunk_bytes.to_le_bytes(), runs].concat();
    Some(blake3::derive_key(ROOT_CONTEXT, &covered))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let one = |chunks: &[bool], attributes: &[(&str, &str)], job| -> Option<Vec<u8>> {
        let count = u32::try_from(chunks.len()).ok()?;
        let image_bytes = u64::from(count) * ChunkSize::MIN.bytes();
        let mut table = TableBuilder::new(Geometry::new(image_bytes, ChunkSize::MIN).ok()?);
        for (index, data) in (0..count).zip(chunks) {
            let content = Content::Data { digest: Digest::from_bytes([7; 32]), data_bytes: 1 };
            let content = if *data { content } else { Content::Zero };
            table.put(ChunkRun::new(ChunkIndex::new(index), 1), content);
        }
        let attributes = attributes.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let manifest = Manifest::new(table.finish()?, job, attributes.collect()).ok()?;
        let mut bytes = Vec::new();
        manifest.encode_to(&mut bytes).ok()?;
        Some(bytes)
    };
    let job = Some(JobId::from_bytes([0x11; 16]));
    let mixed = [false, true, true, false, true];
    let named = [("arch", "x86_64"), ("empty", "")];
    [one(&[], &[], None), one(&[true], &[], job), one(&mixed, &named, job), one(&[false], &[], job)]
        .into_iter()
        .flatten()
        .collect()
}
