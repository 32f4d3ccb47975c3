//! The chunk table of an image, its root, and the manifest that carries both as bytes. Pure.

mod table;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};

use crate::chunk::{Content, Digest};
use crate::codec::Encoder;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, ChunkSize, Geometry, to_usize};
use crate::id::JobId;
use crate::options;

pub use table::{ChunkTable, TableBuilder};

/// What a committed image is: its chunks with their digests, the job that made it, its attributes.
///
/// As bytes, version 1, every number little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 8 | magic `BFMANIF\0` |
/// | 2 | version: 1 |
/// | 1 | chunk size as a base-two logarithm: 16 to 26 |
/// | 1 | flags: 0 |
/// | 8 | image size in bytes |
/// | 1 or 17 | 0: not made by a copy; or 1 and the job id |
/// | 2 | number of attributes: 0 to 64 |
/// | … | each: length (4) and bytes of the key, of the value; keys strictly ascending |
/// | 4 | number of runs |
/// | … | each maximal run: 0 and count (4) of zero chunks; or 1, count (4) and 32 a data chunk |
/// | 32 | root: BLAKE3 over image size (8), chunk size in bytes (8) and the runs as above |
/// | 32 | checksum: BLAKE3 over everything before |
///
/// Root and checksum are in derive-key mode, each with its own context. The bytes are canonical:
/// what reads differently from what would be written is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    table: ChunkTable,
    job: Option<JobId>,
    attributes: BTreeMap<String, String>,
    root: Digest,
}

impl Manifest {
    /// Of an image with these chunks, made by that job (`None`: it does not come from a copy).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for more than 64 attributes, keys of 0 or more than 128 bytes, or
    /// values of more than 1024.
    pub fn new(
        table: ChunkTable,
        job: Option<JobId>,
        attributes: BTreeMap<String, String>,
    ) -> Result<Self> {
        options::check_attributes(&attributes)?;
        let root = table.root();
        Ok(Self { table, job, attributes, root })
    }

    /// The chunks.
    pub fn table(&self) -> &ChunkTable {
        &self.table
    }

    /// The job that made the image; `None`: it does not come from a copy.
    pub fn job(&self) -> Option<JobId> {
        self.job
    }

    /// The attributes.
    pub fn attributes(&self) -> &BTreeMap<String, String> {
        &self.attributes
    }

    /// The root of the chunk table.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// How the image is cut.
    pub fn geometry(&self) -> Geometry {
        self.table.geometry()
    }

    /// Writes the manifest as bytes, through a buffer of 64 KiB, and flushes `sink`.
    ///
    /// # Errors
    /// Those of `sink`. What it has taken by then is not a manifest.
    pub fn encode_to(&self, sink: &mut dyn Write) -> Result<()> {
        self.encode(HashingSink::new(sink)).map_err(|error| Error::io("write manifest", error))
    }

    fn encode(&self, mut sink: HashingSink<'_>) -> std::io::Result<()> {
        let mut fields = Encoder::new();
        fields.raw(&MAGIC).u16(VERSION).u8(self.geometry().chunk_size().shift()).u8(FLAGS_NONE);
        fields.u64(self.geometry().image_bytes());
        fields.option(self.job, |fields, job| {
            fields.raw(job.as_bytes());
        });
        fields.u16(u16::try_from(self.attributes.len()).unwrap_or(u16::MAX));
        sink.put(&fields.finish())?;
        for (key, value) in &self.attributes {
            sink.put(&fields.block(key.as_bytes()).block(value.as_bytes()).finish())?;
        }
        let runs = self.table.runs().fold(0, |count: u32, _| count + 1);
        sink.put(&runs.to_le_bytes())?;
        self.table.each_run_bytes(|bytes| sink.put(bytes))?;
        sink.put(self.root.as_bytes())?;
        sink.finish()
    }

