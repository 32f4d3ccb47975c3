//! An encrypted image in a folder: cells where the plain bytes would be, a record for each chunk in
//! a file beside them, and the key that opens both.

use std::io::Write;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::chunk::{Content, Digest, Durable, Sealed};
use crate::cipher::{
    Bound, CELL_BYTES as CELL, ImageCipher, KeyBox, OpenReader, SALT_LEN, Salt, SealWriter,
    TAG_LEN, Tag, Uuid, context_of, decode_body, encode_body, record_len,
};
use crate::disk::File;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, ChunkRun, Geometry, to_u64, to_usize};
use crate::host;
use crate::id::KeyId;
use crate::keys::{DataKey, KeyProvider};
use crate::manifest::Manifest;
use crate::region::Restored;
use crate::sabotage;
use crate::seal::is_zero;

pub(crate) use crate::cipher::{CELL_BYTES, ChunkOpener, ChunkSealer, Header};

const SALT_CONTEXT: &str = "blockferry 2026-11-26 chunk salt v1";
/// How long a provider may take to wrap or unwrap a data key.
const KEY_TIMEOUT: Duration = Duration::from_secs(15);
const NO_TAG: Tag = [0; TAG_LEN];

/// The records of an encrypted image, and the key that opens it. The cells lie in a file of their
/// own, each at its place in the image, and holes are where the image has zeros.
#[derive(Debug)]
pub(crate) struct EncryptedFile {
    cipher: ImageCipher,
    key: KeyId,
    records: File,
    /// The tag of each chunk's record: what tells the last write of a chunk from all earlier ones.
    /// Zeros for a chunk of zeros, and for one that is not written yet.
    tags: Mutex<Vec<Tag>>,
    /// The attempt that writes.
    epoch: AtomicU32,
}

