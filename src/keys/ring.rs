//! A keyring: keys with their versions, as bytes and back, and how one of them wraps a data key.
//! Pure.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use zeroize::Zeroizing;

use crate::codec::{Decoder, Encoder};
use crate::error::{Error, ErrorKind, Result};
use crate::id::KeyId;
use crate::keys::DataKey;

/// The most versions of all keys together.
pub(crate) const VERSION_COUNT_MAX: usize = 4096;
/// The most bytes of a keyring.
pub(crate) const RING_LEN_MAX: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"BFKEYRG\0";
const VERSION: u16 = 1;
const SUM_CONTEXT: &str = "blockferry 2026-11-26 keyring v1";
const HEAD_LEN: usize = 8 + 2 + 4;
const SUM_LEN: usize = 32;
/// Of one version, with an id at its longest.
const ENTRY_LEN_MAX: usize = 4 + KeyId::LEN_MAX + 4 + 8 + DataKey::LEN;

const _: () = assert!(HEAD_LEN + VERSION_COUNT_MAX * ENTRY_LEN_MAX + SUM_LEN < 1 << 20);

const WRAP_FORMAT: u8 = 1;
const WRAP_LABEL: &[u8] = b"blockferry/v1/wrap";
/// Format, version, nonce.
const WRAP_HEAD_LEN: usize = 1 + 4 + NONCE_LEN;
const TAG_LEN: usize = 16;

/// A key of a keyring: everything but its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Its id.
    pub key: KeyId,
    /// The version, counted from 1.
    pub version: u32,
    /// Milliseconds since 1970 when it was made; a label only.
    pub created_unix_ms: u64,
}

