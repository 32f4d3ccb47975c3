//! Inputs that fuzzing of the chunk protocol begins with, and the memory that its runs may hold.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::compress::Packer;
use crate::error::{Error, ErrorKind};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun};
use crate::wire::frame::VERSION;
use crate::wire::message::{
    Ask, Chunk, Codec, Decision, Message, Piece, PieceRun, Refusal, Standing, Token,
};

use super::dice::Dice;
use super::picture::{CHUNK_BYTES, Picture};

/// Streams: each message alone, and all of them, whole and cut small.
pub(in crate::testing) fn of_frames() -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = messages()
        .iter()
        .map(|message| {
            let id = u64::from(message.kind().role() != crate::wire::message::Role::Notice);
            message.packet(VERSION, id).to_bytes().to_vec()
        })
        .collect();
    let cut_into = |step: u8, bytes: &[u8]| [&[step - 1], bytes].concat();
    let mut seeds: Vec<Vec<u8>> = frames.iter().map(|frame| cut_into(7, frame)).collect();
    seeds.push(cut_into(1, &frames.concat()));
    seeds.push(cut_into(200, &frames.concat()));
    seeds
}

fn messages() -> Vec<Message> {
    let run = |first, count| ChunkRun::new(ChunkIndex::new(first), count);
    let digest = Digest::from_bytes([4; 32]);
    let digests = vec![digest; 2];
    let data = PieceRun::Data { first: ChunkIndex::new(5), digests };
    let piece = Piece { runs: vec![PieceRun::Zero(run(0, 5)), data] };
    let bytes = Bytes::from_static(b"chunk");
    let error = Error::new(ErrorKind::NoSpace, "write chunk");
    let mut messages = vec![
        Message::Ping,
        Message::Error(Refusal::new(&error)),
        Message::Answer(Standing::Staged { epoch: 3, owned: true }),
        Message::Decision(Decision::Committed { root: Some(digest) }),
        Message::Decision(Decision::Cancelled { first: true, clean: false }),
        Message::Begun(crate::wire::message::Begun {
            token: Token::from_bytes([9; 32]),
            base: true,
        }),
        Message::Held(piece),
        Message::Ready { data_bytes: 77 },
        Message::Chunk(Chunk { index: ChunkIndex::new(2), codec: Codec::Zstd, digest, bytes }),
        Message::Zeroes(vec![run(0, 1), run(3, 2)]),
        Message::Credit { bytes: 65536 },
        Message::Seal { root: digest },
        Message::Want(run(1, 2)),
        Message::Ask(Ask::Extents(ByteRange::new(65536, 4096))),
    ];
    if let Ok(picture) = Picture::draw(&mut Dice::Script(&[3])) {
        messages.extend(picture.name().map(Message::Query));
        let root = Some(digest);
        let begin = |spec| crate::wire::message::Begin { epoch: 3, root, spec };
        messages.extend(picture.spec().map(|spec| Message::Begin(Box::new(begin(spec)))));
    }
    messages
}

/// Chunks, and the zstd frames of chunks.
pub(in crate::testing) fn of_chunks() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..CHUNK_BYTES).map(|at| (at / 97).to_le_bytes()[0]).collect();
    let mut seeds = vec![Vec::new(), vec![7; 300], text[..2000].to_vec()];
    if let Ok(mut packer) = Packer::new(3) {
        for chunk in [&text[..], &vec![7; CHUNK_BYTES], &vec![0; 1 << 20]] {
            seeds.extend(packer.pack(chunk).ok().flatten().map(|frame| frame.to_vec()));
        }
    }
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"junk"].concat();
    seeds.extend([skippable]);
    seeds
}

/// Choices as a seeded generator makes them, of several lengths.
pub(in crate::testing) fn of_scripts() -> Vec<Vec<u8>> {
    let script = |number: u8| {
        let mut bytes = vec![0; 100 * (1 + usize::from(number % 8))];
        blake3::Hasher::new().update(&[number]).finalize_xof().fill(&mut bytes);
        bytes
    };
    (0..16).map(script).collect()
}

/// What a session may hold: the window, and what the world around it stands for. Asked before the
/// run: the pictures, which all runs share, are drawn here, so that no run pays for them.
pub(in crate::testing) fn session_window(window_bytes: usize) -> usize {
    static DRAWN: OnceLock<bool> = OnceLock::new();
    DRAWN.get_or_init(|| Picture::draw(&mut Dice::Script(&[])).is_ok());
    window_bytes
}
