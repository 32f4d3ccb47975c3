//! Wall time, as a label on records only, and job numbers.

use crate::error::Result;
use crate::host;
use crate::id::JobId;

/// Milliseconds since 1970. Nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    host::unix_ms()
}

/// A job number nobody has had.
pub(crate) fn random_job() -> Result<JobId> {
    host::random().map(JobId::from_bytes)
}

/// The job that a token names: the same token is the same job, wherever it is asked for.
pub(crate) fn job_of_token(token: &str) -> JobId {
    let mut bytes = [0; 16];
    let key = blake3::derive_key("blockferry 2026-11-21 job of token v1", token.as_bytes());
    bytes.copy_from_slice(&key[..16]);
    JobId::from_bytes(bytes)
}
