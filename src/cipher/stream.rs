//! The manifest of an encrypted image: a header in clear, and everything else as one encrypted
//! stream. Pure.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::cipher::{
    CELL_BYTES, ImageCipher, MANIFEST_INFO, MessageKey, SALT_LEN, Salt, TAG_LEN, Tag, Uuid, refused,
};
use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkSize, Geometry, to_usize};
use crate::id::JobId;
use crate::manifest::Manifest;

const MAGIC: [u8; 8] = *b"BFMANIC\0";
const VERSION: u16 = 1;
const FLAGS_NONE: u8 = 0;
const SUM_CONTEXT: &str = "blockferry 2026-11-26 encrypted manifest v1";
const SUM_LEN: usize = 32;

/// What anybody may know of an encrypted image: enough to list it, and to tell who made it.
///
/// | bytes | field |
/// |---|---|
/// | 8 | magic `BFMANIC\0` |
/// | 2 | version: 1 |
/// | 1 | chunk size as a base-two logarithm |
/// | 1 | flags: 0 |
/// | 8 | image size in bytes |
/// | 17 | 0 and zeros: not made by a copy; or 1 and the job id |
/// | 16 | random name of the encrypted image |
/// | 24 | salt of the stream |
/// | 32 | checksum: BLAKE3 over everything before |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) geometry: Geometry,
    pub(crate) job: Option<JobId>,
    pub(crate) uuid: Uuid,
    pub(crate) salt: Salt,
}

impl Header {
    pub(crate) const LEN: usize = 8 + 2 + 1 + 1 + 8 + 17 + 16 + SALT_LEN + SUM_LEN;

    /// How the image is cut.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The job that made it; `None`: it does not come from a copy.
    pub(crate) fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Whether these bytes begin like the manifest of an encrypted image.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&MAGIC).u16(VERSION).u8(self.geometry.chunk_size().shift()).u8(FLAGS_NONE);
        out.u64(self.geometry.image_bytes()).u8(u8::from(self.job.is_some()));
        out.raw(self.job.unwrap_or(JobId::from_bytes([0; 16])).as_bytes());
        out.raw(&self.uuid).raw(&self.salt);
        let mut bytes = out.finish();
        let sum = blake3::derive_key(SUM_CONTEXT, &bytes);
        bytes.extend_from_slice(&sum);
        debug_assert_eq!(bytes.len(), Self::LEN);
        bytes
    }

    /// Reads the header at the start of these bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(bytes, "encrypted manifest");
        if from.array()? != MAGIC {
            return Err(from.corrupt("it does not start like one"));
        }
        from.version(VERSION)?;
        let mut summed = Decoder::new(bytes, "encrypted manifest");
        let body = summed.raw(Self::LEN - SUM_LEN)?;
        if summed.array()? != blake3::derive_key(SUM_CONTEXT, body) {
            return Err(from.corrupt("the checksum of its header is wrong"));
        }
        let [shift, flags] = from.array()?;
        let chunk_size = ChunkSize::from_shift(shift)
            .map_err(|()| from.corrupt("its chunk size is out of range"))?;
        if flags != FLAGS_NONE {
            return Err(from.corrupt("it has unknown flags"));
        }
        let geometry = Geometry::new(from.u64()?, chunk_size)
            .map_err(|error| from.corrupt("its image has too many bytes").because(error))?;
        let job = match (from.u8()?, from.array()?) {
            (0, job) if job == [0; 16] => None,
            (1, job) => Some(JobId::from_bytes(job)),
            _ => return Err(from.corrupt("a flag is neither 0 nor 1")),
        };
        Ok(Self { geometry, job, uuid: from.array()?, salt: from.array()? })
    }
}

/// Key and associated data of the stream: each message is bound to the header, to its number, and
/// to whether it is the last.
struct Stream {
    key: MessageKey,
    aad: Vec<u8>,
    number: u32,
}

impl Stream {
    fn new(cipher: &ImageCipher, header: &Header) -> Result<Self> {
        if (header.uuid, header.geometry) != (cipher.uuid, cipher.geometry) {
            return Err(refused("the manifest"));
        }
        let key = cipher.message_key(&header.salt, MANIFEST_INFO)?;
        Ok(Self { key, aad: header.encode(), number: 0 })
    }

    fn next(&mut self, is_last: bool) -> (u32, Vec<u8>) {
        let number = self.number;
        // No manifest comes near it: it has at most 2^20 chunks.
        self.number = number.saturating_add(1);
        (number, [&self.aad[..], &number.to_le_bytes(), &[u8::from(is_last)]].concat())
    }
}

