//! The database: images, copies and tokens as rows, each batch of changes one durable transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::id::JobId;
use crate::job::Endpoint;
use crate::service::catalog::{Catalog, Change};
use crate::service::model::{Copy, CopyState, Image, ImageKind, ImageState, Leg, TokenUse};

/// Beside the engine's index, in the state folder.
const FILE: &str = "service.redb";
/// Pages that are kept in memory: all rows are kept there once more, as values.
const CACHE_BYTES: usize = 8 << 20;
/// Rows of a newer layout are not touched.
const VERSION: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("images");
const COPIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("copies");
const TOKENS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("tokens");

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the database in that folder, or makes one.
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(FILE);
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(&path);
        let opened = opened.map_err(|cause| match cause {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                Error::new(ErrorKind::Busy, "open the service's database")
                    .hint("another daemon has it open")
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(cause)) => {
                Error::io("open the service's database", cause)
            }
            other => Error::new(ErrorKind::Corrupt, "open the service's database").because(other),
        });
        let database = opened.map_err(|error| error.within(path.display().to_string()))?;
        let store = Self { database, path };
        store.check_version()?;
        Ok(store)
    }

    fn check_version(&self) -> Result<()> {
        let write = self.database.begin_write().map_err(|e| self.failed(e))?;
        let found = {
            let mut meta = write.open_table(META).map_err(|e| self.failed(e))?;
            let found = meta.get("version").map_err(|e| self.failed(e))?.map(|v| v.value());
            if found.is_none() {
                meta.insert("version", VERSION).map_err(|e| self.failed(e))?;
            }
            // The tables are there from the first day, so that reading them never fails for want.
            write.open_table(IMAGES).map_err(|e| self.failed(e))?;
            write.open_table(COPIES).map_err(|e| self.failed(e))?;
            write.open_table(TOKENS).map_err(|e| self.failed(e))?;
            found
        };
        write.commit().map_err(|e| self.failed(e))?;
        if let Some(found) = found.filter(|found| *found != VERSION) {
            let what = format!("read the service's database of version {found}");
            return Err(Error::new(ErrorKind::Unsupported, what)
                .within(self.path.display().to_string())
                .hint("it was written by another blockferry: use that one"));
        }
        Ok(())
    }

    /// Puts everything that is stored into a catalog.
    pub(crate) fn load(&self, catalog: &mut Catalog) -> Result<()> {
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let images = read.open_table(IMAGES).map_err(|e| self.failed(e))?;
        for row in images.iter().map_err(|e| self.failed(e))? {
            let (_, value) = row.map_err(|e| self.failed(e))?;
            let image = self.row::<ImageRow>(value.value())?.image()?;
            catalog.apply(&Change::Image(Arc::new(image)));
        }
        let copies = read.open_table(COPIES).map_err(|e| self.failed(e))?;
        for row in copies.iter().map_err(|e| self.failed(e))? {
            let (_, value) = row.map_err(|e| self.failed(e))?;
            let copy = self.row::<CopyRow>(value.value())?.copy()?;
            catalog.apply(&Change::Copy(Arc::new(copy)));
        }
        let tokens = read.open_table(TOKENS).map_err(|e| self.failed(e))?;
        for row in tokens.iter().map_err(|e| self.failed(e))? {
            let (key, value) = row.map_err(|e| self.failed(e))?;
            let (scope, text) = key.value();
            let used = self.row::<TokenRow>(value.value())?.used()?;
            catalog.apply(&Change::Token((scope.to_owned(), text.to_owned()), Arc::new(used)));
        }
        Ok(())
    }

    /// Stores all of those changes, or none.
    ///
    /// # Durability
    /// They survive power loss when this returns.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let write = self.database.begin_write().map_err(|e| self.failed(e))?;
        {
            let mut images = write.open_table(IMAGES).map_err(|e| self.failed(e))?;
            let mut copies = write.open_table(COPIES).map_err(|e| self.failed(e))?;
            let mut tokens = write.open_table(TOKENS).map_err(|e| self.failed(e))?;
            for change in changes {
                match change {
                    Change::Image(image) => {
                        let key = (image.region.as_str(), image.id.as_str());
                        let row = self.bytes(&ImageRow::of(image))?;
                        images.insert(key, &*row).map_err(|e| self.failed(e))?;
                    }
                    Change::NoImage(end) => {
                        let key = (end.region.as_str(), end.image.as_str());
                        images.remove(key).map_err(|e| self.failed(e))?;
                    }
                    Change::Copy(copy) => {
                        let row = self.bytes(&CopyRow::of(copy))?;
                        let key = copy.job.to_string();
                        copies.insert(&*key, &*row).map_err(|e| self.failed(e))?;
                    }
                    Change::NoCopy(job) => {
                        copies.remove(&*job.to_string()).map_err(|e| self.failed(e))?;
                    }
                    Change::Token((scope, text), used) => {
                        let row = self.bytes(&TokenRow::of(used))?;
                        tokens.insert((&**scope, &**text), &*row).map_err(|e| self.failed(e))?;
                    }
                    Change::NoToken((scope, text)) => {
                        tokens.remove((&**scope, &**text)).map_err(|e| self.failed(e))?;
                    }
                }
            }
        }
        write.commit().map_err(|e| self.failed(e))
    }

    fn row<'a, T: Deserialize<'a>>(&self, bytes: &'a [u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|cause| {
            Error::new(ErrorKind::Corrupt, "read a row of the service's database")
                .within(self.path.display().to_string())
                .because(cause)
        })
    }

    fn bytes<T: Serialize>(&self, row: &T) -> Result<Vec<u8>> {
        serde_json::to_vec(row).map_err(|cause| {
            Error::new(ErrorKind::Invalid, "write a row of the service's database").because(cause)
        })
    }

    fn failed(&self, cause: impl Into<redb::Error>) -> Error {
        let action = "use the service's database";
        let error = match cause.into() {
            redb::Error::Io(cause) => Error::io(action, cause),
            other @ redb::Error::Corrupted(_) => {
                Error::new(ErrorKind::Corrupt, action).because(other)
            }
            other => Error::new(ErrorKind::Io, action).because(other),
        };
        error.within(self.path.display().to_string())
    }
}

