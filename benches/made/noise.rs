//! Random bytes for the benches.

/// Bytes that neither repeat nor compress; the same on every run.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"blockferry benches");
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
