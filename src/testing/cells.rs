//! What encrypting a chunk costs, for benches: the cipher is no caller's business.

use crate::chunk::Digest;
use crate::cipher::{ImageCipher, SALT_LEN};
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkSize, Geometry, to_usize};
use crate::keys::DataKey;

/// An encrypted image of one chunk.
#[derive(Debug)]
pub struct Cells {
    cipher: ImageCipher,
    count: u64,
}

impl Cells {
    /// With a chunk of that size.
    ///
    /// # Errors
    /// `Invalid` for a size that no chunk has.
    pub fn new(chunk_bytes: u64) -> Result<Self> {
        let geometry = Geometry::new(chunk_bytes, ChunkSize::from_bytes(chunk_bytes)?)?;
        let cipher = ImageCipher::new([1; 16], geometry, DataKey::from_bytes([2; 32]));
        Ok(Self { cipher, count: 0 })
    }

    /// Encrypts the chunk in place, as one write of it: with keys of its own. Returns its record.
    ///
    /// # Errors
    /// `Invalid` for bytes of another length.
    pub fn seal(&mut self, bytes: &mut [u8]) -> Result<Vec<u8>> {
        self.count += 1;
        let mut salt = [0; SALT_LEN];
        salt[..8].copy_from_slice(&self.count.to_le_bytes());
        let mut sealer = self.cipher.seal_chunk(ChunkIndex::new(0), 1, salt)?;
        for (cell, bytes) in bytes.chunks_mut(CELL).enumerate() {
            sealer.seal_cell(cell, bytes)?;
        }
        Ok(sealer.finish(Digest::from_bytes([3; 32]))?.0)
    }

    /// Decrypts it again.
    ///
    /// # Errors
    /// `Corrupt` for anything but what [`Cells::seal`] made.
    pub fn open(&self, record: &[u8], bytes: &mut [u8]) -> Result<()> {
        let cells = bytes.len().div_ceil(CELL);
        let tag_at = SALT_LEN + 4 + 32 + cells.div_ceil(8);
        let mut tag = [0; 16];
        if let Some(own) = record.get(tag_at..tag_at + 16) {
            tag.copy_from_slice(own);
        }
        let opener = self.cipher.open_chunk(ChunkIndex::new(0), record, &tag)?;
        let mut all = bytes.chunks_mut(CELL).enumerate();
        all.try_for_each(|(cell, bytes)| opener.open_cell(cell, bytes))
    }

    /// How many bytes the chunk has.
    pub fn chunk_len(&self) -> usize {
        to_usize(self.cipher.geometry().image_bytes())
    }
}

const CELL: usize = crate::cipher::CELL_BYTES;