/// Keys by id, each with its versions, oldest first.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    keys: BTreeMap<KeyId, Vec<Version>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Version {
    number: u32,
    created_unix_ms: u64,
    secret: DataKey,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Ring {
    /// Every version of every key.
    pub(crate) fn list(&self) -> Vec<KeyInfo> {
        let all = self.keys.iter().flat_map(|(key, versions)| {
            versions.iter().map(|version| KeyInfo {
                key: key.clone(),
                version: version.number,
                created_unix_ms: version.created_unix_ms,
            })
        });
        all.collect()
    }

    /// Adds a key that is not there yet.
    pub(crate) fn add(&mut self, key: &KeyId, secret: DataKey, now_unix_ms: u64) -> Result<()> {
        if self.keys.contains_key(key) {
            return Err(Error::new(ErrorKind::Exists, format!("add key {key}"))
                .hint("rotate it for a new version, or choose another id"));
        }
        self.push(key, 1, secret, now_unix_ms)
    }

    /// Gives a key a new version, which wraps from now on; returns its number.
    pub(crate) fn rotate(&mut self, key: &KeyId, secret: DataKey, now_unix_ms: u64) -> Result<u32> {
        let newest = self.newest(key)?.number;
        let number = newest
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("rotate key {key}")))?;
        self.push(key, number, secret, now_unix_ms)?;
        Ok(number)
    }

    /// Removes a version, or all of a key. What they wrapped can never be read again.
    pub(crate) fn remove(&mut self, key: &KeyId, version: Option<u32>) -> Result<()> {
        let versions = self.keys.get_mut(key).ok_or_else(|| unknown(key))?;
        let before = versions.len();
        versions.retain(|held| version.is_some_and(|number| number != held.number));
        if versions.len() == before {
            return Err(unknown_version(key, version.unwrap_or(0)));
        }
        if versions.is_empty() {
            self.keys.remove(key);
        }
        Ok(())
    }

    fn push(&mut self, key: &KeyId, number: u32, secret: DataKey, now_unix_ms: u64) -> Result<()> {
        if self.keys.values().map(Vec::len).sum::<usize>() >= VERSION_COUNT_MAX {
            return Err(Error::new(ErrorKind::Unsupported, format!("add key {key}"))
                .hint("a keyring holds at most 4096 versions of keys"));
        }
        let version = Version { number, created_unix_ms: now_unix_ms, secret };
        self.keys.entry(key.clone()).or_default().push(version);
        Ok(())
    }

    fn newest(&self, key: &KeyId) -> Result<&Version> {
        self.keys.get(key).and_then(|versions| versions.last()).ok_or_else(|| unknown(key))
    }

    /// Wraps a data key under the newest version. The nonce must be random; should it come twice,
    /// GCM-SIV tells no more than that the same was wrapped twice.
    pub(crate) fn wrap(
        &self,
        key: &KeyId,
        data_key: &DataKey,
        context: &[u8],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>> {
        let newest = self.newest(key)?;
        let mut secret = Zeroizing::new(*data_key.as_bytes());
        let tag = cipher_of(&newest.secret)
            .and_then(|cipher| {
                cipher.seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(bound(key, newest.number, context)),
                    &mut secret[..],
                )
            })
            .map_err(|error| Error::new(ErrorKind::Io, "wrap a data key").because(error))?;
        let mut out = Encoder::new();
        out.u8(WRAP_FORMAT).u32(newest.number).raw(&nonce).raw(&secret[..]).raw(tag.as_ref());
        Ok(out.finish())
    }

    /// Unwraps what [`Ring::wrap`] gave.
    pub(crate) fn open(&self, key: &KeyId, wrapped: &[u8], context: &[u8]) -> Result<DataKey> {
        let mut from = Decoder::new(wrapped, "wrapped data key");
        let format = from.u8()?;
        if format > WRAP_FORMAT {
            return Err(Error::new(ErrorKind::Unsupported, format!("unwrap format {format}"))
                .hint("written by a newer blockferry; upgrade this one"));
        }
        if wrapped.len() != WRAP_HEAD_LEN + DataKey::LEN + TAG_LEN || format != WRAP_FORMAT {
            return Err(from.corrupt("it was not wrapped by a keyring"));
        }
        let (number, nonce) = (from.u32()?, from.array()?);
        let mut secret = Zeroizing::new(from.array::<{ DataKey::LEN }>()?);
        let tag: [u8; TAG_LEN] = from.array()?;
        from.finish()?;
        let versions = self.keys.get(key).ok_or_else(|| unknown(key))?;
        let version = versions
            .iter()
            .find(|version| version.number == number)
            .ok_or_else(|| unknown_version(key, number))?;
        cipher_of(&version.secret)
            .and_then(|cipher| {
                let aad = Aad::from(bound(key, number, context));
                let nonce = Nonce::assume_unique_for_key(nonce);
                cipher.open_in_place_separate_tag(nonce, aad, &tag, &mut secret[..]).map(drop)
            })
            .map_err(|error| {
                Error::new(ErrorKind::Denied, format!("unwrap a data key under {key}"))
                    .hint("it is another key of that name, or the wrapped key was altered")
                    .because(error)
            })?;
        Ok(DataKey::from_bytes(*secret))
    }

    /// The bytes: magic 8, version 2, count 4; of each version, ascending by id and number: id (4
    /// and its bytes), number 4, time 8, secret 32; and a BLAKE3 checksum of it all.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let all = || self.keys.iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one)));
        let count = all().count();
        // At its full size at once: a vector that grows leaves secrets in what it gives back.
        let len_max = HEAD_LEN + count * ENTRY_LEN_MAX + SUM_LEN;
        let mut bytes = Zeroizing::new(Vec::with_capacity(len_max));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        for (key, version) in all() {
            let text = key.as_str().as_bytes();
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(text);
            bytes.extend_from_slice(&version.number.to_le_bytes());
            bytes.extend_from_slice(&version.created_unix_ms.to_le_bytes());
            bytes.extend_from_slice(version.secret.as_bytes());
        }
        let sum = blake3::derive_key(SUM_CONTEXT, &bytes);
        bytes.extend_from_slice(&sum);
        debug_assert!(bytes.len() <= len_max, "a keyring that grew");
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Decoder::new(bytes, "keyring");
        if from.array()? != MAGIC {
            return Err(from.corrupt("it does not start like one"));
        }
        from.version(VERSION)?;
        let mut from = from.checked(bytes, SUM_CONTEXT)?;
        let count = usize::try_from(from.u32()?).unwrap_or(usize::MAX);
        if count > VERSION_COUNT_MAX {
            return Err(from.corrupt("it has too many keys"));
        }
        let mut ring = Self::default();
        let mut last: Option<(KeyId, u32)> = None;
        for _ in 0..count {
            let key: KeyId = from
                .text(KeyId::LEN_MAX)?
                .parse()
                .map_err(|error| from.corrupt("a key id is malformed").because(error))?;
            let (number, created_unix_ms) = (from.u32()?, from.u64()?);
            let secret = Zeroizing::new(from.array()?);
            let here = (key.clone(), number);
            if number == 0 || last.replace(here.clone()).is_some_and(|last| last >= here) {
                return Err(from.corrupt("its keys are out of order"));
            }
            let version = Version { number, created_unix_ms, secret: DataKey(secret) };
            ring.keys.entry(key).or_default().push(version);
        }
        from.finish()?;
        Ok(ring)
    }
}

fn cipher_of(secret: &DataKey) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&AES_256_GCM_SIV, secret.as_bytes()).map(LessSafeKey::new)
}

/// What a wrapped key is bound to.
fn bound(key: &KeyId, number: u32, context: &[u8]) -> Vec<u8> {
    let mut out = Encoder::new();
    out.block(WRAP_LABEL).block(key.as_str().as_bytes()).u32(number).block(context);
    out.finish()
}

fn unknown(key: &KeyId) -> Error {
    Error::new(ErrorKind::NotFound, format!("find key {key}")).hint("the keyring has no such key")
}

