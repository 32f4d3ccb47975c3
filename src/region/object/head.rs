//! A head as bytes: versioned, bounded, checked, and never mistaken for another. Pure.

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::id::{ImageId, JobId, KeyId};
use crate::job::JobSpec;
use crate::region::{ImageInfo, Outcome};

use super::rules::{Owner, Phase, Sight};

/// The most bytes of a head.
pub const HEAD_LEN_MAX: usize = 128 << 10;

/// The small record of an image: who stages it, and how that was decided.
///
/// As bytes, every number little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 8 | magic `BFHEAD\0\0` |
/// | 2 | version: 1; 2 where the image is encrypted, as long as something of it is left |
/// | 1 | phase: 1 active, 2 committed, 3 aborting, 4 aborted, 5 removing, 6 removed |
/// | 1 | 0; 1 in version 2 |
/// | 8 | number of the head, from 1 |
/// | 16 | txn: random, of this write |
/// | 16 | txn of the head before; zeros in the first |
/// | 16 | job |
/// | 4 | epoch: attempts at the image so far |
/// | 4 | how many of them were before this job |
/// | 32 | owner: its process (16) and its claim (16), both random |
/// | 1 or 18 | 0; or 1, the job before (16), and how it ended: 0 cancelled, 1 committed |
/// | 4 + n | image id |
/// | 0 or 4 + n | the job's spec, as in a journal's header: active, committed, aborting |
/// | 0 or 80 | committed: manifest's BLAKE3 (32) and length (8), root (32), image size (8) |
/// | 0 or 36 + n | committed, version 2: BLAKE3 of the wrapped key (32), id of the key around it |
/// | 32 | checksum: BLAKE3, in derive-key mode, over everything before |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the rules look at.
    pub sight: Sight,
    /// The image it belongs to: a head that was put elsewhere is no head.
    pub image: ImageId,
    /// What the job is to do, until nothing of it is left.
    pub spec: Option<Box<JobSpec>>,
    /// What the image is, while it is visible.
    pub made: Option<Made>,
    /// Whether it is encrypted: then its wrapped keys are destroyed before anything else.
    pub encrypted: bool,
}

/// What a committed image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// BLAKE3 of the bytes of its manifest.
    pub manifest: Digest,
    /// How many they are.
    pub manifest_bytes: u64,
    /// Root of its chunk table; of an encrypted image, what stands for it where anybody may read.
    pub root: Digest,
    /// Its size.
    pub image_bytes: u64,
    /// What opens an encrypted image.
    pub key: Option<MadeKey>,
}

/// The wrapped data key of an encrypted image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeKey {
    /// BLAKE3 of the object that holds it, by which it is named.
    pub digest: Digest,
    /// The key that wraps it.
    pub id: KeyId,
}

impl Head {
    /// A new claim.
    pub fn claimed(sight: Sight, spec: &JobSpec) -> Self {
        let (image, encrypted) = (spec.target.image.clone(), spec.key.is_some());
        Self { sight, image, spec: Some(Box::new(spec.clone())), made: None, encrypted }
    }

    /// The same job, a step further.
    #[must_use]
    pub fn stepped(&self, sight: Sight) -> Self {
        Self { sight, ..self.clone() }
    }

    /// It comes to stand elsewhere; what is not needed there any more is left out.
    #[must_use]
    pub fn moved(&self, phase: Phase, made: Option<Made>, txn: [u8; 16]) -> Self {
        let mut spec = self.spec.clone().filter(|_| has_spec(phase));
        if let Some(spec) = spec.as_mut().filter(|_| self.encrypted && phase == Phase::Committed) {
            // They are in its manifest, for those who have the key.
            spec.attributes.clear();
        }
        let made = made.filter(|_| phase == Phase::Committed);
        let encrypted = self.encrypted && has_parts(phase);
        let sight = self.sight.moved(phase, txn);
        Self { sight, image: self.image.clone(), spec, made, encrypted }
    }

    /// Of a committed image: another key opens it.
    #[must_use]
    pub fn rewrapped(&self, key: MadeKey, txn: [u8; 16]) -> Self {
        let made = self.made.clone().map(|made| Made { key: Some(key), ..made });
        Self { sight: self.sight.reworded(txn), made, ..self.clone() }
    }

    /// How the image is cut, while somebody knows.
    pub fn geometry(&self) -> Option<Geometry> {
        self.spec.as_ref().map(|spec| spec.geometry)
    }

