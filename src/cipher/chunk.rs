//! One chunk of an encrypted image: cells that are encrypted in place, and the record that vouches
//! for them. Pure.

use crate::chunk::Digest;
use crate::cipher::refused;
use crate::cipher::{
    CELL_BYTES, CHUNK_INFO, ImageCipher, MessageKey, SALT_LEN, Salt, TAG_LEN, Tag,
};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, Geometry, to_u64, to_usize};
use crate::sabotage;

/// The format of cells and records.
const FORMAT: u8 = 1;
/// How chunks are coded before they are encrypted: not at all.
const CODEC_NONE: u8 = 0;
const DIGEST_LEN: usize = 32;
/// Salt and epoch, in clear.
const HEAD_LEN: usize = SALT_LEN + 4;
/// The message of a chunk that holds its record: cells are counted from 0, at most 1,024.
pub(super) const RECORD_NUMBER: u32 = u32::MAX;
/// What each message is bound to.
pub(super) const AAD_LEN: usize = 56;

/// How many cells a chunk of full length has.
fn cell_count(geometry: Geometry) -> usize {
    to_usize(geometry.chunk_size().bytes()) / CELL_BYTES
}

/// How many bytes the record of one chunk of such an image has, whatever it holds.
///
/// | bytes | field |
/// |---|---|
/// | 24 | salt |
/// | 4 | epoch of the write |
/// | 32 + n | encrypted: digest, and a bit for each cell that holds data (n bytes) |
/// | 16 | tag over that, bound to all the tags that follow |
/// | 16 a cell | the tag of each cell; zeros where it holds no data |
pub(crate) fn record_len(geometry: Geometry) -> usize {
    let cells = cell_count(geometry);
    HEAD_LEN + DIGEST_LEN + cells.div_ceil(8) + TAG_LEN + cells * TAG_LEN
}

