//! Every call of a store, as a task that is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{ByteRange, to_u64};
use crate::store::{
    Address, Begun, BoxFuture, Class, Condition, Meta, Object, Page, Part, Put, Store, Trouble,
    Upload, UploadId, Version,
};

use crate::sync::time::timeout;

use super::{Sending, Steady, Task};

impl Store for Steady {
    fn location(&self) -> String {
        self.shared.inner.location()
    }

    fn address(&self, key: &str) -> Address {
        self.shared.inner.address(key)
    }

    fn beside(&self, prefix: &str) -> Arc<dyn Store> {
        let inner = self.shared.inner.beside(prefix);
        Arc::new(Self::new(inner, self.shared.options.clone()))
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Option<Object>>> {
        let (task, key) = (Task::new("read an object").bytes(len_max).repeatable(), key.to_owned());
        Box::pin(self.call(task, move |store| {
            let key = key.clone();
            Box::pin(async move { store.get(&key, len_max).await })
        }))
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Meta>>> {
        let (task, key) = (Task::new("look at an object").repeatable(), key.to_owned());
        Box::pin(self.call(task, move |store| {
            let key = key.clone();
            Box::pin(async move { store.head(&key).await })
        }))
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: ByteRange,
        pinned: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let task = Task::new("read a part of an object").bytes(range.len).repeatable();
        let (key, pinned) = (key.to_owned(), pinned.cloned());
        Box::pin(self.call(task, move |store| {
            let (key, pinned) = (key.clone(), pinned.clone());
            Box::pin(async move { store.get_range(&key, range, pinned.as_ref()).await })
        }))
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        bytes: Bytes,
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        let task = Task::new("write an object").bytes(to_u64(bytes.len())).under(when);
        let (key, condition) = (key.to_owned(), when.clone());
        let deadline = self.shared.options.deadline_of(task.bytes);
        let send: Sending<Put> = Arc::new(move |store| {
            let (key, bytes, when) = (key.clone(), bytes.clone(), condition.clone());
            Box::pin(clearly(task, deadline, when.clone(), async move {
                store.put(&key, bytes, &when).await
            }))
        });
        Box::pin(self.conditionally(task, when, send))
    }

    fn delete<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<()>> {
        let (task, keys) = (Task::new("delete objects"), keys.to_vec());
        Box::pin(self.call(task, move |store| {
            let keys = keys.clone();
            Box::pin(async move { store.delete(&keys).await })
        }))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        let task = Task::new("list objects").repeatable();
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(self.call(task, move |store| {
            let (prefix, after) = (prefix.clone(), after.clone());
            Box::pin(async move { store.list(&prefix, after.as_deref(), limit).await })
        }))
    }

    fn folders<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        let (task, folder) = (Task::new("list folders"), folder.to_owned());
        Box::pin(self.call(task, move |store| {
            let folder = folder.clone();
            Box::pin(async move { store.folders(&folder).await })
        }))
    }

    fn copy<'a>(&'a self, from: &'a Address, to: &'a str) -> BoxFuture<'a, Result<()>> {
        let (task, from, to) = (Task::new("copy an object"), from.clone(), to.to_owned());
        Box::pin(self.call(task, move |store| {
            let (from, to) = (from.clone(), to.clone());
            Box::pin(async move { store.copy(&from, &to).await })
        }))
    }

    fn upload_begin<'a>(&'a self, key: &'a str, label: &'a str) -> BoxFuture<'a, Result<Begun>> {
        let (task, key, label) = (Task::new("begin an upload"), key.to_owned(), label.to_owned());
        // How many requests have got no clear answer.
        let unclear = Arc::new(AtomicU32::new(0));
        let left = unclear.clone();
        let begun = self.call(task, move |store| {
            let (key, label, unclear) = (key.clone(), label.clone(), unclear.clone());
            Box::pin(async move {
                // Order: counted, then sent: at its deadline it is dropped.
                unclear.fetch_add(1, Relaxed);
                let begun = store.upload_begin(&key, &label).await;
                // What was turned away has begun nothing.
                if begun.as_ref().map_or_else(is_turned_away, |_| true) {
                    unclear.fetch_sub(1, Relaxed);
                }
                begun
            })
        });
        Box::pin(async move {
            let begun = begun.await?;
            Ok(Begun { may_be_two: begun.may_be_two || left.load(Relaxed) > 0, ..begun })
        })
    }

    fn upload_part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: u32,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Part>> {
        let task = Task::new("upload a part").bytes(to_u64(bytes.len())).repeatable();
        let (key, upload) = (key.to_owned(), upload.clone());
        Box::pin(self.call(task, move |store| {
            let (key, upload, bytes) = (key.clone(), upload.clone(), bytes.clone());
            Box::pin(async move { store.upload_part(&key, &upload, number, bytes).await })
        }))
    }

    fn upload_complete<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        parts: &'a [Part],
        when: &'a Condition,
    ) -> BoxFuture<'a, Result<Put>> {
        let task = Task::new("complete an upload").under(when);
        let (key, upload, parts) = (key.to_owned(), upload.clone(), parts.to_vec());
        let condition = when.clone();
        let deadline = self.shared.options.deadline_of(0);
        let send: Sending<Put> = Arc::new(move |store| {
            let (key, upload, parts) = (key.clone(), upload.clone(), parts.clone());
            let when = condition.clone();
            Box::pin(clearly(task, deadline, when.clone(), async move {
                store.upload_complete(&key, &upload, &parts, &when).await
            }))
        });
        // Never twice at once: the second would find no upload, and hide what the first has done.
        match when {
            Condition::Any => Box::pin(async move { Ok(self.tried(task, send).await?.0) }),
            _ => Box::pin(self.conditionally(task, when, send)),
        }
    }

    fn upload_abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> BoxFuture<'a, Result<()>> {
        let task = Task::new("abort an upload");
        let (key, upload) = (key.to_owned(), upload.clone());
        Box::pin(self.call(task, move |store| {
            let (key, upload) = (key.clone(), upload.clone());
            Box::pin(async move { store.upload_abort(&key, &upload).await })
        }))
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Upload>>> {
        let (task, prefix) = (Task::new("list uploads"), prefix.to_owned());
        Box::pin(self.call(task, move |store| {
            let prefix = prefix.clone();
            Box::pin(async move { store.uploads(&prefix).await })
        }))
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
    ) -> BoxFuture<'a, Result<Option<Vec<Part>>>> {
        let task = Task::new("list parts").repeatable();
        let (key, upload) = (key.to_owned(), upload.clone());
        Box::pin(self.call(task, move |store| {
            let (key, upload) = (key.clone(), upload.clone());
            Box::pin(async move { store.parts(&key, &upload).await })
        }))
    }

    fn has_checksums(&self) -> bool {
        self.shared.inner.has_checksums()
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut live = self.shared.live.subscribe();
            // Not those that begin from now on: other jobs would keep us waiting while they run.
            let now = live.borrow().next;
            // The sender lives as long as this does.
            drop(live.wait_for(|live| live.are_over(now)).await);
            self.shared.inner.settle().await;
        })
    }
}

/// Whether a request that failed so was surely not carried out.
fn is_turned_away(error: &Error) -> bool {
    Trouble::class(error) != Class::Transient
}

/// A write under a condition that is given up at its deadline has no clear answer.
async fn clearly(
    task: Task,
    deadline: std::time::Duration,
    when: Condition,
    write: impl Future<Output = Result<Put>>,
) -> Result<Put> {
    if when == Condition::Any {
        return write.await;
    }
    match timeout(deadline, write).await {
        Ok(answer) => answer,
        Err(_) => Ok(Put::Unknown(Error::new(
            ErrorKind::Unavailable,
            format!("{}: no answer in {} s", task.verb, deadline.as_secs()),
        ))),
    }
}
