//! What the model holds, and what each request does to it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Lie;
use crate::geometry::{ByteRange, to_u64, to_usize};
use crate::store::{
    Condition, Entry, Meta, PAGE_ENTRIES_MAX, PART_BYTES_MIN, Page, Part, Upload, UploadId,
    Version, checksum_of,
};

/// Where the store's clock begins.
const FIRST_MS: u64 = 1_700_000_000_000;

/// One request, with whole keys.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Get { key: String },
    Head { key: String },
    Range { key: String, range: ByteRange, pinned: Option<Version> },
    Put { key: String, bytes: Bytes, when: Condition },
    Delete { keys: Vec<String> },
    List { prefix: String, after: Option<String>, limit: usize },
    Folders { folder: String },
    Copy { from: String, to: String },
    Begin { key: String, label: String },
    UploadPart { id: UploadId, number: u32, bytes: Bytes },
    Complete { id: UploadId, parts: Vec<Part>, when: Condition },
    Abort { id: UploadId },
    Uploads { prefix: String },
    Parts { id: UploadId },
}

/// What the store says to it.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Done,
    Nothing,
    Refused,
    Changed,
    Bad(&'static str),
    Object(Bytes, Meta),
    Meta(Meta),
    Bytes(Bytes),
    Written(Version),
    Page(Page),
    Names(Vec<String>),
    Upload(UploadId),
    Part(Part),
    Uploads(Vec<Upload>),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    version: Version,
    modified_ms: u64,
    label: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) key: String,
    begun_ms: u64,
    label: String,
    parts: BTreeMap<u32, Bytes>,
}

type Objects = BTreeMap<String, Stored>;
type Uploads = BTreeMap<UploadId, Begun>;

pub(super) struct State {
    pub(super) objects: Objects,
    pub(super) uploads: Uploads,
    pub(super) late: Vec<Request>,
    pub(super) lie: Lie,
    pub(super) now_ms: u64,
    pub(super) part_bytes_min: u64,
    pub(super) frozen: Option<(Objects, Uploads)>,
    upload_count: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: Objects::new(),
            uploads: Uploads::new(),
            late: Vec::new(),
            lie: Lie::None,
            now_ms: FIRST_MS,
            part_bytes_min: PART_BYTES_MIN,
            frozen: None,
            upload_count: 0,
        }
    }
}

impl Request {
    /// The method of `Store` that it is of.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::Get { .. } => "get",
            Self::Head { .. } => "head",
            Self::Range { .. } => "get_range",
            Self::Put { .. } => "put",
            Self::Delete { .. } => "delete",
            Self::List { .. } => "list",
            Self::Folders { .. } => "folders",
            Self::Copy { .. } => "copy",
            Self::Begin { .. } => "upload_begin",
            Self::UploadPart { .. } => "upload_part",
            Self::Complete { .. } => "upload_complete",
            Self::Abort { .. } => "upload_abort",
            Self::Uploads { .. } => "uploads",
            Self::Parts { .. } => "parts",
        }
    }

    /// The key or prefix it is about, or the id of the upload.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Get { key }
            | Self::Head { key }
            | Self::Range { key, .. }
            | Self::Put { key, .. }
            | Self::Begin { key, .. } => key.clone(),
            Self::Delete { keys } => keys.first().cloned().unwrap_or_default(),
            Self::List { prefix, .. } | Self::Uploads { prefix } => prefix.clone(),
            Self::Folders { folder } => folder.clone(),
            Self::Copy { to, .. } => to.clone(),
            Self::UploadPart { id, .. }
            | Self::Complete { id, .. }
            | Self::Abort { id }
            | Self::Parts { id } => id.0.clone(),
        }
    }

    /// The condition of a write that has one, and the key it is about.
    fn condition(&self) -> Option<&Condition> {
        match self {
            Self::Put { when, .. } | Self::Complete { when, .. } => Some(when),
            _ => None,
        }
    }

    /// The same write without its condition.
    pub(super) fn unconditional(&self) -> Self {
        let mut same = self.clone();
        if let Self::Put { when, .. } | Self::Complete { when, .. } = &mut same {
            *when = Condition::Any;
        }
        same
    }
}

