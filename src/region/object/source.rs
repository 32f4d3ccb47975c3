//! A committed image as a source: every chunk is checked against its digest before it is given out.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::chunk::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, ChunkIndex, Geometry, to_u64, to_usize};
use crate::host;
use crate::id::{ImageId, KeyId};
use crate::job::Fingerprint;
use crate::manifest::Manifest;
use crate::plan::{Extent, ExtentKind};
use crate::region::{BoxFuture, LocalFile, Source};
use crate::seal::digest_of;

use super::Shared;
use super::chunks::{Parts, read_chunk};
use super::names;
use super::rules::{Phase, Sight};

/// The most extents in one answer.
const EXTENT_COUNT_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct ObjectSource {
    shared: Arc<Shared>,
    image: ImageId,
    sight: Sight,
    parts: Parts,
    manifest: Arc<Manifest>,
    /// The chunk that was read last, when only a part of it was asked for: the next read is likely
    /// to want the rest.
    last: tokio::sync::Mutex<Option<(ChunkIndex, Bytes)>>,
}

impl ObjectSource {
    pub(super) fn new(
        shared: Arc<Shared>,
        image: ImageId,
        sight: Sight,
        parts: Parts,
        manifest: Manifest,
    ) -> Self {
        let manifest = Arc::new(manifest);
        Self { shared, image, sight, parts, manifest, last: tokio::sync::Mutex::default() }
    }

    fn geometry(&self) -> Geometry {
        self.manifest.geometry()
    }

    /// The whole chunk, as its digest says; `None`: it holds only zeros.
    async fn chunk(&self, index: ChunkIndex) -> Result<Option<Bytes>> {
        let Some(digest) = self.manifest.table().digest(index) else { return Ok(None) };
        let offset = self.geometry().range(index).offset;
        let told = |error: Error| error.at(self.location(), offset);
        let attempt = |epoch| names::attempt(&self.image, self.sight.job, epoch);
        let place = self.parts.place(attempt, index, &digest).map_err(told)?;
        let (key, cover) = place.ok_or_else(|| {
            told(Error::new(ErrorKind::Corrupt, "read chunk: its manifest names no attempt"))
        })?;
        let read = read_chunk(&*self.shared.store, &key, self.geometry(), index, cover).await;
        let Some(bytes) = read.map_err(told)? else { return Err(told(self.loss().await)) };
        check(self.geometry(), index, digest, bytes).await.map(Some).map_err(told)
    }

    /// Why a chunk is not there: an image may be removed while it is read.
    async fn loss(&self) -> Error {
        let held = match self.shared.register.read(&self.image).await {
            Ok(held) => held,
            Err(error) => return error,
        };
        let is_ours = |now: &Sight| now.phase == Phase::Committed && now.job == self.sight.job;
        match held.sight().is_some_and(is_ours) {
            true => Error::new(ErrorKind::Corrupt, "read chunk: the store has lost it"),
            false => Error::new(ErrorKind::SourceChanged, "read chunk: the image is gone"),
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes> {
        if range.end() > self.geometry().image_bytes() {
            return Err(Error::new(ErrorKind::Invalid, "read past the end of the image")
                .at(self.location(), range.offset));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let first = self.geometry().index_of(range.offset);
        if self.geometry().range(first) == range {
            let zeros = || Bytes::from(vec![0; to_usize(range.len)]);
            return Ok(self.chunk(first).await?.unwrap_or_else(zeros));
        }
        let mut bytes = BytesMut::with_capacity(to_usize(range.len));
        let mut last = self.last.lock().await;
        while to_u64(bytes.len()) < range.len {
            let offset = range.offset + to_u64(bytes.len());
            let index = self.geometry().index_of(offset);
            let of_chunk = self.geometry().range(index);
            let part = of_chunk.intersect(range);
            let held = match &*last {
                Some((held, chunk)) if *held == index => Some(chunk.clone()),
                _ => self.chunk(index).await?.inspect(|chunk| *last = Some((index, chunk.clone()))),
            };
            match held {
                None => bytes.resize(bytes.len() + to_usize(part.len), 0),
                Some(chunk) => {
                    let from = to_usize(part.offset - of_chunk.offset);
                    bytes.extend_from_slice(&chunk[from..from + to_usize(part.len)]);
                }
            }
        }
        Ok(bytes.freeze())
    }
}

async fn check(
    geometry: Geometry,
    index: ChunkIndex,
    digest: Digest,
    bytes: Bytes,
) -> Result<Bytes> {
    let checked = host::spawn_blocking(move || {
        (digest_of(geometry, index, &bytes) == digest).then_some(bytes)
    });
    let checked =
        checked.await.map_err(|error| Error::new(ErrorKind::Io, "check chunk").because(error))?;
    checked.ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "read chunk: it does not match its digest")
            .hint("the store does not keep what was written there")
    })
}

impl Source for ObjectSource {
    fn location(&self) -> String {
        self.shared.location_of(&self.image)
    }

    fn size_bytes(&self) -> u64 {
        self.geometry().image_bytes()
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        Box::pin(async move {
            let held = self.shared.register.read(&self.image).await?;
            let same = held.sight().is_some_and(|now| now.txn == self.sight.txn);
            let visible = held.sight().filter(|now| now.phase == Phase::Committed);
            let Some(now) = visible else {
                return Err(Error::new(ErrorKind::SourceChanged, "look at the image: it is gone")
                    .within(self.location()));
            };
            let made = held.head.as_ref().and_then(|head| head.made.as_ref());
            let print = Fingerprint::new().with("size", self.size_bytes()).with("job", now.job);
            if let Parts::Sealed(_, lock) = &self.parts {
                let ours = || lock.blind(&self.manifest.root());
                let root = made.map_or_else(ours, |made| Ok(made.root))?;
                // Not the number of the head: another key is not another image.
                return Ok(print.with("root", root).with("epoch", now.epoch).with_encrypted());
            }
            let root = match made.filter(|_| !same) {
                None => self.manifest.root(),
                Some(made) => made.root,
            };
            Ok(print.with("root", root).with("head", now.seq))
        })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let geometry = self.geometry();
        let mut extents = Vec::new();
        for (run, is_zero) in self.manifest.table().runs() {
            let part = geometry.run_range(run).intersect(range);
            if part.is_empty() {
                continue;
            }
            let kind = if is_zero { ExtentKind::Zero } else { ExtentKind::Data };
            extents.push(Extent { range: part, kind });
            if extents.len() == EXTENT_COUNT_MAX {
                break;
            }
        }
        Box::pin(std::future::ready(Ok(extents)))
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        Some(self.manifest.clone())
    }

    fn key(&self) -> Option<KeyId> {
        match &self.parts {
            Parts::Plain(_) => None,
            Parts::Sealed(_, lock) => Some(lock.key().clone()),
        }
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.read(range))
    }

    fn local(&self) -> Option<LocalFile> {
        None
    }
}
