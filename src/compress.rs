//! One chunk as one zstd frame and back, into a slice of exactly its size. Pure.
//!
//! What comes back is checked before it is unpacked: one frame, that states the size it must have,
//! needs no dictionary, and is followed by nothing. Only the one-shot decoder is used: it needs no
//! window of its own, so a frame that asks for one costs nothing.

use std::fmt;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;

/// Packs chunks at one level. Keeps libzstd's tables from chunk to chunk.
pub struct Packer(Compressor<'static>);

impl Packer {
    /// At that level: 1 is the fastest that is worth a link, 3 is libzstd's own choice.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a level that libzstd does not have.
    pub fn new(level: i32) -> Result<Self> {
        if !zstd::compression_level_range().contains(&level) {
            return Err(Error::new(ErrorKind::Invalid, format!("pack at level {level}")));
        }
        Compressor::new(level).map(Self).map_err(|error| Error::io("set up zstd", error))
    }

    /// The chunk in fewer bytes; `None` where it does not shrink by at least a sixteenth.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when libzstd fails for another reason than room.
    pub fn pack(&mut self, chunk: &[u8]) -> Result<Option<Bytes>> {
        // Room for what pays, and no more: libzstd stops as soon as that is used up.
        let mut packed = vec![0; chunk.len() - chunk.len().div_ceil(16)];
        match self.0.compress_to_buffer(chunk, packed.as_mut_slice()) {
            Ok(len) => {
                packed.truncate(len);
                packed.shrink_to_fit();
                Ok(Some(packed.into()))
            }
            Err(_) => Ok(None),
        }
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packer")
    }
}

/// Unpacks `frame` into `chunk`, which it must fill exactly.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything but one zstd frame of exactly that content size, without
/// dictionary. `chunk` then holds anything.
pub fn unpack(frame: &[u8], chunk: &mut [u8]) -> Result<()> {
    check(frame, to_u64(chunk.len()))?;
    let wrong = |error: std::io::Error| corrupt("its frame is damaged").because(error);
    let mut unpacker = Decompressor::new().map_err(|error| Error::io("set up zstd", error))?;
    let len = unpacker.decompress_to_buffer(frame, chunk).map_err(wrong)?;
    if len == chunk.len() { Ok(()) } else { Err(corrupt("its frame holds fewer bytes")) }
}

fn check(frame: &[u8], len: u64) -> Result<()> {
    // Also keeps out skippable frames and those of versions before 0.8, which start otherwise.
    if !frame.starts_with(&MAGIC) {
        return Err(corrupt("it does not start with a zstd frame"));
    }
    match zstd_safe::get_frame_content_size(frame) {
        Ok(Some(stated)) if stated == len => {}
        Ok(Some(_)) => return Err(corrupt("its frame states another size")),
        Ok(None) | Err(_) => return Err(corrupt("its frame does not state its size")),
    }
    if zstd_safe::get_dict_id_from_frame(frame).is_some() {
        return Err(corrupt("its frame needs a dictionary"));
    }
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(frame_len) if frame_len == frame.len() => Ok(()),
        Ok(_) => Err(corrupt("bytes follow its frame")),
        Err(_) => Err(corrupt("its frame is cut short")),
    }
}

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("unpack chunk: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(chunk: &[u8]) -> Vec<u8> {
        Packer::new(1).unwrap().pack(chunk).unwrap().unwrap().to_vec()
    }

    fn refused(frame: &[u8], len: usize) {
        let error = unpack(frame, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        let mut noise = vec![0; 64 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(Packer::new(1).unwrap().pack(&noise).unwrap(), None);
        assert_eq!(Packer::new(1).unwrap().pack(b"x").unwrap(), None);
        assert!(Packer::new(1000).is_err());
    }

    #[test]
    fn only_one_whole_frame_of_that_size_is_taken() {
        let chunk = vec![7; 64 << 10];
        let frame = packed(&chunk);
        refused(&frame, chunk.len() - 1);
        refused(&frame, chunk.len() + 1);
        refused(&frame[..frame.len() - 1], chunk.len());
        refused(&[&frame[..], &[0]].concat(), chunk.len());
        refused(&[&frame[..], &frame[..]].concat(), chunk.len());
        refused(&[], chunk.len());
    }

    #[test]
    fn a_frame_of_another_size_is_refused_before_it_is_unpacked() {
        let frame = packed(&vec![7; 64 << 10]);
        let mut longer = vec![9; (64 << 10) + 1];
        assert_eq!(unpack(&frame, &mut longer).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(longer.iter().all(|byte| *byte == 9), "it was unpacked first");
    }

    #[test]
    fn skippable_frames_are_not_taken() {
        let chunk = vec![7; 64 << 10];
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"junk"].concat();
        refused(&skippable, chunk.len());
        refused(&[&skippable[..], &packed(&chunk)].concat(), chunk.len());
        refused(&[&packed(&chunk)[..], &skippable].concat(), chunk.len());
    }

    #[test]
    fn a_frame_without_its_size_or_with_a_dictionary_is_not_taken() {
        let chunk = vec![7; 64 << 10];
        let mut silent = Compressor::new(1).unwrap();
        silent.include_contentsize(false).unwrap();
        refused(&silent.compress(&chunk).unwrap(), chunk.len());
        let frame = packed(&chunk);
        // The descriptor's two lowest bits announce a dictionary's id; its byte follows.
        let mut keyed = frame[..4].to_vec();
        keyed.push(frame[4] | 1);
        let single_segment = frame[4] & 0x20 != 0;
        keyed.extend_from_slice(if single_segment { &[] } else { &frame[5..6] });
        keyed.push(9);
        keyed.extend_from_slice(&frame[if single_segment { 5 } else { 6 }..]);
        refused(&keyed, chunk.len());
    }

    #[test]
    fn a_bomb_fills_no_more_than_its_slice() {
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 16 << 10);
        refused(&bomb, 64 << 10);
        // It says that it is small, and is not.
        let mut liar = bomb;
        let descriptor = liar[4];
        assert_eq!(descriptor >> 6, 2, "a size of four bytes");
        let at = if descriptor & 0x20 != 0 { 5 } else { 6 };
        liar[at..at + 4].copy_from_slice(&(64_u32 << 10).to_le_bytes());
        refused(&liar, 64 << 10);
    }

    proptest! {
        #[test]
        fn chunks_come_back(seed in any::<u8>(), len in 256_usize..70_000, level in 1_i32..5) {
            let byte = |at: usize| seed.wrapping_add((at / 97).to_le_bytes()[0]);
            let chunk: Vec<u8> = (0..len).map(byte).collect();
            let frame = Packer::new(level).unwrap().pack(&chunk).unwrap();
            prop_assume!(frame.is_some());
            let mut back = vec![0; len];
            unpack(&frame.unwrap(), &mut back).unwrap();
            prop_assert_eq!(back, chunk);
        }

        #[test]
        fn any_bytes_after_the_magic_are_taken_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let frame = [&MAGIC[..], &bytes].concat();
            let mut chunk = vec![0; 64 << 10];
            if let Err(error) = unpack(&frame, &mut chunk) {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
    }
}
