//! A plain file as a region of one image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Dir, facts_of_path, is_block_device};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::job::JobSpec;
use crate::region::device::DeviceRegion;
use crate::region::local::LocalSource;
use crate::region::stage::{
    JournaledTarget, Layout, StageStore, refuse_inside_image, until_decided,
};
use crate::region::{
    BoxFuture, Capabilities, ImageInfo, Located, Recovered, Region, Source, StagedJob, Target,
    Vote, Wish, blocking,
};

/// One plain file as a region: it holds a single image, whatever id is asked for.
///
/// A file being copied to lies in the hidden sibling folder `.blockferry-<job>` until one rename
/// publishes it with mode 0666 less the umask; it never replaces a file that is there.
#[derive(Debug)]
pub struct FileRegion {
    path: PathBuf,
    location: String,
    store: Arc<StageStore>,
    name: String,
}

impl FileRegion {
    /// The region of the file or block device at that path. A file need not exist, its folder must.
    ///
    /// `state_dir` keeps the journals of copies to block devices; it is made when first needed. A
    /// block device is written in place: see [`Capabilities::in_place`]. Blocks shortly.
    ///
    /// # Errors
    /// `NotFound` when the folder is missing, `Invalid` when the path names no file, is not
    /// absolute or not UTF-8.
    pub fn open_path(
        path: impl AsRef<Path>,
        state_dir: impl AsRef<Path>,
    ) -> Result<Arc<dyn Region>> {
        let path = path.as_ref().to_path_buf();
        let location = format!("file://{}", path.display());
        let invalid = |why: &'static str| {
            Error::new(ErrorKind::Invalid, "use that path as a file").within(&location).hint(why)
        };
        if !path.is_absolute() {
            return Err(invalid("give an absolute path"));
        }
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.ok_or_else(|| invalid("name a file, in UTF-8"))?;
        if is_block_device(&path) {
            return Ok(Arc::new(DeviceRegion::new(path, location, state_dir.as_ref())));
        }
        if name.starts_with(".blockferry") {
            return Err(invalid("names that start with .blockferry are ours"));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let root = Dir::open_path(folder)
            .map_err(|error| error.within(&location).hint("its folder must exist"))?;
        let store = Arc::new(StageStore::new(root, Layout::Files, location.clone()));
        Ok(Arc::new(Self { path, location, store, name }))
    }

    /// The region of all plain files in a folder, to list and recover what is staged beside them.
    ///
    /// # Errors
    /// `NotFound` when the folder is missing.
    pub fn in_folder(folder: impl AsRef<Path>) -> Result<Arc<dyn Region>> {
        let path = folder.as_ref().to_path_buf();
        let location = format!("file://{}", path.display());
        let root = Dir::open_path(&path).map_err(|error| error.within(&location))?;
        let store = Arc::new(StageStore::new(root, Layout::Files, location.clone()));
        Ok(Arc::new(Self { path, location, store, name: String::new() }))
    }

    fn with<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&StageStore, &str) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let (store, name, place) = (self.store.clone(), self.name.clone(), self.location.clone());
        blocking(move || work(&store, &name).map_err(|error| error.within(place)))
    }
}

impl Region for FileRegion {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::staged()
    }

    fn open<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Arc<dyn Source>>> {
        let (path, location) = (self.path.clone(), self.location.clone());
        self.with(move |_, _| {
            let source: Arc<dyn Source> = Arc::new(LocalSource::open_path(path, location)?);
            Ok(source)
        })
    }

    fn stage<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let (spec, location, store) = (spec.clone(), self.location.clone(), self.store.clone());
        self.with(move |_, name| {
            refuse_inside_image(store.root())?;
            let stage = store.stage(&spec, name, None)?;
            JournaledTarget::of(stage, location)
        })
    }

    fn reopen<'a>(&'a self, spec: &'a JobSpec) -> BoxFuture<'a, Result<Arc<dyn Target>>> {
        let (spec, location, store) = (spec.clone(), self.location.clone(), self.store.clone());
        self.with(move |_, _| {
            let stage = store.reopen(&spec, None)?;
            JournaledTarget::of(stage, location)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        let path = self.path.clone();
        self.with(move |_, _| {
            let image: ImageId = crate::location::FILE_IMAGE.parse()?;
            let facts = facts_of_path(&path)?;
            Ok(facts.map(|facts| ImageInfo::new(image, facts.size_bytes)).into_iter().collect())
        })
    }

    fn remove<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<()>> {
        self.with(|store, name| {
            let root = store.root();
            let Some(seen) = root.facts_of(name)? else { return Err(is_gone(root)) };
            // Order: of those who remove a file one goes first. The others find it gone, or another
            // that was committed since.
            let _claim = root.claim()?;
            if !root.leads_to(name, &seen)? {
                return Err(is_gone(root));
            }
            store.refuse_unsettled(name)?;
            root.remove_file(name)?;
            root.sync()
        })
    }

    fn locate<'a>(&'a self, _image: &'a ImageId) -> BoxFuture<'a, Result<Located>> {
        self.with(move |store, name| {
            if let Some(job) = store.job_staging(name)? {
                let published = store.has_published(job)?;
                return Ok(match published {
                    true => Located::Committed(Some(job)),
                    false => Located::Staged(job),
                });
            }
            let there = store.root().facts_of(name)?.is_some();
            Ok(if there { Located::Committed(None) } else { Located::Absent })
        })
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<StagedJob>>> {
        self.with(|store, _| store.jobs())
    }

    fn job(&self, job: JobId) -> BoxFuture<'_, Result<Option<StagedJob>>> {
        // Stages of all files of a folder lie side by side. Of another file's job this region would
        // tell by its own file how it ended.
        self.with(move |store, name| {
            let staged = store.named_job(job)?;
            let ours = staged.filter(|(of, _)| name.is_empty() || of == name);
            Ok(ours.map(|(_, staged)| staged))
        })
    }

    fn cancel<'a>(&'a self, job: JobId, image: &'a ImageId) -> BoxFuture<'a, Result<Vote>> {
        let (store, image, place) = (self.store.clone(), image.clone(), self.location.clone());
        Box::pin(until_decided(move || {
            store.try_cancel(job, &image).map_err(|error| error.within(place.clone()))
        }))
    }

    fn wish(&self, job: JobId, wish: Wish) -> BoxFuture<'_, Result<bool>> {
        let store = self.store.clone();
        Box::pin(until_decided(move || store.try_wish(job, wish)))
    }

    fn recover(&self, only: Option<JobId>) -> BoxFuture<'_, Result<Vec<Recovered>>> {
        self.with(move |store, _| store.recover(only))
    }
}

/// What is told of a file that is not there. Order: it is gone for good before anybody is told;
/// whoever removed it may not have come to its sync.
fn is_gone(folder: &Dir) -> Error {
    let told = || Error::new(ErrorKind::NotFound, "remove file");
    folder.sync().err().unwrap_or_else(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample_spec;

    #[tokio::test]
    async fn a_job_is_told_by_the_region_of_its_own_file_alone() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| FileRegion::open_path(temp.path().join(name), temp.path()).unwrap();
        let (spec, ours, other) = (sample_spec(), at("t.raw"), at("s.raw"));
        let stage = ours.stage(&spec).await.unwrap();
        assert!(other.job(spec.job).await.unwrap().is_none());
        assert_eq!(ours.job(spec.job).await.unwrap().unwrap().spec, spec);
        let folder = FileRegion::in_folder(temp.path()).unwrap();
        assert_eq!(folder.job(spec.job).await.unwrap().unwrap().spec, spec);
        drop(stage);
    }
}
