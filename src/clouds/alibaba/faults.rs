//! Every error of Alibaba ECS that can arise here: status, code, message. Pure.

use crate::clouds::reply::{Fault, Trouble};
use crate::clouds::sign::SignFault;
use crate::service::{ImageKind, Refusal};

const fn fault(status: u16, code: &'static str, message: &'static str) -> Fault {
    Fault::new(status, code, message)
}

// CopyImage. [D] unless marked.
pub(super) const SOURCE_REGION: Fault =
    fault(400, "SourceRegion.NotFound", "The source region not found.");
pub(super) const DESTINATION_REGION: Fault =
    fault(400, "DestinationRegion.NotFound", "The destination region not found.");
pub(super) const NO_IMAGE: Fault =
    fault(404, "InvalidImageId.NotFound", "The specified ImageId does not exist.");
pub(super) const NOT_AVAILABLE: Fault =
    fault(400, "IncorrectImageStatus", "The image not available.");
pub(super) const NAME_MALFORMED: Fault = fault(
    400,
    "InvalidImageName.Malformed",
    "The specified destination image name is wrongly formed.",
);
pub(super) const NAME_TAKEN: Fault = fault(
    400,
    "InvalidImageName.Duplicated",
    "The specified image name is already in use in the target region. Please try a different one.",
);
pub(super) const DESCRIPTION_MALFORMED: Fault = fault(
    400,
    "InvalidDescription.Malformed",
    "The specified destination description is wrongly formed.",
);
pub(super) const ENCRYPTED_ILLEGAL: Fault = fault(
    400,
    "InvalidParameter.EncryptedIllegal",
    "The specified parameter Encrypted must be true when kmsKeyId is not empty.",
);
pub(super) const KMS_NOT_ENABLED: Fault =
    fault(400, "InvalidParameter.KmsNotEnabled", "The specified operation need enable KMS.");
pub(super) const NO_KEY: Fault =
    fault(404, "InvalidParameter.KMSKeyId.NotFound", "The specified KMSKeyId does not exist.");
/// \[C\] that it is said where the destination does not know the image's key, and of what others
/// share.
pub(super) const ENCRYPTED: Fault = fault(
    403,
    "OperationDeined.EncryptedSnapshot",
    "The image contains encrypted snapshots, which do not support copying.",
);
pub(super) const COPY_CONFLICT: Fault = fault(
    400,
    "OperationDenied.ImageCopyConflict",
    "The same image cannot be copied concurrently. Please wait until the last copy is completed \
     before performing the next operation.",
);
pub(super) const DRY_RUN: Fault =
    fault(400, "DryRunOperation", "Request validation has been passed with DryRun flag set.");
/// \[C\] the message.
pub(super) const TOKEN_REUSED: Fault = fault(
    400,
    "IdempotentParameterMismatch",
    "The request uses the same client token as a previous, but non-identical request.",
);
pub(super) const SAME_REGION: Fault = fault(
    403,
    "IncorrectDestinationRegion",
    "The destination region is not equal the target region.",
);
pub(super) const SAME_REGION_ONLY: Fault = fault(
    403,
    "OperationDenied.SameRegionOnly",
    "The image shared from others can not be copied to another region directly.",
);
/// \[C\] that it is used for kinds that are not copied.
pub(super) const KIND_DENIED: Fault =
    fault(403, "OperationDenied", "The specified snapshot is not allowed to create image.");
/// \[C\] that it is used when the queue of a region is full.
pub(super) const CONFLICT: Fault = fault(
    409,
    "InvalidOperation.Conflict",
    "Request was denied due to conflict with a previous request, please try again later.",
);
pub(super) const INTERNAL: Fault = fault(
    500,
    "InternalError",
    "The request processing has failed due to some unknown error, exception or failure.",
);

