//! What the service keeps of images and copies, and what callers ask of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ErrorKind;
use crate::id::{ImageId, JobId, RegionName};
use crate::job::Endpoint;
use crate::service::status::Stage;

/// What an image is, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ImageKind {
    /// Made by its project: the kind that is copied.
    Custom,
    /// Offered to all projects by whoever runs the service; never copied, never deleted.
    System,
    /// All disks of an instance in one.
    WholeInstance,
    /// An installation medium.
    Iso,
}

impl ImageKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Custom, Self::System, Self::WholeInstance, Self::Iso];

    /// The stable name, as in the daemon's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::System => "system",
            Self::WholeInstance => "whole-instance",
            Self::Iso => "iso",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whose an image is, as one caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The caller's own.
    Own,
    /// Another project's, shared with the caller's.
    Shared,
    /// The system's, for everybody.
    Public,
}

/// Where an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// The target of a copy that has not ended.
    Creating,
    /// There in full.
    Available,
    /// The target of a copy that failed: a name without bytes.
    CreateFailed,
    /// On its way out.
    Deleting,
}

impl ImageState {
    pub(crate) const ALL: [Self; 4] =
        [Self::Creating, Self::Available, Self::CreateFailed, Self::Deleting];

    /// The stable name, as in the database and in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::CreateFailed => "create_failed",
            Self::Deleting => "deleting",
        }
    }
}

/// What is kept of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// Where it is.
    pub region: RegionName,
    /// Its id there.
    pub id: ImageId,
    /// Whose it is.
    pub project: String,
    /// The access key that made it; `None` for one that was put in place.
    pub made_by: Option<String>,
    /// Its name; may be empty.
    pub name: String,
    /// Its description; may be empty.
    pub description: String,
    /// Labels by key.
    pub tags: BTreeMap<String, String>,
    /// What it is.
    pub kind: ImageKind,
    /// Projects that may read it beside its own.
    pub shared_with: BTreeSet<String>,
    /// The key it is encrypted under; `None`: it is not.
    pub key: Option<String>,
    /// Where it stands.
    pub state: ImageState,
    /// The copy that made it; `None`: it did not come from a copy.
    pub copied_by: Option<JobId>,
    /// Its size in bytes; that of the source while it is being made.
    pub image_bytes: u64,
    /// When it was made known, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

impl Image {
    /// A custom image that is there in full, without name: the other fields are public.
    pub fn new(region: RegionName, id: ImageId, project: impl Into<String>) -> Self {
        Self {
            region,
            id,
            project: project.into(),
            made_by: None,
            name: String::new(),
            description: String::new(),
            tags: BTreeMap::new(),
            kind: ImageKind::Custom,
            shared_with: BTreeSet::new(),
            key: None,
            state: ImageState::Available,
            copied_by: None,
            image_bytes: 0,
            created_unix_ms: 0,
        }
    }

    /// The region and the id.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.region.clone(), self.id.clone())
    }

    /// Whose it is in that project's eyes; `None`: none of its business.
    pub fn relation_to(&self, project: &str) -> Option<Relation> {
        if self.kind == ImageKind::System {
            Some(Relation::Public)
        } else if self.project == project {
            Some(Relation::Own)
        } else {
            self.shared_with.contains(project).then_some(Relation::Shared)
        }
    }
}

/// Where a copy stands, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// In the queue of its region.
    Waiting,
    /// The engine has it.
    Running,
    /// Its image is available.
    Done,
    /// It failed; nothing of it is left but the image's name.
    Failed {
        /// What kind of error it was.
        kind: ErrorKind,
        /// What the error said.
        message: String,
    },
    /// It was cancelled; its image is gone.
    Cancelled,
}

impl CopyState {
    /// Whether nothing can happen to it any more.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// What is kept of a copy: one leg from one image to one region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copy {
    /// Its number, which is that of the engine's job.
    pub job: JobId,
    /// What the engine is shown, so that starting it again is the same job.
    pub(crate) engine_token: String,
    /// Its place in the queue: the lower, the earlier.
    pub(crate) order: u64,
    /// Whose it is.
    pub project: String,
    /// Where the bytes come from.
    pub source: Endpoint,
    /// Where the image will be.
    pub target: Endpoint,
    /// The name that the new image was to have.
    pub name: String,
    /// Where it stands.
    pub state: CopyState,
    /// When it was accepted, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When it ended, in milliseconds since 1970; 0 while it has not.
    pub ended_unix_ms: u64,
}

