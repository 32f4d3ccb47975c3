//! Every error of Baidu BCC's images that can arise here: status, code, message. Pure.

use crate::clouds::reply::{Fault, Trouble};
use crate::clouds::sign::SignFault;
use crate::service::Refusal;

const fn fault(status: u16, code: &'static str, message: &'static str) -> Fault {
    Fault::new(status, code, message)
}

// [D] unless marked.
/// \[C\] that it is said of images, too.
pub(super) const NO_IMAGE: Fault =
    fault(404, "NoSuchObject", "The specified object is not found or resource do not exist.");
pub(super) const REGION: Fault =
    fault(409, "Image.RegionNotSupportCopy", "Region not support copy.");
pub(super) const NOT_COPIED: Fault =
    fault(409, "Image.ImageNotSupportCopy", "Image not support copy.");
pub(super) const NOT_AVAILABLE: Fault =
    fault(409, "Image.ImageStatusForbidden", "Image status is not Available.");
pub(super) const NOT_COPYING: Fault =
    fault(409, "Image.ImageStatusForbidden", "Image status is not dest_copying.");
pub(super) const CREATING: Fault =
    fault(409, "Image.CreatingImageCannotBeDeleted", "Cannot delete image when creating.");
pub(super) const SHARED: Fault =
    fault(409, "Image.ImageHasBeenSharedToOthers", "Image has been shared to others.");
pub(super) const NOT_CUSTOM: Fault =
    fault(403, "Image.UnCustomImageCannotBeDeleted", "Only custom image can be deleted.");
/// \[C\] for copies.
pub(super) const QUOTA: Fault =
    fault(413, "Image.ImageQuotaExceedLimit", "Image number exceeds the limit.");
/// \[C\] which code.
pub(super) const INAPPROPRIATE: Fault = fault(
    400,
    "InappropriateJSON",
    "The JSON you provided was well-formed and valid, but not appropriate for this operation.",
);
pub(super) const MALFORMED_JSON: Fault =
    fault(400, "MalformedJSON", "The JSON you provided was not well-formed.");
pub(super) const DENIED: Fault = fault(403, "AccessDenied", "Access denied.");
pub(super) const NO_ACCESS_KEY: Fault = fault(
    403,
    "InvalidAccessKeyId",
    "The Access Key ID you provided does not exist in our records.",
);
/// \[C\] status and text.
const MISMATCH: Fault = fault(
    400,
    "SignatureDoesNotMatch",
    "The request signature we calculated does not match the signature you provided. Check your \
     Secret Access Key and signing method. Consult the service documentation for details.",
);
/// \[C\] status and text. The Python SDK tries again.
const EXPIRED: Fault = fault(400, "RequestExpired", "Request has expired.");
const AUTH_HEADER: Fault = fault(
    400,
    "InvalidHTTPAuthHeader",
    "The HTTP authorization header is invalid. Consult the service documentation for details.",
);
/// \[C\] the text.
pub(super) const NO_PATH: Fault = fault(400, "InvalidURI", "Could not parse the specified URI.");
pub(super) const INTERNAL: Fault =
    fault(500, "InternalError", "We encountered an internal error. Please try again.");
/// \[C\]
pub(super) const THROTTLED: Fault =
    fault(429, "TooManyRequests", "Too many requests. Please try again later.");

/// What is wrong with the signing.
pub(super) fn of_signing(told: &SignFault) -> Fault {
    match told {
        SignFault::Missing("authorization") => DENIED,
        SignFault::Missing(_) | SignFault::Malformed(_) => AUTH_HEADER,
        SignFault::Expired => EXPIRED,
        SignFault::Mismatch(_) => MISMATCH,
    }
}

/// What keeps a request from being looked at. \[C\]
pub(super) fn of_trouble(trouble: Trouble) -> Fault {
    match trouble {
        Trouble::BodyTooLong => fault(413, "EntityTooLarge", "The request body is too large."),
        Trouble::HeadersTooLong => {
            fault(400, "InvalidHTTPRequest", "The request headers are too large.")
        }
        Trouble::TooSlow => fault(408, "RequestTimeout", "The request was not sent in time."),
        Trouble::Malformed => {
            fault(400, "InvalidHTTPRequest", "There was an error in the HTTP request.")
        }
        Trouble::TooMany => THROTTLED,
    }
}

/// Why a copy was not started.
pub(super) fn of_copy(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoImage => NO_IMAGE,
        // \[C\] for the source's own region.
        Refusal::NoRegion(_) | Refusal::SameRegion => REGION,
        Refusal::NotOwn
        | Refusal::KindNotCopied(_)
        | Refusal::SharedElsewhere
        | Refusal::EncryptedElsewhere
        | Refusal::SharedEncrypted => NOT_COPIED,
        Refusal::NotAvailable => NOT_AVAILABLE,
        // \[C\] for a full queue.
        Refusal::ImageQuota(_) | Refusal::QueueFull(_) => QUOTA,
        _ => INTERNAL,
    }
}

/// Why a copy was not cancelled.
pub(super) fn of_cancel(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoRegion(_) | Refusal::NoImage => NO_IMAGE,
        // There is one code for everything that is not being copied.
        Refusal::NotACopy | Refusal::NotOwn | Refusal::Finished | Refusal::HadFailed => NOT_COPYING,
        _ => INTERNAL,
    }
}

/// Why an image was not deleted.
pub(super) fn of_delete(refusal: &Refusal, is_public: bool) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoRegion(_) | Refusal::NoImage => NO_IMAGE,
        // \[C\] for a source that is being read.
        Refusal::BeingCopied | Refusal::BeingRead => CREATING,
        Refusal::SharedWithOthers => SHARED,
        Refusal::NotOwn if is_public => NOT_CUSTOM,
        Refusal::NotOwn => DENIED,
        _ => INTERNAL,
    }
}
