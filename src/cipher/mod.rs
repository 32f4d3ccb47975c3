//! An image that is encrypted at rest: its keys, its chunks cell by cell, its manifest as a stream,
//! all from bytes to bytes; where they lie is the region's affair. Pure.

mod chunk;
mod key_box;
#[cfg(feature = "object")]
mod object;
mod stream;

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{constant_time, hkdf};
use zeroize::Zeroizing;

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::keys::DataKey;

pub(crate) use chunk::{ChunkOpener, ChunkSealer, record_len};
pub(crate) use key_box::{Bound, KeyBox, context_of};
#[cfg(feature = "object")]
pub(crate) use object::{MARK_LEN, Mark, Packing};
pub(crate) use stream::{Header, OpenReader, SealWriter, decode_body, encode_body};

/// How much of an image one message of AES-256-GCM holds: a reader decrypts no more than it needs,
/// and a writer no more than stays in its core's cache.
pub(crate) const CELL_BYTES: usize = 64 << 10;
/// What a message is longer than its text.
pub(crate) const TAG_LEN: usize = 16;
/// The random bytes from which the key and nonce of one write of one chunk come.
pub(crate) const SALT_LEN: usize = 24;

/// The last bytes of what seals a chunk: its record's tag.
pub(crate) type Tag = [u8; TAG_LEN];
pub(crate) type Salt = [u8; SALT_LEN];
/// The random name of one encrypted image, to which all of it is bound.
pub(crate) type Uuid = [u8; 16];

const COMMIT_INFO: &[u8] = b"blockferry/v1/commit";
const BLIND_INFO: &[u8] = b"blockferry/v1/blind";
#[cfg(feature = "object")]
const TEXT_SALT_INFO: &[u8] = b"blockferry/v1/manifest-salt";
const CHUNK_INFO: &[u8] = b"blockferry/v1/chunk";
const MANIFEST_INFO: &[u8] = b"blockferry/v1/manifest";
#[cfg(feature = "object")]
const OBJECT_INFO: &[u8] = b"blockferry/v1/object";
#[cfg(feature = "object")]
const NOTE_INFO: &[u8] = b"blockferry/v1/note";

/// One encrypted image: the secret, and what everything in it is bound to.
#[derive(Clone)]
pub(crate) struct ImageCipher {
    uuid: Uuid,
    geometry: Geometry,
    data_key: DataKey,
}

impl fmt::Debug for ImageCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageCipher").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl ImageCipher {
    pub(crate) fn new(uuid: Uuid, geometry: Geometry, data_key: DataKey) -> Self {
        Self { uuid, geometry, data_key }
    }

    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The secret, for whoever wraps it.
    pub(crate) fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    /// What the data key is and no other can be: GCM alone can be made to open under two keys.
    pub(crate) fn commitment(&self) -> Result<[u8; 32]> {
        let mut commitment = [0; 32];
        self.derive(&[], COMMIT_INFO, &mut commitment)?;
        Ok(commitment)
    }

    /// Compares in constant time, before anything is decrypted.
    pub(crate) fn check_commitment(&self, stored: &[u8; 32]) -> Result<()> {
        if crate::sabotage::is("M22") {
            return Ok(());
        }
        constant_time::verify_slices_are_equal(&self.commitment()?, stored).map_err(|_| {
            Error::new(ErrorKind::Denied, "open an encrypted image: its data key is another one")
                .hint("its key file is not the one it was written with")
        })
    }

    /// A digest as only the holder of the data key can make it: equal for equal ones, and telling
    /// nothing to those who know the content.
    pub(crate) fn blind(&self, digest: &Digest) -> Result<Digest> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(&[], BLIND_INFO, &mut key[..])?;
        Ok(Digest::from_bytes(*blake3::keyed_hash(&key, digest.as_bytes()).as_bytes()))
    }

    /// The salt of the manifest with that text: the same text always makes the same bytes, so that
    /// one may be put twice, and no other text has it.
    #[cfg(feature = "object")]
    pub(crate) fn salt_of_text(
        &self,
        text: impl FnOnce(&mut blake3::Hasher) -> Result<()>,
    ) -> Result<Salt> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(&[], TEXT_SALT_INFO, &mut key[..])?;
        let mut hasher = blake3::Hasher::new_keyed(&key);
        text(&mut hasher)?;
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&hasher.finalize().as_bytes()[..SALT_LEN]);
        Ok(salt)
    }

    /// Key and nonce of one write of one chunk, or of one manifest.
    fn message_key(&self, salt: &[u8], info: &[u8]) -> Result<MessageKey> {
        let mut bytes = Zeroizing::new([0; 32 + NONCE_LEN]);
        self.derive(salt, info, &mut bytes[..])?;
        let (key, nonce) = bytes.split_at(32);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(no_cipher)?;
        let mut base = [0; NONCE_LEN];
        base.copy_from_slice(nonce);
        Ok(MessageKey { key: LessSafeKey::new(key), base })
    }

    /// HKDF-SHA-256 of the data key, bound to the image.
    fn derive(&self, salt: &[u8], info: &[u8], out: &mut [u8]) -> Result<()> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.data_key.as_bytes());
        let (infos, len) = ([info, &self.uuid[..]], Len(out.len()));
        secret.expand(&infos, len).and_then(|okm| okm.fill(out)).map_err(no_cipher)
    }
}

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

