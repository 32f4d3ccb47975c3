//! Heads at the store: read, and swapped in whichever way the store can be relied on for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::to_u64;
use crate::host;
use crate::id::ImageId;
use crate::sabotage;
use crate::store::{Condition, Depth, Fencing, Put, Store, Version, prove};

use super::head::{HEAD_LEN_MAX, Head, MadeKey};
use super::local_heads::LocalHeads;
use super::names::{self, Named};
use super::notes::{self, NOTE_LEN_MAX};
use super::rules::{self, Landed, Sight};

/// How often a swap that gets no clear answer is looked after and sent again.
const SWAP_ATTEMPT_COUNT_MAX: u32 = 8;
/// How many heads are looked for behind the last one that a listing shows.
const NUMBERED_PROBE_COUNT_MAX: u32 = 1000;

/// The heads of a region.
#[derive(Debug)]
pub(super) struct Register {
    store: Arc<dyn Store>,
    /// What the store has proven, once something was to be decided: to read, nothing is proven.
    fencing: OnceCell<Fencing>,
    /// Set once it is on record that heads are kept this way here.
    agreed: OnceCell<()>,
    /// Where the store fences nothing.
    local: Option<LocalHeads>,
}

/// A head as it was read or written, and what has to be so that it can be replaced.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) head: Option<Head>,
    version: Option<Version>,
}

/// What came of a swap.
#[derive(Debug)]
pub(super) enum Swapped {
    /// It was carried out; this is there now.
    Done(Held),
    /// It was not, or somebody has gone on from there already; this is there now.
    Lost(Held),
}

impl Held {
    pub(super) fn sight(&self) -> Option<&Sight> {
        self.head.as_ref().map(|head| &head.sight)
    }

    /// The wrapped key that a committed image's head names.
    pub(super) fn key(&self) -> Option<&MadeKey> {
        self.head.as_ref()?.made.as_ref()?.key.as_ref()
    }
}

impl Register {
    /// `fencing`: what is known to be proven; else it is found out when it is needed.
    pub(super) fn new(store: Arc<dyn Store>, fencing: Option<Fencing>) -> Self {
        let (fencing, agreed) = (OnceCell::new_with(fencing), OnceCell::new());
        Self { store, fencing, agreed, local: None }
    }

    /// Of a store that fences nothing: these heads decide, and the store has copies of them.
    pub(super) fn decided_here(store: Arc<dyn Store>, local: LocalHeads) -> Self {
        let (fencing, agreed) = (OnceCell::new_with(Some(Fencing::None)), OnceCell::new());
        Self { store, fencing, agreed, local: Some(local) }
    }

    /// How two daemons are kept from deciding differently here.
    pub(super) async fn fencing(&self) -> Result<Fencing> {
        self.fencing.get_or_try_init(|| self.prove()).await.copied()
    }

