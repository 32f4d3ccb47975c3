//! Every error of Huawei IMS that can arise here: status, code, message; the gateway's too. Pure.

use std::borrow::Cow;

use crate::clouds::reply::Trouble;
use crate::clouds::sign::SignFault;
use crate::service::{ImageKind, Refusal};

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: Cow<'static, str>,
    /// Whether the gateway says it, which has a shape of its own.
    pub(crate) of_gateway: bool,
}

/// The service's own are 400, with one exception that cannot arise here. \[D\]
const fn ims(code: &'static str, message: &'static str) -> Fault {
    Fault { status: 400, code, message: Cow::Borrowed(message), of_gateway: false }
}

fn gateway(status: u16, code: &'static str, message: impl Into<Cow<'static, str>>) -> Fault {
    Fault { status, code, message: message.into(), of_gateway: true }
}

// Texts: all [D]. Which of them is said when is marked where it is a choice.
pub(super) const BODY_MALFORMED: Fault = ims("IMG.0001", "The request message format is invalid.");
pub(super) const NAME_LONG: Fault =
    ims("IMG.0002", "The image name contains more than 128 characters.");
pub(super) const NAME_MALFORMED: Fault = ims("IMG.0003", "The image name format is invalid.");
pub(super) const DESCRIPTION_LONG: Fault =
    ims("IMG.0004", "The description contains more than 1024 characters.");
pub(super) const BODY_EMPTY: Fault = ims("IMG.0007", "The request body is empty.");
/// \[C\] that copies are refused for it.
pub(super) const NAME_TAKEN: Fault = ims("IMG.0009", "The image name already exists.");
pub(super) const NAME_MISSING: Fault = ims("IMG.0013", "The image name is not specified.");
pub(super) const QUOTA: Fault =
    ims("IMG.0015", "The number of private images has reached the maximum allowed.");
pub(super) const NO_SOURCE: Fault = ims("IMG.0027", "The image ID in the request does not exist.");
/// \[C\] for an image that is being read.
pub(super) const PROTECTED: Fault = ims("IMG.0028", "The image in the request is protected.");
/// \[C\] for an unknown region.
pub(super) const NO_REGION: Fault = ims("IMG.0031", "The resource ID in the request is incorrect.");
pub(super) const NOT_ACTIVE: Fault = ims("IMG.0046", "The image is unavailable.");
pub(super) const OWNER_ONLY: Fault =
    ims("IMG.0047", "This operation can be performed only by the image owner.");
pub(super) const DESCRIPTION_MALFORMED: Fault =
    ims("IMG.0054", "The image description format is invalid.");
pub(super) const TOO_LARGE: Fault =
    ims("IMG.0059", "The size of the image file exceeds the maximum allowed.");
/// \[C\] for a full queue.
pub(super) const TOO_MANY_TASKS: Fault =
    ims("IMG.0060", "The number of tasks exceeds the flow control limit.");
pub(super) const UNKNOWN: Fault = ims("IMG.0061", "Unknown system error.");
/// \[C\]
pub(super) const ID_MALFORMED: Fault = ims("IMG.0066", "The image ID is incorrect.");
pub(super) const BEING_CREATED: Fault =
    ims("IMG.0090", "The image being created cannot be deleted.");
pub(super) const DELETE_OWNER_ONLY: Fault =
    ims("IMG.0092", "The image can only be deleted by the owner.");
pub(super) const PUBLIC: Fault = ims("IMG.0094", "The public image cannot be deleted.");
pub(super) const NO_KEY: Fault = ims("IMG.0095", "The KMS key does not exist.");
pub(super) const SAME_KEY: Fault =
    ims("IMG.0096", "The specified KMS key ID must be different from the image key ID.");
pub(super) const NOT_SUPPORTED: Fault = ims("IMG.0105", "The operation is not supported.");
pub(super) const WHOLE_INSTANCE: Fault =
    ims("IMG.0130", "The full-ECS image cannot be exported or replicated.");
/// \[C\] that the image calls say it with 404; copies say IMG.0027.
pub(super) const NO_IMAGE: Fault = Fault {
    status: 404,
    code: "IMG.0144",
    message: Cow::Borrowed("The image does not exist."),
    of_gateway: false,
};
pub(super) const PROJECT_NAME: Fault = ims("IMG.0145", "The project name is incorrect.");
/// \[C\] for any but the default one.
pub(super) const ENTERPRISE: Fault =
    ims("IMG.0155", "Failed to check the enterprise project ID validity.");
pub(super) const ISO: Fault = ims("IMG.0167", "This operation cannot be performed for ISO images.");
pub(super) const SHARED_ENCRYPTED: Fault =
    ims("IMG.0197", "Failed to replicate the shared image because it is encrypted using KMS.");