    /// What is told of a visible image.
    pub fn info(&self) -> Option<ImageInfo> {
        let made = self.made.as_ref().filter(|_| self.sight.phase == Phase::Committed)?;
        let mut info = ImageInfo::new(self.image.clone(), made.image_bytes);
        info.job = Some(self.sight.job);
        info.key = made.key.as_ref().map(|key| key.id.clone());
        info.root = made.key.is_none().then_some(made.root);
        Some(info)
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let sight = &self.sight;
        let mut out = Encoder::new();
        let version = if self.encrypted { VERSION_ENCRYPTED } else { VERSION };
        out.raw(&MAGIC).u16(version).u8(number_of(sight.phase)).u8(u8::from(self.encrypted));
        out.u64(sight.seq).raw(&sight.txn).raw(&sight.prev).raw(sight.job.as_bytes());
        out.u32(sight.epoch).u32(sight.base);
        out.raw(&sight.owner.process).raw(&sight.owner.claim);
        out.option(sight.past, |out, (job, outcome)| {
            out.raw(job.as_bytes()).u8(u8::from(outcome == Outcome::Committed));
        });
        out.block(self.image.as_str().as_bytes());
        debug_assert_eq!(self.spec.is_some(), has_spec(sight.phase), "{:?}", sight.phase);
        if let Some(spec) = &self.spec {
            let mut bytes = Encoder::new();
            spec.encode(&mut bytes);
            out.block(&bytes.finish());
        }
        debug_assert_eq!(self.made.is_some(), sight.phase == Phase::Committed);
        if let Some(made) = &self.made {
            out.raw(made.manifest.as_bytes()).u64(made.manifest_bytes);
            out.raw(made.root.as_bytes()).u64(made.image_bytes);
            debug_assert_eq!(made.key.is_some(), self.encrypted, "what opens an encrypted image");
            if let Some(key) = &made.key {
                out.raw(key.digest.as_bytes()).block(key.id.as_str().as_bytes());
            }
        }
        let mut bytes = out.finish();
        bytes.extend(blake3::derive_key(CHECKSUM_CONTEXT, &bytes));
        debug_assert!(bytes.len() <= HEAD_LEN_MAX, "a spec is bounded");
        bytes
    }

    /// The head of that image in those bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a later version; [`ErrorKind::Corrupt`] for anything that
    /// [`Head::encode`] would not write, also for the head of another image.
    pub fn decode(image: &ImageId, bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(bytes, "the head of an image");
        if bytes.len() > HEAD_LEN_MAX || from.array().ok() != Some(MAGIC) {
            return Err(from.corrupt("it is none").hint(FOREIGN_HINT));
        }
        let encrypted =
            bytes.get(VERSION_AT..VERSION_AT + 2) == Some(&VERSION_ENCRYPTED.to_le_bytes());
        from.version(if encrypted { VERSION_ENCRYPTED } else { VERSION })?;
        let mut from = from.checked(bytes, CHECKSUM_CONTEXT)?;
        let head = Self::decode_fields(&mut from, encrypted)?;
        from.finish()?;
        if head.image != *image {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("read the head of an image: it belongs to {}", head.image),
            )
            .hint(FOREIGN_HINT));
        }
        Ok(head)
    }

    fn decode_fields(from: &mut Decoder<'_>, encrypted: bool) -> Result<Self> {
        let phase = phase_of(from.u8()?).ok_or_else(|| from.corrupt("its phase is unknown"))?;
        if from.u8()? != u8::from(encrypted) || encrypted && !has_parts(phase) {
            return Err(from.corrupt("whether it is encrypted is said in two ways"));
        }
        let (seq, txn, prev) = (from.u64()?, from.array()?, from.array()?);
        let job = JobId::from_bytes(from.array()?);
        let (epoch, base) = (from.u32()?, from.u32()?);
        let owner = Owner { process: from.array()?, claim: from.array()? };
        let past = from.option(|from| {
            let job = JobId::from_bytes(from.array()?);
            match from.u8()? {
                0 => Ok((job, Outcome::Cancelled)),
                1 => Ok((job, Outcome::Committed)),
                _ => Err(from.corrupt("the job before ended in no known way")),
            }
        })?;
        if seq == 0 || base > epoch {
            return Err(from.corrupt("its numbers are impossible"));
        }
        let image: ImageId = from
            .text(ImageId::LEN_MAX)?
            .parse()
            .map_err(|error| from.corrupt("its image id is malformed").because(error))?;
        let spec = match has_spec(phase) {
            true => Some(Box::new(decode_spec(from, job, &image)?)),
            false => None,
        };
        if spec.as_ref().is_some_and(|spec| spec.key.is_some() != encrypted) {
            return Err(from.corrupt("whether it is encrypted is said in two ways"));
        }
        let made = match phase {
            Phase::Committed => Some(Made {
                manifest: Digest::from_bytes(from.array()?),
                manifest_bytes: from.u64()?,
                root: Digest::from_bytes(from.array()?),
                image_bytes: from.u64()?,
                key: encrypted.then(|| decode_key(from)).transpose()?,
            }),
            _ => None,
        };
        let sight = Sight { seq, txn, prev, job, owner, epoch, base, phase, past };
        Ok(Self { sight, image, spec, made, encrypted })
    }
}