fn unknown_version(key: &KeyId, number: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("find version {number} of key {key}"))
        .hint("the keyring has that key, but not that version")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> KeyId {
        id.parse().unwrap()
    }

    fn secret(seed: u8) -> DataKey {
        DataKey::from_bytes([seed; 32])
    }

    fn sample() -> Ring {
        let mut ring = Ring::default();
        ring.add(&key("b"), secret(1), 7).unwrap();
        ring.add(&key("a"), secret(2), 8).unwrap();
        assert_eq!(ring.rotate(&key("b"), secret(3), 9).unwrap(), 2);
        ring
    }

    #[test]
    fn golden_bytes_hold_the_layout_still() {
        let bytes = sample().encode();
        let hash = blake3::hash(&bytes).to_string();
        assert_eq!(bytes.len(), HEAD_LEN + 3 * (4 + 1 + 4 + 8 + 32) + SUM_LEN);
        assert_eq!(hash, GOLDEN);
        assert_eq!(Ring::decode(&bytes).unwrap(), sample());
    }

    const GOLDEN: &str = "997e207d38b212127a6267d88430911a4f9894d01751c07787f3aba9fd646027";

    /// As another implementation has it: AES-GCM-SIV of OpenSSL, by way of Python.
    #[test]
    fn a_golden_wrapped_key_holds_the_wrapping_still() {
        let wrapped = sample().wrap(&key("b"), &secret(9), b"image", [5; 12]).unwrap();
        let hex: String = wrapped.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, WRAPPED.split_whitespace().collect::<String>());
    }

    const WRAPPED: &str = "
        0102000000050505050505050505050505ee030ba0a12350f7ced4481deb8440eb6a454ad2fbdf57
        a30dc7dd4d5f3e5371669670d6dce4c4f2137ddb0e30195d09
    ";

    #[test]
    fn damage_anywhere_is_seen_and_a_newer_version_is_told() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                let kind = Ring::decode(&flipped).unwrap_err().kind();
                // The version comes before the checksum, so that a later one may sum otherwise.
                let expected = match at {
                    8..=9 if flipped[8..10] != [0, 0] => ErrorKind::Unsupported,
                    _ => ErrorKind::Corrupt,
                };
                assert_eq!(kind, expected, "bit {bit} of byte {at}");
            }
            assert!(Ring::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn only_the_same_key_and_context_unwrap_and_no_altered_byte() {
        let (ring, data) = (sample(), secret(9));
        let wrapped = ring.wrap(&key("b"), &data, b"image", [5; 12]).unwrap();
        assert_eq!(ring.open(&key("b"), &wrapped, b"image").unwrap(), data);
        let kind = |ring: &Ring, id: &str, context: &[u8], wrapped: &[u8]| {
            ring.open(&key(id), wrapped, context).unwrap_err().kind()
        };
        assert_eq!(kind(&ring, "b", b"imagf", &wrapped), ErrorKind::Denied);
        assert_eq!(kind(&ring, "c", b"image", &wrapped), ErrorKind::NotFound);
        // Version 2 wrapped it, and `a` has none.
        assert_eq!(kind(&ring, "a", b"image", &wrapped), ErrorKind::NotFound);
        let mut other = Ring::default();
        other.add(&key("b"), secret(4), 0).unwrap();
        other.rotate(&key("b"), secret(5), 0).unwrap();
        assert_eq!(kind(&other, "b", b"image", &wrapped), ErrorKind::Denied, "a wrong secret");
        for at in 0..wrapped.len() {
            for bit in 0..8 {
                let mut flipped = wrapped.clone();
                flipped[at] ^= 1 << bit;
                assert!(ring.open(&key("b"), &flipped, b"image").is_err(), "bit {bit} of {at}");
            }
            assert!(ring.open(&key("b"), &wrapped[..at], b"image").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_an_older_version_wrapped_is_unwrapped_until_that_is_removed() {
        let mut ring = Ring::default();
        ring.add(&key("k"), secret(1), 0).unwrap();
        let old = ring.wrap(&key("k"), &secret(9), b"", [0; 12]).unwrap();
        ring.rotate(&key("k"), secret(2), 0).unwrap();
        let new = ring.wrap(&key("k"), &secret(9), b"", [0; 12]).unwrap();
        assert_ne!(old[..5], new[..5], "the newest version wraps");
        assert_eq!(ring.open(&key("k"), &old, b"").unwrap(), secret(9));
        ring.remove(&key("k"), Some(1)).unwrap();
        assert_eq!(ring.open(&key("k"), &old, b"").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(ring.open(&key("k"), &new, b"").unwrap(), secret(9));
        assert!(ring.remove(&key("k"), Some(1)).is_err());
        ring.remove(&key("k"), None).unwrap();
        assert!(ring.list().is_empty());
    }

    #[test]
    fn nothing_shows_a_secret() {
        let mut ring = Ring::default();
        ring.add(&key("k"), secret(0xab), 0).unwrap();
        let shown = format!("{ring:?} {:?}", secret(0xab));
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("ab"), "{shown}");
    }
}
