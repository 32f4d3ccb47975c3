//! The durable description of one copy: written to the journal and the index before start is
//! acknowledged. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::chunk::Digest;
use crate::codec::{Decoder, Encoder};
use crate::error::Result;
use crate::geometry::{ChunkSize, Geometry};
use crate::id::{ImageId, JobId, KeyId, RegionName};
use crate::options::{
    ATTRIBUTE_COUNT_MAX, ATTRIBUTE_KEY_LEN_MAX, ATTRIBUTE_VALUE_LEN_MAX, Limits, Verify,
    check_attributes,
};

/// One end of a copy: an image in a region.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The region's name.
    pub region: RegionName,
    /// The image's id in it.
    pub image: ImageId,
}

impl Endpoint {
    /// That image in that region.
    pub fn new(region: RegionName, image: ImageId) -> Self {
        Self { region, image }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = self.region.as_str();
        // The region of a plain file or object holds that one: its name is the whole location.
        if region.starts_with("file://") || region.starts_with("s3+raw://") {
            return self.region.fmt(f);
        }
        match region.split_once('?').filter(|_| region.starts_with("s3://")) {
            Some((place, words)) => write!(f, "{place}/{}?{words}", self.image),
            None => write!(f, "{region}/{}", self.image),
        }
    }
}