impl State {
    /// Whether the request would be refused at this moment.
    pub(super) fn refuses(&self, request: &Request) -> bool {
        let key = match request {
            Request::Put { key, .. } => key,
            Request::Complete { id, .. } => match self.uploads.get(id) {
                Some(begun) => &begun.key,
                None => return false,
            },
            _ => return false,
        };
        let there = self.objects.get(key);
        match request.condition() {
            None | Some(Condition::Any) => false,
            Some(_) if self.lie == Lie::Ignores => false,
            Some(Condition::Absent) => there.is_some(),
            Some(Condition::Match(_)) if self.lie == Lie::CreateOnly => false,
            Some(Condition::Match(version)) => there.is_none_or(|there| there.version != *version),
        }
    }

    pub(super) fn carry_out(&mut self, request: &Request) -> Answer {
        if self.refuses(request) {
            return match self.lie {
                Lie::WrongStatus => Answer::Bad("refuses with a wrong status"),
                _ => Answer::Refused,
            };
        }
        match request {
            Request::Get { key } => match self.objects.get(key) {
                Some(found) => Answer::Object(found.bytes.clone(), found.meta()),
                None => Answer::Nothing,
            },
            Request::Head { key } => match self.objects.get(key) {
                Some(found) => Answer::Meta(found.meta()),
                None => Answer::Nothing,
            },
            Request::Range { key, range, pinned } => self.range(key, *range, pinned.as_ref()),
            Request::Put { key, bytes, .. } => Answer::Written(self.write(key, bytes.clone())),
            Request::Delete { keys } => {
                for key in keys {
                    self.objects.remove(key);
                }
                Answer::Done
            }
            Request::List { prefix, after, limit } => {
                Answer::Page(self.page(prefix, after.as_deref(), *limit))
            }
            Request::Folders { folder } => Answer::Names(self.folders(folder)),
            Request::Copy { from, to } => match self.objects.get(from).cloned() {
                Some(found) => {
                    self.write(to, found.bytes);
                    Answer::Done
                }
                None => Answer::Nothing,
            },
            Request::Begin { key, label } => Answer::Upload(self.begin(key, label)),
            Request::UploadPart { id, number, bytes } => match self.uploads.get_mut(id) {
                Some(begun) => {
                    begun.parts.insert(*number, bytes.clone());
                    Answer::Part(part(*number, bytes))
                }
                None => Answer::Nothing,
            },
            Request::Complete { id, parts, .. } => self.complete(id, parts),
            Request::Abort { id } => {
                self.uploads.remove(id);
                Answer::Done
            }
            Request::Uploads { prefix } => Answer::Uploads(self.unfinished(prefix)),
            Request::Parts { id } => match self.uploads.get(id) {
                Some(begun) => {
                    Answer::Parts(begun.parts.iter().map(|(n, bytes)| part(*n, bytes)).collect())
                }
                None => Answer::Nothing,
            },
        }
    }

    pub(super) fn write(&mut self, key: &str, bytes: Bytes) -> Version {
        self.now_ms += 1;
        let version = Version { tag: Some(tag(&bytes)), id: None };
        let (modified_ms, label) = (self.now_ms, None);
        let stored = Stored { bytes, version: version.clone(), modified_ms, label };
        self.objects.insert(key.to_owned(), stored);
        version
    }

    pub(super) fn freeze(&mut self) {
        self.frozen = Some((self.objects.clone(), self.uploads.clone()));
    }

