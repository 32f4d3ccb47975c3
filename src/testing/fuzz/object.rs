//! What a store in the wrong hands could show of a region: heads, and listings that a resume reads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Effort, assert_refusal, cuts, mend_sum, sample_spec};
use crate::chunk::Digest;
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry};
use crate::id::{ImageId, JobId, KeyId};
use crate::region::object::gather::Gathered;
use crate::region::object::head::{Head, Made, MadeKey};
use crate::region::object::image::{Image, SealedImage, Writes};
use crate::region::object::names::{self, Named, Part};
use crate::region::object::notes;
use crate::region::object::rules::{Owner, Phase, Sight};

const HEAD_CONTEXT: &str = "blockferry 2026-11-26 image head v1";
const ZEROS_CONTEXT: &str = "blockferry 2026-11-26 object zeros v1";
const JOB: JobId = JobId::from_bytes([0x11; 16]);

pub(super) fn check_head(bytes: &[u8], effort: Effort) {
    check_cuts(bytes, effort);
    let mut mended = bytes.to_vec();
    mend_sum(&mut mended, 32, HEAD_CONTEXT);
    check_cuts(&mended, effort);
}

fn check_cuts(bytes: &[u8], effort: Effort) {
    let Ok(image) = "m".parse::<ImageId>() else { return };
    let head = match Head::decode(&image, bytes) {
        Ok(head) => head,
        Err(error) => return assert_refusal(&error),
    };
    assert!(head.encode() == bytes, "written otherwise: {head:?}");
    assert_eq!(head.image, image, "the head of another image");
    assert!(head.sight.base <= head.sight.epoch && head.sight.seq > 0, "{head:?}");
    for len in cuts(bytes, effort) {
        let mut part = bytes[..len].to_vec();
        assert!(Head::decode(&image, &part).is_err(), "cut at {len}");
        mend_sum(&mut part, 32, HEAD_CONTEXT);
        assert!(Head::decode(&image, &part).is_err(), "cut at {len}, with a sum that holds");
    }
}

pub(super) fn head_seeds() -> Vec<Vec<u8>> {
    let (Some(mut spec), Ok(image)) = (sample_spec(), "m".parse::<ImageId>()) else {
        return Vec::new();
    };
    spec.target.image = image;
    let owner = Owner { process: [1; 16], claim: [2; 16] };
    let active = Head::claimed(Sight::claimed(None, spec.job, owner, [3; 16]), &spec);
    let begun = active.stepped(active.sight.begun([4; 16]));
    let made = Made {
        manifest: Digest::from_bytes([5; 32]),
        manifest_bytes: 99,
        root: Digest::from_bytes([6; 32]),
        image_bytes: 1 << 20,
        key: None,
    };
    let encrypted = match "k-1".parse::<KeyId>() {
        Ok(id) => encrypted_heads(&active, &made, id),
        Err(_) => Vec::new(),
    };
    let committed = begun.moved(Phase::Committed, Some(made), [5; 16]);
    let aborting = begun.moved(Phase::Aborting, None, [5; 16]);
    let aborted = aborting.moved(Phase::Aborted, None, [6; 16]);
    let removing = committed.moved(Phase::Removing, None, [6; 16]);
    let removed = removing.moved(Phase::Removed, None, [7; 16]);
    let next = Sight::claimed(Some(&removed.sight), spec.job, owner, [8; 16]);
    let next = Head::claimed(next, &spec);
    let heads = [active, begun, committed, aborting, aborted, removing, removed, next];
    heads.iter().chain(&encrypted).map(Head::encode).collect()
}

fn encrypted_heads(plain: &Head, made: &Made, id: KeyId) -> Vec<Head> {
    let Some(mut spec) = plain.spec.clone() else { return Vec::new() };
    spec.key = Some(id.clone());
    let active = Head::claimed(plain.sight, &spec);
    let key = MadeKey { digest: Digest::from_bytes([9; 32]), id };
    let made = Made { key: Some(key.clone()), ..made.clone() };
    let committed = active.moved(Phase::Committed, Some(made), [5; 16]);
    let removing = committed.moved(Phase::Removing, None, [6; 16]);
    vec![committed.rewrapped(key, [7; 16]), removing, committed, active]
}