// CancelCopyImage.
pub(super) const NO_REGION: Fault =
    fault(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.");
pub(super) const NOT_A_COPY: Fault = fault(
    400,
    "ImageCreatedNotFromCopy",
    "The specified image is not the target image of a copy action.",
);
/// \[C\] of three texts in three ages of the page, the latest.
pub(super) const FINISHED: Fault =
    fault(400, "IncorrectImageStatus", "The image copy has completed.");
pub(super) const HAD_FAILED: Fault =
    fault(400, "IncorrectImageStatus", "The Image copy has been failed.");
/// The page of this call says less than that of copies.
const CANCEL_INTERNAL: Fault =
    fault(500, "InternalError", "The request processing has failed due to some unknown error.");

// DeleteImage.
pub(super) const BEING_COPIED: Fault =
    fault(403, "OperationDenied.ImageCopying", "The Image is coping.");
/// \[C\] the text; the code is that of resources of others.
pub(super) const FORBIDDEN: Fault =
    fault(403, "Forbbiden", "User not authorized to operate on the specified resource.");
/// \[C\]
pub(super) const SHARED: Fault = fault(
    403,
    "InvalidImage.SharedToOthers",
    "The image is shared with others; set Force to delete it.",
);

// All calls.
pub(super) const NO_ACTION: Fault = fault(
    404,
    "InvalidAction.NotFound",
    "Specified api is not found, please check your url and method.",
);
pub(super) const NO_ACCESS_KEY: Fault =
    fault(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.");
pub(super) const NONCE_USED: Fault =
    fault(400, "SignatureNonceUsed", "Specified signature nonce was used already.");
pub(super) const EXPIRED: Fault =
    fault(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.");
pub(super) const THROTTLED: Fault =
    fault(400, "Throttling", "Request was denied due to request throttling.");

/// A mandatory parameter that is not there. \[D\] 2017; other gateways say `Missing<Name>`.
pub(super) fn missing(name: &str) -> Fault {
    let message = format!(
        "The input parameter \"{name}\" that is mandatory for processing this request is not \
         supplied."
    );
    Fault { status: 400, code: "MissingParameter", message: message.into() }
}

/// A parameter that cannot be what it is. \[C\]
pub(super) fn invalid(name: &str) -> Fault {
    let message = format!("The specified parameter \"{name}\" is not valid.");
    Fault { status: 400, code: "InvalidParameter", message: message.into() }
}

fn quota(most: u64) -> Fault {
    let message = format!("The number of images exceeds the limit ({most}).");
    Fault { status: 403, code: "QuotaExceed.Image", message: message.into() }
}

/// What is wrong with the signing.
pub(super) fn of_signing(told: &SignFault) -> Fault {
    let incomplete = |what: &str| Fault {
        status: 400,
        code: "IncompleteSignature",
        message: format!("The request signature does not conform to standards: {what}.").into(),
    };
    match told {
        SignFault::Missing(name) => incomplete(name),
        SignFault::Malformed("Timestamp" | "x-acs-date") => Fault {
            status: 400,
            code: "InvalidTimeStamp.Format",
            message: "Specified time stamp or date value is not well formatted.".into(),
        },
        SignFault::Malformed(name) => incomplete(name),
        SignFault::Expired => EXPIRED,
        // One of the vendor's SDKs takes the message apart at its colon, and dies without one.
        SignFault::Mismatch(string_to_sign) => Fault {
            status: 400,
            code: "SignatureDoesNotMatch",
            message: format!(
                "Specified signature is not matched with our calculation. server string to sign \
                 is:{string_to_sign}"
            )
            .into(),
        },
    }
}

/// What keeps a request from being looked at. \[C\] all but the throttling.
pub(super) fn of_trouble(trouble: Trouble) -> Fault {
    match trouble {
        Trouble::BodyTooLong => {
            fault(413, "RequestBodyTooLarge", "The request body exceeds the maximum size.")
        }
        Trouble::HeadersTooLong => {
            fault(400, "InvalidRequest.TooLarge", "The request headers exceed the maximum size.")
        }
        Trouble::TooSlow => fault(408, "RequestTimeout", "The request was not sent in time."),
        Trouble::Malformed => fault(400, "InvalidRequest", "The request is malformed."),
        Trouble::TooMany => THROTTLED,
    }
}

/// Why a copy was not started.
pub(super) fn of_copy(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion => SOURCE_REGION,
        Refusal::NoRegion(_) => DESTINATION_REGION,
        // \[C\] for images of the system.
        Refusal::NoImage | Refusal::NotOwn => NO_IMAGE,
        Refusal::SharedElsewhere => SAME_REGION_ONLY,
        Refusal::SameRegion => SAME_REGION,
        Refusal::KindNotCopied(ImageKind::System) => NO_IMAGE,
        Refusal::KindNotCopied(_) => KIND_DENIED,
        Refusal::NotAvailable => NOT_AVAILABLE,
        Refusal::NameTaken => NAME_TAKEN,
        Refusal::CopyUnderWay => COPY_CONFLICT,
        Refusal::ImageQuota(most) => quota(*most),
        Refusal::QueueFull(_) => CONFLICT,
        Refusal::TokenReused => TOKEN_REUSED,
        Refusal::NoKeys => KMS_NOT_ENABLED,
        Refusal::NoKey => NO_KEY,
        Refusal::EncryptedElsewhere | Refusal::SharedEncrypted => ENCRYPTED,
        _ => INTERNAL,
    }
}

/// Why a copy was not cancelled.
pub(super) fn of_cancel(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoRegion(_) => NO_REGION,
        Refusal::NoImage => NO_IMAGE,
        Refusal::NotACopy | Refusal::NotOwn => NOT_A_COPY,
        Refusal::Finished => FINISHED,
        Refusal::HadFailed => HAD_FAILED,
        _ => CANCEL_INTERNAL,
    }
}

/// Why an image was not deleted.
pub(super) fn of_delete(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoRegion(_) => NO_REGION,
        Refusal::NoImage => NO_IMAGE,
        Refusal::NotOwn => FORBIDDEN,
        // \[C\] for a source that is being read.
        Refusal::BeingCopied | Refusal::BeingRead => BEING_COPIED,
        Refusal::SharedWithOthers => SHARED,
        _ => INTERNAL,
    }
}
