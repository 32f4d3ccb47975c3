//! Wall time, as a label on records only, and random job numbers.

use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::id::JobId;

/// Milliseconds since 1970. Nothing is decided by it.
#[expect(clippy::disallowed_methods, reason = "the one place that labels records with wall time")]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A job number nobody has had.
pub(crate) fn random_job() -> Result<JobId> {
    let mut room = [MaybeUninit::uninit(); 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    // Requests of up to 256 bytes are never cut short.
    let (filled, _) = rustix::rand::getrandom(&mut room, flags)
        .map_err(|errno| Error::io("draw a random job id", errno))?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(filled);
    Ok(JobId::from_bytes(bytes))
}

/// The job that a token names: the same token is the same job, wherever it is asked for.
pub(crate) fn job_of_token(token: &str) -> JobId {
    let mut bytes = [0; 16];
    let key = blake3::derive_key("blockferry 2026-11-21 job of token v1", token.as_bytes());
    bytes.copy_from_slice(&key[..16]);
    JobId::from_bytes(bytes)
}