/// The manifest of an encrypted image as anybody can read it: what it names is within bounds, and
/// what is written again is the same.
pub(super) fn check_sealed_image(bytes: &[u8], effort: Effort) {
    // One in clear ends in a manifest, which takes the memory that `manifest` allows.
    if bytes.starts_with(b"BFOBJIM\0") {
        return;
    }
    let whole = Bytes::copy_from_slice(bytes);
    let sealed = match Image::decode(&whole) {
        Ok(Image::Sealed(sealed)) => sealed,
        Ok(Image::Plain { .. }) => return,
        Err(error) => return assert_refusal(&error),
    };
    let front = SealedImage::encode_front(&sealed.writes);
    assert!(bytes.starts_with(&front), "written otherwise");
    assert!(sealed.body[..] == bytes[front.len()..], "what follows is the body");
    let mut last = None;
    for index in sealed.writes.chunks().take(1 << 12) {
        assert!(last < Some(index), "chunks ascend");
        assert!(sealed.writes.of(index).is_some_and(|(epoch, _)| epoch > 0), "chunk {index}");
        last = Some(index);
    }
    for len in cuts(&front, effort) {
        assert!(Image::decode(&whole.slice(..len)).is_err(), "cut at {len}");
    }
}

pub(super) fn sealed_image_seeds() -> Vec<Vec<u8>> {
    let of = |chunks: &[(u32, u32)]| {
        let mut writes = Writes::default();
        for (index, epoch) in chunks {
            writes.push(ChunkIndex::new(*index), *epoch, [index.to_le_bytes()[0]; 24]);
        }
        [&SealedImage::encode_front(&writes)[..], b"body"].concat()
    };
    vec![of(&[]), of(&[(0, 1)]), of(&[(0, 1), (1, 1), (2, 2), (5, 1), (7, 3)])]
}

/// What the input makes a store list: how the image is cut, then one thing after the other.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?);
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// By chunk: the latest attempt that said something of it, and all that it said; `None`: zeros.
type Twin = BTreeMap<u32, (u32, BTreeSet<Option<[u8; 32]>>)>;

fn hear(twin: &mut Twin, index: u32, epoch: u32, said: Option<[u8; 32]>) {
    if epoch == 0 {
        return;
    }
    let heard = twin.entry(index).or_default();
    if epoch > heard.0 {
        *heard = (epoch, BTreeSet::new());
    }
    if epoch == heard.0 {
        heard.1.insert(said);
    }
}

/// Any listing and any records of zeros: what is taken from them is what a naive twin takes, and
/// every key that reads as ours has that one spelling.
pub(super) fn check_listing(bytes: &[u8], _effort: Effort) {
    let mut script = Script(bytes);
    let (Some(chunks), Some(tail)) = (script.byte(), script.byte()) else { return };
    let bytes = u64::from(chunks % 9) * ChunkSize::MIN.bytes() + u64::from(tail);
    let Ok(geometry) = Geometry::new(bytes, ChunkSize::MIN) else { return };
    let Ok(image) = "m".parse::<ImageId>() else { return };
    let (mut gathered, mut twin) = (Gathered::new(geometry, false), Twin::new());
    while let Some(kind) = script.byte() {
        let told = match kind % 3 {
            0 => tell_chunk(&mut script, &image, geometry, &mut gathered, &mut twin),
            1 => tell_zeros(&mut script, geometry, &mut gathered, &mut twin),
            _ => script.bytes().map(|name| check_name(&image, name)),
        };
        if told.is_none() {
            break;
        }
    }
    let gathered = gathered.finish();
    assert!(gathered.is_ok(), "what lies within the image can be recorded");
    let Ok((restored, whereabouts)) = gathered else { return };
    let mut data_bytes = 0;
    for index in geometry.chunks().iter() {
        let sure = twin.get(&index.get()).filter(|(_, said)| said.len() == 1);
        let said = sure.and_then(|(_, said)| said.first().copied());
        let told = restored.table.digest(index).map(|said| said.map(|digest| *digest.as_bytes()));
        assert_eq!(told, said, "chunk {index}");
        let by = sure.filter(|_| said.flatten().is_some()).map(|(epoch, _)| *epoch);
        assert_eq!(whereabouts.of(index), by, "who wrote chunk {index}");
        data_bytes += by.map_or(0, |_| geometry.range(index).len);
    }
    assert_eq!(restored.data_bytes, data_bytes, "bytes of data");
}

