//! Why the service does not do what it was asked: one reason for each answer that a cloud gives.
//! Pure.

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::id::RegionName;

/// The result of a call to the service.
pub type Answer<T> = std::result::Result<T, Refusal>;

/// Why a call was refused. Nothing was changed, except where [`Refusal::Failed`] says otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The source's region is unknown, or not one of the caller's.
    NoSourceRegion,
    /// That destination region is unknown, or not one of the caller's.
    NoRegion(RegionName),
    /// There is no such image in that region, or it is not one of the caller's.
    NoImage,
    /// There is no such job, or it is not one of the caller's.
    NoJob,
    /// Only images of the caller's own can be treated so: this one is of the system, or shared.
    NotOwn,
    /// An image that others share stays in its region.
    SharedElsewhere,
    /// Source and destination are the same region.
    SameRegion,
    /// Images of this kind are not copied.
    KindNotCopied(super::ImageKind),
    /// The source is not there in full, or is on its way out.
    NotAvailable,
    /// Another image of the caller's in the destination region has that name.
    NameTaken,
    /// The same image is being copied to the same region already.
    CopyUnderWay,
    /// The caller has as many images in that region as it may have.
    ImageQuota(u64),
    /// As many copies wait for that region as may.
    QueueFull(u64),
    /// The token was used for another request.
    TokenReused,
    /// The image did not come from a copy.
    NotACopy,
    /// The copy has finished: its image stays.
    Finished,
    /// The copy had failed before.
    HadFailed,
    /// The image is being made, and can only be cancelled.
    BeingCopied,
    /// The image is being read by a copy.
    BeingRead,
    /// The image is shared with others.
    SharedWithOthers,
    /// There is no key of that id.
    NoKey,
    /// There are no keys here at all: images cannot be encrypted.
    NoKeys,
    /// The source is encrypted under the key that was asked for.
    SameKey,
    /// An encrypted image stays where its key is.
    EncryptedElsewhere,
    /// An image that others share is copied by nobody else when it is encrypted.
    SharedEncrypted,
    /// An image that is encrypted, or is to be, has at most that many bytes.
    EncryptedTooLarge(u64),
    /// The engine or the database failed; what was decided before stays decided.
    Failed(Error),
}

impl Refusal {
    /// A stable name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoSourceRegion => "no_source_region",
            Self::NoRegion(_) => "no_region",
            Self::NoImage => "no_image",
            Self::NoJob => "no_job",
            Self::NotOwn => "not_own",
            Self::SharedElsewhere => "shared_elsewhere",
            Self::SameRegion => "same_region",
            Self::KindNotCopied(_) => "kind_not_copied",
            Self::NotAvailable => "not_available",
            Self::NameTaken => "name_taken",
            Self::CopyUnderWay => "copy_under_way",
            Self::ImageQuota(_) => "image_quota",
            Self::QueueFull(_) => "queue_full",
            Self::TokenReused => "token_reused",
            Self::NotACopy => "not_a_copy",
            Self::Finished => "finished",
            Self::HadFailed => "had_failed",
            Self::BeingCopied => "being_copied",
            Self::BeingRead => "being_read",
            Self::SharedWithOthers => "shared_with_others",
            Self::NoKey => "no_key",
            Self::NoKeys => "no_keys",
            Self::SameKey => "same_key",
            Self::EncryptedElsewhere => "encrypted_elsewhere",
            Self::SharedEncrypted => "shared_encrypted",
            Self::EncryptedTooLarge(_) => "encrypted_too_large",
            Self::Failed(_) => "failed",
        }
    }

    /// What a caller without a cloud's dialect can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSourceRegion
            | Self::NoRegion(_)
            | Self::NoImage
            | Self::NoJob
            | Self::NoKey => ErrorKind::NotFound,
            Self::NotOwn | Self::SharedElsewhere | Self::SharedEncrypted => ErrorKind::Denied,
            Self::NotACopy => ErrorKind::NotACopy,
            Self::NameTaken | Self::Finished => ErrorKind::Exists,
            Self::NotAvailable
            | Self::CopyUnderWay
            | Self::BeingCopied
            | Self::BeingRead
            | Self::QueueFull(_)
            | Self::SharedWithOthers => ErrorKind::Busy,
            Self::ImageQuota(_) => ErrorKind::NoSpace,
            Self::SameRegion | Self::TokenReused | Self::HadFailed | Self::SameKey => {
                ErrorKind::Invalid
            }
            Self::KindNotCopied(_)
            | Self::NoKeys
            | Self::EncryptedElsewhere
            | Self::EncryptedTooLarge(_) => ErrorKind::Unsupported,
            Self::Failed(error) => error.kind(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegion(region) => write!(f, "no_region: {region}"),
            Self::ImageQuota(most) | Self::QueueFull(most) | Self::EncryptedTooLarge(most) => {
                write!(f, "{}: at most {most}", self.name())
            }
            Self::Failed(error) => write!(f, "failed: {error}"),
            other => f.write_str(other.name()),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => std::error::Error::source(error),
            _ => None,
        }
    }
}
