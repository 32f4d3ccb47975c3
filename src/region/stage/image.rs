//! The files of an image in its folder: the bytes, the manifest, and for an encrypted image its key
//! and the records of its chunks.

use crate::disk::{Dir, File, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::id::JobId;
use crate::job::JobSpec;
use crate::manifest::Manifest;
use crate::region::encrypted::{self, Header};
use crate::region::refuse_key;

/// The image's bytes, in a stage and in a region.
pub(crate) const DATA: &str = "data";
/// The image's manifest, in a stage and in a directory region.
pub(crate) const MANIFEST: &str = "manifest";
/// The wrapped data key of an encrypted image.
pub(crate) const KEY: &str = "key";
/// What takes the place of the key when the image is given another.
pub(crate) const NEW_KEY: &str = "key.new";
/// The records of an encrypted image's chunks.
pub(crate) const RECORDS: &str = "records";

/// What a manifest tells to those who have no key.
#[derive(Debug)]
pub(crate) enum Described {
    /// All there is to tell.
    Plain(Manifest),
    /// The image is encrypted: the rest is for those who can unwrap its key.
    Encrypted(Header),
}

impl Described {
    pub(crate) fn job(&self) -> Option<JobId> {
        match self {
            Self::Plain(manifest) => manifest.job(),
            Self::Encrypted(header) => header.job(),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        match self {
            Self::Plain(manifest) => manifest.geometry(),
            Self::Encrypted(header) => header.geometry(),
        }
    }
}

/// The manifest in an image's folder; `None` where there is none.
pub(crate) fn read_manifest(image: &Dir) -> Result<Option<Described>> {
    let Some(file) = image.find_file(MANIFEST)? else { return Ok(None) };
    if let Some(header) = encrypted::read_header(&file)? {
        return Ok(Some(Described::Encrypted(header)));
    }
    Manifest::decode_from(&mut file.reader()).map(|manifest| Some(Described::Plain(manifest)))
}

/// The staged bytes, or the records of their chunks, to be written; `None` where there are none.
pub(crate) fn find_rw(inner: &Dir, name: &str) -> Result<Option<File>> {
    match inner.find_file_rw(name) {
        Err(error) if error.kind() == ErrorKind::Denied => {}
        found => return found,
    }
    // An attempt that got as far as the commit took the right to write away, also from its owner.
    if let Some(file) = inner.find_file(name)? {
        file.set_mode(0o600)?;
    }
    inner.find_file_rw(name)
}

/// The files that make a stage an encrypted one.
pub(crate) fn make_key_files(inner: &Dir, key_file: Option<&[u8]>) -> Result<()> {
    let Some(bytes) = key_file else { return Ok(()) };
    destroy_key(inner)?;
    inner.remove_file(RECORDS)?;
    inner.create_file(RECORDS, 0o600)?;
    let key = inner.create_file(KEY, 0o600)?;
    key.write_at(0, bytes)?;
    key.sync_all()
}

/// What is to be encrypted is never staged in any other way.
pub(crate) fn refuse_without_key(spec: &JobSpec, key_file: Option<&[u8]>) -> Result<()> {
    if key_file.is_some() { Ok(()) } else { refuse_key(spec) }
}

/// Makes a wrapped key useless: without it, what it opened is noise. Need not succeed in writing
/// over it, as on a full disk or one that writes elsewhere; it is removed in any case.
pub(crate) fn destroy_key(inner: &Dir) -> Result<()> {
    // A rewrap that crashed may have left a new one.
    for name in [KEY, NEW_KEY] {
        let Some(key) = find_rw(inner, name)? else { continue };
        let len = usize::try_from(key.len()?).unwrap_or(0).min(KEY_LEN_MAX);
        key.write_at(0, &vec![0; len]).and_then(|()| key.sync_data()).ok();
        inner.remove_file(name)?;
        // Order: the key is gone for good before anything else goes.
        inner.sync()?;
    }
    Ok(())
}

/// No key file is longer.
const KEY_LEN_MAX: usize = 16 << 10;

/// Nothing may be put into a committed image's folder: that would change the image.
pub(crate) fn refuse_inside_image(folder: &Dir) -> Result<()> {
    // Folders of these names are images of a region.
    let holds = |name: &str| {
        folder.facts_of(name).map(|facts| facts.is_some_and(|facts| facts.kind == Kind::File))
    };
    if holds(MANIFEST)? && holds(DATA)? {
        return Err(Error::new(ErrorKind::Invalid, "copy into an image's folder")
            .hint("a committed image never changes: choose another folder"));
    }
    Ok(())
}
