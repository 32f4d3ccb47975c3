//! How an image is removed: out of sight at once, then file by file.
//!
//! What a crash leaves of that, `recover` finishes.

use crate::disk::Dir;
use crate::error::{Error, ErrorKind, Result};
use crate::id::ImageId;
use crate::region::stage::{DATA, KEY, MANIFEST, NEW_KEY, RECORDS, StageStore, destroy_key};

/// Before the image id, in the folder of the stages: no job is called so.
const REMOVED: &str = "removed-";

pub(super) fn remove(store: &StageStore, id: &ImageId) -> Result<()> {
    match store.root().find_dir(id.as_str())? {
        Some(folder) => remove_folder(store, id, &folder),
        None => Err(is_gone(store, id)),
    }
}

fn remove_folder(store: &StageStore, id: &ImageId, folder: &Dir) -> Result<()> {
    // Order: a rewrap that is under way would put a key back.
    let _claim = folder.claim()?;
    // Whoever had it before us may have removed it, and another image may have come since.
    if !store.root().leads_to(id.as_str(), &folder.facts()?)? {
        return Err(is_gone(store, id));
    }
    store.refuse_unsettled(id.as_str())?;
    let ours = [DATA, MANIFEST, RECORDS, KEY, NEW_KEY];
    if let Some(other) = folder.names(|name| !ours.contains(&name))?.first() {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("remove {id}: {other} is in its folder"),
        )
        .hint("move out of the folder what is not the image's, then remove it"));
    }
    let (parent, hidden) = (store.make_parent()?, format!("{REMOVED}{id}"));
    destroy(store, &parent, &hidden)?;
    // Order: by one rename, so that no crash leaves half an image under its name.
    store.root().rename_no_replace(id.as_str(), &parent, &hidden)?;
    let exchanged = parent.find_dir(&hidden).err().filter(is_link);
    destroy(store, &parent, &hidden)?;
    exchanged.map_or(Ok(()), |error| {
        Err(error.hint("something else was put in its place while it was being removed"))
    })
}

/// What is told of an image that is not there. Order: it is gone for good before anybody is told;
/// whoever removed it may not have come to its syncs, or may have died.
fn is_gone(store: &StageStore, id: &ImageId) -> Error {
    let make_sure = || {
        store.root().sync()?;
        match store.find_parent()? {
            Some(parent) => destroy(store, &parent, &format!("{REMOVED}{id}")),
            None => Ok(()),
        }
    };
    let told = || Error::new(ErrorKind::NotFound, format!("remove {id}"));
    make_sure().err().unwrap_or_else(told)
}

/// Finishes what crashes have left of removals.
pub(super) fn finish(store: &StageStore) -> Result<()> {
    let Some(parent) = store.find_parent()? else { return Ok(()) };
    let hidden = parent.names(|name| name.starts_with(REMOVED))?;
    hidden.iter().try_for_each(|hidden| destroy(store, &parent, hidden))
}

/// Or a folder that we may not open; that is not removed as a link is.
fn is_link(error: &Error) -> bool {
    error.kind() == ErrorKind::Denied
}

/// Destroys an image that is out of sight. Several may do so at once.
fn destroy(store: &StageStore, parent: &Dir, hidden: &str) -> Result<()> {
    let folder = match parent.find_dir(hidden) {
        // A link that was put in an image's place at the moment of the rename. It goes, or that
        // name could never be removed again; what it leads to is not looked at.
        Err(error) if is_link(&error) => {
            return parent.remove_file(hidden).map_err(|_| error);
        }
        found => found?,
    };
    let Some(folder) = folder else { return Ok(()) };
    // Order: out of sight for good before anything of it goes. Whoever renamed it may not have come
    // to its syncs; this handle was found after that rename.
    store.root().sync()?;
    parent.sync()?;
    destroy_key(&folder)?;
    [MANIFEST, DATA, RECORDS].iter().try_for_each(|name| folder.remove_file(name))?;
    folder.sync()?;
    // Another image of that name may have been removed since, and at last after the look: then the
    // folder is not empty.
    let is_there = || parent.leads_to(hidden, &folder.facts()?);
    if is_there()?
        && let Err(error) = parent.remove_dir(hidden)
        && is_there()?
    {
        return Err(error);
    }
    parent.sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::stage::Layout;

    #[test]
    fn a_link_that_was_moved_in_place_of_an_image_goes_and_leads_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir(at("outside")).unwrap();
        std::fs::write(at("outside/data"), b"theirs").unwrap();
        std::fs::create_dir(at("root")).unwrap();
        let root = Dir::open_path(&at("root")).unwrap();
        let store = StageStore::new(root, Layout::Images, "dir".to_owned());
        store.make_parent().unwrap();
        let hidden = at("root/.blockferry/stage/removed-m-1");
        let id: ImageId = "m-1".parse().unwrap();
        for finishes in [true, false] {
            std::os::unix::fs::symlink(at("outside"), &hidden).unwrap();
            match finishes {
                true => finish(&store).unwrap(),
                false => assert_eq!(remove(&store, &id).unwrap_err().kind(), ErrorKind::NotFound),
            }
            assert!(hidden.symlink_metadata().is_err(), "the link is still there");
            assert_eq!(std::fs::read(at("outside/data")).unwrap(), b"theirs");
        }
    }

    #[test]
    fn an_image_that_has_come_since_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir(at("m-1")).unwrap();
        std::fs::write(at("m-1/data"), b"old").unwrap();
        let root = Dir::open_path(temp.path()).unwrap();
        let folder = root.open_dir("m-1").unwrap();
        let store = StageStore::new(root, Layout::Images, "dir".to_owned());
        std::fs::rename(at("m-1"), at("elsewhere")).unwrap();
        std::fs::create_dir(at("m-1")).unwrap();
        std::fs::write(at("m-1/data"), b"new").unwrap();
        let id: ImageId = "m-1".parse().unwrap();
        assert_eq!(remove_folder(&store, &id, &folder).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(std::fs::read(at("m-1/data")).unwrap(), b"new");
        let folder = store.root().open_dir("m-1").unwrap();
        remove_folder(&store, &id, &folder).unwrap();
        assert!(!at("m-1").exists());
    }
}