    async fn prove(&self) -> Result<Fencing> {
        let way = self.way().await?;
        // Who is the first here finds out all there is; the others ask only whether it is so still.
        let depth = if way.is_none() { Depth::Races } else { Depth::Quick };
        let proven = prove(&self.store, depth).await?;
        let refuse = |why: &'static str| {
            Err(Error::new(ErrorKind::Unsupported, "keep images in this store")
                .within(self.store.location())
                .hint(why))
        };
        if !proven.list_after_write {
            return refuse("its listings lag behind its writes: nothing is ever known to be gone");
        }
        let ours = proven.fencing();
        if ours == Fencing::None {
            return refuse("it does not keep to conditional writes: two daemons could both decide");
        }
        match way {
            // What can be swapped can be numbered as well: it goes on as it was begun.
            Some(Fencing::Numbered) => Ok(Fencing::Numbered),
            Some(way) if way != ours => Err(self.kept_otherwise(way)),
            _ => Ok(ours),
        }
    }

    /// Which way heads are kept here, as it is on record; `None`: nobody has claimed an image yet.
    async fn way(&self) -> Result<Option<Fencing>> {
        let told = |error: Error| error.within(format!("{}/{}", self.store.location(), names::WAY));
        let object = self.store.get(names::WAY, NOTE_LEN_MAX).await.map_err(told)?;
        object.map(|object| notes::decode_way(&object.bytes)).transpose().map_err(told)
    }

    /// Puts on record which way heads are kept here, or finds that it is another way than ours.
    ///
    /// To two daemons a store may prove different things, and each would claim the same image with
    /// a head of its own, which the other does not see. So one object decides between them, which
    /// is made once, and never changed or removed.
    async fn agree(&self) -> Result<()> {
        let ours = self.fencing().await?;
        // Where conditions do not work one daemon alone writes; some stores refuse them.
        let when = if ours == Fencing::None { Condition::Any } else { Condition::Absent };
        let mut failed = None;
        for _ in 0..SWAP_ATTEMPT_COUNT_MAX {
            match self.way().await? {
                Some(way) if way == ours => return Ok(()),
                Some(way) => return Err(self.kept_otherwise(way)),
                None => {}
            }
            match self.store.put(names::WAY, notes::encode_way(ours).into(), &when).await? {
                Put::Done(_) => return Ok(()),
                // Somebody was first, perhaps we ourselves: what is there tells.
                Put::Refused => {}
                Put::Unknown(error) => failed = Some(error),
            }
        }
        let error = Error::new(ErrorKind::Unavailable, "agree on how heads are kept")
            .within(self.store.location());
        Err(match failed {
            Some(cause) => error.because(cause),
            None => error.hint("the store refuses it, and shows none"),
        })
    }

    /// Refuses to look at heads here that others keep another way. It asks for no more than a read,
    /// so that who may only read can; whoever decides agrees first.
    async fn check_alone(&self) -> Result<()> {
        if self.agreed.initialized() {
            return Ok(());
        }
        match self.way().await? {
            Some(Fencing::None) => drop(self.agreed.set(())),
            Some(way) => return Err(self.kept_otherwise(way)),
            // Nobody has decided since there is such a record.
            None => {}
        }
        Ok(())
    }

    async fn agreed(&self) -> Result<()> {
        self.agreed.get_or_try_init(|| self.agree()).await.copied()
    }

    fn kept_otherwise(&self, way: Fencing) -> Error {
        const AS_BEGUN: &str = "reach it as when it was begun, without fencing=none";
        let (way, hint) = match way {
            Fencing::Swap => ("swapped in place", AS_BEGUN),
            Fencing::Numbered => ("numbered", AS_BEGUN),
            Fencing::None => {
                ("those of one daemon alone", "only that one may write here, with fencing=none")
            }
        };
        Error::new(ErrorKind::Unsupported, format!("decide about images: heads here are {way}"))
            .within(self.store.location())
            .hint(hint)
    }

    /// Whether heads are swapped in place here, as far as that had to be found out yet.
    pub(super) fn swaps(&self) -> bool {
        self.fencing.get() == Some(&Fencing::Swap)
    }

    /// The head of the image now.
    pub(super) async fn read(&self, image: &ImageId) -> Result<Held> {
        match (self.fencing.get(), &self.local) {
            (_, Some(local)) => self.read_local(image, local).await,
            (Some(Fencing::Numbered), _) => match self.read_numbered(image).await? {
                held @ Held { head: Some(_), .. } => Ok(held),
                // What is kept the other way is there all the same, and not ours to touch.
                none => match self.read_one(image, &names::head(image)).await? {
                    Held { head: None, .. } => Ok(none),
                    _ => Err(self.other_way(image, "swapped in place")),
                },
            },
            (Some(_), _) => match self.read_one(image, &names::head(image)).await? {
                held @ Held { head: Some(_), .. } => Ok(held),
                none if self.listed(image).await?.is_empty() => Ok(none),
                _ => Err(self.other_way(image, "numbered")),
            },
            // An image's heads are kept one way, and one look tells which.
            (None, _) => match self.read_one(image, &names::head(image)).await? {
                Held { head: None, .. } => self.read_numbered(image).await,
                held => Ok(held),
            },
        }
    }

    /// The local head, where there is one; the store's copy of it is put right if it is behind.
    async fn read_local(&self, image: &ImageId, local: &LocalHeads) -> Result<Held> {
        // Order: whose heads these are, then what they say. A blind write, or a sweep of what no
        // head speaks of, would end others' images.
        self.check_alone().await?;
        let key = names::head(image);
        let shown = self.read_one(image, &key).await?;
        let Some(head) = local.read(image).await? else {
            // Of a region that is older than its record.
            let strange = shown.head.is_none() && !self.listed(image).await?.is_empty();
            return if strange { Err(self.other_way(image, "numbered")) } else { Ok(shown) };
        };
        match shown.sight() {
            Some(shown) if shown.txn == head.sight.txn => {}
            Some(shown) if shown.seq > head.sight.seq => {
                return Err(Error::new(ErrorKind::Fenced, format!("decide about {image}"))
                    .within(format!("{}/{key}", self.store.location()))
                    .hint("another daemon writes there, and this store keeps nobody from it"));
            }
            _ => {
                self.agreed().await?;
                self.show(&head).await?;
            }
        }
        Ok(Held { head: Some(head), version: None })
    }

    /// Puts a local head where others can read it.
    async fn show(&self, head: &Head) -> Result<()> {
        let bytes = Bytes::from(head.encode());
        match self.store.put(&names::head(&head.image), bytes, &Condition::Any).await? {
            Put::Done(_) => Ok(()),
            Put::Unknown(error) => Err(error),
            Put::Refused => Err(Error::new(ErrorKind::Unsupported, "write a head")
                .within(self.store.location())
                .hint("the store refuses a write that has no condition")),
        }
    }

    async fn read_one(&self, image: &ImageId, key: &str) -> Result<Held> {
        let told = |error: Error| error.within(format!("{}/{key}", self.store.location()));
        let object = match self.store.get(key, to_u64(HEAD_LEN_MAX)).await {
            // Longer than any head is.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Head::decode(image, &[]).map_err(|foreign| told(foreign.because(error)))?;
                None
            }
            read => read?,
        };
        let Some(object) = object else { return Ok(Held { head: None, version: None }) };
        let head = Head::decode(image, &object.bytes).map_err(told)?;
        Ok(Held { head: Some(head), version: object.version })
    }

    /// The head with the highest number. Listings may be behind, so the next one is asked for.
    async fn read_numbered(&self, image: &ImageId) -> Result<Held> {
        let mut seq = self.listed(image).await?.last().copied().unwrap_or(0);
        let mut held = Held { head: None, version: None };
        if seq > 0 {
            held = self.read_one(image, &names::numbered_head(image, seq)).await?;
        }
        for _ in 0..NUMBERED_PROBE_COUNT_MAX {
            let next = seq.saturating_add(1);
            let found = self.read_one(image, &names::numbered_head(image, next)).await?;
            if found.head.is_none() {
                return Ok(held);
            }
            (held, seq) = (found, next);
        }
        Err(Error::new(ErrorKind::Unavailable, format!("find the last head of {image}"))
            .within(self.store.location())
            .hint("the store's listings are far behind"))
    }

    /// The numbers of the heads that a listing shows, ascending.
    async fn listed(&self, image: &ImageId) -> Result<Vec<u64>> {
        let prefix = names::head(image);
        let (mut numbers, mut after) = (Vec::new(), None::<String>);
        loop {
            let limit = crate::store::PAGE_ENTRIES_MAX;
            let page = self.store.list(&prefix, after.as_deref(), limit).await?;
            numbers.extend(page.entries.iter().filter_map(|entry| {
                match names::read(image, &entry.key) {
                    Named::Head(number) => number,
                    _ => None,
                }
            }));
            match page.entries.last().filter(|_| page.more) {
                Some(last) => after = Some(last.key.clone()),
                None => return Ok(numbers),
            }
        }
    }

    /// Heads of the region are kept one way only: who sees one of the other way must not claim it.
    pub(super) async fn check_way(&self, image: &ImageId) -> Result<()> {
        // Order: on record for everybody, then looked for what is older than the record.
        self.agreed().await?;
        let page = self.store.list(&names::head(image), None, 2).await?;
        let numbered = |entry: &crate::store::Entry| match names::read(image, &entry.key) {
            Named::Head(number) => Some(number.is_some()),
            _ => None,
        };
        let mut found = page.entries.iter().filter_map(numbered);
        let ours = self.fencing().await? == Fencing::Numbered;
        if found.all(|numbered| numbered == ours) {
            return Ok(());
        }
        Err(self.other_way(image, if ours { "swapped in place" } else { "numbered" }))
    }

    fn other_way(&self, image: &ImageId, way: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("decide about {image}: its heads are {way}"))
            .within(self.store.location())
            .hint("it was written when this store proved something else; reach it as it was then")
    }

    /// Replaces the head by `next`, if it still is what it was read as.
    ///
    /// # Errors
    /// The store's own failure: then it may have been replaced, now or later.
    pub(super) async fn swap(&self, from: &Held, next: Head) -> Result<Swapped> {
        self.swap_in_doubt(from, next).await.map(|(swapped, _)| swapped)
    }

    /// The same, and whether a swap that is lost may have come true all the same, for a while:
    /// others went on from it, or it got no clear answer.
    pub(super) async fn swap_in_doubt(&self, from: &Held, next: Head) -> Result<(Swapped, bool)> {
        let image = next.image.clone();
        let mut from = from.clone();
        if self.fencing.get().is_none() {
            self.fencing().await?;
            // It may have been read as kept one way, and be proven now to be kept the other.
            let now = self.read(&image).await?;
            match rules::landed(from.sight(), now.sight(), next.sight.txn) {
                Landed::Unchanged => from = now,
                Landed::Mine => return Ok((Swapped::Done(now), false)),
                Landed::Passed | Landed::Others => return Ok((Swapped::Lost(now), false)),
            }
        }
        let mut failed = None;
        for _ in 0..SWAP_ATTEMPT_COUNT_MAX {
            let unclear = match self.put(&from, &next).await? {
                Put::Done(version) => {
                    return Ok((Swapped::Done(Held { head: Some(next), version }), false));
                }
                // An earlier one of ours may have landed since it was given up.
                Put::Refused => None,
                Put::Unknown(_) if sabotage::is("M11") => {
                    return Ok((Swapped::Lost(from), false));
                }
                Put::Unknown(error) => Some(error),
            };
            failed = unclear.or(failed);
            let now = self.read(&image).await?;
            match rules::landed(from.sight(), now.sight(), next.sight.txn) {
                Landed::Mine => return Ok((Swapped::Done(now), false)),
                Landed::Passed => return Ok((Swapped::Lost(now), true)),
                Landed::Others => return Ok((Swapped::Lost(now), failed.is_some())),
                // The same record may be another object: one that was put there once more.
                Landed::Unchanged => from = now,
            }
        }
        let error = Error::new(ErrorKind::Unavailable, format!("write the head of {image}"));
        let error = error.within(self.store.location());
        Err(match failed {
            Some(cause) => error.because(cause),
            None => error.hint("the store refuses it, and shows no other"),
        })
    }

    async fn put(&self, from: &Held, next: &Head) -> Result<Put> {
        let fencing = self.fencing().await?;
        let condition = match (fencing, &from.head, &from.version) {
            (Fencing::None, ..) => return self.decide_here(from, next).await,
            (Fencing::Numbered, ..) | (_, None, _) => Condition::Absent,
            (_, Some(_), Some(version)) => Condition::Match(version.clone()),
            (_, Some(_), None) => {
                return Err(Error::new(ErrorKind::Unsupported, "swap a head without a version")
                    .within(self.store.location()));
            }
        };
        let key = match fencing {
            Fencing::Numbered => names::numbered_head(&next.image, next.sight.seq),
            Fencing::Swap | Fencing::None => names::head(&next.image),
        };
        let claims = from.sight().is_none_or(|from| from.job != next.sight.job);
        let blind = sabotage::is("M10") || claims && sabotage::is("M29");
        let when = if blind { Condition::Any } else { condition };
        self.store.put(&key, next.encode().into(), &when).await
    }

    /// The local head is the decision; the store's copy shows it.
    async fn decide_here(&self, from: &Held, next: &Head) -> Result<Put> {
        let Some(local) = &self.local else {
            return Err(Error::new(ErrorKind::Unsupported, "write to a store that fences nothing")
                .within(self.store.location())
                .hint("it ignores conditional writes, so two daemons could both decide"));
        };
        // Order: on record that this daemon alone decides, then decided.
        self.agreed().await?;
        if !local.swap(from.sight().map(|from| from.txn), next).await? {
            return Ok(Put::Refused);
        }
        // Order: decided, then shown. Whoever reads it next puts it right if this fails.
        Ok(match self.show(next).await {
            Ok(()) => Put::Done(None),
            Err(error) => Put::Unknown(error),
        })
    }
}

/// What makes a write of a head different from every other.
pub(super) fn draw() -> Result<[u8; 16]> {
    host::random()
}