/// A copy as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyView {
    /// What is kept of it.
    pub copy: Copy,
    /// Where it stands.
    pub stage: Stage,
    /// How much of it is done, in percent: 100 once it is, at most 99 before.
    pub percent: u8,
    /// Time to the end at the present rate, in seconds, where that is known.
    pub remaining_sec: Option<u64>,
}

/// An image as one caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageView {
    /// What is kept of it.
    pub image: Image,
    /// Whose it is.
    pub relation: Relation,
    /// The copy that makes it or has made it, while that is remembered.
    pub copy: Option<CopyView>,
}

impl ImageView {
    /// Where the image stands, in the words that all clouds can be told in.
    pub fn stage(&self) -> Stage {
        match (self.image.state, &self.copy) {
            (ImageState::Available | ImageState::Deleting, _) => Stage::Done,
            (ImageState::CreateFailed, _) => Stage::Failed,
            (ImageState::Creating, Some(copy)) => copy.stage,
            (ImageState::Creating, None) => Stage::Copying,
        }
    }
}

/// An idempotency token: the same token with the same request is the same start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is and for which call: tokens of different scopes never meet.
    pub scope: String,
    /// What the caller sent.
    pub text: String,
    /// Digest of everything else that was asked.
    pub request: [u8; 32],
}

/// What a token has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenUse {
    pub(crate) request: [u8; 32],
    pub(crate) legs: Vec<Leg>,
    pub(crate) created_unix_ms: u64,
}

/// One copy that a start made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Its number.
    pub job: JobId,
    /// Where the image will be.
    pub target: Endpoint,
}

/// What a caller asks to be copied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyOrder {
    /// Where the bytes come from.
    pub source: Endpoint,
    /// Where the images are to be: one copy each. None may come twice.
    pub targets: Vec<Endpoint>,
    /// The name of the new images.
    pub name: String,
    /// Their description.
    pub description: String,
    /// Their labels.
    pub tags: BTreeMap<String, String>,
    /// The key that they are to be encrypted under. Without one they are encrypted as the source
    /// is. Empty: the first key of each target's region.
    pub key: Option<String>,
    /// The idempotency token.
    pub token: Option<Token>,
    /// What this cloud insists on.
    pub rules: Rules,
}

impl CopyOrder {
    /// A copy without name: the other fields are public.
    pub fn new(source: Endpoint, targets: Vec<Endpoint>, rules: Rules) -> Self {
        Self {
            source,
            targets,
            name: String::new(),
            description: String::new(),
            tags: BTreeMap::new(),
            key: None,
            token: None,
            rules,
        }
    }
}

/// What a cloud insists on when a copy is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rules {
    /// A name is used once in a region, by a project.
    pub unique_names: bool,
    /// An image is copied to a region once at a time.
    pub one_copy_per_region: bool,
    /// Whether a copy may stay in its region.
    pub same_region: SameRegion,
    /// Whether shared images may be copied to another region.
    pub shared_elsewhere: bool,
    /// Whether whole-instance images are copied to another region.
    pub whole_instance_elsewhere: bool,
    /// Whether encrypted images may be copied to another region.
    pub encrypted_elsewhere: bool,
    /// Whether a key that is asked for must be another than the source's.
    pub another_key: bool,
    /// The most bytes of an image that is encrypted, or is to be.
    pub encrypted_bytes_max: Option<u64>,
}

/// Whether a copy may stay in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameRegion {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
    /// Only for an image of somebody else's, or to encrypt it.
    SharedOrEncrypted,
}

