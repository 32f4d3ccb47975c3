//! Encrypted images in an object store: what encrypts and decrypts one, and who holds its key.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::Digest;
use crate::cipher::{
    Bound, Header, ImageCipher, KeyBox, MARK_LEN, Mark, OpenReader, Packing, SealWriter, TAG_LEN,
};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ChunkIndex, ChunkRun, Geometry, to_u64};
use crate::id::{ImageId, JobId, KeyId};
use crate::job::JobSpec;
use crate::keys::KeyProvider;
use crate::manifest::Manifest;
use crate::region::encrypted::{Vault, draw_salt};
use crate::region::{no_keys, refuse_base};

use super::answers::missing;
use super::head::MadeKey;
use super::image::{SALT_LEN, Salt, SealedImage, Writes};
use super::names;
use super::register::{Swapped, draw};
use super::rules::Phase;
use super::{ObjectRegion, Shared};

/// By how much an encrypted chunk is longer as it is stored.
pub(super) const ADDED_LEN: u64 = 16;

/// How many random bytes a wrapped key is kept behind.
const STAMP_LEN: usize = 16;

const _: () = assert!(SALT_LEN == crate::cipher::SALT_LEN && ADDED_LEN == TAG_LEN as u64);
const _: () = assert!(MARK_LEN == size_of::<names::Mark>());

/// Who makes and opens data keys for a region; nobody, where it was given no keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Option<Vault>);

/// What encrypts and decrypts one image.
#[derive(Debug)]
pub(super) struct Lock {
    cipher: ImageCipher,
    key: KeyId,
    /// The wrapped data key, as it is kept.
    wrapped: Bytes,
}

/// Of a chunk: salt, mark, and bytes as they are stored.
pub(super) type SealedChunk = (Salt, Mark, Bytes);

impl Keys {
    pub(super) fn are_here(&self) -> bool {
        self.0.is_some()
    }

    /// A new data key, if the job's image is to be encrypted.
    pub(super) async fn make(&self, spec: &JobSpec) -> Result<Option<Lock>> {
        let Some(key) = &spec.key else { return Ok(None) };
        let Some(vault) = &self.0 else { return Err(no_keys(spec)) };
        refuse_base(spec)?;
        let bound = bound(&spec.target.image, spec.geometry, spec.job);
        let (key_box, cipher) = vault.make(key, &bound).await?;
        Ok(Some(Lock { cipher, key: key_box.key.clone(), wrapped: kept(&key_box)? }))
    }

    /// Opens what is kept of the data key of an image that the job has made.
    pub(super) async fn open(
        &self,
        wrapped: Bytes,
        (image, geometry, job): (&ImageId, Geometry, JobId),
    ) -> Result<Lock> {
        let vault = self.vault("open an image without its key")?;
        let key_box = box_in(&wrapped)?;
        let cipher = vault.open(&key_box, &bound(image, geometry, job)).await?;
        Ok(Lock { cipher, key: key_box.key, wrapped })
    }

    fn vault(&self, what: &'static str) -> Result<&Vault> {
        self.0.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Denied, what)
                .hint("it is encrypted: give the region keys, on the command line with --keyring")
        })
    }
}

fn bound(image: &ImageId, geometry: Geometry, job: JobId) -> Bound<'_> {
    Bound { image, geometry, job: Some(job) }
}

/// Which key a wrapped one says to be wrapped by; `None`: it is none.
pub(super) fn key_around(wrapped: &[u8]) -> Option<KeyId> {
    box_in(wrapped).ok().map(|key_box| key_box.key)
}

/// A wrapped key as it is kept: behind random bytes, so that no name is ever used again, also where
/// whoever wraps keys wraps one alike each time. Then who deletes one never hits another.
fn kept(key_box: &KeyBox) -> Result<Bytes> {
    let stamp: [u8; STAMP_LEN] = draw()?;
    Ok([&stamp[..], &key_box.encode()?].concat().into())
}

/// What is kept so.
fn box_in(wrapped: &[u8]) -> Result<KeyBox> {
    KeyBox::decode(wrapped.get(STAMP_LEN..).unwrap_or_default())
}

impl Lock {
    /// The key that wraps its data key.
    pub(super) fn key(&self) -> &KeyId {
        &self.key
    }

    /// The wrapped data key, as it is kept.
    pub(super) fn wrapped(&self) -> &Bytes {
        &self.wrapped
    }

    /// The same, by its name.
    pub(super) fn made_key(&self) -> MadeKey {
        MadeKey { digest: names::digest_of(&self.wrapped), id: self.key.clone() }
    }