    /// Reads a manifest; `source` ends with it.
    ///
    /// Takes at most 33 MiB of memory; that of the chunk table is touched only as digests arrive.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a later version, [`ErrorKind::Corrupt`] for anything that
    /// [`Manifest::encode_to`] would not write; otherwise those of `source`.
    pub fn decode_from(source: &mut dyn Read) -> Result<Self> {
        let mut source = HashingSource::new(source);
        decode_version(&mut source)?;
        let [shift, flags] = source.array()?;
        let chunk_size =
            ChunkSize::from_shift(shift).map_err(|()| corrupt("its chunk size is out of range"))?;
        if flags != FLAGS_NONE {
            return Err(corrupt("it has unknown flags"));
        }
        let image_bytes = source.array().map(u64::from_le_bytes)?;
        let geometry = Geometry::new(image_bytes, chunk_size)
            .map_err(|error| corrupt("its image has too many bytes").because(error))?;
        let job = match source.array()? {
            [0] => None,
            [1] => Some(JobId::from_bytes(source.array()?)),
            _ => return Err(corrupt("a flag is neither 0 nor 1")),
        };
        let attributes = decode_attributes(&mut source)?;
        let table = decode_table(&mut source, geometry)?;
        let root = Digest::from_bytes(source.array()?);
        source.finish()?;
        let manifest = Self::new(table, job, attributes)
            .map_err(|error| corrupt("its attributes are out of bounds").because(error))?;
        if manifest.root != root {
            return Err(corrupt("its root is not that of its chunks"));
        }
        Ok(manifest)
    }
}

fn decode_version(source: &mut HashingSource<'_>) -> Result<()> {
    if source.array()? != MAGIC {
        return Err(corrupt("it does not start like one"));
    }
    match source.array().map(u16::from_le_bytes)? {
        VERSION => Ok(()),
        0 => Err(corrupt("its version is 0")),
        later => Err(Error::new(ErrorKind::Unsupported, format!("read manifest version {later}"))
            .hint("written by a newer blockferry; upgrade this one")),
    }
}

fn decode_attributes(source: &mut HashingSource<'_>) -> Result<BTreeMap<String, String>> {
    let count = source.array().map(u16::from_le_bytes)?;
    if usize::from(count) > options::ATTRIBUTE_COUNT_MAX {
        return Err(corrupt("it has too many attributes"));
    }
    let mut attributes = BTreeMap::<String, String>::new();
    for _ in 0..count {
        let key = source.text(options::ATTRIBUTE_KEY_LEN_MAX)?;
        let value = source.text(options::ATTRIBUTE_VALUE_LEN_MAX)?;
        if attributes.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(corrupt("its attributes are out of order"));
        }
        attributes.insert(key, value);
    }
    Ok(attributes)
}

fn decode_table(source: &mut HashingSource<'_>, geometry: Geometry) -> Result<ChunkTable> {
    // Not checked: a run has a chunk at least, so the image runs out before the loop does.
    let run_count = source.array().map(u32::from_le_bytes)?;
    let mut builder = TableBuilder::new(geometry);
    let (mut next, mut last_kind) = (0, None);
    for _ in 0..run_count {
        let [kind] = source.array()?;
        let count = source.array().map(u32::from_le_bytes)?;
        if last_kind.replace(kind) == Some(kind) || count == 0 {
            return Err(corrupt("a run is not maximal"));
        }
        if count > geometry.chunk_count() - next {
            return Err(corrupt("a run ends past the image"));
        }
        let run = ChunkRun::new(ChunkIndex::new(next), count);
        match kind {
            RUN_ZERO => builder.put(run, Content::Zero),
            RUN_DATA => source.fill(builder.data_slots(run).as_flattened_mut())?,
            _ => return Err(corrupt("a run is of no known kind")),
        }
        next = run.end();
    }
    builder.finish().ok_or_else(|| corrupt("its runs end before its image"))
}

const MAGIC: [u8; 8] = *b"BFMANIF\0";
const VERSION: u16 = 1;
const FLAGS_NONE: u8 = 0;
const RUN_ZERO: u8 = 0;
const RUN_DATA: u8 = 1;
const ROOT_CONTEXT: &str = "blockferry 2026-11-21 image root v1";
const CHECKSUM_CONTEXT: &str = "blockferry 2026-11-21 manifest v1";

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read manifest: {why}"))
}

/// Hashes what it passes on.
struct HashingSink<'a> {
    inner: &'a mut dyn Write,
    // Not a `BufWriter`: when dropped after a failure, that would write once more.
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl<'a> HashingSink<'a> {
    fn new(inner: &'a mut dyn Write) -> Self {
        let hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
        Self { inner, buffer: Vec::with_capacity(BUFFER_BYTES), hasher }
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for piece in bytes.chunks(BUFFER_BYTES) {
            if self.buffer.len() + piece.len() > BUFFER_BYTES {
                self.drain()?;
            }
            self.buffer.extend_from_slice(piece);
        }
        Ok(())
    }

    fn drain(&mut self) -> std::io::Result<()> {
        self.hasher.update(&self.buffer);
        self.inner.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.drain()?;
        self.inner.write_all(self.hasher.finalize().as_bytes())?;
        self.inner.flush()
    }
}

