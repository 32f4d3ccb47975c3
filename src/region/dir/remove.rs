//! How an image is removed: out of sight at once, then file by file.
//!
//! What a crash leaves of that, `recover` finishes.

use crate::disk::Dir;
use crate::error::{Error, ErrorKind, Result};
use crate::id::ImageId;
use crate::region::stage::{DATA, KEY, MANIFEST, NEW_KEY, RECORDS, StageStore, destroy_key};

/// Before the image id, in the folder of the stages: no job is called so.
const REMOVED: &str = "removed-";

pub(super) fn remove(store: &StageStore, id: &ImageId, folder: &Dir) -> Result<()> {
    // Order: a rewrap that is under way would put a key back.
    let _claim = folder.claim()?;
    store.refuse_unsettled(id.as_str())?;
    let ours = [DATA, MANIFEST, RECORDS, KEY, NEW_KEY];
    if let Some(other) = folder.names(|name| !ours.contains(&name))?.first() {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("remove {id}: {other} is in its folder"),
        )
        .hint("move out of the folder what is not the image's, then remove it"));
    }
    let parent = store.make_parent()?;
    let hidden = format!("{REMOVED}{id}");
    destroy(&parent, &hidden)?;
    // Order: by one rename, so that no crash leaves half an image under its name.
    store.root().rename_no_replace(id.as_str(), &parent, &hidden)?;
    store.root().sync()?;
    parent.sync()?;
    destroy(&parent, &hidden)
}

/// Finishes what crashes have left of removals.
pub(super) fn finish(store: &StageStore) -> Result<()> {
    let Some(parent) = store.find_parent()? else { return Ok(()) };
    parent.names(|name| name.starts_with(REMOVED))?.iter().try_for_each(|it| destroy(&parent, it))
}

fn destroy(parent: &Dir, hidden: &str) -> Result<()> {
    let Some(folder) = parent.find_dir(hidden)? else { return Ok(()) };
    destroy_key(&folder)?;
    [MANIFEST, DATA, RECORDS].iter().try_for_each(|name| folder.remove_file(name))?;
    folder.sync()?;
    parent.remove_dir(hidden)?;
    parent.sync()
}
