//! Sparse bytes in memory.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::geometry::{ByteRange, to_u64, to_usize};

/// Bytes by offset; what no piece covers reads as zeros. Pieces do not overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    pub(super) size_bytes: u64,
    pub(super) pieces: BTreeMap<u64, Bytes>,
}

impl Pieces {
    pub(super) fn read(&self, range: ByteRange) -> Bytes {
        let mut out = BytesMut::zeroed(to_usize(range.len));
        let before = self.pieces.range(..=range.offset).next_back().map_or(0, |(at, _)| *at);
        for (at, piece) in self.pieces.range(before..range.end()) {
            let shared = range.intersect(ByteRange::new(*at, to_u64(piece.len())));
            if !shared.is_empty() {
                let (from, to) =
                    (to_usize(shared.offset - at), to_usize(shared.offset - range.offset));
                let len = to_usize(shared.len);
                out[to..to + len].copy_from_slice(&piece[from..from + len]);
            }
        }
        out.freeze()
    }
}