fn decode_key(from: &mut Decoder<'_>) -> Result<MadeKey> {
    let digest = Digest::from_bytes(from.array()?);
    let id = from.text(KeyId::LEN_MAX)?.parse();
    let id = id.map_err(|error| from.corrupt("a key id is malformed").because(error))?;
    Ok(MadeKey { digest, id })
}

fn decode_spec(from: &mut Decoder<'_>, job: JobId, image: &ImageId) -> Result<JobSpec> {
    let mut inner = Decoder::new(from.block(HEAD_LEN_MAX)?, "the spec in a head");
    let spec = JobSpec::decode(&mut inner)?;
    inner.finish()?;
    if spec.job != job || spec.target.image != *image {
        return Err(from.corrupt("it speaks of two jobs or images"));
    }
    Ok(spec)
}

/// Whether somebody may still want to know what the job was to do.
fn has_spec(phase: Phase) -> bool {
    matches!(phase, Phase::Active | Phase::Committed | Phase::Aborting)
}

/// Whether something may be left of what the job has written.
fn has_parts(phase: Phase) -> bool {
    !matches!(phase, Phase::Aborted | Phase::Removed)
}

const PHASES: [Phase; 6] = [
    Phase::Active,
    Phase::Committed,
    Phase::Aborting,
    Phase::Aborted,
    Phase::Removing,
    Phase::Removed,
];

fn number_of(phase: Phase) -> u8 {
    let at = PHASES.iter().position(|known| *known == phase);
    at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0)
}

fn phase_of(number: u8) -> Option<Phase> {
    PHASES.get(usize::from(number).checked_sub(1)?).copied()
}