    fn range(&self, key: &str, range: ByteRange, pinned: Option<&Version>) -> Answer {
        let Some(found) = self.objects.get(key) else {
            // It was there when it was pinned.
            return if pinned.is_some() { Answer::Changed } else { Answer::Nothing };
        };
        if pinned.is_some_and(|pinned| found.version != *pinned)
            || range.end() > to_u64(found.bytes.len())
        {
            return Answer::Changed;
        }
        Answer::Bytes(found.bytes.slice(to_usize(range.offset)..to_usize(range.end())))
    }

    fn begin(&mut self, key: &str, label: &str) -> UploadId {
        self.upload_count += 1;
        let id = UploadId(format!("upload-{}", self.upload_count));
        let begun = Begun {
            key: key.to_owned(),
            begun_ms: self.now_ms,
            label: label.to_owned(),
            parts: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), begun);
        id
    }

    fn complete(&mut self, id: &UploadId, parts: &[Part]) -> Answer {
        let Some(begun) = self.uploads.get(id) else { return Answer::Nothing };
        let mut whole = Vec::new();
        let mut last = 0;
        for (at, listed) in parts.iter().enumerate() {
            let Some(bytes) = begun.parts.get(&listed.number) else {
                return Answer::Bad("names a part that is not there");
            };
            if listed.tag != tag(bytes) || listed.number <= last {
                return Answer::Bad("names parts otherwise than they are");
            }
            if at + 1 < parts.len() && to_u64(bytes.len()) < self.part_bytes_min {
                return Answer::Bad("has a part that is too small");
            }
            last = listed.number;
            whole.extend_from_slice(bytes);
        }
        if parts.is_empty() {
            return Answer::Bad("names no part");
        }
        let (key, label) = (begun.key.clone(), begun.label.clone());
        self.uploads.remove(id);
        let version = self.write(&key, Bytes::from(whole));
        if let Some(object) = self.objects.get_mut(&key) {
            object.label = Some(label);
        }
        Answer::Written(version)
    }

    fn shown(&self) -> (&Objects, &Uploads) {
        match &self.frozen {
            Some((objects, uploads)) => (objects, uploads),
            None => (&self.objects, &self.uploads),
        }
    }

    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let behind = |key: &str| after.is_none_or(|after| key > after);
        let mut found =
            self.shown().0.iter().filter(|(key, _)| key.starts_with(prefix) && behind(key));
        let entry = |(key, stored): (&String, &Stored)| {
            let meta = Meta { label: None, ..stored.meta() };
            Entry { key: key.clone(), meta }
        };
        let entries: Vec<Entry> = found.by_ref().take(limit).map(entry).collect();
        Page { entries, more: found.next().is_some() }
    }

    fn folders(&self, folder: &str) -> Vec<String> {
        let first = |key: &String| {
            let (name, _) = key.strip_prefix(folder)?.split_once('/')?;
            Some(name.to_owned())
        };
        let names: BTreeSet<String> = self.shown().0.keys().filter_map(first).collect();
        names.into_iter().collect()
    }

    fn unfinished(&self, prefix: &str) -> Vec<Upload> {
        let upload = |(id, begun): (&UploadId, &Begun)| Upload {
            key: begun.key.clone(),
            id: id.clone(),
            begun_ms: begun.begun_ms,
        };
        let below = |(_, begun): &(&UploadId, &Begun)| begun.key.starts_with(prefix);
        let mut found: Vec<Upload> = self.shown().1.iter().filter(below).map(upload).collect();
        // As servers list them, not by what they are called.
        found.sort_by(|one, other| (&one.key, one.begun_ms).cmp(&(&other.key, other.begun_ms)));
        found
    }
}

impl Stored {
    fn meta(&self) -> Meta {
        Meta {
            len: to_u64(self.bytes.len()),
            version: Some(self.version.clone()),
            modified_ms: self.modified_ms,
            label: self.label.clone(),
        }
    }
}

fn part(number: u32, bytes: &Bytes) -> Part {
    Part { number, len: to_u64(bytes.len()), tag: tag(bytes), checksum: Some(checksum_of(bytes)) }
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32])
}