/// Encrypts what is written to it. What it has passed on is whole only after
/// [`SealWriter::finish`].
pub(crate) struct SealWriter<'a> {
    sink: &'a mut dyn Write,
    stream: Stream,
    cell: Zeroizing<Vec<u8>>,
}

impl<'a> SealWriter<'a> {
    /// Writes the header, and begins the stream. The salt in it must be random and new.
    pub(crate) fn new(
        cipher: &ImageCipher,
        header: &Header,
        sink: &'a mut dyn Write,
    ) -> Result<Self> {
        let stream = Stream::new(cipher, header)?;
        sink.write_all(&stream.aad).map_err(|error| Error::io("write manifest", error))?;
        Ok(Self { sink, stream, cell: Zeroizing::new(Vec::with_capacity(CELL_BYTES)) })
    }

    /// Ends the stream.
    pub(crate) fn finish(mut self) -> Result<()> {
        let ended = self.emit(true).and_then(|()| self.sink.flush());
        ended.map_err(|error| Error::io("write manifest", error))
    }

    fn emit(&mut self, is_last: bool) -> io::Result<()> {
        let (number, aad) = self.stream.next(is_last);
        let tag = self.stream.key.seal(number, &aad, &mut self.cell).map_err(io::Error::other)?;
        self.sink.write_all(&self.cell)?;
        self.sink.write_all(&tag)?;
        self.cell.clear();
        Ok(())
    }
}

impl Write for SealWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cell.len() == CELL_BYTES && !bytes.is_empty() {
            self.emit(false)?;
        }
        let taken = bytes.len().min(CELL_BYTES - self.cell.len());
        self.cell.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts a stream: it hands out nothing that does not verify, and ends only where the writer
/// did.
pub(crate) struct OpenReader<'a> {
    source: &'a mut dyn Read,
    stream: Stream,
    /// The next message as it lies, and one byte more that tells whether another follows.
    raw: Zeroizing<Vec<u8>>,
    /// What of the present one is still to be handed out.
    text: std::ops::Range<usize>,
    ended: bool,
}

impl<'a> OpenReader<'a> {
    /// Of a source that stands behind this header.
    pub(crate) fn new(
        cipher: &ImageCipher,
        header: &Header,
        source: &'a mut dyn Read,
    ) -> Result<Self> {
        let stream = Stream::new(cipher, header)?;
        let raw = Zeroizing::new(Vec::with_capacity(CELL_BYTES + TAG_LEN + 1));
        Ok(Self { source, stream, raw, text: 0..0, ended: false })
    }

    fn next_cell(&mut self) -> io::Result<()> {
        const WHOLE: usize = CELL_BYTES + TAG_LEN;
        // Behind a whole message lies the first byte of this one.
        let carried = if self.stream.number == 0 { 0 } else { 1 };
        let carry = self.raw.last().copied().filter(|_| carried == 1);
        self.raw.clear();
        self.raw.extend(carry);
        let wanted = u64::try_from(WHOLE + 1 - carried).unwrap_or(u64::MAX);
        (&mut *self.source).take(wanted).read_to_end(&mut self.raw)?;
        let is_last = self.raw.len() <= WHOLE;
        let len = self.raw.len().min(WHOLE);
        let is_first = self.stream.number == 0;
        let Some(text_len) = len.checked_sub(TAG_LEN).filter(|len| is_first || *len > 0) else {
            return Err(io::Error::other(refused("the manifest")));
        };
        let (number, aad) = self.stream.next(is_last);
        let (text, tag) = self.raw[..len].split_at_mut(text_len);
        let mut expected: Tag = [0; TAG_LEN];
        expected.copy_from_slice(tag);
        let opened = self.stream.key.open(number, &aad, &expected, text);
        opened.map_err(|_| io::Error::other(refused("the manifest")))?;
        (self.text, self.ended) = (0..text_len, is_last);
        Ok(())
    }
}

impl Read for OpenReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.text.is_empty() && !self.ended {
            self.next_cell()?;
        }
        let len = self.text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.raw[self.text.start..self.text.start + len]);
        self.text.start += len;
        Ok(len)
    }
}