impl EncryptedFile {
    /// An image that is being staged: what `masked` tells of chunks is the tags of their records.
    /// Returns what it tells in clear. A chunk whose record is another by now is to be copied
    /// again.
    pub(crate) fn staged(
        cipher: ImageCipher,
        key: KeyId,
        records: File,
        masked: &Restored,
    ) -> Result<(Self, Restored)> {
        let geometry = cipher.geometry();
        records.set_len(records_len(geometry))?;
        records.sync_all()?;
        let staged = Self::new(cipher, key, records, Vec::new());
        let mut restored = Restored::new(geometry);
        restored.data_bytes = masked.data_bytes;
        for index in geometry.chunks().iter() {
            let run = ChunkRun::new(index, 1);
            match masked.table.digest(index) {
                None => {}
                Some(None) => restored.table.put(run, Content::Zero),
                Some(Some(mask)) => {
                    let mut tag = NO_TAG;
                    tag.copy_from_slice(&mask.as_bytes()[..TAG_LEN]);
                    let len = geometry.range(index).len;
                    match staged.open_record(index, &tag) {
                        Ok(opener) => {
                            staged.tags()[index.slot()] = tag;
                            let data_bytes = u32::try_from(len).unwrap_or(u32::MAX);
                            let content = Content::Data { digest: opener.digest(), data_bytes };
                            restored.table.put(run, content);
                        }
                        Err(error) if error.kind() == ErrorKind::Corrupt => {
                            restored.data_bytes = restored.data_bytes.saturating_sub(len);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok((staged, restored))
    }

    /// A committed image with its manifest, read from the bytes behind its header.
    pub(crate) fn committed(
        cipher: ImageCipher,
        key: KeyId,
        records: File,
        header: &Header,
        manifest: &mut dyn std::io::Read,
    ) -> Result<(Self, Manifest)> {
        let mut stream = OpenReader::new(&cipher, header, manifest)?;
        let (manifest, tags) = decode_body(header, &mut stream)?;
        Ok((Self::new(cipher, key, records, tags), manifest))
    }

    fn new(cipher: ImageCipher, key: KeyId, records: File, mut tags: Vec<Tag>) -> Self {
        // The allocator gives zero pages: a sparse image costs no memory for its zeros.
        if tags.is_empty() {
            tags = vec![NO_TAG; to_usize(cipher.geometry().chunk_count().into())];
        }
        Self { cipher, key, records, tags: Mutex::new(tags), epoch: AtomicU32::new(0) }
    }

    /// The key that wraps its data key.
    pub(crate) fn key(&self) -> &KeyId {
        &self.key
    }

    /// That attempt writes from now on.
    pub(crate) fn begin(&self, epoch: u32) {
        self.epoch.store(epoch, Relaxed);
    }

    /// Begins to write a chunk.
    pub(crate) fn sealer(&self, index: ChunkIndex) -> Result<ChunkSealer> {
        self.forget(ChunkRun::new(index, 1))?;
        let epoch = self.epoch.load(Relaxed);
        self.cipher.seal_chunk(index, epoch, draw_salt(&self.cipher.uuid(), index, epoch)?)
    }

    /// These chunks are about to be written anew, or made zeros.
    ///
    /// Order: their records are gone for good before any cell is written over, or a crash in
    /// between would leave a record that vouches for cells that are there no more.
    pub(crate) fn forget(&self, run: ChunkRun) -> Result<()> {
        let mut forgotten = false;
        if sabotage::is("E3") {
            return Ok(());
        }
        for index in run.iter() {
            if std::mem::replace(&mut self.tags()[index.slot()], NO_TAG) != NO_TAG {
                let (at, len) = self.place(index);
                self.records.write_at(at, &vec![0; len])?;
                forgotten = true;
            }
        }
        if forgotten { self.records.sync_data() } else { Ok(()) }
    }

    /// Writes the record of a chunk whose cells are written, or will be before the next sync.
    pub(crate) fn finish(&self, sealer: ChunkSealer, digest: Digest) -> Result<()> {
        let index = sealer.index();
        let (record, tag) = sealer.finish(digest)?;
        self.records.write_at(self.place(index).0, &record)?;
        self.tags()[index.slot()] = tag;
        Ok(())
    }

    /// Encrypts and writes one whole chunk.
    pub(crate) fn write_chunk(&self, data: &File, chunk: &Sealed) -> Result<()> {
        let mut sealer = self.sealer(chunk.index())?;
        let mut bytes = Zeroizing::new(chunk.data().to_vec());
        let mut held = Vec::with_capacity(bytes.len().div_ceil(CELL));
        for (cell, bytes) in bytes.chunks_mut(CELL).enumerate() {
            held.push(!is_zero(bytes));
            if held[cell] {
                sealer.seal_cell(cell, bytes)?;
            }
        }
        for run in runs(&held) {
            let part = &bytes[run.start * CELL..(run.end * CELL).min(bytes.len())];
            data.write_at(chunk.range().offset + to_u64(run.start * CELL), part)?;
        }
        self.finish(sealer, chunk.digest())
    }

    /// Reads and decrypts whole cells, from the start of one to the end of one; tells how many
    /// bytes it read. `last`: the chunk that was read from before, to go on with.
    pub(crate) fn read(
        &self,
        data: &File,
        offset: u64,
        buffer: &mut [u8],
        last: &mut Option<ChunkOpener>,
    ) -> Result<u64> {
        let geometry = self.cipher.geometry();
        let (mut at, mut read) = (0, 0);
        while at < buffer.len() {
            let place = offset + to_u64(at);
            let index = geometry.index_of(place);
            let chunk = geometry.range(index);
            let len = to_usize(chunk.end() - place).min(buffer.len() - at);
            let part = &mut buffer[at..at + len];
            let tag = self.tags()[index.slot()];
            if tag == NO_TAG {
                part.fill(0);
            } else {
                let opener = match last.take().filter(|opener| opener.index() == index) {
                    Some(opener) => opener,
                    None => self.open_record(index, &tag)?,
                };
                let first = to_usize(place - chunk.offset) / CELL;
                read += read_cells(data, place, &opener, first, part)?;
                *last = Some(opener);
            }
            at += len;
        }
        Ok(read)
    }

    /// Reads any range.
    pub(crate) fn read_range(&self, data: &File, range: ByteRange) -> Result<Vec<u8>> {
        let cell = to_u64(CELL);
        let start = range.offset - range.offset % cell;
        let end = range.end().next_multiple_of(cell).min(self.cipher.geometry().image_bytes());
        let mut bytes = vec![0; to_usize(end - start)];
        self.read(data, start, &mut bytes, &mut None)?;
        bytes.truncate(to_usize(range.end() - start));
        bytes.drain(..to_usize(range.offset - start));
        Ok(bytes)
    }

    /// Takes the records of that range out of the page cache.
    pub(crate) fn evict(&self, range: ByteRange) -> Result<()> {
        let geometry = self.cipher.geometry();
        if range.is_empty() {
            return Ok(());
        }
        let (from, _) = self.place(geometry.index_of(range.offset));
        let (to, len) = self.place(geometry.index_of(range.end() - 1));
        self.records.evict(ByteRange::new(from, to + to_u64(len) - from))
    }

    /// Chunks as they are put on record where anybody may read: by their records' tags, and not by
    /// their digests.
    pub(crate) fn masked(&self, chunks: &[Durable]) -> Result<Vec<Durable>> {
        let tags = self.tags();
        let mask = |chunk: &Durable| {
            let Content::Data { data_bytes, .. } = chunk.content() else { return Ok(*chunk) };
            let tag = tags[chunk.run().first.slot()];
            if tag == NO_TAG {
                return Err(Error::new(ErrorKind::Io, "record a chunk that has no record"));
            }
            let mut bytes = [0; 32];
            bytes[..TAG_LEN].copy_from_slice(&tag);
            let digest = Digest::from_bytes(bytes);
            Ok(Durable::recorded(chunk.run(), Content::Data { digest, data_bytes }))
        };
        chunks.iter().map(mask).collect()
    }

    /// A digest that may be put where anybody may read.
    pub(crate) fn blind(&self, digest: &Digest) -> Result<Digest> {
        self.cipher.blind(digest)
    }

    pub(crate) fn sync(&self) -> Result<()> {
        sabotage::unless("E2", || self.records.sync_data())
    }

    /// Makes everything durable, and the file readable to those who may read the image.
    pub(crate) fn publish(&self, mode: u32) -> Result<()> {
        self.records.set_mode(mode)?;
        self.records.sync_all()
    }

    pub(crate) fn write_manifest(&self, manifest: &Manifest, sink: &mut dyn Write) -> Result<()> {
        // The number of no chunk.
        let salt = draw_salt(&self.cipher.uuid(), ChunkIndex::new(u32::MAX), 0)?;
        let header = Header {
            geometry: manifest.geometry(),
            job: manifest.job(),
            uuid: self.cipher.uuid(),
            salt,
        };
        let tags = self.tags().clone();
        let missing = |index: &ChunkIndex| {
            manifest.table().digest(*index).is_some() && tags[index.slot()] == NO_TAG
        };
        if let Some(index) = manifest.geometry().chunks().iter().find(missing) {
            let what = format!("write manifest: chunk {index} has no record");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let mut stream = SealWriter::new(&self.cipher, &header, sink)?;
        encode_body(manifest, |index| tags[index.slot()], &mut stream)?;
        stream.finish()
    }

    fn open_record(&self, index: ChunkIndex, tag: &Tag) -> Result<ChunkOpener> {
        let (at, len) = self.place(index);
        let mut record = vec![0; len];
        let count = self.records.read_at(at, &mut record)?;
        self.cipher.open_chunk(index, &record[..count], tag)
    }

    /// Where the record of a chunk lies, and how long it is.
    fn place(&self, index: ChunkIndex) -> (u64, usize) {
        let len = record_len(self.cipher.geometry());
        (u64::from(index.get()) * to_u64(len), len)
    }

    fn tags(&self) -> MutexGuard<'_, Vec<Tag>> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Random bytes, mixed with what tells this write from others, the time among it: should the host's
/// generator repeat itself, as in a clone of a virtual machine, salts hardly do.
pub(crate) fn draw_salt(uuid: &Uuid, index: ChunkIndex, epoch: u32) -> Result<Salt> {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let mut seed = [0; 32];
    let (mut count, mut process, mut now) = (0, 0, 0);
    if !sabotage::is("M19") {
        host::fill_random(&mut seed)?;
        now = host::unix_ms();
    }
    // A simulation is to be the same in every process, and every time.
    if !sabotage::is("M19") && !host::is_simulated() {
        (count, process) = (DRAWN.fetch_add(1, Relaxed), std::process::id());
    }
    let mut hasher = blake3::Hasher::new_derive_key(SALT_CONTEXT);
    hasher.update(&seed).update(uuid).update(&epoch.to_le_bytes());
    hasher.update(&index.get().to_le_bytes()).update(&count.to_le_bytes());
    hasher.update(&process.to_le_bytes()).update(&now.to_le_bytes());
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&hasher.finalize().as_bytes()[..SALT_LEN]);
    Ok(salt)
}

/// How long the file of records is.
pub(crate) fn records_len(geometry: Geometry) -> u64 {
    u64::from(geometry.chunk_count()) * to_u64(record_len(geometry))
}

/// Decrypts neighbouring cells; those that hold no data are zeros, whatever lies there.
fn read_cells(
    data: &File,
    place: u64,
    opener: &ChunkOpener,
    first: usize,
    part: &mut [u8],
) -> Result<u64> {
    let held: Vec<bool> = (0..part.len().div_ceil(CELL)).map(|n| opener.holds(first + n)).collect();
    let mut read = 0;
    for (cell, bytes) in part.chunks_mut(CELL).enumerate().filter(|(cell, _)| !held[*cell]) {
        debug_assert!(!opener.holds(first + cell));
        bytes.fill(0);
    }
    for run in runs(&held) {
        let end = (run.end * CELL).min(part.len());
        let bytes = &mut part[run.start * CELL..end];
        let count = data.read_at(place + to_u64(run.start * CELL), bytes)?;
        // What is missing does not verify.
        bytes[count..].fill(0);
        read += to_u64(count);
        for (cell, bytes) in run.clone().zip(bytes.chunks_mut(CELL)) {
            opener.open_cell(first + cell, bytes)?;
        }
    }
    Ok(read)
}

/// The runs of neighbours that are set.
fn runs(held: &[bool]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next + held[next..].iter().position(|is| *is)?;
        let len = held[start..].iter().position(|is| !is).unwrap_or(held.len() - start);
        next = start + len;
        Some(start..next)
    })
}

/// Who makes, wraps and unwraps data keys for a region.
#[derive(Clone, Debug)]
pub(crate) struct Vault(Arc<dyn KeyProvider>);

impl Vault {
    pub(crate) fn new(keys: Arc<dyn KeyProvider>) -> Self {
        Self(keys)
    }

    /// A data key for the copy to that image, wrapped.
    pub(crate) async fn make(
        &self,
        key: &KeyId,
        bound: &Bound<'_>,
    ) -> Result<(KeyBox, ImageCipher)> {
        let mut uuid = [0; 16];
        host::fill_random(&mut uuid)?;
        let data_key = DataKey::random()?;
        let cipher = ImageCipher::new(uuid, bound.geometry, data_key.clone());
        let commitment = cipher.commitment()?;
        let context = context_of(&uuid, &commitment, bound);
        let wrapped =
            answered("wrap a data key", self.0.wrap_key(key, &data_key, &context)).await?;
        Ok((KeyBox { uuid, commitment, key: key.clone(), wrapped }, cipher))
    }

    /// Opens the key file of an image.
    pub(crate) async fn open(&self, key_box: &KeyBox, bound: &Bound<'_>) -> Result<ImageCipher> {
        let context = context_of(&key_box.uuid, &key_box.commitment, bound);
        let unwrapping = self.0.unwrap_key(&key_box.key, &key_box.wrapped, &context);
        let data_key = answered("unwrap a data key", unwrapping).await?;
        let cipher = ImageCipher::new(key_box.uuid, bound.geometry, data_key);
        cipher.check_commitment(&key_box.commitment)?;
        Ok(cipher)
    }

    /// The same data key, wrapped under another key, or under a newer version of the same.
    pub(crate) async fn rewrap(
        &self,
        key_box: &KeyBox,
        bound: &Bound<'_>,
        to: &KeyId,
    ) -> Result<KeyBox> {
        let context = context_of(&key_box.uuid, &key_box.commitment, bound);
        let cipher = self.open(key_box, bound).await?;
        let wrapping = self.0.wrap_key(to, cipher.data_key(), &context);
        let wrapped = answered("wrap a data key", wrapping).await?;
        Ok(KeyBox { key: to.clone(), wrapped, ..key_box.clone() })
    }
}

/// What a provider answers in time: jobs wait for it to start, and so do those behind them.
async fn answered<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = tokio::time::timeout(KEY_TIMEOUT, call).await;
    answer.unwrap_or_else(|_| {
        let what = format!("{what}: who holds its key does not answer");
        Err(Error::new(ErrorKind::Unavailable, what).retryable(true))
    })
}

/// The header of an encrypted image's manifest; `None` when it is not encrypted.
pub(crate) fn read_header(manifest: &File) -> Result<Option<Header>> {
    let mut bytes = [0; Header::LEN];
    let count = manifest.read_at(0, &mut bytes)?;
    if !Header::is_one(&bytes[..count]) {
        return Ok(None);
    }
    Header::decode(&bytes[..count]).map(Some)
}

/// The key file of an image.
pub(crate) fn read_key_box(file: &File) -> Result<KeyBox> {
    let len = file.len()?;
    if len > KeyBox::LEN_MAX {
        return Err(Error::new(ErrorKind::Corrupt, "read key file: it is too long"));
    }
    let mut bytes = vec![0; to_usize(len)];
    let count = file.read_at(0, &mut bytes)?;
    KeyBox::decode(&bytes[..count])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::disk::Dir;
    use crate::geometry::ChunkSize;
    use crate::seal::{Seal, digest_of, seal};

    const UUID: [u8; 16] = [3; 16];

    fn geometry() -> Geometry {
        Geometry::new((5 << 16) + 777, ChunkSize::from_bytes(128 << 10).unwrap()).unwrap()
    }

    struct Place {
        _temp: tempfile::TempDir,
        dir: Dir,
        data: File,
    }

    impl Place {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open_path(temp.path()).unwrap();
            let data = dir.create_file("data", 0o600).unwrap();
            dir.create_file("records", 0o600).unwrap();
            Self { _temp: temp, dir, data }
        }

        fn records(&self) -> File {
            self.dir.open_file_rw("records").unwrap()
        }

        fn staged(&self, masked: &Restored) -> (EncryptedFile, Restored) {
            let cipher = ImageCipher::new(UUID, geometry(), DataKey::from_bytes([1; 32]));
            EncryptedFile::staged(cipher, "k".parse().unwrap(), self.records(), masked).unwrap()
        }
    }

    fn image() -> Vec<u8> {
        let mut image: Vec<u8> =
            (0..geometry().image_bytes()).map(|n| ((n * n) >> 7).to_le_bytes()[0] | 1).collect();
        // A cell of zeros among data, and a chunk of them.
        image[1 << 16..4 << 16].fill(0);
        image
    }

    fn sealed(image: &[u8], index: u32) -> Seal {
        let range = geometry().range(ChunkIndex::new(index));
        let part = &image[to_usize(range.offset)..to_usize(range.end())];
        seal(geometry(), ChunkIndex::new(index), Bytes::copy_from_slice(part))
    }

    fn write(file: &EncryptedFile, data: &File, image: &[u8]) -> Vec<Durable> {
        let mut written = Vec::new();
        for index in geometry().chunks().iter() {
            let run = ChunkRun::new(index, 1);
            written.push(match sealed(image, index.get()) {
                Seal::Zero(_) => Durable::recorded(run, Content::Zero),
                Seal::Data(chunk) => {
                    file.write_chunk(data, &chunk).unwrap();
                    let digest = chunk.digest();
                    Durable::recorded(run, Content::Data { digest, data_bytes: 1 })
                }
            });
        }
        written
    }

    fn restored(chunks: &[Durable]) -> Restored {
        let mut restored = Restored::new(geometry());
        chunks.iter().for_each(|chunk| restored.record(chunk).unwrap());
        restored
    }

    #[test]
    fn any_range_is_read_back_and_nothing_lies_in_clear() {
        let (place, image) = (Place::new(), image());
        let (file, _) = place.staged(&Restored::new(geometry()));
        write(&file, &place.data, &image);
        let ends = [0, 1, 65_535, 65_536, 65_537, 131_072, 262_144, 300_000, 327_680, 328_457];
        for from in ends {
            for to in ends.into_iter().filter(|to| *to >= from) {
                let range = ByteRange::new(from, to - from);
                let read = file.read_range(&place.data, range).unwrap();
                assert!(read == image[to_usize(from)..to_usize(to)], "{from} to {to}");
            }
        }
        let mut raw = vec![0; image.len()];
        place.data.read_at(0, &mut raw).unwrap();
        let same = raw.chunks(16).zip(image.chunks(16)).filter(|(a, b)| a == b && !is_zero(a));
        assert_eq!(same.count(), 0, "bytes of the image lie in clear");
    }

    #[test]
    fn a_second_write_of_the_same_chunk_looks_like_any_other() {
        let (place, image) = (Place::new(), image());
        let (file, _) = place.staged(&Restored::new(geometry()));
        let mut seen = std::collections::HashSet::new();
        for round in 0..3 {
            write(&file, &place.data, &image);
            let mut cell = vec![0; CELL];
            place.data.read_at(0, &mut cell).unwrap();
            let mut record = vec![0; record_len(geometry())];
            place.records().read_at(0, &mut record).unwrap();
            assert!(seen.insert(cell), "the same text encrypts alike in write {round}");
            assert!(seen.insert(record[..SALT_LEN].to_vec()), "a salt came twice");
        }
    }

    #[test]
    fn what_is_on_record_tells_no_digest_and_gives_them_back() {
        let (place, image) = (Place::new(), image());
        let (file, _) = place.staged(&Restored::new(geometry()));
        let written = write(&file, &place.data, &image);
        let masked = file.masked(&written).unwrap();
        for (clear, mask) in written.iter().zip(&masked) {
            assert_eq!(clear.run(), mask.run());
            if clear.content() != Content::Zero {
                assert_ne!(clear.content(), mask.content());
            }
        }
        let (again, back) = place.staged(&restored(&masked));
        for index in geometry().chunks().iter() {
            let range = geometry().range(index);
            let bytes = &image[to_usize(range.offset)..to_usize(range.end())];
            let digest = (!is_zero(bytes)).then(|| digest_of(geometry(), index, bytes));
            assert_eq!(back.table.digest(index), Some(digest));
            assert!(again.read_range(&place.data, range).unwrap() == bytes);
        }
    }

    #[test]
    fn a_chunk_that_was_being_written_again_is_to_be_copied_again() {
        let (place, image) = (Place::new(), image());
        let (file, _) = place.staged(&Restored::new(geometry()));
        let written = write(&file, &place.data, &image);
        let masked = restored(&file.masked(&written).unwrap());
        // The crash comes after the first cell of the second write.
        let mut sealer = file.sealer(ChunkIndex::new(0)).unwrap();
        let mut cell = image[..CELL].to_vec();
        sealer.seal_cell(0, &mut cell).unwrap();
        place.data.write_at(0, &cell).unwrap();
        drop((sealer, file));
        let (_, back) = place.staged(&masked);
        assert_eq!(back.table.digest(ChunkIndex::new(0)), None);
        assert!(back.table.digest(ChunkIndex::new(2)).unwrap().is_some());
        assert_eq!(back.table.missing(), 1);
    }

    #[test]
    fn a_record_of_an_earlier_write_is_refused() {
        let (place, image) = (Place::new(), image());
        let (file, _) = place.staged(&Restored::new(geometry()));
        write(&file, &place.data, &image);
        let len = record_len(geometry());
        let (mut record, mut cells) = (vec![0; len], vec![0; CELL]);
        place.records().read_at(0, &mut record).unwrap();
        place.data.read_at(0, &mut cells).unwrap();
        write(&file, &place.data, &image);
        place.records().write_at(0, &record).unwrap();
        place.data.write_at(0, &cells).unwrap();
        let read = file.read_range(&place.data, ByteRange::new(0, 10));
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt, "it opens, but it is replayed");
    }
}
