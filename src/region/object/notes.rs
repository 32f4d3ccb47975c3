//! The small objects beside an image as bytes: pulse, wishes, zero runs, how heads are kept. Pure.
//!
//! All have one frame: a magic of eight bytes, a version, what they say, and a BLAKE3 checksum in
//! derive-key mode over everything before.

use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_usize};
use crate::id::ImageId;
use crate::job::{Progress, decode_limits, encode_limits};
use crate::options::Limits;
use crate::store::Fencing;

use super::rules::{Owner, Txn};

/// The most bytes of one of them but the zeros.
pub(crate) const NOTE_LEN_MAX: u64 = 4096;
/// The most zero runs in one object.
const ZERO_RUNS_MAX: usize = 64 << 10;
/// The most bytes of a record of zeros.
pub(crate) const ZEROS_LEN_MAX: u64 = 1 << 20;

const _: () = assert!(ZERO_RUNS_MAX * 8 + 64 < 1 << 20);

/// What the owner of a claim shows of itself, over and over.
///
/// | bytes | field |
/// |---|---|
/// | 8, 2 | magic `BFPULSE\0`, version 1 |
/// | 4 + n | image id |
/// | 32 | owner: process, claim |
/// | 8 | beat: counts up |
/// | 1 | 1: it has let go |
/// | 1 or 1 + n | 0; or 1 and its progress, as in a journal's status |
/// | 32 | checksum |
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pulse {
    pub(crate) image: ImageId,
    pub(crate) owner: Owner,
    pub(crate) beat: u64,
    pub(crate) let_go: bool,
    pub(crate) progress: Option<Progress>,
}

impl Pulse {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.block(self.image.as_str().as_bytes());
        out.raw(&self.owner.process).raw(&self.owner.claim).u64(self.beat);
        out.u8(u8::from(self.let_go));
        out.option(self.progress.as_ref(), |out, progress| progress.encode(out));
        sealed(PULSE, &out.finish())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(opened(PULSE, bytes)?, PULSE.what);
        let image = from.text(ImageId::LEN_MAX)?.parse();
        let image = image.map_err(|e| from.corrupt("its image id is malformed").because(e))?;
        let owner = Owner { process: from.array()?, claim: from.array()? };
        let beat = from.u64()?;
        let let_go = match from.u8()? {
            0 => false,
            1 => true,
            _ => return Err(from.corrupt("a flag is neither 0 nor 1")),
        };
        let progress = from.option(Progress::decode)?;
        from.finish()?;
        Ok(Self { image, owner, beat, let_go, progress })
    }
}

/// The ceilings that somebody wants: magic `BFLIMIT\0`.
pub(crate) fn encode_ceilings(limits: Limits) -> Vec<u8> {
    let mut out = Encoder::new();
    encode_limits(limits, &mut out);
    sealed(CEILINGS, &out.finish())
}

pub(crate) fn decode_ceilings(bytes: &[u8]) -> Result<Limits> {
    let mut from = Decoder::new(opened(CEILINGS, bytes)?, CEILINGS.what);
    let limits = decode_limits(&mut from)?;
    from.finish()?;
    Ok(limits)
}

/// Which attempt is to suspend, by the txn of its head; another takes no notice: magic `BFSUSPD\0`.
pub(crate) fn encode_suspend(txn: Txn) -> Vec<u8> {
    sealed(SUSPEND, &txn)
}

pub(crate) fn decode_suspend(bytes: &[u8]) -> Result<Txn> {
    let mut from = Decoder::new(opened(SUSPEND, bytes)?, SUSPEND.what);
    let txn = from.array()?;
    from.finish()?;
    Ok(txn)
}

/// Which way heads are kept in a region: magic `BFHEADS\0`, then 1 swapped, 2 numbered, 3 by one
/// daemon alone.
pub(crate) fn encode_way(way: Fencing) -> Vec<u8> {
    let number = match way {
        Fencing::Swap => 1,
        Fencing::Numbered => 2,
        Fencing::None => 3,
    };
    sealed(WAY, &[number])
}

pub(crate) fn decode_way(bytes: &[u8]) -> Result<Fencing> {
    let mut from = Decoder::new(opened(WAY, bytes)?, WAY.what);
    let way = match from.u8()? {
        1 => Fencing::Swap,
        2 => Fencing::Numbered,
        3 => Fencing::None,
        _ => return Err(from.corrupt("it is none that is known")),
    };
    from.finish()?;
    Ok(way)
}

