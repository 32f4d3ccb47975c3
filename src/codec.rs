//! Little-endian fields in and out of byte slices, bounds checked before anything is allocated.
//! Pure.

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;

/// How long a checksum is.
#[cfg(any(feature = "encrypt", feature = "object"))]
const SUM_LEN: usize = 32;

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A 32-bit length, then the bytes.
    pub(crate) fn block(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        debug_assert_eq!(u64::from(len), to_u64(bytes.len()), "block of 4 GiB or more");
        self.u32(len).raw(bytes)
    }

    /// One byte that tells whether a value follows, then the value.
    pub(crate) fn option<T>(
        &mut self,
        value: Option<T>,
        put: impl FnOnce(&mut Self, T),
    ) -> &mut Self {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
        self
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Takes fields from a slice; every shortage is [`ErrorKind::Corrupt`] and names what was being
/// read.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn corrupt(&self, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("read {}: {why}", self.what))
    }

    pub(crate) fn raw(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.corrupt("it is cut short"));
        };
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.raw(N)?);
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The bytes of a block of at most `len_max` bytes.
    pub(crate) fn block(&mut self, len_max: usize) -> Result<&'a [u8]> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if len > len_max {
            return Err(self.corrupt("a field is longer than it may be"));
        }
        self.raw(len)
    }

    /// The text of a block of at most `len_max` bytes.
    pub(crate) fn text(&mut self, len_max: usize) -> Result<&'a str> {
        let bytes = self.block(len_max)?;
        std::str::from_utf8(bytes).map_err(|error| self.corrupt("text is not UTF-8").because(error))
    }

    pub(crate) fn option<T>(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => take(self).map(Some),
            _ => Err(self.corrupt("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may be left over: every format here is canonical.
    pub(crate) fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt("bytes follow its end")) }
    }
}

/// What stands around the fields of most formats.
#[cfg(any(feature = "encrypt", feature = "object"))]
impl Decoder<'_> {
    /// The version of a format that has had that one only.
    pub(crate) fn version(&mut self, known: u16) -> Result<()> {
        match self.u16()? {
            version if version == known => Ok(()),
            0 => Err(self.corrupt("its version is 0")),
            later => {
                let what = format!("read {}, version {later}", self.what);
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("written by a newer blockferry; upgrade this one"))
            }
        }
    }

    /// The bytes that are left, less the BLAKE3 checksum at their end, which is that of everything
    /// in `whole` before it.
    pub(crate) fn checked(mut self, whole: &[u8], context: &str) -> Result<Self> {
        let len = self.remaining().checked_sub(SUM_LEN);
        let body = self.raw(len.ok_or_else(|| self.corrupt("it is cut short"))?)?;
        let sum: [u8; SUM_LEN] = self.array()?;
        if sum != blake3::derive_key(context, &whole[..whole.len() - SUM_LEN]) {
            return Err(self.corrupt("its checksum is wrong"));
        }
        Ok(Self::new(body, self.what))
    }
}

/// The start of the text that fits in `len_max` bytes, cut between characters.
pub(crate) fn cut(text: &str, len_max: usize) -> &str {
    let mut len = len_max.min(text.len());
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let mut encoder = Encoder::new();
        encoder.u8(7).u16(0x1234).u32(5).u64(u64::MAX).block(b"abc");
        encoder.option(Some(9_u32), |e, v| {
            e.u32(v);
        });
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes, "test");
        assert_eq!((decoder.u8().unwrap(), decoder.u16().unwrap()), (7, 0x1234));
        assert_eq!((decoder.u32().unwrap(), decoder.u64().unwrap()), (5, u64::MAX));
        assert_eq!(decoder.text(3).unwrap(), "abc");
        assert_eq!(decoder.option(|d| d.u32()).unwrap(), Some(9));
        decoder.finish().unwrap();
    }

    #[test]
    fn shortage_excess_and_oversize_are_corrupt() {
        assert!(Decoder::new(&[1, 2, 3], "test").u32().is_err());
        assert!(Decoder::new(&[255, 255, 255, 255, 0], "test").block(10).is_err());
        assert!(Decoder::new(&[2], "test").option(|d| d.u8()).is_err());
        assert_eq!(Decoder::new(&[2], "test").finish().unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 0), "");
    }
}
