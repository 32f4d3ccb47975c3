//! What a store can be relied on for: found out with real requests, not believed.

use bytes::Bytes;
use tokio::task::JoinSet;

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::store::{Condition, Put, Store, Version, abort_until_gone};

/// Where probes put their objects, each under a name of its own; nothing of a probe stays.
pub const PROBE_FOLDER: &str = ".blockferry-probe";
/// How many writers race for one object, and how often.
const RACER_COUNT: usize = 8;
const RACE_COUNT: usize = 4;
const LEN_MAX: u64 = 1024;

/// How much is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// One writer at a time: a dozen small requests.
    Quick,
    /// Also eight writers at once, a few times, to see that exactly one of them wins.
    Races,
}

/// What a store has proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proven {
    /// A write with `If-None-Match: *` is refused where an object is, and leaves it as it was.
    pub create: bool,
    /// A write with a stale `If-Match` is refused, and leaves the object as it was.
    pub swap: bool,
    /// A read sees what was written just before, and what was deleted is not read.
    pub read_after_write: bool,
    /// A listing shows what was written just before, and not what was deleted.
    pub list_after_write: bool,
    /// The parts of an upload can be listed, and an aborted one is gone.
    pub list_parts: bool,
    /// Unfinished uploads can be listed.
    pub list_uploads: bool,
    /// Completing an upload with `If-None-Match: *` is refused where an object is.
    pub complete_if_absent: bool,
    /// The store copies objects by itself.
    pub copy: bool,
    /// What went otherwise than it should, in words, one line each.
    pub remarks: Vec<String>,
}

/// How two daemons are kept from deciding differently about one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// The head is swapped: written only while it is the version that was read.
    Swap,
    /// Heads are numbered, and each is created only while it is absent.
    Numbered,
    /// Not at all: the store ignores conditions.
    None,
}

impl Fencing {
    /// The stable name: `swap`, `numbered` or `none`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Numbered => "numbered",
            Self::None => "none",
        }
    }
}

impl Proven {
    /// The way of fencing that follows.
    pub fn fencing(&self) -> Fencing {
        match (self.read_after_write, self.create, self.swap) {
            (true, true, true) => Fencing::Swap,
            (true, true, false) => Fencing::Numbered,
            _ => Fencing::None,
        }
    }
}

/// Finds out what the store can be relied on for, by writing, racing for and deleting a few small
/// objects under a fresh name below [`PROBE_FOLDER`].
///
/// What the store answers wrongly is no error: it is not proven, and told in
/// [`remarks`](Proven::remarks).
///
/// # Errors
/// The store's own failure to do what every store must: write, read and delete an object. A
/// conditional write without a clear answer: what a passing fault leaves open is not taken as
/// missing, or heads would be looked for where they are not.
///
/// # Cancel safety
/// Restartable: a probe's objects may be left.
pub async fn prove(store: &Arc<dyn Store>, depth: Depth) -> Result<Proven> {
    let name = host::random()?.map(|byte| format!("{byte:02x}")).concat();
    let mut probe = Probe {
        store: Arc::clone(store),
        folder: format!("{PROBE_FOLDER}/{name}"),
        proven: Proven::default(),
    };
    let result = probe.run(depth).await;
    match (result, probe.sweep().await) {
        (Ok(()), Ok(())) => Ok(probe.proven),
        (Ok(()), Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(later)) => Err(error.and(later)),
    }
}

struct Probe {
    store: Arc<dyn Store>,
    folder: String,
    proven: Proven,
}