/// Hashes what it hands out.
struct HashingSource<'a> {
    inner: BufReader<&'a mut dyn Read>,
    hasher: blake3::Hasher,
}

impl<'a> HashingSource<'a> {
    fn new(inner: &'a mut dyn Read) -> Self {
        let hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
        Self { inner: BufReader::with_capacity(BUFFER_BYTES, inner), hasher }
    }

    /// Fills `bytes` in pieces: what does not arrive touches no memory.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        for piece in bytes.chunks_mut(BUFFER_BYTES) {
            self.inner.read_exact(piece).map_err(refused)?;
            self.hasher.update(piece);
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, len_max: usize) -> Result<String> {
        let len = to_usize(u64::from(self.array().map(u32::from_le_bytes)?));
        if len > len_max {
            return Err(corrupt("a field is longer than it may be"));
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| corrupt("text is not UTF-8").because(error))
    }

    /// Here stands the checksum, and then nothing.
    fn finish(mut self) -> Result<()> {
        let checksum = self.hasher.finalize();
        if self.array()? != *checksum.as_bytes() {
            return Err(corrupt("its checksum does not match"));
        }
        match self.inner.bytes().next() {
            None => Ok(()),
            Some(Ok(_)) => Err(corrupt("bytes follow its end")),
            Some(Err(error)) => Err(refused(error)),
        }
    }
}

fn refused(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt("it is cut short"),
        _ => Error::io("read manifest", error),
    }
}

