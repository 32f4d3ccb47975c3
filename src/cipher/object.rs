//! Chunks of an encrypted image that are objects of a store: a mark, which goes into the object's
//! name, and the bytes, packed or not, as one message. Pure.

use crate::chunk::Digest;
use crate::cipher::chunk::{AAD_LEN, RECORD_NUMBER, bound_to, of_message};
use crate::cipher::{
    ImageCipher, MessageKey, NOTE_INFO, OBJECT_INFO, SALT_LEN, Salt, TAG_LEN, Tag, refused,
};
use crate::codec::Encoder;
use crate::error::Result;
use crate::geometry::ChunkIndex;

/// The format of marks and messages: another than that of cells.
const FORMAT: u8 = 2;
const DIGEST_LEN: usize = 32;
/// Where the mark's encrypted digest ends.
const DIGEST_END: usize = SALT_LEN + DIGEST_LEN;
/// Where the codec stands in what messages are bound to.
const CODEC_AT: usize = 1;
/// The message of a chunk that holds its bytes.
const BYTES_NUMBER: u32 = 0;

/// How long a mark is.
pub(crate) const MARK_LEN: usize = DIGEST_END + TAG_LEN;

/// What stands for a chunk's digest in the name of its object.
///
/// | bytes | field |
/// |---|---|
/// | 24 | salt of the write |
/// | 32 | encrypted: digest of the chunk |
/// | 16 | tag over that; the bytes of the chunk are bound to it |
pub(crate) type Mark = [u8; MARK_LEN];

/// Whether the bytes of a chunk were packed before they were encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As they are.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// One write of one chunk: whoever holds the data key and knows the salt.
pub(crate) struct WholeChunk {
    key: MessageKey,
    aad: [u8; AAD_LEN],
    salt: Salt,
    index: ChunkIndex,
}

impl ImageCipher {
    /// Of the write of that chunk in that attempt with that salt, which must be random and never
    /// used for another text.
    pub(crate) fn whole_chunk(
        &self,
        index: ChunkIndex,
        epoch: u32,
        salt: &Salt,
    ) -> Result<WholeChunk> {
        let key = self.message_key(salt, OBJECT_INFO)?;
        Ok(WholeChunk { key, aad: bound_to(self, FORMAT, index, epoch), salt: *salt, index })
    }

    /// A note beside the chunks, for nobody but who has the key: salt, text, tag. Bound to the
    /// image, the attempt, and its number.
    pub(crate) fn seal_note(
        &self,
        epoch: u32,
        number: u32,
        salt: &Salt,
        text: &[u8],
    ) -> Result<Vec<u8>> {
        let mut bytes = [&salt[..], text].concat();
        let (key, aad) = (self.message_key(salt, NOTE_INFO)?, self.note_aad(epoch, number));
        let tag = key.seal(BYTES_NUMBER, &aad, &mut bytes[SALT_LEN..])?;
        bytes.extend_from_slice(&tag);
        Ok(bytes)
    }

    /// The text of such a note.
    pub(crate) fn open_note(&self, epoch: u32, number: u32, bytes: &[u8]) -> Result<Vec<u8>> {
        let not_so = || refused("a note of an image");
        let (salt, rest) = bytes.split_first_chunk::<SALT_LEN>().ok_or_else(not_so)?;
        let (text, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or_else(not_so)?;
        let mut text = text.to_vec();
        let (key, aad) = (self.message_key(salt, NOTE_INFO)?, self.note_aad(epoch, number));
        key.open(BYTES_NUMBER, &aad, tag, &mut text).map_err(|_| not_so())?;
        Ok(text)
    }

    fn note_aad(&self, epoch: u32, number: u32) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u8(FORMAT).u8(self.geometry.chunk_size().shift()).raw(&self.uuid);
        out.u64(self.geometry.image_bytes()).u32(epoch).u32(number);
        out.finish()
    }
}

impl WholeChunk {
    /// The mark of a chunk with that digest.
    pub(crate) fn mark(&self, digest: &Digest) -> Result<Mark> {
        let mut mark = [0; MARK_LEN];
        mark[..SALT_LEN].copy_from_slice(&self.salt);
        mark[SALT_LEN..DIGEST_END].copy_from_slice(digest.as_bytes());
        let aad = of_message(self.aad, RECORD_NUMBER, DIGEST_LEN, false);
        let tag = self.key.seal(RECORD_NUMBER, &aad, &mut mark[SALT_LEN..DIGEST_END])?;
        mark[DIGEST_END..].copy_from_slice(&tag);
        Ok(mark)
    }

