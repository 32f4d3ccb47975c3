//! Runs of chunks, with digests or without: ascending, apart, and never more than fit a frame.
//! Pure.

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{CHUNK_COUNT_MAX, ChunkIndex, ChunkRun};
use crate::wire::frame::CONTROL_LEN_MAX;

/// The most runs that one message lists.
pub const RUNS_MAX: usize = 4096;
/// The most digests in one [`Piece`].
pub const DIGESTS_PER_PIECE_MAX: u32 = 1024;
/// The most runs in one [`Piece`].
pub(crate) const PIECE_RUNS_MAX: u16 = 1024;

const _: () = assert!(8 * RUNS_MAX + 2 <= CONTROL_LEN_MAX as usize);
const _: () =
    assert!(32 * DIGESTS_PER_PIECE_MAX + 9 * (PIECE_RUNS_MAX as u32) + 2 <= CONTROL_LEN_MAX);

pub(super) fn encode(runs: &[ChunkRun], out: &mut Encoder) {
    debug_assert!(runs.len() <= RUNS_MAX, "{} runs in one message", runs.len());
    out.u16(u16::try_from(runs.len()).unwrap_or(u16::MAX));
    runs.iter().for_each(|run| encode_run(*run, out));
}

pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Vec<ChunkRun>> {
    let count = usize::from(from.u16()?);
    if count == 0 || count > RUNS_MAX {
        return Err(from.corrupt("it lists no runs, or too many"));
    }
    let mut runs: Vec<ChunkRun> = Vec::with_capacity(count.min(from.remaining() / 8));
    for _ in 0..count {
        let run = decode_run(from)?;
        if runs.last().is_some_and(|last| last.end() >= run.first.get()) {
            return Err(from.corrupt("its runs are out of order, or not maximal"));
        }
        runs.push(run);
    }
    Ok(runs)
}

pub(super) fn encode_run(run: ChunkRun, out: &mut Encoder) {
    debug_assert!(run.count > 0, "an empty run is not worth a word");
    out.u32(run.first.get()).u32(run.count);
}

/// A run within the largest image there is: whether it lies in *this* image, the session checks.
pub(super) fn decode_run(from: &mut Decoder<'_>) -> Result<ChunkRun> {
    let (first, count) = (from.u32()?, from.u32()?);
    let fits = first.checked_add(count).is_some_and(|end| end <= CHUNK_COUNT_MAX);
    if count == 0 || !fits {
        return Err(from.corrupt("a run is empty, or ends past any image"));
    }
    Ok(ChunkRun::new(ChunkIndex::new(first), count))
}

/// Part of a chunk table: what some chunks hold, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The runs it tells of; what lies between them it does not tell of.
    pub runs: Vec<PieceRun>,
}

/// Neighbouring chunks of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceRun {
    /// They hold only zeros.
    Zero(ChunkRun),
    /// They hold data with these digests.
    Data {
        /// The first of them.
        first: ChunkIndex,
        /// One digest a chunk.
        digests: Vec<Digest>,
    },
}

impl PieceRun {
    /// Which chunks.
    pub fn run(&self) -> ChunkRun {
        match self {
            Self::Zero(run) => *run,
            Self::Data { first, digests } => {
                ChunkRun::new(*first, u32::try_from(digests.len()).unwrap_or(u32::MAX))
            }
        }
    }
}

impl Piece {
    pub(super) fn encode(&self, out: &mut Encoder) {
        out.u16(u16::try_from(self.runs.len()).unwrap_or(u16::MAX));
        for piece in &self.runs {
            out.u8(match piece {
                PieceRun::Zero(_) => RUN_ZERO,
                PieceRun::Data { .. } => RUN_DATA,
            });
            encode_run(piece.run(), out);
            if let PieceRun::Data { digests, .. } = piece {
                digests.iter().for_each(|digest| {
                    out.raw(digest.as_bytes());
                });
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let count = from.u16()?;
        if count == 0 || count > PIECE_RUNS_MAX {
            return Err(from.corrupt("it has no runs, or too many"));
        }
        let (mut runs, mut end, mut digest_count) = (Vec::new(), 0, 0);
        for _ in 0..count {
            let kind = from.u8()?;
            let run = decode_run(from)?;
            if run.first.get() < end {
                return Err(from.corrupt("its runs are out of order"));
            }
            end = run.end();
            runs.push(match kind {
                RUN_ZERO => PieceRun::Zero(run),
                RUN_DATA => {
                    digest_count += run.count;
                    if digest_count > DIGESTS_PER_PIECE_MAX {
                        return Err(from.corrupt("it has too many digests"));
                    }
                    let digest = |_| from.array().map(Digest::from_bytes);
                    let digests = (0..run.count).map(digest).collect::<Result<_>>()?;
                    PieceRun::Data { first: run.first, digests }
                }
                _ => return Err(from.corrupt("a run is of no known kind")),
            });
        }
        Ok(Self { runs })
    }
}

const RUN_ZERO: u8 = 0;
const RUN_DATA: u8 = 1;
