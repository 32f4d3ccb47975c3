//! Encrypted images of a directory region: staged, opened, and given another key.

use std::sync::Arc;

use crate::cipher::Bound;
use crate::disk::{Dir, File};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;
use crate::id::{ImageId, KeyId};
use crate::job::JobSpec;
use crate::keys::KeyProvider;
use crate::region::encrypted::{EncryptedFile, Header, Vault, read_key_box, records_len};
use crate::region::local::LocalSource;
use crate::region::stage::{
    Described, JournaledTarget, KEY, MANIFEST, NEW_KEY, RECORDS, refuse_inside_image,
};
use crate::region::{Source, Target, blocking, no_keys, refuse_base};

use super::{DirRegion, Shared, is_removed};

/// Those who may read an image may read its key file: it opens nothing by itself.
const KEY_MODE: u32 = 0o440;

/// How a stage is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Made, or taken over.
    Staged,
    /// Taken over.
    Reopened,
}

impl DirRegion {
    /// With keys: images can be encrypted here under any of them, and those that are can be read.
    #[must_use]
    pub fn with_keys(self, keys: Arc<dyn KeyProvider>) -> Self {
        let vault = Some(Vault::new(keys));
        Self { shared: Arc::new(Shared { vault, ..(*self.shared).clone() }) }
    }

    /// Wraps the data key of an encrypted image under another key, or under the newest version of
    /// the same; no chunk is touched, and readers do not notice. Returns the key it was under.
    ///
    /// # Errors
    /// `NotFound` for an unknown image or key, `Unsupported` for an image that is not encrypted,
    /// `Denied` when its key cannot be unwrapped.
    ///
    /// # Durability
    /// The new key survives power loss when this returns; a crash leaves the old one or the
    /// new one.
    ///
    /// # Cancel safety
    /// Restartable: it may have been done; again does no harm.
    pub async fn rewrap(&self, image: &ImageId, to: &KeyId) -> Result<KeyId> {
        let location = self.shared.location_of(image);
        let done = rewrap(&self.shared, image, to).await;
        done.map_err(|error| error.within(location))
    }
}

/// The key under which the image in that folder is encrypted, where that can be told.
pub(super) fn key_of(folder: &Dir) -> Option<KeyId> {
    let file = folder.find_file(KEY).ok().flatten()?;
    read_key_box(&file).ok().map(|key_box| key_box.key)
}

fn vault(shared: &Shared, what: &'static str) -> Result<Vault> {
    shared.vault.clone().ok_or_else(|| {
        Error::new(ErrorKind::Denied, what)
            .hint("it is encrypted: give the region keys, on the command line with --keyring")
    })
}

/// Stages an image that is to be encrypted, or takes over what is staged of it.
pub(super) async fn stage(
    shared: Arc<Shared>,
    spec: JobSpec,
    taken: Taken,
) -> Result<Arc<dyn Target>> {
    let location = shared.location_of(&spec.target.image);
    let staged = staged(shared, spec, taken).await;
    let (stage, place) = staged.map_err(|error| error.within(location))?;
    JournaledTarget::of(stage, place)
}

async fn staged(
    shared: Arc<Shared>,
    spec: JobSpec,
    taken: Taken,
) -> Result<(crate::region::stage::OwnedStage, String)> {
    let (Some(vault), Some(key)) = (shared.vault.clone(), spec.key.clone()) else {
        return Err(no_keys(&spec));
    };
    refuse_base(&spec)?;
    // Also for a stage that is there: the crash may have come before its key file.
    let image = spec.target.image.clone();
    let bound = Bound { image: &image, geometry: spec.geometry, job: None };
    let (fresh, fresh_cipher) = vault.make(&key, &bound).await?;
    let key_file = fresh.encode()?;
    let (store, wanted) = (shared.store.clone(), spec.clone());
    let (mut stage, key_box, records) = blocking(move || {
        refuse_inside_image(store.root())?;
        let stage = match taken {
            Taken::Staged => store.stage(&wanted, wanted.target.image.as_str(), Some(&key_file))?,
            Taken::Reopened => store.reopen(&wanted, Some(&key_file))?,
        };
        let (key_box, records) = stage.locked()?;
        Ok((stage, key_box, records))
    })
    .await?;
    let cipher = match key_box == fresh {
        true => fresh_cipher,
        false => vault.open(&key_box, &bound).await?,
    };
    let place = shared.location_of(&spec.target.image);
    blocking(move || {
        stage.unlock(cipher, key_box.key, records)?;
        Ok((stage, place))
    })
    .await
}