    /// The digest in a mark.
    pub(crate) fn read_mark(&self, mark: &Mark) -> Result<Digest> {
        let not_so = || refused(&format!("the mark of chunk {}", self.index));
        let mut digest: [u8; DIGEST_LEN] =
            mark[SALT_LEN..DIGEST_END].try_into().map_err(|_| not_so())?;
        let aad = of_message(self.aad, RECORD_NUMBER, DIGEST_LEN, false);
        self.key.open(RECORD_NUMBER, &aad, &tag_of(mark), &mut digest).map_err(|_| not_so())?;
        Ok(Digest::from_bytes(digest))
    }

    /// Encrypts the bytes of the chunk with that mark, and puts their tag behind them.
    pub(crate) fn seal(&self, mark: &Mark, packing: Packing, bytes: &mut Vec<u8>) -> Result<()> {
        let aad = self.bytes_aad(mark, packing, bytes.len());
        let tag = self.key.seal(BYTES_NUMBER, &aad, bytes)?;
        bytes.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts the bytes of the chunk with that mark, and takes their tag away. What does not
    /// verify is wiped.
    pub(crate) fn open(&self, mark: &Mark, packing: Packing, bytes: &mut Vec<u8>) -> Result<()> {
        let not_so = || refused(&format!("chunk {}", self.index));
        let Some(tag) = bytes.last_chunk::<TAG_LEN>().copied() else {
            bytes.clear();
            return Err(not_so());
        };
        bytes.truncate(bytes.len() - TAG_LEN);
        let aad = self.bytes_aad(mark, packing, bytes.len());
        self.key.open(BYTES_NUMBER, &aad, &tag, bytes).map_err(|_| not_so())
    }

    /// Bound to the mark, too: bytes belong to the digest with which they were written.
    fn bytes_aad(&self, mark: &Mark, packing: Packing, len: usize) -> Vec<u8> {
        let mut aad = of_message(self.aad, BYTES_NUMBER, len, true);
        aad[CODEC_AT] = match packing {
            Packing::Raw => 0,
            Packing::Zstd => 1,
        };
        [&aad[..], &tag_of(mark)].concat()
    }
}

fn tag_of(mark: &Mark) -> Tag {
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&mark[DIGEST_END..]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::samples::{UUID, cipher, geometry, hex};
    use crate::error::ErrorKind;
    use crate::geometry::Geometry;
    use crate::keys::DataKey;

    const SALT: Salt = [9; SALT_LEN];

    fn digest() -> Digest {
        Digest::from_bytes([0xdd; 32])
    }

    fn write(cipher: &ImageCipher, index: u32, epoch: u32, salt: &Salt) -> WholeChunk {
        cipher.whole_chunk(ChunkIndex::new(index), epoch, salt).unwrap()
    }

    fn sealed(text: &[u8], packing: Packing) -> (Mark, Vec<u8>) {
        let (chunk, mut bytes) = (write(&cipher(), 2, 3, &SALT), text.to_vec());
        let mark = chunk.mark(&digest()).unwrap();
        chunk.seal(&mark, packing, &mut bytes).unwrap();
        (mark, bytes)
    }

    fn opened(chunk: &WholeChunk, mark: &Mark, packing: Packing, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        match chunk.open(mark, packing, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(bytes.iter().all(|byte| *byte == 0), "it was not wiped");
                None
            }
        }
    }

    #[test]
    fn golden_bytes_hold_marks_messages_and_notes_still() {
        let (mark, bytes) = sealed(b"chunk", Packing::Zstd);
        assert_eq!(hex(&mark), GOLDEN_MARK.split_whitespace().collect::<String>());
        assert_eq!(hex(&bytes), GOLDEN_BYTES);
        let note = cipher().seal_note(3, 1, &SALT, b"note").unwrap();
        assert_eq!(hex(&note), GOLDEN_NOTE.split_whitespace().collect::<String>());
    }

