//! A file on this host as a source: what directory and file regions open.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Facts, File, Kind, facts_of_path};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64, to_usize};
use crate::id::KeyId;
use crate::job::Fingerprint;
use crate::manifest::Manifest;
use crate::plan::{Extent, ExtentKind};
use crate::region::buffers::Buffers;
use crate::region::{BoxFuture, EncryptedFile, LocalFile, Source, blocking};

/// The most extents that one call returns.
const EXTENT_COUNT_MAX: usize = 1024;

/// A read-only file or block device.
#[derive(Debug)]
pub(crate) struct LocalSource {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    location: String,
    size_bytes: u64,
    file: LocalFile,
    /// The path that must go on leading to the same file; `None` for an image beneath a region's
    /// root.
    path: Option<PathBuf>,
    manifest: Option<Arc<Manifest>>,
    buffers: Buffers,
}

impl LocalSource {
    /// A plain file or block device that the caller named by path.
    pub(crate) fn open_path(path: PathBuf, location: String) -> Result<Self> {
        let place = |error: Error| error.within(location.clone());
        let file = File::open_path(&path).map_err(place)?;
        match file.facts().map_err(place)?.kind {
            Kind::File | Kind::BlockDevice => {}
            Kind::Dir => {
                return Err(Error::new(ErrorKind::Invalid, "read a folder as an image")
                    .within(location)
                    .hint("name a file, or dir:///REGION/IMAGE for an image of a region"));
            }
            Kind::Other => {
                return Err(Error::new(ErrorKind::Invalid, "read this kind of file as an image")
                    .within(location)
                    .hint("name a regular file or a block device"));
            }
        }
        Self::new(file, Some(path), location, None)
    }

    /// An image of a directory region, and what else there is of it when it is encrypted.
    pub(crate) fn open_image(
        file: File,
        location: String,
        manifest: Manifest,
        encrypted: Option<EncryptedFile>,
    ) -> Result<Self> {
        let mut source = Self::new(file, None, location, Some(Arc::new(manifest)))?;
        if let Some(shared) = Arc::get_mut(&mut source.shared) {
            shared.file.encrypted = encrypted.map(Arc::new);
        }
        Ok(source)
    }

