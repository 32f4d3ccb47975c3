//! A directory region: committed images are folders `<root>/<image>/{data,manifest}`.

#[cfg(feature = "encrypt")]
mod encrypted;
mod remove;

use std::path::Path;
use std::sync::Arc;

use crate::disk::{Dir, File, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::region::base::BaseImage;
use crate::region::local::LocalSource;
use crate::region::stage::{
    DATA, Described, JournaledTarget, Layout, StageStore, read_manifest, refuse_inside_image,
    until_decided,
};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Source, StagedJob, Target,
    Vote, Wish, blocking,
};

#[cfg(feature = "encrypt")]
use crate::region::encrypted::Vault;
#[cfg(feature = "encrypt")]
use encrypted::Taken;

/// Images under a root folder on this host. The root must exist; it is never created.
///
/// Images being copied lie under `<root>/.blockferry/stage/<job>` until one rename publishes them.
/// A committed image's folder has mode 0750 and its files 0440. Put the root on a local file
/// system: locks and renames of network file systems do not decide anything.
#[derive(Debug)]
pub struct DirRegion {
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
struct Shared {
    location: String,
    store: Arc<StageStore>,
    /// Who wraps data keys; without it, images are neither encrypted nor read where they are.
    #[cfg(feature = "encrypt")]
    vault: Option<Vault>,
}

impl DirRegion {
    /// Opens the region under that root. Blocks shortly.
    ///
    /// # Errors
    /// `NotFound` when the folder is missing, `Invalid` when it is no folder, `Denied` when it may
    /// not be read.
    pub fn open_root(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let location = format!("dir://{}", root.display());
        let dir = Dir::open_path(root).map_err(|error| {
            error.within(location.clone()).hint("a region's root must be a folder that exists")
        })?;
        let store = StageStore::new(dir, Layout::Images, location.clone());
        let store = Arc::new(store);
        let shared = Shared {
            location,
            store,
            #[cfg(feature = "encrypt")]
            vault: None,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn with<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let shared = self.shared.clone();
        blocking(move || work(&shared).map_err(|error| error.within(shared.location.clone())))
    }
}

impl Shared {
    #[cfg(feature = "encrypt")]
    fn has_keys(&self) -> bool {
        self.vault.is_some()
    }

    #[cfg(not(feature = "encrypt"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn has_keys(&self) -> bool {
        false
    }

    fn location_of(&self, image: &ImageId) -> String {
        format!("{}/{image}", self.location)
    }

    /// Opens what there is of an image, as far as that goes without a key.
    fn look(&self, image: &ImageId) -> Result<(Dir, Described, File)> {
        let folder = self.folder(image)?;
        match look_into(&folder) {
            Ok((described, data)) => Ok((folder, described, data)),
            Err(error) => Err(self.unless_gone(image, &folder, error)),
        }
    }

    /// What looks like damage of an image that is just being removed is that it is gone.
    fn unless_gone(&self, image: &ImageId, folder: &Dir, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) {
            return error;
        }
        match self.is_in(folder, image) {
            Ok(false) => is_removed(image).because(error),
            _ => error,
        }
    }

    /// Whether the image of that name is still the one in that folder.
    fn is_in(&self, folder: &Dir, image: &ImageId) -> Result<bool> {
        self.store.root().leads_to(image.as_str(), &folder.facts()?)
    }

    fn folder(&self, image: &ImageId) -> Result<Dir> {
        self.store
            .root()
            .open_dir(image.as_str())
            .map_err(|error| error.within(self.location_of(image)))
    }

    /// The base that the job names. It must be there when the job starts; one that is lost later
    /// costs only time.
    fn base_of(&self, spec: &JobSpec) -> Result<Option<BaseImage>> {
        let Some(image) = &spec.base else { return Ok(None) };
        let opened = self.folder(image).and_then(|folder| {
            BaseImage::open(&folder, spec.geometry)
                .map_err(|error| self.unless_gone(image, &folder, error))
                .map_err(|error| error.within(self.location_of(image)))
        });
        match opened {
            Ok(base) => Ok(Some(base)),
            Err(_) if self.store.job(spec.job)?.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> Result<Vec<ImageInfo>> {
        let root = self.store.root();
        let mut images = Vec::new();
        for name in root.names(|name| name.parse::<ImageId>().is_ok())? {
            if root.facts_of(&name)?.is_none_or(|facts| facts.kind != Kind::Dir) {
                continue;
            }
            let image: ImageId = name.parse()?;
            // It may be removed at any moment.
            let Some(folder) = root.find_dir(&name)? else { continue };
            match read_manifest(&folder) {
                Ok(Some(Described::Plain(manifest))) => {
                    images.push(ImageInfo::of_manifest(image, &manifest));
                }
                Ok(Some(described)) => images.push(info_of(image, &described, &folder)),
                Ok(None) => {}
                // A damaged image hides no other; its root is not told.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let data = folder.facts_of(DATA)?;
                    images.push(ImageInfo::new(image, data.map_or(0, |facts| facts.size_bytes)));
                }
                Err(error) => return Err(error.within(self.location_of(&image))),
            }
        }
        Ok(images)
    }

    fn remove(&self, image: &ImageId) -> Result<()> {
        remove::remove(&self.store, image).map_err(|error| error.within(self.location_of(image)))
    }

    fn locate(&self, image: &ImageId) -> Result<Located> {
        if let Some(committed) = self.committed(image)? {
            return Ok(committed);
        }
        if let Some(job) = self.store.job_staging(image.as_str())? {
            return Ok(Located::Staged(job));
        }
        // Order: looked at once more. What was staged at the first look may have been published
        // since, and its stage removed.
        Ok(self.committed(image)?.unwrap_or(Located::Absent))
    }

    fn committed(&self, image: &ImageId) -> Result<Option<Located>> {
        let Some(folder) = self.store.root().find_dir(image.as_str())? else { return Ok(None) };
        match read_manifest(&folder)? {
            // It was removed just now.
            None if !self.is_in(&folder, image)? => Ok(None),
            manifest => {
                Ok(Some(Located::Committed(manifest.and_then(|described| described.job()))))
            }
        }
    }
}

fn look_into(folder: &Dir) -> Result<(Described, File)> {
    let described = read_manifest(folder)?
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "open image: it has no manifest"))?;
    let data = folder.open_file(DATA)?;
    let (is, should) = (data.len()?, described.geometry().image_bytes());
    if is != should {
        let what = format!("open image: {is} bytes of data where {should} belong");
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    Ok((described, data))
}