impl Probe {
    async fn run(&mut self, depth: Depth) -> Result<()> {
        self.reads_and_listings().await?;
        self.creates(depth).await?;
        self.swaps(depth).await?;
        self.copies().await;
        self.uploads().await;
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn remark(&mut self, what: impl Into<String>) {
        self.proven.remarks.push(what.into());
    }

    /// Whether that is what is read.
    async fn holds(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        let object = self.store.get(key, LEN_MAX).await?;
        Ok(object.is_some_and(|object| object.bytes == bytes))
    }

    async fn write(&self, key: &str, bytes: &'static [u8]) -> Result<Option<Version>> {
        match self.store.put(key, Bytes::from_static(bytes), &Condition::Any).await? {
            Put::Done(version) => Ok(version),
            Put::Refused => Err(Error::new(ErrorKind::Unsupported, "write an object")
                .within(self.store.location())
                .hint("the store refuses a write that has no condition")),
            Put::Unknown(error) => Err(error),
        }
    }

    async fn lists(&self, name: &str) -> Result<bool> {
        let page = self.store.list(&format!("{}/{name}", self.folder), None, 2).await?;
        Ok(page.entries.iter().any(|entry| entry.key == self.key(name)))
    }

    async fn reads_and_listings(&mut self) -> Result<()> {
        let key = self.key("plain");
        self.write(&key, b"one").await?;
        let (read, listed) = (self.holds(&key, b"one").await?, self.lists("plain").await?);
        self.write(&key, b"two").await?;
        let read = read && self.holds(&key, b"two").await?;
        self.store.delete(std::slice::from_ref(&key)).await?;
        self.proven.read_after_write = read && self.store.head(&key).await?.is_none();
        self.proven.list_after_write = listed && !self.lists("plain").await?;
        if !self.proven.read_after_write {
            self.remark("a read did not see the write or the delete before it");
        }
        if !self.proven.list_after_write {
            self.remark("a listing did not show the write or the delete before it");
        }
        Ok(())
    }

    /// Sends one conditional write that must be refused, and looks that nothing has changed.
    async fn refuses(&mut self, what: &str, key: &str, when: Condition) -> Result<bool> {
        let before = self.store.get(key, LEN_MAX).await?;
        let answer = self.store.put(key, Bytes::from_static(b"must not be"), &when).await;
        let remark = match answer {
            Ok(Put::Refused) if self.store.get(key, LEN_MAX).await? == before => return Ok(true),
            Ok(Put::Refused) => format!("{what} was refused, and written all the same"),
            Ok(Put::Done(_)) => format!("{what} was not refused: the store ignores the condition"),
            Ok(Put::Unknown(error)) => return Err(error),
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => format!("{what}: {}", error.report()),
        };
        self.remark(remark);
        Ok(false)
    }

    /// Sends one conditional write that must be carried out.
    async fn accepts(&mut self, what: &str, key: &str, when: Condition) -> Result<Option<Version>> {
        let remark = match self.store.put(key, Bytes::from_static(b"must be"), &when).await {
            Ok(Put::Done(Some(version))) if self.holds(key, b"must be").await? => {
                return Ok(Some(version));
            }
            Ok(Put::Done(Some(_))) => format!("{what} was answered as done, but is not read"),
            Ok(Put::Done(None)) => format!("{what} was answered without a version"),
            Ok(Put::Refused) => format!("{what} was refused, though its condition held"),
            Ok(Put::Unknown(error)) => return Err(error),
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => format!("{what}: {}", error.report()),
        };
        self.remark(remark);
        Ok(None)
    }

    async fn creates(&mut self, depth: Depth) -> Result<()> {
        let key = self.key("create");
        let made = self.accepts("a create of a new object", &key, Condition::Absent).await?;
        let refused = made.is_some()
            && self.refuses("a create over an object", &key, Condition::Absent).await?;
        self.proven.create = refused;
        if refused && depth == Depth::Races {
            for round in 0..RACE_COUNT {
                let key = self.key(&format!("race-{round}"));
                if !self.race("creates", &key, Condition::Absent).await? {
                    self.proven.create = false;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn swaps(&mut self, depth: Depth) -> Result<()> {
        let key = self.key("swap");
        let Some(stale) = self.write(&key, b"first").await? else {
            self.remark("a write was answered without a version");
            return Ok(());
        };
        let when = Condition::Match(stale.clone());
        let Some(current) = self.accepts("a swap of the current version", &key, when).await? else {
            return Ok(());
        };
        let mut proven =
            self.refuses("a swap of a stale version", &key, Condition::Match(stale)).await?;
        let mut current = current;
        for round in 0..RACE_COUNT {
            if !proven || depth == Depth::Quick {
                break;
            }
            // What each racer writes differs, and from what was there before.
            proven = self.race("swaps", &key, Condition::Match(current.clone())).await?;
            let text = Bytes::from(format!("round {round}"));
            match self.store.put(&key, text, &Condition::Any).await? {
                Put::Done(Some(version)) => current = version,
                _ => break,
            }
        }
        self.proven.swap = proven;
        Ok(())
    }

    /// Many writers at once: exactly one must win, and what it wrote must be what is read.
    async fn race(&mut self, what: &str, key: &str, when: Condition) -> Result<bool> {
        let mut racers = JoinSet::new();
        for racer in 0..RACER_COUNT {
            let (store, key, when) = (Arc::clone(&self.store), key.to_owned(), when.clone());
            racers.spawn(async move {
                let text = format!("racer {racer}");
                (text.clone(), store.put(&key, Bytes::from(text), &when).await)
            });
        }
        let (mut winners, mut unclear) = (Vec::new(), Vec::new());
        while let Some(joined) = racers.join_next().await {
            match joined {
                Ok((text, Ok(Put::Done(_)))) => winners.push(text),
                Ok((_, Ok(Put::Refused))) => {}
                Ok((text, Ok(Put::Unknown(_)) | Err(_))) => unclear.push(text),
                Err(error) => {
                    return Err(Error::new(ErrorKind::Io, "race for an object").because(error));
                }
            }
        }
        let clear = match winners.as_slice() {
            [text] => self.holds(key, text.as_bytes()).await?,
            [] if unclear.len() == 1 => self.holds(key, unclear[0].as_bytes()).await?,
            [] if !unclear.is_empty() => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "race for an object: no clear answer",
                )
                .within(self.store.location())
                .retryable(true));
            }
            _ => false,
        };
        if !clear {
            let (count, unclear) = (winners.len(), unclear.len());
            self.remark(format!(
                "of {RACER_COUNT} {what} at once {count} won ({unclear} without a clear answer)"
            ));
        }
        Ok(clear)
    }

    async fn copies(&mut self) {
        let (from, to) = (self.key("copy-from"), self.key("copy-to"));
        let attempt = async {
            self.write(&from, b"copied").await?;
            self.store.copy(&self.store.address(&from), &to).await?;
            self.holds(&to, b"copied").await
        };
        match attempt.await {
            Ok(true) => self.proven.copy = true,
            Ok(false) => self.remark("a copy within the store was not read back equal"),
            Err(error) => self.remark(format!("a copy within the store: {}", error.report())),
        }
    }

    async fn uploads(&mut self) {
        let (key, empty) = (self.key("upload"), self.key("aborted"));
        if let Err(error) = self.uploads_of(&key, &empty).await {
            self.remark(format!("multipart uploads: {}", error.report()));
        }
        if let Err(error) = self.abort_strays().await {
            self.remark(format!("abort what was begun: {}", error.report()));
        }
    }

    /// One whose beginning got no answer has a name that nobody knows. All below the probe's folder
    /// are its own.
    async fn abort_strays(&self) -> Result<()> {
        match self.store.uploads(&self.folder).await {
            Ok(strays) => {
                for stray in strays {
                    abort_until_gone(self.store.as_ref(), &stray.key, &stray.id).await?;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn uploads_of(&mut self, key: &str, other: &str) -> Result<()> {
        let store = Arc::clone(&self.store);
        let id = store.upload_begin(key, "probe").await?.id;
        let part = store.upload_part(key, &id, 1, Bytes::from_static(b"part")).await?;
        match store.parts(key, &id).await {
            Ok(Some(parts)) => {
                self.proven.list_parts =
                    parts.iter().map(|part| (part.number, part.len)).eq([(1, 4)]);
            }
            Ok(None) => self.remark("the parts of an upload are not listed"),
            Err(error) => self.remark(format!("list parts: {}", error.report())),
        }
        match store.uploads(&self.folder).await {
            Ok(uploads) => {
                self.proven.list_uploads = uploads.iter().any(|upload| upload.id == id);
                if !self.proven.list_uploads {
                    self.remark("a listing of uploads did not show one that had begun");
                }
            }
            Err(error) => self.remark(format!("list uploads: {}", error.report())),
        }
        self.write(key, b"there").await?;
        match store.upload_complete(key, &id, &[part], &Condition::Absent).await {
            Ok(Put::Refused) => self.proven.complete_if_absent = self.holds(key, b"there").await?,
            Ok(Put::Done(_)) => self.remark("completing an upload ignores the condition"),
            Ok(Put::Unknown(error)) | Err(error) => {
                self.remark(format!("complete an upload over an object: {}", error.report()));
            }
        }
        abort_until_gone(store.as_ref(), key, &id).await?;
        let id = store.upload_begin(other, "probe").await?.id;
        abort_until_gone(store.as_ref(), other, &id).await
    }

    /// Removes every object of the probe.
    async fn sweep(&self) -> Result<()> {
        let names = ["plain", "create", "swap", "copy-from", "copy-to", "upload", "aborted"];
        let races = (0..RACE_COUNT).map(|round| self.key(&format!("race-{round}")));
        let keys: Vec<String> = names.iter().map(|name| self.key(name)).chain(races).collect();
        self.store.delete(&keys).await
    }
}