const MAGIC: [u8; 8] = *b"BFHEAD\0\0";
/// Where the version stands.
const VERSION_AT: usize = 8;
const VERSION: u16 = 1;
const VERSION_ENCRYPTED: u16 = 2;
const CHECKSUM_CONTEXT: &str = "blockferry 2026-11-26 image head v1";
const FOREIGN_HINT: &str = "something else put an object there; nothing was changed";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::sample_spec;

    fn owner() -> Owner {
        Owner { process: [3; 16], claim: [4; 16] }
    }

    fn active() -> Head {
        let spec = sample_spec();
        let past = Sight::claimed(None, JobId::from_bytes([9; 16]), owner(), [8; 16]);
        let past = past.begun([7; 16]).moved(Phase::Aborting, [6; 16]);
        let past = past.moved(Phase::Aborted, [5; 16]);
        Head::claimed(Sight::claimed(Some(&past), spec.job, owner(), [1; 16]), &spec)
    }

    fn made() -> Made {
        Made {
            manifest: Digest::from_bytes([0xaa; 32]),
            manifest_bytes: 1234,
            root: Digest::from_bytes([0xbb; 32]),
            image_bytes: 1 << 30,
            key: None,
        }
    }

    fn every_phase() -> Vec<Head> {
        every_phase_of(active(), made())
    }

    /// The same of an encrypted image.
    fn every_encrypted_phase() -> Vec<Head> {
        let mut spec = sample_spec();
        spec.key = Some("k-1".parse().unwrap());
        let key = MadeKey { digest: Digest::from_bytes([0xcc; 32]), id: "k-1".parse().unwrap() };
        let active = Head::claimed(active().sight, &spec);
        every_phase_of(active, Made { key: Some(key), ..made() })
    }

    fn every_phase_of(active: Head, made: Made) -> Vec<Head> {
        let committed = active.moved(Phase::Committed, Some(made), [2; 16]);
        let aborting = active.moved(Phase::Aborting, None, [2; 16]);
        let removing = committed.moved(Phase::Removing, None, [3; 16]);
        vec![
            aborting.moved(Phase::Aborted, None, [4; 16]),
            removing.moved(Phase::Removed, None, [4; 16]),
            aborting,
            removing,
            committed,
            active.stepped(active.sight.begun([9; 16])),
            active,
        ]
    }

    #[test]
    fn a_head_comes_back_as_it_went_in() {
        for head in every_phase().into_iter().chain(every_encrypted_phase()) {
            let bytes = head.encode();
            assert!(bytes.len() <= HEAD_LEN_MAX);
            assert_eq!(Head::decode(&head.image, &bytes).unwrap(), head);
        }
    }

    #[test]
    fn a_tombstone_is_small_and_tells_nothing_of_the_job() {
        let heads = every_phase();
        for head in &heads[..2] {
            assert!(head.spec.is_none() && head.made.is_none() && head.encode().len() < 256);
        }
        assert!(heads[4].info().is_some_and(|info| info.image_bytes == 1 << 30));
        assert!(heads.iter().filter(|head| head.info().is_some()).count() == 1);
    }

    #[test]
    fn the_head_of_an_encrypted_image_says_so_as_long_as_something_of_it_is_left() {
        let heads = every_encrypted_phase();
        let versions: Vec<u8> = heads.iter().map(|head| head.encode()[VERSION_AT]).collect();
        assert_eq!(versions, [1, 1, 2, 2, 2, 2, 2]);
        let [.., committed, _, active] = &heads[..] else { panic!() };
        let info = committed.info().unwrap();
        assert_eq!((info.root, info.key.unwrap().as_str()), (None, "k-1"));
        assert!(!active.spec.as_ref().unwrap().attributes.is_empty());
        assert!(committed.spec.as_ref().unwrap().attributes.is_empty(), "they are not for all");
        let key = MadeKey { digest: Digest::from_bytes([1; 32]), id: "k-2".parse().unwrap() };
        let again = committed.rewrapped(key.clone(), [7; 16]);
        assert_eq!(again.made.as_ref().unwrap().key, Some(key));
        assert_eq!((again.sight.phase, again.sight.prev), (Phase::Committed, committed.sight.txn));
        assert_eq!(Head::decode(&again.image, &again.encode()).unwrap(), again);
        // What one part of it says the other must not deny.
        let mended = |mut bytes: Vec<u8>, at: usize, to: u8| {
            let len = bytes.len() - 32;
            bytes[at] = to;
            bytes.truncate(len);
            let sum = blake3::derive_key(CHECKSUM_CONTEXT, &bytes);
            bytes.extend(sum);
            Head::decode(&active.image, &bytes).unwrap_err().kind()
        };
        for (head, at, to) in [
            (active, VERSION_AT, 1),
            (active, 11, 0),
            (&heads[0], 11, 1),
            (&heads[0], VERSION_AT, 2),
        ] {
            assert_eq!(mended(head.encode(), at, to), ErrorKind::Corrupt, "byte {at} to {to}");
        }
    }

    #[test]
    fn golden_bytes_hold_the_layout_still() {
        let mut head = active().moved(Phase::Aborting, None, [2; 16]);
        head = head.moved(Phase::Aborted, None, [4; 16]);
        head.image = "m-1".parse().unwrap();
        let hex: String = head.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN.split_whitespace().collect::<String>());
    }

    const GOLDEN: &str = "
        4246484541440000 0100 0400 0700000000000000
        04040404040404040404040404040404
        02020202020202020202020202020202
        11111111111111111111111111111111
        01000000 01000000
        0303030303030303030303030303030304040404040404040404040404040404
        01 09090909090909090909090909090909 00
        03000000 6d2d31
        93b0f883c39cd50e1be51705f19a2665860fafc9d4d004bfb83fbe68cd28204e
    ";

    #[test]
    fn every_flip_and_every_cut_is_refused() {
        let head = active();
        let bytes = head.encode();
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let kind = Head::decode(&head.image, &bytes).unwrap_err().kind();
                let version = (8..10).contains(&at) && kind == ErrorKind::Unsupported;
                assert!(kind == ErrorKind::Corrupt || version, "byte {at}: {kind:?}");
            }
            assert!(Head::decode(&head.image, &bytes[..at]).is_err(), "cut at {at}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Head::decode(&head.image, &longer).is_err());
    }

    #[test]
    fn foreign_objects_later_versions_and_heads_of_others_are_told_apart() {
        let head = active();
        let told = |bytes: &[u8]| Head::decode(&head.image, bytes).unwrap_err().to_string();
        assert!(told(b"").contains("something else put an object there"));
        assert!(told(b"<html>").contains("something else put an object there"));
        assert!(told(&vec![b'x'; HEAD_LEN_MAX + 1]).contains("it is none"));
        let mut later = head.encode();
        later[8] = 3;
        assert!(told(&later).contains("upgrade this one"));
        let other = Head::decode(&"other".parse().unwrap(), &head.encode()).unwrap_err();
        assert!(other.to_string().contains("it belongs to"), "{other}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            Head::decode(&"m".parse().unwrap(), &bytes).ok();
            let framed = [&MAGIC[..], &[1, 0], &bytes].concat();
            let summed = [&framed[..], &blake3::derive_key(CHECKSUM_CONTEXT, &framed)].concat();
            if let Ok(head) = Head::decode(&"m".parse().unwrap(), &summed) {
                prop_assert_eq!(head.encode(), summed);
            }
        }
    }
}