fn is_removed(image: &ImageId) -> Error {
    Error::new(ErrorKind::NotFound, format!("open {image}: it has just been removed"))
}

/// What is told of an image to those who have no key.
fn info_of(image: ImageId, described: &Described, folder: &Dir) -> ImageInfo {
    let mut info = ImageInfo::new(image, described.geometry().image_bytes());
    info.job = described.job();
    info.key = key_of(folder);
    info
}

#[cfg(feature = "encrypt")]
use encrypted::key_of;
#[cfg(not(feature = "encrypt"))]
fn key_of(_folder: &Dir) -> Option<crate::id::KeyId> {
    None
}

impl Region for DirRegion {
    fn location(&self) -> String {
        self.shared.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let encrypts = self.shared.has_keys();
        Capabilities { takes_base: true, encrypts, ..Capabilities::staged() }
    }

    fn open<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        let (shared, image) = (self.shared.clone(), image.clone());
        Box::pin(async move {
            let location = shared.location_of(&image);
            let place = |error: Error| error.within(location.clone());
            let looking = (shared.clone(), image.clone());
            let looked = blocking(move || looking.0.look(&looking.1)).await.map_err(place)?;
            match looked {
                (_, Described::Plain(manifest), data) => {
                    let image = LocalSource::open_image(data, location, manifest, None)?;
                    Ok(Arc::new(image) as Arc<dyn Source>)
                }
                #[cfg(feature = "encrypt")]
                (folder, Described::Encrypted(header), data) => {
                    let opened = encrypted::open(&shared, &image, (folder, header, data)).await;
                    opened.map_err(place)
                }
                #[cfg(not(feature = "encrypt"))]
                (_, Described::Encrypted(header), _) => match header {},
            }
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        #[cfg(feature = "encrypt")]
        if spec.key.is_some() {
            return Box::pin(encrypted::stage(self.shared.clone(), spec.clone(), Taken::Staged));
        }
        let spec = spec.clone();
        self.with(move |shared| {
            refuse_inside_image(shared.store.root())?;
            let base = shared.base_of(&spec)?;
            let stage = shared.store.stage(&spec, spec.target.image.as_str(), None)?;
            let location = shared.location_of(&spec.target.image);
            JournaledTarget::with_base(stage, location, base)
        })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        #[cfg(feature = "encrypt")]
        if spec.key.is_some() {
            return Box::pin(encrypted::stage(self.shared.clone(), spec.clone(), Taken::Reopened));
        }
        let spec = spec.clone();
        self.with(move |shared| {
            let stage = shared.store.reopen(&spec, None)?;
            let base = shared.base_of(&spec).unwrap_or_default();
            let location = shared.location_of(&spec.target.image);
            JournaledTarget::with_base(stage, location, base)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        self.with(Shared::list)
    }

    fn remove<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        let image = image.clone();
        self.with(move |shared| shared.remove(&image))
    }

    fn locate<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        let image = image.clone();
        self.with(move |shared| shared.locate(&image))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.with(|shared| shared.store.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        self.with(move |shared| shared.store.job(job))
    }

    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        let (shared, image) = (self.shared.clone(), image.clone());
        Box::pin(until_decided(move || {
            shared
                .store
                .try_cancel(job, &image)
                .map_err(|error| error.within(shared.location_of(&image)))
        }))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let shared = self.shared.clone();
        Box::pin(until_decided(move || shared.store.try_wish(job, wish)))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.with(move |shared| {
            let recovered = shared.store.recover(only)?;
            if only.is_none() {
                remove::finish(&shared.store)?;
            }
            Ok(recovered)
        })
    }
}
