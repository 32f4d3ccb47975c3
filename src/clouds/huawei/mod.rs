//! Huawei IMS: copies within a region and across, their jobs, images listed, shown and deleted,
//! signed by SDK-HMAC-SHA256.
//!
//! Huawei has no call that cancels a copy. This one is ours, and marked so by its path:
//! `POST /blockferry/v1/jobs/{job_id}/cancel`, signed like any other. It answers the job, whose
//! status is `FAIL` from then on, and whose image is gone; a copy that has finished or failed
//! answers 409 with a code outside Huawei's.

pub(crate) mod asked;
mod calls;
mod faults;

use serde_json::{Value, json};

use crate::clouds::api::{Api, Refused};
use crate::clouds::reply::{Reply, Trouble};
use crate::clouds::request::Request;
use crate::clouds::sign::Scheme;
use crate::id::RegionName;

pub(crate) use faults::Fault;

/// What a path and a method ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    CopyInRegion(String),
    CopyCrossRegion(String),
    Job { project: Option<String>, job: String },
    JobProgress(String),
    ListImages,
    ShowImage(String),
    DeleteImage(String),
    Projects,
    CancelCopy(String),
}

impl Call {
    fn of(method: &str, path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let owned = |text: &str| text.to_owned();
        Some(match (method, &parts[..]) {
            ("POST", ["v1" | "v2.1", "cloudimages", image, "copy"]) => {
                Self::CopyInRegion(owned(image))
            }
            ("POST", ["v1", "cloudimages", image, "cross_region_copy"]) => {
                Self::CopyCrossRegion(owned(image))
            }
            ("GET", ["v1", "cloudimages", "job", job]) => Self::JobProgress(owned(job)),
            ("GET", ["v1", project, "jobs", job]) => {
                Self::Job { project: Some(owned(project)), job: owned(job) }
            }
            ("GET", ["v2", "cloudimages"]) => Self::ListImages,
            ("GET", ["v2", "images", image]) => Self::ShowImage(owned(image)),
            ("DELETE", ["v2", "images", image]) => Self::DeleteImage(owned(image)),
            ("GET", ["v3", "projects"]) => Self::Projects,
            ("POST", ["blockferry", "v1", "jobs", job, "cancel"]) => Self::CancelCopy(owned(job)),
            _ => return None,
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::CopyInRegion(_) => "CopyImageInRegion",
            Self::CopyCrossRegion(_) => "CopyImageCrossRegion",
            Self::Job { .. } => "ShowJob",
            Self::JobProgress(_) => "ShowJobProgress",
            Self::ListImages => "ListImages",
            Self::ShowImage(_) => "GlanceShowImage",
            Self::DeleteImage(_) => "GlanceDeleteImage",
            Self::Projects => "KeystoneListProjects",
            Self::CancelCopy(_) => "CancelCopy",
        }
    }

    fn changes(&self) -> bool {
        matches!(
            self,
            Self::CopyInRegion(_)
                | Self::CopyCrossRegion(_)
                | Self::DeleteImage(_)
                | Self::CancelCopy(_)
        )
    }
}

/// Answers one request to that region.
pub(crate) async fn answer(api: &Api, region: &RegionName, request: &Request, id: &str) -> Reply {
    let path = request.decoded_path();
    let call = path.as_deref().and_then(|path| Call::of(&request.method, path));
    let name = call.as_ref().map_or("", Call::name);
    let changes = call.as_ref().is_none_or(Call::changes);
    let entry = match api.admit(Scheme::Huawei, request, changes) {
        Ok(entry) => entry,
        Err(refused) => return fault_reply(&of_entry(&refused), id, name, String::new()),
    };
    let key = entry.caller.key.clone();
    let Some(call) = call else { return fault_reply(&faults::no_path(), id, name, key) };
    match calls::answer(api, &entry.caller, region, &call, request).await {
        // A deletion has nothing to say.
        Ok(Value::Null) => reply(204, Vec::new(), id, name, "", key),
        Ok(fields) => reply(200, fields.to_string().into_bytes(), id, name, "", key),
        Err(fault) => fault_reply(&fault, id, name, key),
    }
}

/// Answers a request that was never looked at.
pub(crate) fn trouble(trouble: Trouble, id: &str) -> Reply {
    fault_reply(&faults::of_trouble(trouble), id, "", String::new())
}

fn of_entry(refused: &Refused) -> Fault {
    match refused {
        Refused::Sign(told) => faults::of_signing(told),
        Refused::NoKey(id) => faults::no_access_key(id),
        Refused::NonceUsed | Refused::TooMany => faults::of_trouble(Trouble::TooMany),
    }
}

fn fault_reply(fault: &Fault, id: &str, call: &'static str, access_key: String) -> Reply {
    let fields = if fault.of_gateway {
        json!({"error_code": fault.code, "error_msg": fault.message, "request_id": id})
    } else {
        json!({"error": {"message": fault.message, "code": fault.code}})
    };
    reply(fault.status, fields.to_string().into_bytes(), id, call, fault.code, access_key)
}

fn reply(
    status: u16,
    body: Vec<u8>,
    id: &str,
    call: &'static str,
    code: &'static str,
    access_key: String,
) -> Reply {
    // The SDK reads the number from this header alone.
    let mut headers = vec![("x-request-id", id.to_owned())];
    if !body.is_empty() {
        headers.push(("content-type", "application/json;charset=utf-8".to_owned()));
    }
    Reply { status, headers, body, request_id: id.to_owned(), call, code, access_key }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_calls() {
        let job = || "0123".to_owned();
        for (method, path, wanted) in [
            ("POST", "/v1/cloudimages/i/copy", Some(Call::CopyInRegion("i".into()))),
            ("POST", "/v2.1/cloudimages/i/copy", Some(Call::CopyInRegion("i".into()))),
            (
                "POST",
                "/v1/cloudimages/i/cross_region_copy",
                Some(Call::CopyCrossRegion("i".into())),
            ),
            ("GET", "/v1/p/jobs/0123", Some(Call::Job { project: Some("p".into()), job: job() })),
            ("GET", "/v1/cloudimages/job/0123", Some(Call::JobProgress(job()))),
            ("GET", "/v2/cloudimages", Some(Call::ListImages)),
            ("GET", "/v2/images/i", Some(Call::ShowImage("i".into()))),
            ("DELETE", "/v2/images/i", Some(Call::DeleteImage("i".into()))),
            ("GET", "/v3/projects", Some(Call::Projects)),
            ("POST", "/blockferry/v1/jobs/0123/cancel", Some(Call::CancelCopy(job()))),
            ("GET", "/v1/cloudimages/i/copy", None),
            ("PUT", "/v2/images/i", None),
            ("GET", "/", None),
            ("GET", "", None),
            ("POST", "/v3/cloudimages/i/copy", None),
        ] {
            assert_eq!(Call::of(method, path), wanted, "{method} {path}");
        }
    }
}