    /// Encrypts a chunk, packed or as it is.
    pub(super) fn seal(
        &self,
        index: ChunkIndex,
        epoch: u32,
        digest: &Digest,
        (packed, plain): (Option<Bytes>, &Bytes),
    ) -> Result<SealedChunk> {
        let salt = draw_salt(&self.cipher.uuid(), index, epoch)?;
        let chunk = self.cipher.whole_chunk(index, epoch, &salt)?;
        let mark = chunk.mark(digest)?;
        let (packing, mut bytes) = match packed {
            Some(packed) => (Packing::Zstd, Vec::from(packed)),
            None => {
                let mut bytes = Vec::with_capacity(plain.len() + TAG_LEN);
                bytes.extend_from_slice(plain);
                (Packing::Raw, bytes)
            }
        };
        chunk.seal(&mark, packing, &mut bytes)?;
        Ok((salt, mark, bytes.into()))
    }

    /// Decrypts what is stored of a chunk: packed, or as it is where it has the chunk's length.
    pub(super) fn open(
        &self,
        index: ChunkIndex,
        epoch: u32,
        mark: &Mark,
        stored: Bytes,
    ) -> Result<Bytes> {
        let whole = self.cipher.geometry().range(index).len + ADDED_LEN;
        let packing = if to_u64(stored.len()) == whole { Packing::Raw } else { Packing::Zstd };
        let mut bytes = Vec::from(stored);
        self.cipher.whole_chunk(index, epoch, &salt_of(mark))?.open(mark, packing, &mut bytes)?;
        Ok(bytes.into())
    }

    /// The mark of that write of a chunk with that digest.
    pub(super) fn mark(
        &self,
        index: ChunkIndex,
        epoch: u32,
        salt: &Salt,
        digest: &Digest,
    ) -> Result<Mark> {
        self.cipher.whole_chunk(index, epoch, salt)?.mark(digest)
    }

    /// The digest in a mark, if this key has made it for that place.
    pub(super) fn read_mark(&self, index: ChunkIndex, epoch: u32, mark: &Mark) -> Option<Digest> {
        if !self.cipher.geometry().holds(ChunkRun::new(index, 1)) {
            return None;
        }
        let chunk = self.cipher.whole_chunk(index, epoch, &salt_of(mark)).ok()?;
        chunk.read_mark(mark).ok()
    }

    pub(super) fn seal_note(&self, epoch: u32, number: u32, text: &[u8]) -> Result<Vec<u8>> {
        let salt = draw_salt(&self.cipher.uuid(), ChunkIndex::new(u32::MAX), epoch)?;
        self.cipher.seal_note(epoch, number, &salt, text)
    }

    pub(super) fn open_note(&self, epoch: u32, number: u32, bytes: &[u8]) -> Result<Vec<u8>> {
        self.cipher.open_note(epoch, number, bytes)
    }

    /// A digest that may be put where anybody may read.
    pub(super) fn blind(&self, digest: &Digest) -> Result<Digest> {
        self.cipher.blind(digest)
    }

    /// The bytes of the image's manifest.
    pub(super) fn seal_image(&self, writes: &Writes, manifest: &Manifest) -> Result<Vec<u8>> {
        let mut bytes = SealedImage::encode_front(writes);
        let sum = *blake3::hash(&bytes).as_bytes();
        // Put again, by who was not told that it is there, it is the same that a head may name.
        let salt = self.cipher.salt_of_text(|text| {
            text.update(&sum);
            manifest.encode_to(text)
        })?;
        let uuid = self.cipher.uuid();
        let header = Header { geometry: manifest.geometry(), job: manifest.job(), uuid, salt };
        let mut stream = SealWriter::new(&self.cipher, &header, &mut bytes)?;
        stream.write_all(&sum).map_err(|error| Error::io("write manifest", error))?;
        manifest.encode_to(&mut stream)?;
        stream.finish()?;
        Ok(bytes)
    }

    /// The manifest of an image that this job has made.
    pub(super) fn open_image(&self, sealed: &SealedImage, job: JobId) -> Result<Manifest> {
        let header = Header::decode(&sealed.body)?;
        let mut body = sealed.body.get(Header::LEN..).unwrap_or_default();
        let mut stream = OpenReader::new(&self.cipher, &header, &mut body)?;
        let mut sum = [0; 32];
        let read = stream.read_exact(&mut sum);
        read.map_err(|error| Error::io("read encrypted manifest", error))?;
        if sum != sealed.sum {
            return Err(corrupt("its front is that of another"));
        }
        let manifest = Manifest::decode_from(&mut stream)?;
        if (manifest.geometry(), manifest.job()) != (header.geometry, Some(job)) {
            return Err(corrupt("its header is that of another image"));
        }
        let table = manifest.table();
        let data = manifest.geometry().chunks().iter().filter(|n| table.digest(*n).is_some());
        if !data.eq(sealed.writes.chunks()) {
            return Err(corrupt("it names no write of one of its chunks"));
        }
        Ok(manifest)
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("read encrypted manifest: {why}"))
}