    /// As another implementation has them: AES-GCM of OpenSSL, by way of Python.
    const GOLDEN_MARK: &str = "
        09090909090909090909090909090909090909090909090976c582fe3765960d3124995c931c13be
        b4e48b9bd93dd9ade1ebde75c158a83f31d4eb6f7d2525724c5f2bcbbdd2b8cb
    ";
    const GOLDEN_BYTES: &str = "f35f2a187299d88846f8fe566a01c3046fb55fa085";
    const GOLDEN_NOTE: &str = "
        0909090909090909090909090909090909090909090909090ca9c05c7eb94cbb6dcc339b87d7bfe7
        5c570bea
    ";

    #[test]
    fn chunks_and_their_digests_come_back() {
        for packing in [Packing::Raw, Packing::Zstd] {
            for text in [&b""[..], b"x", &[7; 5000]] {
                let (mark, bytes) = sealed(text, packing);
                let chunk = write(&cipher(), 2, 3, &SALT);
                assert_eq!(chunk.read_mark(&mark).unwrap(), digest());
                assert_eq!(opened(&chunk, &mark, packing, &bytes).unwrap(), text);
                assert_eq!(bytes.len(), text.len() + TAG_LEN);
            }
        }
    }

    /// Each bit of a mark and of the bytes, each cut, and what is put behind.
    #[test]
    fn each_flipped_bit_and_each_cut_is_refused() {
        let (mark, bytes) = sealed(&[7; 100], Packing::Raw);
        let chunk = write(&cipher(), 2, 3, &SALT);
        for bit in 0..MARK_LEN * 8 {
            let mut flipped = mark;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let salt = flipped[..SALT_LEN].try_into().unwrap();
            let chunk = write(&cipher(), 2, 3, &salt);
            assert!(chunk.read_mark(&flipped).is_err(), "bit {bit} of the mark");
        }
        for bit in 0..TAG_LEN * 8 {
            let mut other = mark;
            other[DIGEST_END + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&chunk, &other, Packing::Raw, &bytes), None, "another mark");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&chunk, &mark, Packing::Raw, &flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(opened(&chunk, &mark, Packing::Raw, &bytes[..len]), None, "cut at {len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(opened(&chunk, &mark, Packing::Raw, &longer), None);
    }

    #[test]
    fn no_other_place_attempt_salt_image_size_packing_or_key_opens_it() {
        let (mark, bytes) = sealed(&[7; 100], Packing::Raw);
        let longer = Geometry::new(geometry().image_bytes() + 1, geometry().chunk_size()).unwrap();
        let key = |seed| DataKey::from_bytes([seed; 32]);
        let others = [
            write(&cipher(), 1, 3, &SALT),
            write(&cipher(), 2, 4, &SALT),
            write(&cipher(), 2, 3, &[8; SALT_LEN]),
            write(&ImageCipher::new(*b"uuid-uuid-uuid-v", geometry(), key(7)), 2, 3, &SALT),
            write(&ImageCipher::new(UUID, longer, key(7)), 2, 3, &SALT),
            write(&ImageCipher::new(UUID, geometry(), key(8)), 2, 3, &SALT),
        ];
        for (n, other) in others.iter().enumerate() {
            assert!(other.read_mark(&mark).is_err(), "mark, {n}");
            assert_eq!(opened(other, &mark, Packing::Raw, &bytes), None, "bytes, {n}");
        }
        let same = write(&cipher(), 2, 3, &SALT);
        assert_eq!(opened(&same, &mark, Packing::Zstd, &bytes), None);
        // A cell is no such message, with the same salt.
        let mut cell = vec![7; 1000];
        let mut cells = cipher().seal_chunk(ChunkIndex::new(2), 3, SALT).unwrap();
        cells.seal_cell(0, &mut cell).unwrap();
        let mut whole = vec![7; 1000];
        same.seal(&mark, Packing::Raw, &mut whole).unwrap();
        assert_ne!(cell, whole[..1000]);
    }

    #[test]
    fn a_note_is_bound_to_its_attempt_and_number() {
        let note = cipher().seal_note(3, 1, &SALT, b"note").unwrap();
        assert_eq!(cipher().open_note(3, 1, &note).unwrap(), b"note");
        assert!(
            cipher().open_note(2, 1, &note).is_err() && cipher().open_note(3, 2, &note).is_err()
        );
        for bit in 0..note.len() * 8 {
            let mut flipped = note.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(cipher().open_note(3, 1, &flipped).is_err(), "bit {bit}");
        }
        for len in 0..note.len() {
            assert!(cipher().open_note(3, 1, &note[..len]).is_err(), "cut at {len}");
        }
    }
}