/// \[P\], status \[C\].
pub(super) const NO_JOB: Fault = ims("Common.0011", "The job does not exist.");

/// The extension's own: Huawei has no cancel, so its codes are none of Huawei's. \[C\]
pub(super) const FINISHED: Fault = Fault {
    status: 409,
    code: "BLOCKFERRY.0001",
    message: Cow::Borrowed("The copy has completed: its image stays."),
    of_gateway: false,
};
/// \[C\]
pub(super) const HAD_FAILED: Fault = Fault {
    status: 409,
    code: "BLOCKFERRY.0002",
    message: Cow::Borrowed("The copy has failed."),
    of_gateway: false,
};
/// What the job of a cancelled copy says. \[C\]
pub(super) const CANCELLED: (&str, &str) = ("BLOCKFERRY.0003", "The copy was cancelled.");
/// What the job of a failed copy says. \[C\]
pub(super) const FAILED: &str = "IMG.0061";

/// No such path. \[P\]
pub(super) fn no_path() -> Fault {
    let message = "The API does not exist or has not been published in the environment";
    gateway(404, "APIGW.0101", message)
}

/// \[P\]
pub(super) fn no_access_key(id: &str) -> Fault {
    let shown: String = id.chars().filter(|c| c.is_ascii_graphic()).take(128).collect();
    let message = format!(
        "Incorrect IAM authentication information: Get secretKey failed,ak:{shown},err:ak not exist"
    );
    gateway(401, "APIGW.0301", message)
}

/// What is wrong with the signing. \[P\] the first, \[C\] the words of the others.
pub(super) fn of_signing(told: &SignFault) -> Fault {
    let why = match told {
        SignFault::Mismatch(_) => "verify aksk signature fail".to_owned(),
        SignFault::Expired => "signature expired".to_owned(),
        SignFault::Missing(name) => format!("{name} is missing"),
        SignFault::Malformed(name) => format!("{name} is malformed"),
    };
    let message = format!("Incorrect IAM authentication information: {why}");
    gateway(401, "APIGW.0301", message)
}

/// What keeps a request from being looked at. \[C\]
pub(super) fn of_trouble(trouble: Trouble) -> Fault {
    match trouble {
        Trouble::BodyTooLong => gateway(413, "APIGW.0201", "Request entity too large"),
        Trouble::HeadersTooLong => gateway(400, "APIGW.0201", "Request header fields too large"),
        Trouble::TooSlow => gateway(408, "APIGW.0201", "Request timeout"),
        Trouble::Malformed => gateway(400, "APIGW.0201", "Bad request"),
        Trouble::TooMany => gateway(429, "APIGW.0308", "The throttling threshold has been reached"),
    }
}

/// Why a copy was not started.
pub(super) fn of_copy(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoImage => NO_SOURCE,
        Refusal::NoRegion(_) => NO_REGION,
        Refusal::NotOwn | Refusal::SharedElsewhere => OWNER_ONLY,
        Refusal::SameRegion | Refusal::EncryptedElsewhere => NOT_SUPPORTED,
        Refusal::KindNotCopied(ImageKind::Iso) => ISO,
        Refusal::KindNotCopied(_) => WHOLE_INSTANCE,
        Refusal::NotAvailable => NOT_ACTIVE,
        Refusal::NameTaken => NAME_TAKEN,
        Refusal::ImageQuota(_) => QUOTA,
        Refusal::QueueFull(_) | Refusal::CopyUnderWay => TOO_MANY_TASKS,
        Refusal::NoKeys | Refusal::NoKey => NO_KEY,
        Refusal::SameKey => SAME_KEY,
        Refusal::SharedEncrypted => SHARED_ENCRYPTED,
        Refusal::EncryptedTooLarge(_) => TOO_LARGE,
        _ => UNKNOWN,
    }
}

/// Why an image was not deleted.
pub(super) fn of_delete(refusal: &Refusal, is_public: bool) -> Fault {
    match refusal {
        Refusal::NoSourceRegion | Refusal::NoRegion(_) | Refusal::NoImage => NO_IMAGE,
        Refusal::NotOwn if is_public => PUBLIC,
        Refusal::NotOwn => DELETE_OWNER_ONLY,
        Refusal::BeingCopied => BEING_CREATED,
        Refusal::BeingRead | Refusal::SharedWithOthers => PROTECTED,
        _ => UNKNOWN,
    }
}

/// Why a copy was not cancelled, which is an extension.
pub(super) fn of_cancel(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::NoImage | Refusal::NoJob | Refusal::NotACopy => NO_JOB,
        Refusal::Finished => FINISHED,
        Refusal::HadFailed => HAD_FAILED,
        _ => UNKNOWN,
    }
}