/// A key for the messages of one chunk or manifest, numbered: no number is used twice.
struct MessageKey {
    key: LessSafeKey,
    base: [u8; NONCE_LEN],
}

impl MessageKey {
    fn nonce(&self, number: u32) -> Nonce {
        let mut nonce = self.base;
        for (byte, of) in nonce[NONCE_LEN - 4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&self, number: u32, aad: &[u8], bytes: &mut [u8]) -> Result<Tag> {
        let sealed = self.key.seal_in_place_separate_tag(self.nonce(number), Aad::from(aad), bytes);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(sealed.map_err(no_cipher)?.as_ref());
        Ok(tag)
    }

    /// What does not verify is wiped: nobody sees bytes that nobody vouches for.
    fn open(&self, number: u32, aad: &[u8], tag: &Tag, bytes: &mut [u8]) -> Result<(), Refused> {
        let nonce = self.nonce(number);
        let opened = self.key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, bytes);
        let is_open = opened.is_ok();
        if is_open {
            return Ok(());
        }
        bytes.fill(0);
        Err(Refused)
    }
}

/// A message that was not sealed so, with that key, for that place.
struct Refused;

fn no_cipher(error: Unspecified) -> Error {
    Error::new(ErrorKind::Io, "use AES-256-GCM").because(error)
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("decrypt {what}: it is not what was written there"))
        .hint("the image is damaged or was tampered with where it lies")
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use crate::geometry::ChunkSize;

    pub(crate) const UUID: Uuid = *b"uuid-uuid-uuid-u";

    /// Three chunks of 128 KiB, the last one cut short: cells of 64 KiB and one of 1000 bytes.
    pub(crate) fn geometry() -> Geometry {
        Geometry::new((4 << 16) + 1000, ChunkSize::from_bytes(128 << 10).unwrap()).unwrap()
    }

    pub(crate) fn cipher() -> ImageCipher {
        ImageCipher::new(UUID, geometry(), DataKey::from_bytes([7; 32]))
    }

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{UUID, cipher, geometry, hex};
    use super::*;

    #[test]
    fn golden_derivations_hold_the_keys_still() {
        // As another implementation has them: HMAC of Python, and `b3sum --keyed`.
        assert_eq!(hex(&cipher().commitment().unwrap()), COMMITMENT);
        let root = Digest::from_bytes([3; 32]);
        assert_eq!(cipher().blind(&root).unwrap().to_string(), BLINDED);
    }

    const COMMITMENT: &str = "ae3954432800131dd68360393e880253ce51effef4fa6b52d62b11a8f9d0dc0c";
    const BLINDED: &str = "22ff42c0f90758e38fcd43b2187bd6d2fe3e8613ed7b03ce85438b61e22b071d";

    #[test]
    fn a_commitment_is_that_of_one_key_and_one_image() {
        let commitment = cipher().commitment().unwrap();
        cipher().check_commitment(&commitment).unwrap();
        let mut other_key = [7; 32];
        other_key[31] ^= 1;
        let other = ImageCipher::new(UUID, geometry(), DataKey::from_bytes(other_key));
        assert_eq!(other.check_commitment(&commitment).unwrap_err().kind(), ErrorKind::Denied);
        let mut uuid = UUID;
        uuid[0] ^= 1;
        let other = ImageCipher::new(uuid, geometry(), DataKey::from_bytes([7; 32]));
        assert!(other.check_commitment(&commitment).is_err());
        for at in 0..32 {
            let mut flipped = commitment;
            flipped[at] ^= 1;
            assert!(cipher().check_commitment(&flipped).is_err());
        }
    }

    #[test]
    fn nothing_shows_the_data_key() {
        let cipher = ImageCipher::new(UUID, geometry(), DataKey::from_bytes([0xab; 32]));
        let shown = format!("{cipher:?}");
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
    }
}