impl Rules {
    /// Alibaba ECS. \[D\] names and concurrent copies; \[C\] the exception for the same region.
    pub const ALIBABA: Self = Self {
        unique_names: true,
        one_copy_per_region: true,
        same_region: SameRegion::SharedOrEncrypted,
        shared_elsewhere: false,
        whole_instance_elsewhere: true,
        encrypted_elsewhere: true,
        another_key: false,
        encrypted_bytes_max: None,
    };
    /// Baidu BCC: names are not enforced \[C\].
    pub const BAIDU: Self = Self {
        unique_names: false,
        one_copy_per_region: false,
        same_region: SameRegion::Refused,
        shared_elsewhere: false,
        whole_instance_elsewhere: false,
        encrypted_elsewhere: true,
        another_key: false,
        encrypted_bytes_max: None,
    };
    /// Huawei IMS within a region: names are used once \[C\]. \[D\] that encrypted images stay
    /// there, take another key, and have at most 128 GB; \[C\] that those that are to be encrypted
    /// have, too.
    pub const HUAWEI_IN_REGION: Self = Self {
        unique_names: true,
        one_copy_per_region: false,
        same_region: SameRegion::Allowed,
        shared_elsewhere: false,
        whole_instance_elsewhere: false,
        encrypted_elsewhere: false,
        another_key: true,
        encrypted_bytes_max: Some(128 << 30),
    };
    /// Huawei IMS to another region.
    pub const HUAWEI_CROSS_REGION: Self =
        Self { same_region: SameRegion::Refused, ..Self::HUAWEI_IN_REGION };
}

/// Who calls, and what it may touch: nothing that is not granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The project it acts for.
    pub project: String,
    /// The access key it came with.
    pub key: String,
    /// Names of regions that it may use; `*` at the end stands for any rest.
    pub regions: Vec<String>,
    /// Ids or names of images that it may touch, likewise; those that it made it may in any case.
    pub images: Vec<String>,
}

impl Caller {
    /// Whether it may use that region.
    pub fn may_use(&self, region: &RegionName) -> bool {
        self.regions.iter().any(|pattern| matches(pattern, region.as_str()))
    }

    /// Whose the image is to this caller; `None`: it may not know of it.
    pub fn sees(&self, image: &Image) -> Option<Relation> {
        if !self.may_use(&image.region) {
            return None;
        }
        let granted = |pattern: &String| {
            matches(pattern, image.id.as_str())
                || (!image.name.is_empty() && matches(pattern, &image.name))
        };
        let own = image.made_by.as_deref() == Some(self.key.as_str());
        if !own && !self.images.iter().any(granted) {
            return None;
        }
        image.relation_to(&self.project)
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(project: &str, id: &str, name: &str) -> Image {
        let mut image = Image::new("r-1".parse().unwrap(), id.parse().unwrap(), project);
        image.name = name.to_owned();
        image
    }

    #[test]
    fn what_is_not_granted_is_not_seen() {
        let mut caller = Caller { project: "p".into(), key: "k".into(), ..Caller::default() };
        let mut own = image("p", "m-1", "disk");
        assert_eq!(caller.sees(&own), None, "no region");
        caller.regions = vec!["r-*".into()];
        assert_eq!(caller.sees(&own), None, "no image");
        for pattern in ["m-1", "m-*", "*", "disk", "di*"] {
            caller.images = vec![pattern.into()];
            assert_eq!(caller.sees(&own), Some(Relation::Own), "{pattern}");
        }
        for pattern in ["m", "m-2", "", "disk2"] {
            caller.images = vec![pattern.into()];
            assert_eq!(caller.sees(&own), None, "{pattern}");
        }
        own.made_by = Some("k".into());
        assert_eq!(caller.sees(&own), Some(Relation::Own), "what it made it may touch");
        caller.regions = vec!["r-2".into()];
        assert_eq!(caller.sees(&own), None, "but not in a region that was taken from it");
    }

    #[test]
    fn another_project_s_image_is_seen_when_it_is_shared_or_the_system_s() {
        let star = vec!["*".to_owned()];
        let caller =
            Caller { project: "p".into(), key: "k".into(), regions: star.clone(), images: star };
        let mut other = image("q", "m-1", "");
        assert_eq!(caller.sees(&other), None);
        other.shared_with.insert("p".into());
        assert_eq!(caller.sees(&other), Some(Relation::Shared));
        other.kind = ImageKind::System;
        assert_eq!(caller.sees(&other), Some(Relation::Public));
    }

    #[test]
    fn an_image_without_name_is_not_granted_by_name() {
        let caller = Caller {
            project: "p".into(),
            key: "k".into(),
            regions: vec!["*".into()],
            images: vec!["*".into()],
        };
        assert_eq!(caller.sees(&image("p", "m-1", "")), Some(Relation::Own));
        let none = Caller { images: vec![String::new()], ..caller };
        assert_eq!(none.sees(&image("p", "m-1", "")), None);
    }
}
