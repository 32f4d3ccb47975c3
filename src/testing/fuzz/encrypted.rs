//! What lies in a folder of encrypted images: chunks, key files, keyrings.

use super::{Effort, assert_refusal, cuts, mend_sum};
use crate::chunk::Digest;
use crate::cipher::{ChunkOpener, ImageCipher, KeyBox, SALT_LEN, record_len};
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkSize, Geometry};
use crate::keys::DataKey;
use crate::keys::ring::Ring;

const KEYRING_CONTEXT: &str = "blockferry 2026-11-26 keyring v1";
const KEY_BOX_CONTEXT: &str = "blockferry 2026-11-26 key box v1";
/// A chunk of one cell, as short as the input may be.
const TEXT_LEN: usize = 1000;

fn cipher() -> Result<ImageCipher> {
    let geometry = Geometry::new(1000, ChunkSize::MIN)?;
    Ok(ImageCipher::new([3; 16], geometry, DataKey::from_bytes([7; 32])))
}

/// The one chunk of that image, as it was sealed: its record, then its cell.
fn sealed() -> Result<Vec<u8>> {
    let mut sealer = cipher()?.seal_chunk(ChunkIndex::new(0), 1, [9; SALT_LEN])?;
    let mut cell = vec![5; TEXT_LEN];
    sealer.seal_cell(0, &mut cell)?;
    let (record, _) = sealer.finish(Digest::from_bytes([1; 32]))?;
    Ok([record, cell].concat())
}

fn open(cipher: &ImageCipher, record: &[u8], cell: &mut [u8]) -> Result<ChunkOpener> {
    // As the manifest would vouch for it, were it this record.
    let tag_at = 28 + 32 + 1;
    let mut tag = [0; 16];
    if let Some(own) = record.get(tag_at..tag_at + 16) {
        tag.copy_from_slice(own);
    }
    let opener = cipher.open_chunk(ChunkIndex::new(0), record, &tag)?;
    opener.open_cell(0, cell)?;
    Ok(opener)
}

/// Nothing opens but what was sealed, however it was come by.
pub(super) fn check_chunk(bytes: &[u8], effort: Effort) {
    let (Ok(cipher), Ok(right)) = (cipher(), sealed()) else { return };
    let len = record_len(cipher.geometry());
    let mut lengths: Vec<usize> = cuts(bytes, effort).collect();
    lengths.push(bytes.len());
    for end in lengths {
        let part = &bytes[..end];
        let (record, cell) = part.split_at(len.min(part.len()));
        let mut text = cell.to_vec();
        match open(&cipher, record, &mut text) {
            Ok(opener) => {
                assert!(part == right, "something else was opened");
                assert!(text == [5; TEXT_LEN] && opener.digest() == Digest::from_bytes([1; 32]));
            }
            Err(error) => {
                assert_refusal(&error);
                assert!(part != right, "what was sealed does not open");
            }
        }
    }
    // Of its own record, any other cell.
    let mut text = bytes.to_vec();
    if let Err(error) = open(&cipher, &right[..len], &mut text) {
        assert_refusal(&error);
        assert!(text.iter().all(|byte| *byte == 0), "what does not verify is wiped");
    }
}

pub(super) fn chunk_seeds() -> Vec<Vec<u8>> {
    let Ok(right) = sealed() else { return Vec::new() };
    let mut flipped = right.clone();
    flipped[right.len() - 1] ^= 1;
    let cell = right[right.len() - TEXT_LEN..].to_vec();
    vec![right, flipped, cell]
}

pub(super) fn check_keyring(bytes: &[u8], effort: Effort) {
    check_ring(bytes, effort);
    let mut mended = bytes.to_vec();
    mend_sum(&mut mended, 32, KEYRING_CONTEXT);
    check_ring(&mended, effort);
}

fn check_ring(bytes: &[u8], effort: Effort) {
    let ring = match Ring::decode(bytes) {
        Ok(ring) => ring,
        Err(error) => return assert_refusal(&error),
    };
    assert!(ring.encode()[..] == *bytes, "written otherwise: {ring:?}");
    for len in cuts(bytes, effort) {
        let mut part = bytes[..len].to_vec();
        assert!(Ring::decode(&part).is_err(), "cut at {len}");
        mend_sum(&mut part, 32, KEYRING_CONTEXT);
        assert!(Ring::decode(&part).is_err(), "cut at {len}, with a sum that holds");
    }
}

pub(super) fn keyring_seeds() -> Vec<Vec<u8>> {
    let mut ring = Ring::default();
    let mut seeds = vec![ring.encode().to_vec()];
    let ids = ["a", "alias/images", "acs:kms:cn-hangzhou:1:key/2"];
    for (id, seed) in ids.into_iter().zip(1..) {
        let Ok(id) = id.parse() else { continue };
        ring.add(&id, DataKey::from_bytes([seed; 32]), 7).ok();
        ring.rotate(&id, DataKey::from_bytes([seed + 9; 32]), 8).ok();
        seeds.push(ring.encode().to_vec());
    }
    seeds
}

pub(super) fn check_key_file(bytes: &[u8], effort: Effort) {
    check_box(bytes, effort);
    let mut mended = bytes.to_vec();
    mend_sum(&mut mended, 32, KEY_BOX_CONTEXT);
    check_box(&mended, effort);
}

fn check_box(bytes: &[u8], effort: Effort) {
    let key_box = match KeyBox::decode(bytes) {
        Ok(key_box) => key_box,
        Err(error) => return assert_refusal(&error),
    };
    assert!(key_box.encode().is_ok_and(|again| again == bytes), "written otherwise");
    for len in cuts(bytes, effort) {
        let mut part = bytes[..len].to_vec();
        assert!(KeyBox::decode(&part).is_err(), "cut at {len}");
        mend_sum(&mut part, 32, KEY_BOX_CONTEXT);
        assert!(KeyBox::decode(&part).is_err(), "cut at {len}, with a sum that holds");
    }
    let context = b"a context";
    if let Ok(key) = "a".parse()
        && let Err(error) = Ring::default().open(&key, &key_box.wrapped, context)
    {
        assert!(error.report().len() < 2048, "an error has a bound");
    }
}

pub(super) fn key_file_seeds() -> Vec<Vec<u8>> {
    let wrapped = |len: usize| -> Option<Vec<u8>> {
        let key = "alias/images".parse().ok()?;
        let key_box = KeyBox { uuid: [1; 16], commitment: [2; 32], key, wrapped: vec![3; len] };
        key_box.encode().ok()
    };
    [wrapped(0), wrapped(65), wrapped(300)].into_iter().flatten().collect()
}
