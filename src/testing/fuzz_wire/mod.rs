//! Bodies for fuzzing the chunk protocol: bytes from a fuzzer, or a seed, become a hostile peer or
//! a whole world of two daemons.
//!
//! Each body asserts what must hold and returns; what it finds is a panic. All are deterministic.

mod dice;
mod network;
mod pair;
mod picture;
mod pusher;
mod seeds;
mod server;
mod solo;

use bytes::BytesMut;

use crate::compress::{Packer, unpack};
use crate::wire::frame::{
    CHUNK_PREFIX_LEN, CONTROL_LEN_MAX, Expect, Frame, HEADER_LEN, VERSION, wanted,
};
use crate::wire::message::Message;

pub use pair::{Ended, session_pair, session_seed};
pub(super) use seeds::{of_chunks, of_frames, of_scripts, session_window};
pub use solo::{session_receiver, session_sender};

/// Any bytes, cut anywhere: the same frames come out as uncut, no more is asked for than a frame at
/// its longest, and what a frame says reads the same when it is said again. The first byte says how
/// they are cut: into pieces of so many bytes, or longer ones where those would be very many. They
/// are looked at twice: as they are, and with the checksums of their headers put right, because no
/// fuzzer finds a hash.
///
/// # Panics
/// When the reader breaks its word; that is the finding.
pub fn frame_stream(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    // Every piece costs two looks at a header: unbounded, that would be what takes the time.
    let step = (usize::from(*cut) + 1).max(data.len() / PIECES_MAX);
    check_stream(data, step);
    let mut mended = data.to_vec();
    mend_headers(&mut mended);
    check_stream(&mended, step);
}

const PIECES_MAX: usize = 64;

fn check_stream(data: &[u8], step: usize) {
    let whole = frames(data, data.len().max(1));
    let pieces = frames(data, step);
    assert_eq!(whole, pieces, "cut into pieces of {step} bytes it reads differently");
    for frame in whole {
        let Ok(message) = Message::decode(&frame) else { continue };
        let body = message.packet(VERSION, frame.id).to_bytes().split_off(HEADER_LEN).freeze();
        let again = Message::decode(&Frame { body, ..frame });
        assert!(again.is_ok_and(|again| again == message), "it reads differently: {message:?}");
    }
}

/// Every header that follows the end of a frame, as the manual's table has it.
fn mend_headers(mut bytes: &mut [u8]) {
    while let Some((header, rest)) = bytes.split_at_mut_checked(HEADER_LEN) {
        let (fields, sum) = header.split_at_mut(24);
        fields[..6].copy_from_slice(b"BFRY\x01\0");
        let digest = blake3::derive_key("blockferry 2026-11-25 frame header v1", fields);
        sum.copy_from_slice(&digest[..8]);
        let len = u32::from_le_bytes([fields[16], fields[17], fields[18], fields[19]]);
        let Ok(len) = usize::try_from(len) else { return };
        let Some((_, next)) = rest.split_at_mut_checked(len) else { return };
        bytes = next;
    }
}

fn frames(data: &[u8], step: usize) -> Vec<Frame> {
    let expect = Expect::agreed(VERSION, CHUNK_BYTES_MAX);
    let longest = CHUNK_BYTES_MAX + CHUNK_PREFIX_LEN.max(CONTROL_LEN_MAX);
    let longest = HEADER_LEN + crate::geometry::to_usize(u64::from(longest));
    let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match Frame::decode(&mut buffer, expect) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "touched without a frame");
                    let wanted = wanted(&buffer, expect);
                    assert!(wanted.is_ok_and(|wanted| wanted > 0 && before + wanted <= longest));
                    break;
                }
                Err(_) => return found,
            }
        }
    }
    found
}

const CHUNK_BYTES_MAX: u32 = 64 << 10;

/// Any bytes as the zstd frame of a chunk: they fill the slice exactly or are refused; and any
/// bytes as a chunk come back as they were.
///
/// # Panics
/// When the codec breaks its word; that is the finding.
pub fn zstd_chunk(data: &[u8]) {
    let mut chunk = vec![0; 64 << 10];
    if unpack(data, &mut chunk).is_ok() {
        let mut short = vec![0; chunk.len() - 1];
        assert!(unpack(data, &mut short).is_err(), "a frame of two sizes");
    }
    let Ok(mut packer) = Packer::new(1) else { return };
    if let Ok(Some(frame)) = packer.pack(data) {
        assert!(frame.len() < data.len(), "it did not shrink");
        let mut back = vec![0; data.len()];
        assert!(unpack(&frame, &mut back).is_ok() && back == data, "it came back differently");
    }
}