const BUFFER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = 64 << 10;

    fn digest(seed: u32) -> Digest {
        Digest::from_bytes(*blake3::hash(&seed.to_le_bytes()).as_bytes())
    }

    /// A table with 64 KiB chunks: `None` is a zero chunk, the last chunk has `tail` bytes.
    fn table(chunks: &[Option<u32>], tail: u64) -> ChunkTable {
        let count = u32::try_from(chunks.len()).unwrap();
        let image_bytes = if count == 0 { 0 } else { u64::from(count - 1) * CHUNK + tail };
        let mut builder = TableBuilder::new(Geometry::new(image_bytes, ChunkSize::MIN).unwrap());
        for (index, seed) in (0..).zip(chunks) {
            let content = seed.map_or(Content::Zero, |seed| Content::Data {
                digest: digest(seed),
                data_bytes: 1,
            });
            builder.put(ChunkRun::new(ChunkIndex::new(index), 1), content);
        }
        builder.finish().unwrap()
    }

    fn small() -> Manifest {
        let table = table(&[None, None, Some(1), Some(2), None], 9);
        let attributes = [("arch", "x86_64"), ("empty", ""), ("os", "linux")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let job = JobId::from_bytes(*b"0123456789abcdef");
        Manifest::new(table, Some(job), attributes.into()).unwrap()
    }

    fn encoded(manifest: &Manifest) -> Vec<u8> {
        let mut bytes = Vec::new();
        manifest.encode_to(&mut bytes).unwrap();
        bytes
    }

    fn decoded(bytes: &[u8]) -> Result<Manifest> {
        Manifest::decode_from(&mut &bytes[..])
    }

    /// The bytes with their last 32 replaced by the checksum of those before.
    fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
        let body = bytes.len() - 32;
        let checksum = blake3::derive_key(CHECKSUM_CONTEXT, &bytes[..body]);
        bytes[body..].copy_from_slice(&checksum);
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> String {
        let error = decoded(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        error.to_string()
    }

    #[test]
    fn golden_bytes_hold_the_layout_still() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let manifest = small();
        assert_eq!(hex(&encoded(&manifest)), GOLDEN.split_whitespace().collect::<String>());
        // The root, spelled out once more.
        let mut rooted = Encoder::new();
        rooted.u64(4 * CHUNK + 9).u64(CHUNK).u8(0).u32(2);
        rooted.u8(1).u32(2).raw(digest(1).as_bytes()).raw(digest(2).as_bytes()).u8(0).u32(1);
        let root = blake3::derive_key(ROOT_CONTEXT, &rooted.finish());
        assert_eq!(manifest.root().as_bytes(), &root);
    }

    const GOLDEN: &str = "
        42464d414e494600 0100 10 00 0900040000000000
        01 30313233343536373839616263646566
        0300
        04000000 61726368 06000000 7838365f3634
        05000000 656d707479 00000000
        02000000 6f73 05000000 6c696e7578
        03000000
        00 02000000
        01 02000000
        c610e85212d0697cb161d4ba431ba603f273feee7dcb7927c9ff5d74ae6cbfa3
        f03bf86f79d121cbfd774dec4a65912e99f5f17c33852bbc45e819160e62b53b
        00 01000000
        f78a58756d88ec6e3d474f5a12921276667e0971db1794b53b1e74b4bfcb1d1e
        1cee5315aa7acd67e0ce2937cd9d8bbe03843183fa15da41d282a7a78ae1274e
    ";

    #[test]
    fn a_manifest_comes_back_as_it_went_in() {
        let manifest = small();
        let again = decoded(&encoded(&manifest)).unwrap();
        assert_eq!(again, manifest);
        assert_eq!(again.job(), Some(JobId::from_bytes(*b"0123456789abcdef")));
        assert_eq!(again.attributes()["arch"], "x86_64");
        assert_eq!(again.table().digest(ChunkIndex::new(1)), None);
        assert_eq!(again.table().digest(ChunkIndex::new(3)), Some(digest(2)));
        assert_eq!(again.table().zero_bytes(), 2 * CHUNK + 9);
        assert_eq!(again.geometry().image_bytes(), 4 * CHUNK + 9);
    }

    #[test]
    fn an_empty_image_has_a_manifest() {
        let manifest = Manifest::new(table(&[], 0), None, BTreeMap::new()).unwrap();
        assert_eq!(decoded(&encoded(&manifest)).unwrap(), manifest);
        assert_eq!((manifest.table().runs().count(), manifest.table().zero_bytes()), (0, 0));
        assert_eq!(encoded(&manifest).len(), 21 + 2 + 4 + 32 + 32);
    }

    #[test]
    fn attributes_as_many_and_as_long_as_may_be_come_back() {
        let mut attributes: BTreeMap<_, _> =
            (1..options::ATTRIBUTE_COUNT_MAX).map(|n| (format!("{n:02}"), String::new())).collect();
        let value = "v".repeat(options::ATTRIBUTE_VALUE_LEN_MAX);
        attributes.insert("k".repeat(options::ATTRIBUTE_KEY_LEN_MAX), value);
        let manifest = Manifest::new(table(&[], 0), None, attributes).unwrap();
        assert_eq!(decoded(&encoded(&manifest)).unwrap(), manifest);
    }

    /// Takes what is written, and notes how much at a time.
    #[derive(Default)]
    struct Pieces(Vec<usize>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_large_manifest_is_written_in_few_pieces_and_none_is_large() {
        let chunks: Vec<_> = (0..10_000).map(Some).collect();
        let mut pieces = Pieces::default();
        Manifest::new(table(&chunks, 1), None, BTreeMap::new())
            .unwrap()
            .encode_to(&mut pieces)
            .unwrap();
        let bytes: usize = pieces.0.iter().sum();
        assert!(bytes > 4 * BUFFER_BYTES, "{bytes}");
        assert!(pieces.0.iter().all(|piece| *piece <= BUFFER_BYTES), "{:?}", pieces.0);
        assert!(pieces.0.len() <= 2 * bytes / BUFFER_BYTES, "{} pieces", pieces.0.len());
    }

    #[test]
    fn every_flip_of_a_byte_is_refused() {
        let bytes = encoded(&small());
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let kind = decoded(&bytes).unwrap_err().kind();
                // A damaged version looks like a later one.
                let version = (8..10).contains(&at) && kind == ErrorKind::Unsupported;
                assert!(kind == ErrorKind::Corrupt || version, "byte {at} ^ {flip}: {kind:?}");
            }
        }
    }

    #[test]
    fn every_cut_and_every_excess_is_refused() {
        let bytes = encoded(&small());
        for len in 0..bytes.len() {
            assert!(refusal(bytes[..len].to_vec()).contains("cut short"), "{len}");
        }
        assert!(refusal([&bytes[..], &[0]].concat()).contains("bytes follow"));
    }

    #[test]
    fn a_later_version_is_unsupported_and_says_what_to_do() {
        let mut bytes = encoded(&small());
        bytes[8] = 2;
        let error = decoded(&summed(bytes.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("upgrade"), "{error}");
        bytes[8] = 0;
        assert!(refusal(summed(bytes)).contains("version is 0"));
    }

    /// A manifest spelled by hand: the start, then whatever `rest` puts, then a right checksum.
    fn forged(image_bytes: u64, rest: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut bytes = Encoder::new();
        bytes.raw(&MAGIC).u16(1).u8(16).u8(0).u64(image_bytes).u8(0);
        rest(&mut bytes);
        summed(bytes.raw(&[0; 32]).finish())
    }

    #[test]
    fn what_encode_would_not_write_is_refused() {
        let attributes = |pairs: &[(&str, &str)]| {
            refusal(forged(0, |bytes| {
                bytes.u16(u16::try_from(pairs.len()).unwrap());
                for (key, value) in pairs {
                    bytes.block(key.as_bytes()).block(value.as_bytes());
                }
                bytes.u32(0).raw(table(&[], 0).root().as_bytes());
            }))
        };
        assert!(attributes(&[("b", ""), ("a", "")]).contains("out of order"));
        assert!(attributes(&[("a", "1"), ("a", "2")]).contains("out of order"));
        assert!(attributes(&[("", "")]).contains("out of bounds"));
        assert!(attributes(&[(&"k".repeat(129), "")]).contains("longer"));
        assert!(attributes(&[("k", &"v".repeat(1025))]).contains("longer"));
        assert!(attributes(&[("k", ""); 65]).contains("too many attributes"));

        let root = table(&[None; 4], CHUNK).root();
        let runs = |runs: &[(u8, u32)]| {
            refusal(forged(4 * CHUNK, |bytes| {
                bytes.u16(0).u32(u32::try_from(runs.len()).unwrap());
                for (kind, count) in runs {
                    bytes.u8(*kind).u32(*count);
                }
                bytes.raw(root.as_bytes());
            }))
        };
        assert!(runs(&[(0, 2), (0, 2)]).contains("not maximal"));
        assert!(runs(&[(0, 4), (1, 0)]).contains("not maximal"));
        assert!(runs(&[(0, 0)]).contains("not maximal"));
        assert!(runs(&[(0, 5)]).contains("past the image"));
        assert!(runs(&[(0, u32::MAX)]).contains("past the image"));
        assert!(runs(&[(0, 3)]).contains("end before"));
        assert!(runs(&[(2, 4)]).contains("no known kind"));

        let mut bytes = encoded(&small());
        bytes[11] = 1;
        assert!(refusal(summed(bytes.clone())).contains("unknown flags"));
        (bytes[11], bytes[10]) = (0, 27);
        assert!(refusal(summed(bytes.clone())).contains("chunk size"));
        bytes[10] = 16;
        bytes[12..20].fill(0xff);
        assert!(refusal(summed(bytes)).contains("too many bytes"));
        let mut bytes = encoded(&small());
        let root_at = bytes.len() - 64;
        bytes[root_at] ^= 1;
        assert!(refusal(summed(bytes)).contains("its root"));
    }

    #[test]
    fn a_large_announcement_that_is_cut_short_fails_cleanly() {
        let chunk_count = 1 << 20;
        let mut bytes = forged(u64::from(chunk_count) * CHUNK, |bytes| {
            bytes.u16(0).u32(1).u8(RUN_DATA).u32(chunk_count).raw(&[7; 100_000]);
        });
        assert!(refusal(bytes.clone()).contains("cut short"));
        bytes.truncate(40);
        assert!(refusal(bytes).contains("cut short"));
    }

    #[test]
    fn a_source_that_trickles_and_is_interrupted_is_read_to_its_end() {
        struct Trickle<'a>(&'a [u8], bool);
        impl Read for Trickle<'_> {
            fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                let len = bytes.len().min(3);
                self.0.read(&mut bytes[..len])
            }
        }
        let bytes = encoded(&small());
        assert_eq!(Manifest::decode_from(&mut Trickle(&bytes, false)).unwrap(), small());
    }

    #[test]
    fn failures_of_either_end_are_passed_on_whole() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::PermissionDenied.into())
            }
        }
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = Manifest::decode_from(&mut Broken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert_eq!(small().encode_to(&mut Broken).unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn the_root_tells_content_apart_and_nothing_else() {
        let root = |chunks: &[Option<u32>], tail| table(chunks, tail).root();
        let chunks = [Some(1), None, Some(2)];
        assert_eq!(root(&chunks, 5), root(&chunks, 5));
        assert_ne!(root(&chunks, 5), root(&chunks, 6));
        assert_ne!(root(&chunks, 5), root(&[Some(1), None, Some(3)], 5));
        assert_ne!(root(&chunks, 5), root(&[None, Some(1), Some(2)], 5));
        let named = [("name".to_owned(), "a".to_owned())];
        let plain = Manifest::new(table(&chunks, 5), None, BTreeMap::new()).unwrap();
        let named = Manifest::new(table(&chunks, 5), None, named.into()).unwrap();
        assert_eq!(plain.root(), named.root());
    }

    #[test]
    fn the_last_note_on_a_chunk_stays_and_missing_chunks_are_counted() {
        let geometry = Geometry::new(200 * CHUNK, ChunkSize::MIN).unwrap();
        let mut builder = TableBuilder::new(geometry);
        let data = |seed| Content::Data { digest: digest(seed), data_bytes: 1 };
        let one = |index| ChunkRun::new(ChunkIndex::new(index), 1);
        builder.put(ChunkRun::new(ChunkIndex::new(1), 150), Content::Zero);
        builder.put(one(70), data(1));
        builder.put(one(70), data(2));
        builder.put(one(71), data(3));
        builder.put(one(71), Content::Zero);
        assert_eq!(builder.missing(), 50);
        let missing: Vec<ChunkRun> = builder.missing_runs().collect();
        assert_eq!(missing, [one(0), ChunkRun::new(ChunkIndex::new(151), 49)]);
        assert_eq!(builder.zero_bytes(), 149 * CHUNK);
        let none_missing = {
            let mut builder = TableBuilder::new(geometry);
            builder.put(geometry.chunks(), Content::Zero);
            builder
        };
        assert_eq!(none_missing.missing_runs().next(), None);
        assert_eq!(TableBuilder::new(geometry).missing_runs().next(), Some(geometry.chunks()));
        assert!(!builder.holds(ChunkIndex::new(0)) && builder.holds(ChunkIndex::new(150)));
        assert_eq!(builder.digest(ChunkIndex::new(0)), None);
        assert_eq!(builder.digest(ChunkIndex::new(71)), Some(None));
        assert_eq!(builder.digest(ChunkIndex::new(70)), Some(Some(digest(2))));
        assert!(builder.clone().finish().is_none());
        builder.put(one(0), Content::Zero);
        builder.put(ChunkRun::new(ChunkIndex::new(151), 49), Content::Zero);
        let mut chunks = [None; 200];
        chunks[70] = Some(2);
        assert_eq!(builder.finish(), Some(table(&chunks, CHUNK)));
    }

    #[test]
    fn attributes_out_of_bounds_are_refused() {
        let attributes = [(String::new(), String::new())];
        let error = Manifest::new(table(&[], 0), None, attributes.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_table_comes_back_as_it_went_in(
            runs in proptest::collection::vec((proptest::option::of(0_u32..9), 1_usize..99), 0..12),
            tail in 1..=CHUNK,
            job in proptest::option::of(any::<[u8; 16]>()),
            attributes in proptest::collection::btree_map("[a-zé]{1,20}", ".{0,50}", 0..64),
        ) {
            let chunks: Vec<Option<u32>> =
                runs.iter().flat_map(|(seed, count)| vec![*seed; *count]).collect();
            let table = table(&chunks, tail);
            let mut covered = 0;
            let mut last = None;
            for (run, is_zero) in table.runs() {
                prop_assert_eq!(run.first.get(), covered);
                prop_assert!(run.count > 0 && last != Some(is_zero));
                let of_kind = |index: ChunkIndex| chunks[index.slot()].is_none() == is_zero;
                prop_assert!(run.iter().all(of_kind));
                (covered, last) = (run.end(), Some(is_zero));
            }
            prop_assert_eq!(covered, table.geometry().chunk_count());
            let job = job.map(JobId::from_bytes);
            let manifest = Manifest::new(table, job, attributes).unwrap();
            let again = decoded(&encoded(&manifest)).unwrap();
            prop_assert_eq!(encoded(&again), encoded(&manifest));
            prop_assert_eq!(again, manifest);
        }

        #[test]
        fn no_bytes_make_it_panic(
            at in 12_usize..200,
            junk in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let mut bytes = encoded(&small());
            for (byte, junk) in bytes[at..].iter_mut().zip(junk) {
                *byte = junk;
            }
            let bytes = summed(bytes);
            if let Ok(manifest) = decoded(&bytes) {
                prop_assert_eq!(encoded(&manifest), bytes);
            }
        }
    }
}