/// Runs of chunks that hold only zeros, as an attempt found them: magic `BFZEROS\0`, then their
/// number and, for each, first chunk and count, four bytes each, ascending and apart.
///
/// What does not fit in one object is given back as the next one.
pub(crate) fn encode_zeros(runs: &[ChunkRun]) -> Vec<Vec<u8>> {
    let encode = |runs: &[ChunkRun]| {
        let mut out = Encoder::new();
        out.u32(u32::try_from(runs.len()).unwrap_or(u32::MAX));
        for run in runs {
            out.u32(run.first.get()).u32(run.count);
        }
        sealed(ZEROS, &out.finish())
    };
    runs.chunks(ZERO_RUNS_MAX).map(encode).collect()
}

pub(crate) fn decode_zeros(geometry: Geometry, bytes: &[u8]) -> Result<Vec<ChunkRun>> {
    let mut from = Decoder::new(opened(ZEROS, bytes)?, ZEROS.what);
    let count = to_usize(u64::from(from.u32()?));
    if count > ZERO_RUNS_MAX || count > from.remaining() / 8 {
        return Err(from.corrupt("it has too many runs"));
    }
    let mut runs: Vec<ChunkRun> = Vec::with_capacity(count);
    for _ in 0..count {
        let (first, count) = (from.u32()?, from.u32()?);
        let ahead = runs.last().is_none_or(|last| last.end() < first);
        if count == 0 || !ahead || first.checked_add(count).is_none() {
            return Err(from.corrupt("its runs are out of order"));
        }
        let run = ChunkRun::new(ChunkIndex::new(first), count);
        if !geometry.holds(run) {
            return Err(from.corrupt("a run ends past the image"));
        }
        runs.push(run);
    }
    from.finish()?;
    Ok(runs)
}