/// Writes what an encrypted manifest holds: the number of data chunks (4), the tag of each one's
/// record (16), and the manifest as it would lie in clear.
pub(crate) fn encode_body(
    manifest: &Manifest,
    tag_of: impl Fn(ChunkIndex) -> Tag,
    sink: &mut dyn Write,
) -> Result<()> {
    let failed = |error| Error::io("write manifest", error);
    let count = data_chunks(manifest).count();
    sink.write_all(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes()).map_err(failed)?;
    data_chunks(manifest).try_for_each(|index| sink.write_all(&tag_of(index)).map_err(failed))?;
    manifest.encode_to(sink)
}

/// Reads what [`encode_body`] wrote for an image with that header: the manifest, and the tag of
/// each chunk's record; zeros for chunks of zeros.
pub(crate) fn decode_body(header: &Header, source: &mut dyn Read) -> Result<(Manifest, Vec<Tag>)> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it is cut short"),
        _ => Error::io("read encrypted manifest", error),
    };
    let mut count = [0; 4];
    source.read_exact(&mut count).map_err(failed)?;
    let count = u32::from_le_bytes(count);
    if count > header.geometry.chunk_count() {
        return Err(corrupt("it has more chunks than its image"));
    }
    // The allocator gives zero pages, which take no memory until they are written.
    let mut tags: Vec<Tag> = vec![[0; TAG_LEN]; to_usize(header.geometry.chunk_count().into())];
    let mut packed = to_usize(count.into());
    source.read_exact(tags[..packed].as_flattened_mut()).map_err(failed)?;
    let manifest = Manifest::decode_from(source)?;
    if (manifest.geometry(), manifest.job()) != (header.geometry, header.job) {
        return Err(corrupt("its header is that of another image"));
    }
    if data_chunks(&manifest).count() != packed {
        return Err(corrupt("it has not a tag for each chunk"));
    }
    // From the last: each goes to its place or further back.
    for index in data_chunks(&manifest).rev() {
        packed -= 1;
        if index.slot() != packed {
            tags[index.slot()] = std::mem::take(&mut tags[packed]);
        }
    }
    Ok((manifest, tags))
}