fn salt_of(mark: &Mark) -> Salt {
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&mark[..SALT_LEN]);
    salt
}

impl ObjectRegion {
    /// With keys: images can be encrypted here under any of them, and those that are can be read.
    #[must_use]
    pub fn with_keys(self, keys: Arc<dyn KeyProvider>) -> Self {
        let keys = Keys(Some(Vault::new(keys)));
        Self { shared: Arc::new(Shared { keys, ..(*self.shared).clone() }) }
    }

    /// Wraps the data key of an encrypted image under another key, or under the newest version of
    /// the same; no chunk is touched, and readers do not notice. Returns the key it was under.
    ///
    /// The new wrapped key is put beside the old one, one swap of the head makes it the one that
    /// counts, and the old one is deleted.
    ///
    /// # Errors
    /// `NotFound` for an unknown image or key, `Unsupported` for an image that is not encrypted,
    /// `Denied` when its key cannot be unwrapped.
    ///
    /// # Durability
    /// The new key counts, and the old one is deleted, when this returns. A crash leaves either
    /// counting, and perhaps the other to the next [`ObjectRegion::sweep`].
    ///
    /// # Cancel safety
    /// Restartable: it may have been done; again does no harm.
    pub async fn rewrap(&self, image: &ImageId, to: &KeyId) -> Result<KeyId> {
        let done = self.shared.rewrap(image, to).await;
        done.map_err(|error| error.within(self.shared.location_of(image)))
    }
}

impl Shared {
    async fn rewrap(&self, image: &ImageId, to: &KeyId) -> Result<KeyId> {
        loop {
            let held = self.register.read(image).await?;
            let visible = held.head.as_ref().filter(|head| head.sight.phase == Phase::Committed);
            let Some(head) = visible else { return Err(missing("give another key to", image)) };
            let (Some(old), Some(geometry)) = (held.key().cloned(), head.geometry()) else {
                return Err(Error::new(ErrorKind::Unsupported, "give an image another key")
                    .hint("it is not encrypted: copy it to an encrypted one"));
            };
            let vault = self.keys.vault("give an image another key")?;
            let attempt = names::attempt(image, head.sight.job, head.sight.epoch);
            let Some(wrapped) = self.wrapped_key(&attempt, &old.digest).await? else {
                // Somebody was faster, or it is gone.
                if self.register.read(image).await?.sight() == held.sight() {
                    return Err(key_is_gone("give an image another key"));
                }
                continue;
            };
            let bound = bound(image, geometry, head.sight.job);
            let new = kept(&vault.rewrap(&box_in(&wrapped)?, &bound, to).await?)?;
            let key = MadeKey { digest: names::digest_of(&new), id: to.clone() };
            let digest = key.digest;
            // Order: what the head will name is there, then the head, then the old one goes. Who
            // sweeps the new one as a leftover has changed the head first.
            if let Err(error) = self.put_whole(&names::wrapped_key(&attempt, &digest), new).await {
                if self.register.read(image).await?.sight() == held.sight() {
                    return Err(error);
                }
                continue;
            }
            let swapped = self.register.swap(&held, head.rewrapped(key, draw()?)).await?;
            // Lost may also be one that was carried out unheard, and that others have gone on from:
            // what the head says tells. Whichever it does not name, none will ever name again.
            let (Swapped::Done(now) | Swapped::Lost(now)) = swapped;
            let named = now.key().map(|key| key.digest);
            let gone = [old.digest, digest].into_iter().filter(|digest| named != Some(*digest));
            let gone: Vec<String> =
                gone.map(|digest| names::wrapped_key(&attempt, &digest)).collect();
            self.store.delete(&gone).await?;
            if named == Some(digest) {
                // Of a copy that nobody has tidied up after, attempts before have kept theirs.
                self.forget_keys(image, head.sight.job, |epoch| epoch < head.sight.epoch).await?;
                return Ok(old.id);
            }
        }
    }
}

pub(super) fn key_is_gone(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: it is encrypted, and its wrapped key is gone"))
}