/// What all messages of one write of one chunk are bound to. They are not compressed, unless
/// whoever writes them says so.
pub(super) fn bound_to(
    cipher: &ImageCipher,
    format: u8,
    index: ChunkIndex,
    epoch: u32,
) -> [u8; AAD_LEN] {
    let geometry = cipher.geometry;
    let mut aad = [0; AAD_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        aad[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let image_bytes = if sabotage::is("M21") { 0 } else { geometry.image_bytes() };
    let number = if sabotage::is("M20") { 0 } else { index.get() };
    let is_last = index.get() + 1 == geometry.chunk_count();
    put(&[format, CODEC_NONE, geometry.chunk_size().shift(), u8::from(is_last)]);
    put(&cipher.uuid);
    put(&image_bytes.to_le_bytes());
    put(&epoch.to_le_bytes());
    put(&number.to_le_bytes());
    put(&u32::try_from(geometry.range(index).len).unwrap_or(u32::MAX).to_le_bytes());
    debug_assert_eq!(at, AAD_LEN - 16, "what is bound to all messages of a chunk");
    aad
}

/// The same, of one message: with its number, its length, and whether it is the last.
pub(super) fn of_message(
    mut aad: [u8; AAD_LEN],
    number: u32,
    len: usize,
    is_last: bool,
) -> [u8; AAD_LEN] {
    let at = AAD_LEN - 16;
    aad[at..at + 4].copy_from_slice(&number.to_le_bytes());
    aad[at + 4..at + 12].copy_from_slice(&to_u64(len).to_le_bytes());
    aad[at + 12] = u8::from(is_last);
    aad
}

/// Where the messages of one write of one chunk belong.
struct Bound {
    key: MessageKey,
    aad: [u8; AAD_LEN],
    geometry: Geometry,
    index: ChunkIndex,
}

impl Bound {
    fn new(cipher: &ImageCipher, index: ChunkIndex, epoch: u32, salt: &Salt) -> Result<Self> {
        let key = cipher.message_key(salt, CHUNK_INFO)?;
        let aad = bound_to(cipher, FORMAT, index, epoch);
        Ok(Self { key, aad, geometry: cipher.geometry, index })
    }

    /// The associated data of message `number`: with its own number and length.
    fn aad(&self, number: u32, len: usize) -> [u8; AAD_LEN] {
        let is_last = to_usize(u64::from(number)) + 1 == self.cells();
        of_message(self.aad, number, len, is_last)
    }

    /// How many cells this chunk has.
    fn cells(&self) -> usize {
        to_usize(self.geometry.range(self.index).len).div_ceil(CELL_BYTES)
    }

    /// How long that cell is; 0 past the chunk.
    fn cell_len(&self, cell: usize) -> usize {
        let len = to_usize(self.geometry.range(self.index).len);
        len.saturating_sub(cell * CELL_BYTES).min(CELL_BYTES)
    }

    /// The record's associated data: that of a message, and all the cells' tags.
    fn record_aad(&self, len: usize, tags: &[u8]) -> Vec<u8> {
        [&self.aad(RECORD_NUMBER, len)[..], tags].concat()
    }
}

/// Encrypts one write of one chunk.
pub(crate) struct ChunkSealer {
    bound: Bound,
    salt: Salt,
    epoch: u32,
    bitmap: Vec<u8>,
    tags: Vec<u8>,
}

impl ImageCipher {
    /// Begins a write of a chunk. The salt must be random, and must not have been used before.
    pub(crate) fn seal_chunk(
        &self,
        index: ChunkIndex,
        epoch: u32,
        salt: Salt,
    ) -> Result<ChunkSealer> {
        let cells = cell_count(self.geometry);
        Ok(ChunkSealer {
            bound: Bound::new(self, index, epoch, &salt)?,
            salt,
            epoch,
            bitmap: vec![0; cells.div_ceil(8)],
            tags: vec![0; cells * TAG_LEN],
        })
    }

    /// Opens a chunk by its record. `expected`: the tag that somebody trusted has of it.
    pub(crate) fn open_chunk(
        &self,
        index: ChunkIndex,
        record: &[u8],
        expected: &Tag,
    ) -> Result<ChunkOpener> {
        if record.len() != record_len(self.geometry) {
            return Err(refused("the record of a chunk"));
        }
        let (head, rest) = record.split_at(HEAD_LEN);
        let text_len = DIGEST_LEN + cell_count(self.geometry).div_ceil(8);
        let (text, rest) = rest.split_at(text_len);
        let (tag, tags) = rest.split_at(TAG_LEN);
        // Not secret: it is what anybody can read. A record of another write of this chunk is told
        // here; any other does not decrypt.
        if tag != expected {
            return Err(refused("the record of a chunk"));
        }
        let (salt, epoch) = head.split_at(SALT_LEN);
        let salt = array(salt)?;
        let bound = Bound::new(self, index, u32::from_le_bytes(array(epoch)?), &salt)?;
        let mut text = text.to_vec();
        let aad = bound.record_aad(text.len(), tags);
        let opened = bound.key.open(RECORD_NUMBER, &aad, expected, &mut text);
        opened.map_err(|_| refused("the record of a chunk"))?;
        let (digest, bitmap) = text.split_at(DIGEST_LEN);
        let digest = Digest::from_bytes(array(digest)?);
        Ok(ChunkOpener { bound, digest, bitmap: bitmap.to_vec(), tags: tags.to_vec() })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| refused("the record of a chunk"))
}

impl ChunkSealer {
    pub(crate) fn index(&self) -> ChunkIndex {
        self.bound.index
    }

    /// Encrypts one cell in place. Each at most once: a second text under the same key and nonce
    /// would give both away.
    pub(crate) fn seal_cell(&mut self, cell: usize, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() || bytes.len() != self.bound.cell_len(cell) || self.holds(cell) {
            let what = format!("encrypt cell {cell} of chunk {}", self.bound.index);
            return Err(Error::new(ErrorKind::Invalid, what)
                .hint("a cell is encrypted whole, and once in a write"));
        }
        let number = u32::try_from(cell).unwrap_or(RECORD_NUMBER);
        let aad = self.bound.aad(number, bytes.len());
        let tag = self.bound.key.seal(number, &aad, bytes)?;
        self.bitmap[cell / 8] |= 1 << (cell % 8);
        self.tags[cell * TAG_LEN..][..TAG_LEN].copy_from_slice(&tag);
        Ok(())
    }

    fn holds(&self, cell: usize) -> bool {
        self.bitmap[cell / 8] & (1 << (cell % 8)) != 0
    }

    /// The record of the chunk, whose text has that digest; cells that were not sealed are zeros.
    pub(crate) fn finish(self, digest: Digest) -> Result<(Vec<u8>, Tag)> {
        let mut text = [&digest.as_bytes()[..], &self.bitmap].concat();
        let aad = self.bound.record_aad(text.len(), &self.tags);
        let tag = self.bound.key.seal(RECORD_NUMBER, &aad, &mut text)?;
        let epoch = self.epoch.to_le_bytes();
        let record = [&self.salt[..], &epoch, &text, &tag, &self.tags].concat();
        debug_assert_eq!(
            record.len(),
            record_len(self.bound.geometry),
            "records are of one length"
        );
        Ok((record, tag))
    }
}

/// Decrypts the cells of one chunk.
pub(crate) struct ChunkOpener {
    bound: Bound,
    digest: Digest,
    bitmap: Vec<u8>,
    tags: Vec<u8>,
}

impl ChunkOpener {
    pub(crate) fn index(&self) -> ChunkIndex {
        self.bound.index
    }

    /// The digest of the chunk's text.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether that cell holds data; otherwise it is zeros, whatever lies where it would be.
    pub(crate) fn holds(&self, cell: usize) -> bool {
        self.bitmap.get(cell / 8).is_some_and(|byte| byte & (1 << (cell % 8)) != 0)
    }

    /// Decrypts one whole cell in place; one that does not verify is wiped.
    pub(crate) fn open_cell(&self, cell: usize, bytes: &mut [u8]) -> Result<()> {
        let what = || refused(&format!("cell {cell} of chunk {}", self.bound.index));
        if !self.holds(cell) || bytes.len() != self.bound.cell_len(cell) {
            bytes.fill(0);
            return Err(what());
        }
        let number = u32::try_from(cell).unwrap_or(RECORD_NUMBER);
        let aad = self.bound.aad(number, bytes.len());
        let tag: Tag = array(&self.tags[cell * TAG_LEN..][..TAG_LEN])?;
        self.bound.key.open(number, &aad, &tag, bytes).map_err(|_| what())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::samples::{UUID, cipher, geometry, hex};
    use crate::geometry::ChunkSize;
    use crate::keys::DataKey;

    fn text(seed: u8, len: usize) -> Vec<u8> {
        let mut state = u64::from(seed) + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            state.to_le_bytes()[7]
        };
        (0..len).map(|_| next()).collect()
    }

    /// A chunk as it lies: its cells, and its record with the tag.
    struct Lying {
        index: ChunkIndex,
        cells: Vec<Vec<u8>>,
        record: Vec<u8>,
        tag: Tag,
    }

    fn digest() -> Digest {
        Digest::from_bytes([0xdd; 32])
    }

    fn sealed(cipher: &ImageCipher, index: u32, epoch: u32, salt: u8, text: &[u8]) -> Lying {
        let index = ChunkIndex::new(index);
        let mut sealer = cipher.seal_chunk(index, epoch, [salt; SALT_LEN]).unwrap();
        let mut cells: Vec<Vec<u8>> = text.chunks(CELL_BYTES).map(<[u8]>::to_vec).collect();
        for (cell, bytes) in cells.iter_mut().enumerate() {
            sealer.seal_cell(cell, bytes).unwrap();
        }
        let (record, tag) = sealer.finish(digest()).unwrap();
        Lying { index, cells, record, tag }
    }

    /// The text, when everything verifies.
    fn opened(cipher: &ImageCipher, lying: &Lying) -> Result<Vec<u8>> {
        let opener = cipher.open_chunk(lying.index, &lying.record, &lying.tag)?;
        assert_eq!(opener.digest(), digest());
        let mut text = Vec::new();
        for (cell, bytes) in lying.cells.iter().enumerate() {
            let mut bytes = bytes.clone();
            opener.open_cell(cell, &mut bytes)?;
            text.extend(bytes);
        }
        Ok(text)
    }

    fn refusal<T>(result: Result<T>) -> bool {
        result.err().is_some_and(|error| error.kind() == ErrorKind::Corrupt)
    }

    #[test]
    fn golden_bytes_hold_cells_and_records_still() {
        let text = text(1, 1000);
        let lying = sealed(&cipher(), 2, 3, 9, &text);
        assert_eq!(hex(&lying.cells[0][..32]), GOLDEN_CELL);
        assert_eq!(hex(&lying.record), GOLDEN_RECORD.split_whitespace().collect::<String>());
        assert_eq!(opened(&cipher(), &lying).unwrap(), text);
    }

    /// As another implementation has them: AES-GCM of OpenSSL, by way of Python.
    const GOLDEN_CELL: &str = "6e9247622126243be8280662bf3627b11e6db7d17cabf567c7d02e92ca19d796";
    const GOLDEN_RECORD: &str = "
        090909090909090909090909090909090909090909090909030000004f18f5855afa35f045a3a0f7
        ad7451065151935aa6801aa3a1547b077eb145600505ac053f8d8fbe26ad3fa7af3d45e939cd6673
        47d440f6f095b184daf251b28200000000000000000000000000000000
    ";

    #[test]
    fn chunks_come_back_and_cells_that_were_left_out_are_none() {
        let text = text(1, 128 << 10);
        let lying = sealed(&cipher(), 0, 1, 2, &text);
        assert_eq!(opened(&cipher(), &lying).unwrap(), text);
        assert_ne!(lying.cells.concat()[..64], text[..64]);
        let mut sealer = cipher().seal_chunk(ChunkIndex::new(0), 1, [3; SALT_LEN]).unwrap();
        let mut second = text[CELL_BYTES..].to_vec();
        sealer.seal_cell(1, &mut second).unwrap();
        let (record, tag) = sealer.finish(digest()).unwrap();
        let opener = cipher().open_chunk(ChunkIndex::new(0), &record, &tag).unwrap();
        assert!(!opener.holds(0) && opener.holds(1) && !opener.holds(2) && !opener.holds(5000));
        assert!(refusal(opener.open_cell(0, &mut vec![0; CELL_BYTES])));
        opener.open_cell(1, &mut second).unwrap();
        assert_eq!(second, text[CELL_BYTES..]);
    }

    #[test]
    fn a_cell_is_sealed_whole_and_once() {
        let mut sealer = cipher().seal_chunk(ChunkIndex::new(2), 1, [3; SALT_LEN]).unwrap();
        for len in [0, 999, 1001, CELL_BYTES] {
            assert!(sealer.seal_cell(0, &mut vec![1; len]).is_err(), "{len} bytes");
        }
        sealer.seal_cell(0, &mut vec![1; 1000]).unwrap();
        assert!(sealer.seal_cell(0, &mut vec![2; 1000]).is_err(), "the same nonce twice");
        assert!(sealer.seal_cell(1, &mut vec![2; 1000]).is_err(), "past the chunk");
    }

    /// Each bit of a chunk of 1,000 bytes and of its record.
    #[test]
    fn each_flipped_bit_is_refused() {
        let text = text(1, 1000);
        let lying = sealed(&cipher(), 2, 3, 9, &text);
        for bit in 0..lying.record.len() * 8 {
            let mut record = lying.record.clone();
            record[bit / 8] ^= 1 << (bit % 8);
            let tampered = Lying { record, cells: lying.cells.clone(), ..lying };
            assert!(refusal(opened(&cipher(), &tampered)), "bit {bit} of the record");
        }
        for bit in 0..1000 * 8 {
            let mut cells = lying.cells.clone();
            cells[0][bit / 8] ^= 1 << (bit % 8);
            let tampered = Lying { record: lying.record.clone(), cells, ..lying };
            assert!(refusal(opened(&cipher(), &tampered)), "bit {bit} of the cell");
        }
        for bit in 0..TAG_LEN * 8 {
            let mut tag = lying.tag;
            tag[bit / 8] ^= 1 << (bit % 8);
            let opened = cipher().open_chunk(lying.index, &lying.record, &tag);
            assert!(refusal(opened), "bit {bit} of the trusted tag");
        }
    }

    #[test]
    fn what_does_not_verify_is_wiped() {
        let lying = sealed(&cipher(), 2, 3, 9, &text(1, 1000));
        let opener = cipher().open_chunk(lying.index, &lying.record, &lying.tag).unwrap();
        let mut bytes = lying.cells[0].clone();
        bytes[999] ^= 1;
        assert!(opener.open_cell(0, &mut bytes).is_err());
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    /// Every cell of every chunk, and every record, at every place where it does not belong.
    #[test]
    fn swapped_spliced_and_replayed_chunks_are_refused() {
        let whole = |seed| text(seed, 128 << 10);
        let chunks = [
            sealed(&cipher(), 0, 1, 1, &whole(1)),
            sealed(&cipher(), 1, 1, 2, &whole(2)),
            // The same chunk in another write, even with the same salt in another attempt.
            sealed(&cipher(), 0, 1, 3, &whole(3)),
            sealed(&cipher(), 0, 2, 1, &whole(1)),
        ];
        for (at, ours) in chunks.iter().enumerate() {
            for (from, theirs) in chunks.iter().enumerate().filter(|(from, _)| *from != at) {
                let moved = |record: &Lying, tag: &Lying| Lying {
                    index: ours.index,
                    cells: ours.cells.clone(),
                    record: record.record.clone(),
                    tag: tag.tag,
                };
                let why = format!("from {from} to {at}");
                assert!(refusal(opened(&cipher(), &moved(theirs, ours))), "record {why}");
                assert!(refusal(opened(&cipher(), &moved(ours, theirs))), "tag {why}");
                if theirs.index != ours.index {
                    let whole = Lying { cells: theirs.cells.clone(), ..moved(theirs, theirs) };
                    assert!(refusal(opened(&cipher(), &whole)), "chunk {why}");
                }
                for cell in 0..2 {
                    for other in 0..2 {
                        let mut spliced = moved(ours, ours);
                        spliced.cells[cell] = theirs.cells[other].clone();
                        if spliced.cells[cell] == ours.cells[cell] {
                            // The same salt and text encrypt alike; the tag tells attempts apart.
                            continue;
                        }
                        assert!(refusal(opened(&cipher(), &spliced)), "cell {other} {why} {cell}");
                    }
                }
            }
            let mut swapped = Lying { record: ours.record.clone(), cells: vec![], ..*ours };
            swapped.cells = vec![ours.cells[1].clone(), ours.cells[0].clone()];
            assert!(refusal(opened(&cipher(), &swapped)), "cells of {at} swapped");
        }
    }

    #[test]
    fn truncated_and_extended_chunks_are_refused() {
        let lying = sealed(&cipher(), 2, 3, 9, &text(1, 1000));
        for len in 0..lying.record.len() {
            let cut = cipher().open_chunk(lying.index, &lying.record[..len], &lying.tag);
            assert!(refusal(cut), "a record of {len} bytes");
        }
        let longer = [&lying.record[..], &[0]].concat();
        assert!(refusal(cipher().open_chunk(lying.index, &longer, &lying.tag)));
        let opener = cipher().open_chunk(lying.index, &lying.record, &lying.tag).unwrap();
        for len in [0, 1, 999] {
            assert!(refusal(opener.open_cell(0, &mut lying.cells[0][..len].to_vec())));
        }
        assert!(refusal(opener.open_cell(0, &mut [&lying.cells[0][..], &[0]].concat())));
    }

    /// The same bytes in an image of another size, cut, name or key.
    #[test]
    fn a_chunk_belongs_to_one_image() {
        let lying = sealed(&cipher(), 2, 3, 9, &text(1, 1000));
        let key = || DataKey::from_bytes([7; 32]);
        let longer = Geometry::new(geometry().image_bytes() + 1, geometry().chunk_size()).unwrap();
        // One more chunk after it: all that differs for this one is the total size.
        let more = 128 << 10;
        let extended = Geometry::new(geometry().image_bytes() + more, geometry().chunk_size());
        let cut = Geometry::new(geometry().image_bytes(), ChunkSize::MIN).unwrap();
        let others = [
            ImageCipher::new(*b"uuid-uuid-uuid-v", geometry(), key()),
            ImageCipher::new(UUID, geometry(), DataKey::from_bytes([8; 32])),
            ImageCipher::new(UUID, longer, key()),
            ImageCipher::new(UUID, extended.unwrap(), key()),
            ImageCipher::new(UUID, cut, key()),
        ];
        for (n, other) in others.iter().enumerate() {
            assert!(refusal(opened(other, &lying)), "image {n}");
        }
        let whole = sealed(&cipher(), 0, 3, 9, &text(1, 128 << 10));
        assert!(refusal(opened(&others[3], &whole)), "the total size is bound to every chunk");
    }
}