fn data_chunks(manifest: &Manifest) -> impl DoubleEndedIterator<Item = ChunkIndex> {
    let table = manifest.table();
    manifest.geometry().chunks().iter().filter(|index| table.digest(*index).is_some())
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read encrypted manifest: {why}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::chunk::{Content, Digest};
    use crate::cipher::samples::{UUID, cipher, geometry, hex};
    use crate::geometry::ChunkRun;
    use crate::keys::DataKey;
    use crate::manifest::TableBuilder;

    fn header() -> Header {
        let job = Some(JobId::from_bytes(*b"0123456789abcdef"));
        Header { geometry: geometry(), job, uuid: UUID, salt: [5; SALT_LEN] }
    }

    fn sealed(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = SealWriter::new(&cipher(), &header(), &mut bytes).unwrap();
        writer.write_all(text).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn opened(cipher: &ImageCipher, bytes: &[u8]) -> Result<Vec<u8>> {
        let header = Header::decode(bytes)?;
        let mut rest = &bytes[Header::LEN..];
        let mut text = Vec::new();
        let read = OpenReader::new(cipher, &header, &mut rest)?.read_to_end(&mut text);
        read.map_err(|error| Error::io("read", error))?;
        Ok(text)
    }

    fn refusal<T>(result: Result<T>) -> bool {
        result.err().is_some_and(|error| error.kind() == ErrorKind::Corrupt)
    }

    #[test]
    fn golden_bytes_hold_the_stream_still() {
        let bytes = sealed(b"manifest");
        assert_eq!(hex(&bytes), GOLDEN.split_whitespace().collect::<String>());
        assert_eq!(Header::decode(&bytes).unwrap(), header());
    }

    /// As another implementation has it.
    const GOLDEN: &str = "
        42464d414e49430001001100e8030400000000000130313233343536373839616263646566757569
        642d757569642d757569642d7505050505050505050505050505050505050505050505050551422e
        2c9a579c6e7b43f6ca0aed5feea3d46b380af356ab3b241b5df318d66900ca00ad7633fa5dc0e0b3
        d894a3b4763e2a82e71fd488e5
    ";

    #[test]
    fn texts_of_every_length_come_back() {
        let around = [CELL_BYTES, 2 * CELL_BYTES].map(|n| [n - 1, n, n + 1]);
        for len in [0, 1, 100].into_iter().chain(around.into_iter().flatten()) {
            let text: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
            let bytes = sealed(&text);
            let cells = len.div_ceil(CELL_BYTES).max(1);
            assert_eq!(bytes.len(), Header::LEN + len + cells * TAG_LEN);
            assert!(opened(&cipher(), &bytes).unwrap() == text, "{len} bytes");
        }
    }

    #[test]
    fn each_flipped_bit_each_cut_and_each_splice_is_refused() {
        let bytes = sealed(&[7; 50]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = opened(&cipher(), &flipped).unwrap_err();
            let is_version = (8..10).contains(&(bit / 8));
            assert!(error.kind() == ErrorKind::Corrupt || is_version, "bit {bit}: {error}");
        }
        for len in 0..bytes.len() {
            assert!(refusal(opened(&cipher(), &bytes[..len])), "cut at {len}");
        }
        assert!(refusal(opened(&cipher(), &[&bytes[..], &[0]].concat())));
        // Whole messages left out, swapped, put twice.
        let long = sealed(&(0..3 * CELL_BYTES).map(|n| n.to_le_bytes()[2]).collect::<Vec<_>>());
        let (head, messages) = long.split_at(Header::LEN);
        let message = |n: usize| messages.chunks(CELL_BYTES + TAG_LEN).nth(n).unwrap();
        for order in
            [&[0][..], &[0, 1], &[1, 2], &[0, 2], &[2], &[1, 0, 2], &[0, 1, 1, 2], &[0, 1, 2, 2]]
        {
            let moved: Vec<u8> = order.iter().flat_map(|n| message(*n)).copied().collect();
            assert!(refusal(opened(&cipher(), &[head, &moved].concat())), "{order:?}");
        }
        // Messages of another stream of the same image.
        let mut other = header();
        other.salt[0] ^= 1;
        assert!(refusal(opened(&cipher(), &[&other.encode()[..], messages].concat())));
        other = header();
        other.job = None;
        assert!(refusal(opened(&cipher(), &[&other.encode()[..], messages].concat())));
    }

    #[test]
    fn another_image_or_key_does_not_open_it() {
        let bytes = sealed(b"manifest");
        let key = |seed| DataKey::from_bytes([seed; 32]);
        let longer = Geometry::new(geometry().image_bytes() + 1, geometry().chunk_size()).unwrap();
        for other in [
            ImageCipher::new(UUID, geometry(), key(8)),
            ImageCipher::new(*b"uuid-uuid-uuid-v", geometry(), key(7)),
            ImageCipher::new(UUID, longer, key(7)),
        ] {
            assert!(refusal(opened(&other, &bytes)));
        }
    }

    fn manifest(data: &[u32]) -> Manifest {
        let mut table = TableBuilder::new(geometry());
        table.put(geometry().chunks(), Content::Zero);
        for index in data {
            let digest = Digest::from_bytes([index.to_le_bytes()[0] + 1; 32]);
            let run = ChunkRun::new(ChunkIndex::new(*index), 1);
            table.put(run, Content::Data { digest, data_bytes: 1 });
        }
        Manifest::new(table.finish().unwrap(), header().job, BTreeMap::new()).unwrap()
    }

    fn body(manifest: &Manifest) -> Vec<u8> {
        let mut bytes = Vec::new();
        let tag_of = |index: ChunkIndex| [index.get().to_le_bytes()[0] + 1; TAG_LEN];
        encode_body(manifest, tag_of, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_body_has_a_tag_for_each_data_chunk_in_its_place() {
        for data in [&[][..], &[0], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]] {
            let (read, tags) = decode_body(&header(), &mut &body(&manifest(data))[..]).unwrap();
            assert_eq!(read, manifest(data));
            let expected: Vec<Tag> = (0..3_u32)
                .map(
                    |n| if data.contains(&n) { [n.to_le_bytes()[0] + 1; TAG_LEN] } else { [0; 16] },
                )
                .collect();
            assert_eq!(tags, expected, "{data:?}");
        }
    }

    #[test]
    fn a_body_of_another_shape_is_refused() {
        let bytes = body(&manifest(&[0, 2]));
        for len in 0..bytes.len() {
            assert!(refusal(decode_body(&header(), &mut &bytes[..len])), "cut at {len}");
        }
        let mut more = bytes.clone();
        more[0] = 4;
        assert!(refusal(decode_body(&header(), &mut &more[..])), "more tags than chunks");
        let fewer = [&[1, 0, 0, 0], &bytes[4..20], &bytes[36..]].concat();
        assert!(refusal(decode_body(&header(), &mut &fewer[..])), "fewer tags than data chunks");
        let other = Header { job: None, ..header() };
        assert!(refusal(decode_body(&other, &mut &bytes[..])), "made by another job");
    }
}