/// Facts of a source that change when its bytes may have changed: size, times, inode, ETag,
/// version, root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    const FACT_COUNT_MAX: u16 = 16;
    const FACT_LEN_MAX: usize = 256;

    /// Without any fact: equal to every other empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more fact. At most 16 are kept, each of at most 256 bytes.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        let value = value.to_string();
        debug_assert!(self.0.len() < usize::from(Self::FACT_COUNT_MAX));
        debug_assert!(name.len().max(value.len()) <= Self::FACT_LEN_MAX);
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The facts by name.
    pub fn facts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Facts that are digests of the content, or tell those who know it that it is that.
    const DIGESTS: [&str; 2] = ["root", "etag"];
    const ENCRYPTED: &str = "encrypted";

    /// Of an image that is encrypted where it lies: its facts tell nothing of its content.
    pub(crate) fn with_encrypted(self) -> Self {
        self.with(Self::ENCRYPTED, "yes")
    }

    /// Whether the source said of itself that it is encrypted where it lies.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.contains_key(Self::ENCRYPTED)
    }

    /// Without the facts that tell something of the content.
    pub(crate) fn without_digests(mut self) -> Self {
        self.0.retain(|name, _| !Self::DIGESTS.contains(&name.as_str()));
        self
    }

    /// What differs from `now`, in words; `None` when nothing does.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let told: Vec<String> = names
            .into_iter()
            .filter(|name| self.0.get(*name) != now.0.get(*name))
            .map(|name| {
                let shown =
                    |facts: &Self| facts.0.get(name).cloned().unwrap_or_else(|| "none".into());
                format!("{name} was {}, is {}", shown(self), shown(now))
            })
            .collect();
        if told.is_empty() { None } else { Some(told.join("; ")) }
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u16(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        for (name, value) in &self.0 {
            out.block(name.as_bytes()).block(value.as_bytes());
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let count = from.u16()?;
        if count > Self::FACT_COUNT_MAX {
            return Err(from.corrupt("a fingerprint has too many facts"));
        }
        let mut facts = BTreeMap::new();
        for _ in 0..count {
            let name = from.text(Self::FACT_LEN_MAX)?.to_owned();
            check_order(&facts, &name, from)?;
            facts.insert(name, from.text(Self::FACT_LEN_MAX)?.to_owned());
        }
        Ok(Self(facts))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Everything needed to go on with a copy after its process is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobSpec {
    /// The job.
    pub job: JobId,
    /// Where the bytes come from.
    pub source: Endpoint,
    /// Where the image will be.
    pub target: Endpoint,
    /// Size of the image and of its chunks.
    pub geometry: Geometry,
    /// What the source looked like when the job was accepted.
    pub fingerprint: Fingerprint,
    /// How much is read back before commit.
    pub verify: Verify,
    /// The job's ceilings as first asked for; later changes are in the control block.
    pub limits: Limits,
    /// BLAKE3 of the idempotency token.
    pub token: Option<Digest>,
    /// Consent to overwrite a target that holds bytes already.
    pub destructive: bool,
    /// An image of the target's region from which chunks may be taken over.
    pub base: Option<ImageId>,
    /// Attributes of the new image.
    pub attributes: BTreeMap<String, String>,
    /// The key under which the new image is encrypted; `None`: it is not.
    pub key: Option<KeyId>,
    /// Milliseconds since 1970 when the job was accepted; a label only.
    pub created_unix_ms: u64,
}

impl JobSpec {
    /// A job without limits, verification, token, base or attributes: the other fields are public.
    pub fn new(
        job: JobId,
        source: Endpoint,
        target: Endpoint,
        geometry: Geometry,
        fingerprint: Fingerprint,
    ) -> Self {
        Self {
            job,
            source,
            target,
            geometry,
            fingerprint,
            verify: Verify::None,
            limits: Limits::NONE,
            token: None,
            destructive: false,
            base: None,
            attributes: BTreeMap::new(),
            key: None,
            created_unix_ms: 0,
        }
    }

    /// Whether both describe the same request: all but the job's number and time.
    pub fn same_request(&self, other: &Self) -> bool {
        let other = Self { job: self.job, created_unix_ms: self.created_unix_ms, ..other.clone() };
        *self == other
    }

    /// What the job keeps on record of a fingerprint: where the image is encrypted, nothing that is
    /// a digest of its content.
    pub(crate) fn facts_kept(&self, seen: Fingerprint) -> Fingerprint {
        if self.key.is_some() { seen.without_digests() } else { seen }
    }

    /// The version of the records that hold such a spec: 2 with a key, and 1 as ever without.
    pub(crate) fn record_version(&self) -> u16 {
        if self.key.is_some() { 2 } else { 1 }
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.raw(self.job.as_bytes());
        for end in [&self.source, &self.target] {
            out.block(end.region.as_str().as_bytes()).block(end.image.as_str().as_bytes());
        }
        out.u64(self.geometry.image_bytes()).u8(self.geometry.chunk_size().shift());
        self.fingerprint.encode(out);
        encode_verify(self.verify, out);
        encode_limits(self.limits, out);
        out.option(self.token.as_ref(), |out, token| {
            out.raw(token.as_bytes());
        });
        // A job without a base and without a key is written as it was before there were any.
        let mut flags = if self.destructive { FLAG_DESTRUCTIVE } else { 0 };
        flags |= if self.base.is_some() { FLAG_BASE } else { 0 };
        flags |= if self.key.is_some() { FLAG_KEY } else { 0 };
        out.u8(flags);
        if let Some(base) = &self.base {
            out.block(base.as_str().as_bytes());
        }
        if let Some(key) = &self.key {
            out.block(key.as_str().as_bytes());
        }
        encode_attributes(&self.attributes, out);
        out.u64(self.created_unix_ms);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self> {
        let job = JobId::from_bytes(from.array()?);
        let source = decode_endpoint(from)?;
        let target = decode_endpoint(from)?;
        let image_bytes = from.u64()?;
        let chunk_size = ChunkSize::from_shift(from.u8()?)
            .map_err(|()| from.corrupt("the chunk size is out of range"))?;
        let geometry = Geometry::new(image_bytes, chunk_size)
            .map_err(|error| from.corrupt("the geometry is impossible").because(error))?;
        let fingerprint = Fingerprint::decode(from)?;
        let verify = decode_verify(from)?;
        let limits = decode_limits(from)?;
        let token = from.option(|from| from.array().map(Digest::from_bytes))?;
        let flags = from.u8()?;
        if flags & !(FLAG_DESTRUCTIVE | FLAG_BASE | FLAG_KEY) != 0 {
            return Err(from.corrupt("a flag is unknown"));
        }
        let base = (flags & FLAG_BASE != 0).then(|| decode_image(from)).transpose()?;
        let key = (flags & FLAG_KEY != 0).then(|| decode_key(from)).transpose()?;
        let attributes = decode_attributes(from)?;
        let created_unix_ms = from.u64()?;
        Ok(Self {
            job,
            source,
            target,
            geometry,
            fingerprint,
            verify,
            limits,
            token,
            destructive: flags & FLAG_DESTRUCTIVE != 0,
            base,
            attributes,
            key,
            created_unix_ms,
        })
    }
}

fn decode_endpoint(from: &mut Decoder<'_>) -> Result<Endpoint> {
    let region = from.text(RegionName::LEN_MAX)?;
    let region =
        region.parse().map_err(|e| from.corrupt("a region name is malformed").because(e))?;
    Ok(Endpoint { region, image: decode_image(from)? })
}

fn decode_image(from: &mut Decoder<'_>) -> Result<ImageId> {
    let image = from.text(ImageId::LEN_MAX)?;
    image.parse().map_err(|e| from.corrupt("an image id is malformed").because(e))
}

fn decode_key(from: &mut Decoder<'_>) -> Result<KeyId> {
    let key = from.text(KeyId::LEN_MAX)?;
    key.parse().map_err(|error| from.corrupt("a key id is malformed").because(error))
}

const FLAG_DESTRUCTIVE: u8 = 1;
const FLAG_BASE: u8 = 2;
const FLAG_KEY: u8 = 4;

pub(crate) fn encode_attributes(attributes: &BTreeMap<String, String>, out: &mut Encoder) {
    out.u16(u16::try_from(attributes.len()).unwrap_or(u16::MAX));
    for (key, value) in attributes {
        out.block(key.as_bytes()).block(value.as_bytes());
    }
}

pub(crate) fn decode_attributes(from: &mut Decoder<'_>) -> Result<BTreeMap<String, String>> {
    let count = from.u16()?;
    if usize::from(count) > ATTRIBUTE_COUNT_MAX {
        return Err(from.corrupt("there are too many attributes"));
    }
    let mut attributes = BTreeMap::new();
    for _ in 0..count {
        let key = from.text(ATTRIBUTE_KEY_LEN_MAX)?.to_owned();
        check_order(&attributes, &key, from)?;
        attributes.insert(key, from.text(ATTRIBUTE_VALUE_LEN_MAX)?.to_owned());
    }
    check_attributes(&attributes).map_err(|e| from.corrupt("the attributes").because(e))?;
    Ok(attributes)
}

/// Names ascend, so that there is one way to write them and none comes twice.
fn check_order(taken: &BTreeMap<String, String>, name: &String, from: &Decoder<'_>) -> Result<()> {
    match taken.last_key_value() {
        Some((last, _)) if last >= name => Err(from.corrupt("names are out of order")),
        _ => Ok(()),
    }
}

pub(crate) fn encode_verify(verify: Verify, out: &mut Encoder) {
    out.u32(match verify {
        Verify::None => 0,
        Verify::Sample { per_million } => per_million,
        Verify::Full => u32::MAX,
    });
}

pub(crate) fn decode_verify(from: &mut Decoder<'_>) -> Result<Verify> {
    match from.u32()? {
        0 => Ok(Verify::None),
        u32::MAX => Ok(Verify::Full),
        per_million @ 1..=1_000_000 => Ok(Verify::Sample { per_million }),
        _ => Err(from.corrupt("the verify mode is unknown")),
    }
}

pub(crate) fn encode_limits(limits: Limits, out: &mut Encoder) {
    out.u64(limits.bytes_per_sec.map_or(0, Into::into));
    out.u64(limits.ops_per_sec.map_or(0, Into::into));
}

pub(crate) fn decode_limits(from: &mut Decoder<'_>) -> Result<Limits> {
    Ok(Limits::NONE.with_bytes_per_sec(from.u64()?).with_ops_per_sec(from.u64()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample_spec() -> JobSpec {
        let end = |region: &str, image: &str| {
            Endpoint::new(region.parse().unwrap(), image.parse().unwrap())
        };
        let geometry = Geometry::new(1_000_003, ChunkSize::MIN).unwrap();
        let fingerprint = Fingerprint::new().with("size", 1_000_003).with("inode", 7);
        let job = JobId::from_bytes([0x11; 16]);
        let mut spec =
            JobSpec::new(job, end("a", "disk"), end("dir:///b", "m-1"), geometry, fingerprint);
        spec.verify = Verify::Sample { per_million: 50_000 };
        spec.limits = Limits::NONE.with_bytes_per_sec(1 << 20);
        spec.token = Some(Digest::from_bytes([9; 32]));
        spec.attributes.insert("name".into(), "web".into());
        spec.created_unix_ms = 1_700_000_000_000;
        spec
    }

    #[test]
    fn a_spec_comes_back_as_it_went_in_and_never_from_less() {
        let spec = sample_spec();
        let mut out = Encoder::new();
        spec.encode(&mut out);
        let bytes = out.finish();
        let mut from = Decoder::new(&bytes, "test");
        assert_eq!(JobSpec::decode(&mut from).unwrap(), spec);
        from.finish().unwrap();
        for len in 0..bytes.len() {
            assert!(JobSpec::decode(&mut Decoder::new(&bytes[..len], "test")).is_err());
        }
        for destructive in [false, true] {
            let mut keyed = spec.clone();
            keyed.key = Some("alias/images".parse().unwrap());
            keyed.destructive = destructive;
            keyed.encode(&mut out);
            let bytes = out.finish();
            let mut from = Decoder::new(&bytes, "test");
            assert_eq!(JobSpec::decode(&mut from).unwrap(), keyed);
            from.finish().unwrap();
            assert!(!keyed.same_request(&spec), "another key is another request");
        }
    }

    #[test]
    fn a_base_is_part_of_the_spec_and_none_leaves_no_trace() {
        let bytes_of = |spec: &JobSpec| {
            let mut out = Encoder::new();
            spec.encode(&mut out);
            out.finish()
        };
        let plain = sample_spec();
        let mut based = plain.clone();
        based.base = Some("m-0".parse().unwrap());
        assert!(!plain.same_request(&based));
        let (without, with) = (bytes_of(&plain), bytes_of(&based));
        let mut from = Decoder::new(&with, "test");
        assert_eq!(JobSpec::decode(&mut from).unwrap(), based);
        from.finish().unwrap();
        // Golden: the flag, and behind it the id; all else is as it was.
        let at = without.iter().zip(&with).position(|(one, other)| one != other).unwrap();
        assert_eq!((without[at], with[at]), (0, FLAG_BASE));
        assert_eq!(with[at + 1..at + 8], [3, 0, 0, 0, b'm', b'-', b'0']);
        assert_eq!(with[at + 8..], without[at + 1..]);
    }

    #[test]
    fn what_reads_differently_from_what_would_be_written_is_refused() {
        let mut facts = Encoder::new();
        facts.u16(2).block(b"size").block(b"5").block(b"inode").block(b"7");
        let bytes = facts.finish();
        assert!(Fingerprint::decode(&mut Decoder::new(&bytes, "test")).is_err(), "out of order");
        facts.u16(2).block(b"size").block(b"5").block(b"size").block(b"7");
        let bytes = facts.finish();
        assert!(Fingerprint::decode(&mut Decoder::new(&bytes, "test")).is_err(), "twice the same");
        facts.u16(2).block(b"os").block(b"").block(b"arch").block(b"");
        let bytes = facts.finish();
        assert!(decode_attributes(&mut Decoder::new(&bytes, "test")).is_err(), "out of order");
        let mut out = Encoder::new();
        let mut spec = sample_spec();
        spec.attributes.clear();
        spec.encode(&mut out);
        let mut bytes = out.finish();
        // Before the count of attributes (2) and the time (8).
        let destructive = bytes.len() - 11;
        assert_eq!(std::mem::replace(&mut bytes[destructive], 8), 0);
        assert!(JobSpec::decode(&mut Decoder::new(&bytes, "test")).is_err(), "a flag of 8");
    }

    #[test]
    fn a_difference_says_what_was_and_what_is() {
        let was = Fingerprint::new().with("size", 5).with("mtime", 1);
        let now = Fingerprint::new().with("size", 6).with("mtime", 1);
        assert_eq!(was.difference(&now).unwrap(), "size was 5, is 6");
        assert_eq!(was.difference(&was), None);
        assert_eq!(
            was.difference(&Fingerprint::new().with("size", 5)).unwrap(),
            "mtime was 1, is none"
        );
    }

    #[test]
    fn the_same_request_is_told_from_another() {
        let spec = sample_spec();
        let mut again = spec.clone();
        again.job = JobId::from_bytes([1; 16]);
        again.created_unix_ms += 1;
        assert!(spec.same_request(&again));
        again.verify = Verify::Full;
        assert!(!spec.same_request(&again));
    }
}