/// Neighbouring runs become one; they come in any order.
pub(crate) fn joined(mut runs: Vec<ChunkRun>) -> Vec<ChunkRun> {
    runs.sort_unstable_by_key(|run| run.first);
    let mut joined: Vec<ChunkRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end() >= run.first.get() => {
                let end = last.end().max(run.end());
                last.count = end - last.first.get();
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// What tells one kind from another.
#[derive(Clone, Copy)]
struct Kind {
    magic: [u8; 8],
    what: &'static str,
    context: &'static str,
}

const PULSE: Kind = Kind {
    magic: *b"BFPULSE\0",
    what: "the pulse of a job",
    context: "blockferry 2026-11-26 object pulse v1",
};
const CEILINGS: Kind = Kind {
    magic: *b"BFLIMIT\0",
    what: "the limits of a job",
    context: "blockferry 2026-11-26 object limits v1",
};
const SUSPEND: Kind = Kind {
    magic: *b"BFSUSPD\0",
    what: "a wish to suspend",
    context: "blockferry 2026-11-26 object suspend v1",
};
const WAY: Kind = Kind {
    magic: *b"BFHEADS\0",
    what: "the way in which heads are kept",
    context: "blockferry 2026-11-27 object way v1",
};
const ZEROS: Kind = Kind {
    magic: *b"BFZEROS\0",
    what: "a record of zeros",
    context: "blockferry 2026-11-26 object zeros v1",
};
const VERSION: u16 = 1;

fn sealed(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Encoder::new().raw(&kind.magic).u16(VERSION).raw(body).finish();
    bytes.extend(blake3::derive_key(kind.context, &bytes));
    bytes
}

fn opened(kind: Kind, bytes: &[u8]) -> Result<&[u8]> {
    let mut from = Decoder::new(bytes, kind.what);
    if from.array().ok() != Some(kind.magic) {
        return Err(from.corrupt("it is none"));
    }
    from.version(VERSION)?;
    let mut body = from.checked(bytes, kind.context)?;
    let len = body.remaining();
    body.raw(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::ChunkSize;
    use crate::job::JobState;

    fn geometry() -> Geometry {
        Geometry::new(1000 * (64 << 10), ChunkSize::MIN).unwrap()
    }

    fn run(first: u32, count: u32) -> ChunkRun {
        ChunkRun::new(ChunkIndex::new(first), count)
    }

    fn pulse() -> Pulse {
        Pulse {
            image: "m-1".parse().unwrap(),
            owner: Owner { process: [1; 16], claim: [2; 16] },
            beat: 7,
            let_go: true,
            progress: Some(Progress::new(JobState::Copying, 1 << 30)),
        }
    }

    #[test]
    fn notes_come_back_as_they_went_in() {
        let quiet = Pulse { progress: None, let_go: false, ..pulse() };
        for pulse in [pulse(), quiet] {
            let bytes = pulse.encode();
            assert!(u64::try_from(bytes.len()).unwrap() <= NOTE_LEN_MAX);
            assert_eq!(Pulse::decode(&bytes).unwrap(), pulse);
        }
        let limits = Limits::NONE.with_ops_per_sec(3);
        assert_eq!(decode_ceilings(&encode_ceilings(limits)).unwrap(), limits);
        assert_eq!(decode_suspend(&encode_suspend([9; 16])).unwrap(), [9; 16]);
        for way in [Fencing::Swap, Fencing::Numbered, Fencing::None] {
            assert_eq!(decode_way(&encode_way(way)).unwrap(), way);
        }
        // As it lies in buckets: 8 bytes of magic, version, number, BLAKE3 in its context.
        let numbered = encode_way(Fencing::Numbered);
        let (front, sum) = numbered.split_at(11);
        assert_eq!(front, b"BFHEADS\0\x01\0\x02");
        let sum = crate::chunk::Digest::from_bytes(sum.try_into().unwrap()).to_string();
        assert_eq!(sum, "743867549c2478deb2abe2c1aed4a2289c0f2575530b35a2aeba8c873b99a432");
        assert!(decode_way(&sealed(WAY, &[0])).is_err() && decode_way(&sealed(WAY, &[])).is_err());
        let runs = vec![run(0, 2), run(5, 1), run(999, 1)];
        let encoded = encode_zeros(&runs);
        assert_eq!(encoded.len(), 1);
        assert_eq!(decode_zeros(geometry(), &encoded[0]).unwrap(), runs);
        assert!(encode_zeros(&[]).is_empty());
    }

    #[test]
    fn many_runs_go_into_several_objects_none_of_them_large() {
        let runs: Vec<_> = (0..70_000).map(|n| run(2 * n, 1)).collect();
        let large = Geometry::new((1 << 20) * (64 << 10), ChunkSize::MIN).unwrap();
        let encoded = encode_zeros(&runs);
        assert_eq!(encoded.len(), 2);
        let back: Vec<_> = encoded
            .iter()
            .flat_map(|bytes| {
                assert!(u64::try_from(bytes.len()).unwrap() <= ZEROS_LEN_MAX);
                decode_zeros(large, bytes).unwrap()
            })
            .collect();
        assert_eq!(back, runs);
    }

    #[test]
    fn every_flip_is_refused_and_kinds_are_told_apart() {
        let all = [
            pulse().encode(),
            encode_ceilings(Limits::NONE),
            encode_suspend([1; 16]),
            encode_way(Fencing::Numbered),
            encode_zeros(&[run(1, 1)]).remove(0),
        ];
        for (own, bytes) in all.iter().enumerate() {
            let told = [
                Pulse::decode(bytes).is_ok(),
                decode_ceilings(bytes).is_ok(),
                decode_suspend(bytes).is_ok(),
                decode_way(bytes).is_ok(),
                decode_zeros(geometry(), bytes).is_ok(),
            ];
            assert_eq!(told.iter().position(|ok| *ok), Some(own));
            assert_eq!(told.iter().filter(|ok| **ok).count(), 1);
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1;
                let refused = match own {
                    0 => Pulse::decode(&flipped).is_err(),
                    1 => decode_ceilings(&flipped).is_err(),
                    2 => decode_suspend(&flipped).is_err(),
                    3 => decode_way(&flipped).is_err(),
                    _ => decode_zeros(geometry(), &flipped).is_err(),
                };
                assert!(refused, "kind {own}, byte {at}");
            }
        }
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let forged = |runs: &[(u32, u32)]| {
            let mut out = Encoder::new();
            out.u32(u32::try_from(runs.len()).unwrap());
            for (first, count) in runs {
                out.u32(*first).u32(*count);
            }
            decode_zeros(geometry(), &sealed(ZEROS, &out.finish())).is_err()
        };
        assert!(forged(&[(0, 0)]) && forged(&[(0, 1001)]) && forged(&[(1000, 1)]));
        assert!(
            forged(&[(5, 1), (4, 1)]) && forged(&[(0, 2), (1, 1)]) && forged(&[(0, 1), (1, 1)])
        );
        assert!(forged(&[(u32::MAX, 2)]) && !forged(&[(0, 1000)]));
        let many = Encoder::new().u32(u32::MAX).finish();
        assert!(decode_zeros(geometry(), &sealed(ZEROS, &many)).is_err());
    }

    #[test]
    fn neighbours_are_joined() {
        let runs = vec![run(5, 1), run(0, 2), run(2, 1), run(9, 1), run(5, 3)];
        assert_eq!(joined(runs), [run(0, 3), run(5, 3), run(9, 1)]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_them_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            Pulse::decode(&body).ok();
            for kind in [PULSE, CEILINGS, SUSPEND, WAY, ZEROS] {
                let bytes = sealed(kind, &body);
                Pulse::decode(&bytes).ok();
                decode_ceilings(&bytes).ok();
                decode_suspend(&bytes).ok();
                decode_way(&bytes).ok();
                decode_zeros(geometry(), &bytes).ok();
            }
        }
    }
}