#[derive(Serialize, Deserialize)]
struct EndRow {
    region: String,
    image: String,
}

impl EndRow {
    fn of(end: &Endpoint) -> Self {
        Self { region: end.region.to_string(), image: end.image.to_string() }
    }

    fn end(&self) -> Result<Endpoint> {
        Ok(Endpoint::new(self.region.parse()?, self.image.parse()?))
    }
}

#[derive(Serialize, Deserialize)]
struct ImageRow {
    region: String,
    id: String,
    project: String,
    made_by: Option<String>,
    name: String,
    description: String,
    tags: BTreeMap<String, String>,
    kind: String,
    shared_with: BTreeSet<String>,
    key: Option<String>,
    state: String,
    copied_by: Option<String>,
    image_bytes: u64,
    created_unix_ms: u64,
}

impl ImageRow {
    fn of(image: &Image) -> Self {
        Self {
            region: image.region.to_string(),
            id: image.id.to_string(),
            project: image.project.clone(),
            made_by: image.made_by.clone(),
            name: image.name.clone(),
            description: image.description.clone(),
            tags: image.tags.clone(),
            kind: image.kind.name().to_owned(),
            shared_with: image.shared_with.clone(),
            key: image.key.clone(),
            state: image.state.name().to_owned(),
            copied_by: image.copied_by.map(|job| job.to_string()),
            image_bytes: image.image_bytes,
            created_unix_ms: image.created_unix_ms,
        }
    }

    fn image(self) -> Result<Image> {
        let state = ImageState::ALL.into_iter().find(|state| state.name() == self.state);
        Ok(Image {
            region: self.region.parse()?,
            id: self.id.parse()?,
            project: self.project,
            made_by: self.made_by,
            name: self.name,
            description: self.description,
            tags: self.tags,
            kind: ImageKind::from_name(&self.kind).ok_or_else(|| odd("kind", &self.kind))?,
            shared_with: self.shared_with,
            key: self.key,
            state: state.ok_or_else(|| odd("state", &self.state))?,
            copied_by: self.copied_by.map(|job| job.parse()).transpose()?,
            image_bytes: self.image_bytes,
            created_unix_ms: self.created_unix_ms,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct CopyRow {
    job: String,
    engine_token: String,
    order: u64,
    project: String,
    source: EndRow,
    target: EndRow,
    name: String,
    state: String,
    error: Option<(String, String)>,
    created_unix_ms: u64,
    ended_unix_ms: u64,
}

impl CopyRow {
    fn of(copy: &Copy) -> Self {
        let (state, error) = match &copy.state {
            CopyState::Waiting => ("waiting", None),
            CopyState::Running => ("running", None),
            CopyState::Done => ("done", None),
            CopyState::Failed { kind, message } => {
                ("failed", Some((kind.name().to_owned(), message.clone())))
            }
            CopyState::Cancelled => ("cancelled", None),
        };
        Self {
            job: copy.job.to_string(),
            engine_token: copy.engine_token.clone(),
            order: copy.order,
            project: copy.project.clone(),
            source: EndRow::of(&copy.source),
            target: EndRow::of(&copy.target),
            name: copy.name.clone(),
            state: state.to_owned(),
            error,
            created_unix_ms: copy.created_unix_ms,
            ended_unix_ms: copy.ended_unix_ms,
        }
    }

    fn copy(self) -> Result<Copy> {
        let state = match (&*self.state, self.error) {
            ("waiting", None) => CopyState::Waiting,
            ("running", None) => CopyState::Running,
            ("done", None) => CopyState::Done,
            ("cancelled", None) => CopyState::Cancelled,
            ("failed", Some((kind, message))) => {
                let kind = ErrorKind::from_name(&kind).ok_or_else(|| odd("error", &kind))?;
                CopyState::Failed { kind, message }
            }
            _ => return Err(odd("state", &self.state)),
        };
        Ok(Copy {
            job: self.job.parse()?,
            engine_token: self.engine_token,
            order: self.order,
            project: self.project,
            source: self.source.end()?,
            target: self.target.end()?,
            name: self.name,
            state,
            created_unix_ms: self.created_unix_ms,
            ended_unix_ms: self.ended_unix_ms,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct TokenRow {
    request: [u8; 32],
    legs: Vec<(String, EndRow)>,
    created_unix_ms: u64,
}

impl TokenRow {
    fn of(used: &TokenUse) -> Self {
        let legs = used.legs.iter();
        Self {
            request: used.request,
            legs: legs.map(|leg| (leg.job.to_string(), EndRow::of(&leg.target))).collect(),
            created_unix_ms: used.created_unix_ms,
        }
    }

    fn used(self) -> Result<TokenUse> {
        let leg = |(job, target): (String, EndRow)| {
            Ok(Leg { job: job.parse::<JobId>()?, target: target.end()? })
        };
        Ok(TokenUse {
            request: self.request,
            legs: self.legs.into_iter().map(leg).collect::<Result<_>>()?,
            created_unix_ms: self.created_unix_ms,
        })
    }
}

fn odd(what: &str, value: &str) -> Error {
    let what = format!("read {what} {} from the service's database", crate::id::shown(value));
    Error::new(ErrorKind::Corrupt, what)
}
