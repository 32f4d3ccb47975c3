//! Bodies for fuzzing the chunk protocol: bytes from a fuzzer, or a seed, become a hostile peer or
//! a whole world of two daemons.
//!
//! Each body asserts what must hold and returns; what it finds is a panic. All are deterministic.

mod dice;
mod network;
mod pair;
mod picture;
mod pusher;
mod server;
mod solo;

use bytes::BytesMut;

use crate::wire::compress::{Packer, unpack};
use crate::wire::frame::{Expect, Frame, VERSION};
use crate::wire::message::Message;

pub use pair::{Ended, session_pair, session_seed};
pub use solo::{session_receiver, session_sender};

/// Any bytes, cut anywhere: the same frames come out as uncut, and no more is asked for than a
/// frame at its longest. The first byte says how they are cut.
///
/// # Panics
/// When the reader breaks its word; that is the finding.
pub fn frame_stream(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let step = usize::from(*cut) + 1;
    let whole = frames(data, data.len().max(1));
    let pieces = frames(data, step);
    assert_eq!(whole, pieces, "cut into pieces of {step} bytes it reads differently");
    for frame in whole {
        if let Ok(message) = Message::decode(&frame) {
            let again = message.packet(VERSION, frame.id).to_bytes();
            assert!(!again.is_empty(), "a message that cannot be sent again");
        }
    }
}

fn frames(data: &[u8], step: usize) -> Vec<Frame> {
    let expect = Expect::agreed(VERSION, 64 << 10);
    let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match Frame::decode(&mut buffer, expect) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "touched without a frame");
                    break;
                }
                Err(_) => return found,
            }
        }
    }
    found
}

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
