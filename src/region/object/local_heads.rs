//! Heads of a region whose store fences nothing: files of one daemon, which decide in its stead.

use std::path::Path;
use std::sync::Arc;

use crate::disk::Dir;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{to_u64, to_usize};
use crate::id::ImageId;
use crate::region::blocking;

use super::head::{HEAD_LEN_MAX, Head};
use super::rules::Txn;

/// A folder with the last head of each image that this daemon has written.
#[derive(Clone, Debug)]
pub(super) struct LocalHeads {
    folder: Arc<Dir>,
}

impl LocalHeads {
    /// The folder is made where it is missing.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        Ok(Self { folder: Arc::new(Dir::open_or_create_path(folder)?) })
    }

    /// The last head of that image, where this daemon has written one.
    pub(super) async fn read(&self, image: &ImageId) -> Result<Option<Head>> {
        let (own, image) = (self.clone(), image.clone());
        blocking(move || own.read_now(&image)).await
    }

    /// Replaces the head if it is that one still; `false`: it is another.
    pub(super) async fn swap(&self, from: Option<Txn>, next: &Head) -> Result<bool> {
        let (own, next) = (self.clone(), next.clone());
        blocking(move || own.swap_now(from, &next)).await
    }

    fn read_now(&self, image: &ImageId) -> Result<Option<Head>> {
        let Some(file) = self.folder.find_file(image.as_str())? else { return Ok(None) };
        let len = file.len()?;
        if len > to_u64(HEAD_LEN_MAX) {
            return Err(Error::new(ErrorKind::Corrupt, format!("read the local head of {image}")));
        }
        let mut bytes = vec![0; to_usize(len)];
        let read = file.read_at(0, &mut bytes)?;
        Head::decode(image, &bytes[..read]).map(Some)
    }

    fn swap_now(&self, from: Option<Txn>, next: &Head) -> Result<bool> {
        let _claim = self.folder.claim()?;
        let there = self.read_now(&next.image)?.map(|head| head.sight.txn);
        // One that was never written here is taken over from the store.
        if there.is_some() && there != from {
            return Ok(false);
        }
        // No image is called so.
        let beside = format!(".{}", next.image);
        self.folder.remove_file(&beside)?;
        let file = self.folder.create_file(&beside, 0o600)?;
        file.write_at(0, &next.encode())?;
        // Order: its bytes, then its name, then that name for good.
        file.sync_all()?;
        self.folder.rename_over(&beside, next.image.as_str())?;
        self.folder.sync()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sample_spec;
    use crate::region::object::rules::{Owner, Sight};

    #[tokio::test]
    async fn a_local_head_is_swapped_from_what_it_was_and_from_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let heads = LocalHeads::open(&temp.path().join("heads")).unwrap();
        let (spec, owner) = (sample_spec(), Owner { process: [1; 16], claim: [2; 16] });
        let sight = Sight::claimed(None, spec.job, owner, [1; 16]);
        let first = Head::claimed(sight, &spec);
        assert_eq!(heads.read(&first.image).await.unwrap(), None);
        assert!(heads.swap(None, &first).await.unwrap());
        let next = first.stepped(first.sight.begun([2; 16]));
        assert!(!heads.swap(None, &next).await.unwrap());
        assert!(!heads.swap(Some([9; 16]), &next).await.unwrap());
        assert_eq!(heads.read(&first.image).await.unwrap().as_ref(), Some(&first));
        assert!(heads.swap(Some([1; 16]), &next).await.unwrap());
        let again = LocalHeads::open(&temp.path().join("heads")).unwrap();
        assert_eq!(again.read(&first.image).await.unwrap(), Some(next));
    }
}