    fn new(
        file: File,
        path: Option<PathBuf>,
        location: String,
        manifest: Option<Arc<Manifest>>,
    ) -> Result<Self> {
        let size_bytes = file.len().map_err(|error| error.within(location.clone()))?;
        let file = LocalFile::of(Arc::new(file))?;
        let buffers = Buffers::default();
        let shared = Shared { location, size_bytes, file, path, manifest, buffers };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    fn fingerprint(&self) -> Result<Fingerprint> {
        let facts = self.file.file.facts()?;
        if let Some(path) = &self.path {
            let named = facts_of_path(path)?;
            if !named.is_some_and(|named| named.same_file(&facts)) {
                return Err(Error::new(ErrorKind::SourceChanged, "look at the source")
                    .within(self.location.clone())
                    .hint("its path now leads to another file, or nowhere"));
            }
        }
        let size_bytes = self.file.file.len()?;
        let print = fingerprint_of(&facts, size_bytes);
        Ok(match (&self.manifest, &self.file.encrypted) {
            (Some(manifest), Some(encrypted)) => {
                print.with("root", encrypted.blind(&manifest.root())?).with_encrypted()
            }
            (Some(manifest), None) => print.with("root", manifest.root()),
            (None, _) => print,
        })
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        let data = |range| Extent { range, kind: ExtentKind::Data };
        if let (Some(manifest), Some(_)) = (&self.manifest, &self.file.encrypted) {
            return Ok(extents_of(manifest, range));
        }
        if !self.file.file_system.trusts_holes() || range.is_empty() {
            return Ok(vec![data(range)]);
        }
        let file = &self.file.file;
        let mut extents = Vec::new();
        let mut offset = range.offset;
        while offset < range.end() && extents.len() + 2 <= EXTENT_COUNT_MAX {
            let start = file.next_data(offset)?.unwrap_or(range.end()).min(range.end());
            if start > offset {
                let hole = ByteRange::new(offset, start - offset);
                extents.push(Extent { range: hole, kind: ExtentKind::Zero });
            }
            if start < range.end() {
                let end = file.next_hole(start)?.unwrap_or(range.end()).min(range.end());
                // A file that shrinks under us may answer with a hole where we stand.
                let end = end.max(start + 1);
                extents.push(data(ByteRange::new(start, end - start)));
                offset = end;
            } else {
                offset = range.end();
            }
        }
        Ok(extents)
    }

    fn read(&self, range: ByteRange) -> Result<Bytes> {
        if let Some(encrypted) = &self.file.encrypted {
            return encrypted.read_range(&self.file.file, range).map(Bytes::from);
        }
        let mut buffer = self.buffers.take(to_usize(range.len));
        let count = self.file.file.read_at(range.offset, buffer.bytes_mut())?;
        if to_u64(count) < range.len {
            return Err(Error::new(ErrorKind::SourceChanged, "read source: it has become shorter")
                .at(self.location.clone(), range.offset + to_u64(count)));
        }
        Ok(buffer.freeze())
    }
}

/// What the manifest vouches for. Of an encrypted image a hole tells nothing: anybody can make one.
fn extents_of(manifest: &Manifest, range: ByteRange) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut offset = range.offset;
    while offset < range.end() {
        let index = manifest.geometry().index_of(offset);
        let end = manifest.geometry().range(index).end().min(range.end());
        let is_zero = manifest.table().digest(index).is_none();
        let kind = if is_zero { ExtentKind::Zero } else { ExtentKind::Data };
        let is_full = extents.len() == EXTENT_COUNT_MAX;
        match extents.last_mut().filter(|last| last.kind == kind) {
            Some(last) => last.range.len += end - offset,
            None if is_full => break,
            None => extents.push(Extent { range: ByteRange::new(offset, end - offset), kind }),
        }
        offset = end;
    }
    extents
}

/// The facts of a file that change when its bytes may have. A block device has no telling times:
/// its size only.
fn fingerprint_of(facts: &Facts, size_bytes: u64) -> Fingerprint {
    let print = Fingerprint::new().with("size", size_bytes);
    if facts.kind == Kind::BlockDevice {
        return print;
    }
    print
        .with("inode", facts.inode)
        .with("mtime", seconds(facts.mtime_ns))
        .with("ctime", seconds(facts.ctime_ns))
}

fn seconds(ns: i128) -> String {
    const SECOND: i128 = 1_000_000_000;
    format!("{}.{:09}", ns.div_euclid(SECOND), ns.rem_euclid(SECOND))
}

impl Source for LocalSource {
    fn location(&self) -> String {
        self.shared.location.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    fn fingerprint(&self) -> BoxFuture<'_, Result<Fingerprint>> {
        let shared = self.shared.clone();
        blocking(move || {
            shared.fingerprint().map_err(|error| error.within(shared.location.clone()))
        })
    }

    fn extents(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let shared = self.shared.clone();
        blocking(move || {
            shared.extents(range).map_err(|error| error.at(shared.location.clone(), range.offset))
        })
    }

    fn manifest(&self) -> Option<Arc<Manifest>> {
        self.shared.manifest.clone()
    }

    fn key(&self) -> Option<KeyId> {
        self.shared.file.encrypted.as_ref().map(|encrypted| encrypted.key().clone())
    }

    fn read_at(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes>> {
        let shared = self.shared.clone();
        blocking(move || {
            shared.read(range).map_err(|error| error.at(shared.location.clone(), range.offset))
        })
    }

    fn local(&self) -> Option<LocalFile> {
        Some(self.shared.file.clone())
    }
}
