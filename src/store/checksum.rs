//! What a store says of bytes without sending them, and what they are sent along with. Pure.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};

use super::Part;
use crate::geometry::to_u64;

impl Part {
    /// Whether the store vouches that it holds just these bytes: by its checksum, or by an ETag
    /// that is their MD5, as it is where parts are not encrypted.
    ///
    /// It tells them from others that came about by accident, not by intent.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        if self.len != to_u64(bytes.len()) {
            return false;
        }
        match &self.checksum {
            Some(checksum) => *checksum == checksum_of(bytes),
            None => {
                let sum = Md5::digest(bytes);
                let digits = sum.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                let digits = digits.map(|digit| char::from_digit(digit.into(), 16));
                digits.eq(self.tag.trim_matches('"').chars().map(Some))
            }
        }
    }
}

/// What bytes are sent along with, and a store answers that has checksums: their CRC-64/NVME, as
/// base64.
pub(crate) fn checksum_of(bytes: &[u8]) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    BASE64_STANDARD.encode(crc.to_be_bytes())
}