fn tell_chunk(
    script: &mut Script<'_>,
    image: &ImageId,
    geometry: Geometry,
    gathered: &mut Gathered,
    twin: &mut Twin,
) -> Option<()> {
    let (epoch, index) = (u32::from(script.byte()? % 4), u32::from(script.byte()? % 12));
    let (seed, len) = (script.byte()?, script.byte()?);
    let digest = Digest::from_bytes([seed; 32]);
    let attempt = names::attempt(image, JOB, epoch);
    let key = names::chunk(&attempt, ChunkIndex::new(index), &digest);
    let part = Part::Chunk { index: ChunkIndex::new(index), digest };
    assert_eq!(names::read(image, &key), Named::Part { job: JOB, epoch, part }, "{key}");
    let run = ChunkRun::new(ChunkIndex::new(index), 1);
    // None, a whole chunk, one byte too many, or as many as it says.
    let whole = if geometry.holds(run) { geometry.range(run.first).len } else { 7 };
    let len = [0, whole, whole + 1, u64::from(len)][usize::from(len % 4)];
    gathered.chunk(epoch, run.first, digest, len);
    if geometry.holds(run) && (1..=whole).contains(&len) {
        hear(twin, index, epoch, Some([seed; 32]));
    }
    Some(())
}

fn tell_zeros(
    script: &mut Script<'_>,
    geometry: Geometry,
    gathered: &mut Gathered,
    twin: &mut Twin,
) -> Option<()> {
    let epoch = u32::from(script.byte()? % 4);
    let bytes = script.bytes()?;
    let mut framed = [b"BFZEROS\0\x01\0", bytes, &[0; 32]].concat();
    mend_sum(&mut framed, 32, ZEROS_CONTEXT);
    let runs = match notes::decode_zeros(geometry, &framed) {
        Ok(runs) => runs,
        Err(error) => {
            assert_refusal(&error);
            return Some(());
        }
    };
    let again = notes::encode_zeros(&runs);
    let same = again.first().map_or(runs.is_empty(), |again| *again == framed);
    assert!(same && again.len() <= 1, "written otherwise");
    for run in runs {
        gathered.zeros(epoch, run);
        run.iter().for_each(|index| hear(twin, index.get(), epoch, None));
    }
    Some(())
}

fn check_name(image: &ImageId, name: &[u8]) {
    let Ok(name) = std::str::from_utf8(name) else { return };
    let key = format!("images/{image}/{name}");
    let again = match names::read(image, &key) {
        Named::Head(None) => names::head(image),
        Named::Head(Some(seq)) => names::numbered_head(image, seq),
        Named::Part { job, epoch, part } => {
            let attempt = names::attempt(image, job, epoch);
            match part {
                Part::Chunk { index, digest } => names::chunk(&attempt, index, &digest),
                Part::Sealed { index, mark } => names::sealed_chunk(&attempt, index, &mark),
                Part::Key(digest) => names::wrapped_key(&attempt, &digest),
                Part::Zeros(n) => names::zeros(&attempt, n),
                Part::Manifest => names::manifest(&attempt),
                Part::Foreign => return,
            }
        }
        Named::Foreign => return,
    };
    assert_eq!(again, key, "a key has one spelling");
}

pub(super) fn listing_seeds() -> Vec<Vec<u8>> {
    let chunk = |epoch: u8, index: u8, seed: u8, len: u8| vec![0, epoch, index, seed, len];
    let zeros = |epoch: u8, runs: &[(u32, u32)]| {
        let mut body = u32::try_from(runs.len()).unwrap_or(0).to_le_bytes().to_vec();
        for (first, count) in runs {
            body.extend(first.to_le_bytes());
            body.extend(count.to_le_bytes());
        }
        let len = u8::try_from(body.len()).unwrap_or(0);
        [&[1, epoch, len][..], &body].concat()
    };
    let name =
        |name: &str| [&[2, u8::try_from(name.len()).unwrap_or(0)][..], name.as_bytes()].concat();
    let attempt = format!("{JOB}.00000001/");
    let names: Vec<u8> = [
        "head".to_owned(),
        "head.000000000000001f".into(),
        format!("{attempt}manifest"),
        format!("{attempt}zeros.00000003"),
        format!("{attempt}00000002-{}", "5c".repeat(32)),
        format!("{attempt}00000002-{}", "5c".repeat(72)),
        format!("{attempt}key-{}", "5c".repeat(32)),
        format!("{attempt}stranger"),
    ]
    .iter()
    .flat_map(|text| name(text))
    .collect();
    let plain = [chunk(1, 0, 5, 1), chunk(1, 4, 6, 3), zeros(1, &[(1, 2)])].concat();
    let later = [plain.clone(), chunk(2, 0, 7, 1), chunk(3, 1, 8, 1)].concat();
    let doubtful = [plain.clone(), chunk(1, 0, 9, 1), zeros(2, &[(0, 4)])].concat();
    [plain, later, doubtful, names].map(|script| [&[4, 9][..], &script].concat()).into()
}
