//! Manifests made of nothing but what the page on formats says.

use blockferry::geometry::Geometry;
use blockferry::id::JobId;

/// A digest for a chunk that has no bytes.
pub(crate) fn digest(index: u32) -> [u8; 32] {
    *blake3::hash(&index.to_le_bytes()).as_bytes()
}

/// The bytes of a manifest whose chunks are all data, as the page on formats describes them.
pub(crate) fn manifest_bytes(geometry: Geometry, job: JobId) -> Vec<u8> {
    let (image_bytes, chunk_bytes) = (geometry.image_bytes(), geometry.chunk_size().bytes());
    let mut run = vec![1];
    run.extend(geometry.chunk_count().to_le_bytes());
    (0..geometry.chunk_count()).for_each(|index| run.extend(digest(index)));

    let mut rooted = blake3::Hasher::new_derive_key("blockferry 2026-11-21 image root v1");
    rooted.update(&image_bytes.to_le_bytes()).update(&chunk_bytes.to_le_bytes()).update(&run);

    let mut bytes = b"BFMANIF\0\x01\0".to_vec();
    bytes.extend([u8::try_from(chunk_bytes.trailing_zeros()).unwrap(), 0]);
    bytes.extend(image_bytes.to_le_bytes());
    bytes.push(1);
    bytes.extend(job.as_bytes());
    bytes.extend(0_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(&run);
    bytes.extend(rooted.finalize().as_bytes());
    let checksum = blake3::derive_key("blockferry 2026-11-21 manifest v1", &bytes);
    bytes.extend(checksum);
    bytes
}
