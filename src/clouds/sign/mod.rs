//! Signed requests: what each scheme claims, how it is verified, and what can be wrong with it.
//! Pure.
//!
//! A [`Claim`] is read from the request alone; whoever knows the secret of its access key then asks
//! [`Claim::check`]. Signatures are compared in constant time.

mod acs3;
mod bce;
mod rpc;
mod sdk;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::clouds::request::Request;
use crate::clouds::text::hex;

pub(crate) use acs3::SCHEME as ACS3;

/// How far a client's clock may be off, either way. \[C\] for Huawei and for Baidu's future.
pub const CLOCK_SKEW_SEC: i64 = 900;
/// The most bytes of a nonce.
const NONCE_LEN_MAX: usize = 256;

/// What is wrong with the signing of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignFault {
    /// It is not signed, or something that signing needs is missing: its name.
    Missing(&'static str),
    /// Something that signing needs is malformed: its name.
    Malformed(&'static str),
    /// The time stamp is too old or too far ahead.
    Expired,
    /// The signature is not that of the request: what was signed here.
    Mismatch(String),
}

/// How a request is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// Alibaba's RPC signature, version 1.0.
    AlibabaRpc,
    /// Alibaba's version 3.
    AlibabaAcs3,
    /// Baidu's.
    Baidu,
    /// Huawei's.
    Huawei,
}

/// What a signed request claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    scheme: Scheme,
    /// The access key that it names.
    pub access_key: String,
    /// When it was signed, in seconds since 1970.
    pub signed_sec: i64,
    /// How long it is good, in seconds from then.
    pub valid_sec: i64,
    /// What makes it differ from every other request, where the scheme has that.
    pub nonce: Option<String>,
    /// What the signature is made of.
    pub string_to_sign: String,
    /// What the signing key is made of besides the secret.
    prefix: String,
    signature: String,
}

impl Claim {
    /// Reads what the request claims under that scheme.
    ///
    /// # Errors
    /// [`SignFault::Missing`] or [`SignFault::Malformed`].
    pub fn read(scheme: Scheme, request: &Request) -> Result<Self, SignFault> {
        let claim = match scheme {
            Scheme::AlibabaRpc => rpc::read(request),
            Scheme::AlibabaAcs3 => acs3::read(request),
            Scheme::Baidu => bce::read(request),
            Scheme::Huawei => sdk::read(request),
        }?;
        if claim.nonce.as_ref().is_some_and(|nonce| nonce.len() > NONCE_LEN_MAX) {
            return Err(SignFault::Malformed("SignatureNonce"));
        }
        Ok(claim)
    }

    /// Whether it was signed with that secret, and in time.
    ///
    /// # Errors
    /// [`SignFault::Mismatch`], [`SignFault::Expired`]. A wrong signature is told before a stale
    /// one, so that the clock of the service is told to nobody who has no key.
    pub fn check(&self, secret: &str, now_sec: i64) -> Result<(), SignFault> {
        let expected = self.signature(secret);
        if verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes()).is_err() {
            return Err(SignFault::Mismatch(self.string_to_sign.clone()));
        }
        let age = now_sec.saturating_sub(self.signed_sec);
        if age < -CLOCK_SKEW_SEC || age > self.valid_sec {
            return Err(SignFault::Expired);
        }
        Ok(())
    }

    /// Until when a nonce must be remembered.
    pub fn end_sec(&self) -> i64 {
        self.signed_sec.saturating_add(self.valid_sec)
    }

    /// What its signature is under that secret.
    pub fn signature(&self, secret: &str) -> String {
        match self.scheme {
            Scheme::AlibabaRpc => {
                let key = format!("{secret}&");
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
                STANDARD.encode(hmac::sign(&key, self.string_to_sign.as_bytes()))
            }
            Scheme::AlibabaAcs3 | Scheme::Huawei => {
                hmac_sha256_hex(secret.as_bytes(), &self.string_to_sign)
            }
            Scheme::Baidu => {
                // The hexadecimal text of the first is the key of the second.
                let key = hmac_sha256_hex(secret.as_bytes(), &self.prefix);
                hmac_sha256_hex(key.as_bytes(), &self.string_to_sign)
            }
        }
    }
}

fn hmac_sha256_hex(key: &[u8], message: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hex(hmac::sign(&key, message.as_bytes()).as_ref())
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// What an `Authorization` header says in which `name=value` parts follow the scheme.
struct Authorization {
    access_key: String,
    /// The names of the headers that are signed.
    names: String,
    signature: String,
}

impl Authorization {
    /// `key` is what the scheme calls the part with the access key.
    fn read(request: &Request, scheme: &str, key: &'static str) -> Result<Self, SignFault> {
        const HEADER: &str = "authorization";
        let whole = request.header(HEADER).ok_or(SignFault::Missing(HEADER))?;
        let parts = whole.strip_prefix(scheme).ok_or(SignFault::Malformed(HEADER))?;
        let part = |name: &'static str| {
            let mut all = parts.split(',');
            let found = all.find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
            let found = found.filter(|value| !value.is_empty()).map(str::to_owned);
            found.ok_or(SignFault::Missing(name))
        };
        let (access_key, names) = (part(key)?, part("SignedHeaders")?);
        Ok(Self { access_key, names, signature: part("Signature")? })
    }

    fn is_signed(&self, header: &str) -> bool {
        self.names.split(';').any(|signed| signed == header)
    }
}

/// The named headers, one `name:value` line each, and whether all of `needed` are among them.
fn header_lines(request: &Request, names: &str) -> Option<String> {
    let mut lines = String::new();
    for name in names.split(';') {
        let value = request.header(name)?.trim();
        lines.push_str(name);
        lines.push(':');
        lines.push_str(value);
        lines.push('\n');
    }
    Some(lines)
}

#[cfg(test)]
mod tests;