/// Opens a committed image.
pub(super) async fn open(
    shared: &Arc<Shared>,
    image: &ImageId,
    (folder, header, data): (Dir, Header, File),
) -> Result<Arc<dyn Source>> {
    let vault = vault(shared, "open an image without its key")?;
    let folder = Arc::new(folder);
    let opened = open_folder(shared, &vault, image, (folder.clone(), header, data)).await;
    let (here, image) = (shared.clone(), image.clone());
    match opened {
        Ok(source) => Ok(source),
        Err(error) => blocking(move || Err(here.unless_gone(&image, &folder, error))).await,
    }
}

async fn open_folder(
    shared: &Shared,
    vault: &Vault,
    image: &ImageId,
    (folder, header, data): (Arc<Dir>, Header, File),
) -> Result<Arc<dyn Source>> {
    let looking = folder.clone();
    let key_box = blocking(move || {
        let key = looking.find_file(KEY)?.ok_or_else(|| key_is_gone("open image"))?;
        read_key_box(&key)
    })
    .await?;
    if key_box.uuid != header.uuid {
        return Err(Error::new(ErrorKind::Corrupt, "open image: its key file is another image's"));
    }
    let cipher =
        vault.open(&key_box, &Bound { image, geometry: header.geometry, job: None }).await?;
    let location = shared.location_of(image);
    blocking(move || {
        let records = folder.open_file(RECORDS)?;
        if records.len()? != records_len(header.geometry) {
            let what = "open image: its records are cut short, or too many";
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let manifest = folder.open_file(MANIFEST)?;
        let mut rest = manifest.reader_from(to_u64(Header::LEN));
        let (encrypted, manifest) =
            EncryptedFile::committed(cipher, key_box.key, records, &header, &mut rest)?;
        let source = LocalSource::open_image(data, location, manifest, Some(encrypted))?;
        Ok(Arc::new(source) as Arc<dyn Source>)
    })
    .await
}

async fn rewrap(shared: &Arc<Shared>, image: &ImageId, to: &KeyId) -> Result<KeyId> {
    let vault = vault(shared, "give an image another key")?;
    let (here, named) = (shared.clone(), image.clone());
    let (folder, header, key_box, claim) = blocking(move || {
        let folder = here.folder(&named)?;
        // Order: claimed before the old key is read, so that of two at once the second sees the
        // first one's key.
        let claim = folder.claim()?;
        if !here.is_in(&folder, &named)? {
            return Err(is_removed(&named));
        }
        let Described::Encrypted(header) = crate::region::stage::read_manifest(&folder)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "open image: it has no manifest"))?
        else {
            return Err(Error::new(ErrorKind::Unsupported, "give an image another key")
                .hint("it is not encrypted: copy it to an encrypted one"));
        };
        let key = folder.find_file(KEY)?.ok_or_else(|| key_is_gone("give it another key"))?;
        let key_box = read_key_box(&key)?;
        Ok((folder, header, key_box, claim))
    })
    .await?;
    let new =
        vault.rewrap(&key_box, &Bound { image, geometry: header.geometry, job: None }, to).await?;
    blocking(move || {
        let _claim = claim;
        // Order: temporary file → sync → rename → sync folder.
        folder.remove_file(NEW_KEY)?;
        let file = folder.create_file(NEW_KEY, 0o600)?;
        file.write_at(0, &new.encode()?)?;
        file.set_mode(KEY_MODE)?;
        file.sync_all()?;
        folder.rename_over(NEW_KEY, KEY)?;
        folder.sync()
    })
    .await?;
    Ok(key_box.key)
}

fn key_is_gone(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: it is encrypted, and its key file is gone"))
}
