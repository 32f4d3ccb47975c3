//! Alibaba ECS of 2014-05-26: CopyImage, CancelCopyImage, DescribeImages, DeleteImage,
//! DescribeRegions, signed the RPC way or by ACS3, answered in JSON or XML.

pub(crate) mod asked;
mod calls;
mod faults;

use serde_json::{Value, json};

use crate::clouds::api::{Api, Entry, Refused};
use crate::clouds::reply::{Fault, Reply, Trouble, xml_of};
use crate::clouds::request::Request;
use crate::clouds::sign::{ACS3, Scheme};

/// The calls that are known, and whether they change anything.
const ACTIONS: [(&str, bool); 5] = [
    ("CopyImage", true),
    ("CancelCopyImage", true),
    ("DescribeImages", false),
    ("DeleteImage", true),
    ("DescribeRegions", false),
];

/// In which shape the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Json,
    Xml,
}

/// Answers one request.
pub(crate) async fn answer(api: &Api, request: &Request, id: &str) -> Reply {
    let scheme = scheme_of(request);
    let shape = shape_of(scheme, request);
    let host = request.header("host").unwrap_or_default();
    let action = action_of(scheme, request);
    let known = action.as_deref().and_then(|action| ACTIONS.iter().find(|(n, _)| *n == action));
    let call = known.map_or("", |(name, _)| *name);
    let entry = match api.admit(scheme, request, known.is_none_or(|(_, changes)| *changes)) {
        Ok(entry) => entry,
        Err(refused) => {
            return fault_reply(shape, &of_entry(&refused), host, id, call, String::new());
        }
    };
    let key = entry.caller.key.clone();
    let Some(parameters) = Parameters::read(request) else {
        let fault = faults::of_trouble(Trouble::Malformed);
        return fault_reply(shape, &fault, host, id, call, key);
    };
    let (nonce, time) = match scheme {
        Scheme::AlibabaAcs3 => {
            (request.header("x-acs-signature-nonce"), request.header("x-acs-date"))
        }
        _ => (parameters.find("SignatureNonce"), parameters.find("Timestamp")),
    };
    // A nonce may come again when its time is over.
    let once = format!("{} {}", time.unwrap_or_default(), nonce.unwrap_or_default());
    let answered = call_of(api, call, &entry, &parameters, &once).await;
    match answered {
        Ok(mut fields) => {
            fields["RequestId"] = id.into();
            let body = match shape {
                Shape::Json => fields.to_string(),
                Shape::Xml => {
                    let name = format!("{call}Response");
                    format!("{XML_HEAD}<{name}>{}</{name}>", xml_of(&fields))
                }
            };
            reply(200, shape, body, id, call, "", key)
        }
        Err(fault) => fault_reply(shape, &fault, host, id, call, key),
    }
}

/// Answers a request that was never looked at.
pub(crate) fn trouble(trouble: Trouble, id: &str) -> Reply {
    fault_reply(Shape::Json, &faults::of_trouble(trouble), "", id, "", String::new())
}

async fn call_of(
    api: &Api,
    call: &str,
    entry: &Entry,
    parameters: &Parameters,
    once: &str,
) -> Result<Value, Fault> {
    match call {
        "CopyImage" => calls::copy_image(api, &entry.caller, parameters, once).await,
        "CancelCopyImage" => calls::cancel_copy_image(api, &entry.caller, parameters).await,
        "DescribeImages" => calls::describe_images(api, &entry.caller, parameters),
        "DeleteImage" => calls::delete_image(api, &entry.caller, parameters).await,
        "DescribeRegions" => Ok(calls::describe_regions(api, &entry.caller)),
        _ => Err(faults::NO_ACTION),
    }
}

fn of_entry(refused: &Refused) -> Fault {
    match refused {
        Refused::Sign(told) => faults::of_signing(told),
        Refused::NoKey(_) => faults::NO_ACCESS_KEY,
        Refused::NonceUsed => faults::NONCE_USED,
        Refused::TooMany => faults::THROTTLED,
    }
}

/// By the header `Authorization`: RPC clients send `x-acs-action` too.
fn scheme_of(request: &Request) -> Scheme {
    let acs3 = request.header("authorization").is_some_and(|value| value.starts_with(ACS3));
    if acs3 { Scheme::AlibabaAcs3 } else { Scheme::AlibabaRpc }
}

/// RPC: JSON where `Format` says so, in whatever case, XML without it. ACS3: JSON.
fn shape_of(scheme: Scheme, request: &Request) -> Shape {
    if scheme == Scheme::AlibabaAcs3 {
        return Shape::Json;
    }
    let Some(parameters) = Parameters::read(request) else { return Shape::Json };
    match parameters.find("Format") {
        Some(format) if format.eq_ignore_ascii_case("json") => Shape::Json,
        _ => Shape::Xml,
    }
}

fn action_of(scheme: Scheme, request: &Request) -> Option<String> {
    match scheme {
        Scheme::AlibabaAcs3 => request.header("x-acs-action").map(str::to_owned),
        _ => Parameters::read(request)?.find("Action").map(str::to_owned),
    }
}

/// The parameters of the query and of a form; of one that comes twice, the first counts.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(crate) fn read(request: &Request) -> Option<Self> {
        let mut pairs = request.query_pairs()?;
        pairs.extend(request.form_pairs()?);
        Some(Self(pairs))
    }

    /// The value of a parameter that is there and not empty.
    fn find(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn mandatory(&self, name: &'static str) -> Result<&str, Fault> {
        self.find(name).ok_or_else(|| faults::missing(name))
    }

    /// `true` or `false`, in whatever case: the older SDK sends what it was given.
    fn boolean(&self, name: &'static str) -> Result<bool, Fault> {
        match self.find(name) {
            None => Ok(false),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(faults::invalid(name)),
        }
    }

    fn number(&self, name: &'static str, absent: usize, most: usize) -> Result<usize, Fault> {
        let Some(text) = self.find(name) else { return Ok(absent) };
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| faults::invalid(name))
    }

    fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

const XML_HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

fn fault_reply(
    shape: Shape,
    fault: &Fault,
    host: &str,
    id: &str,
    call: &'static str,
    access_key: String,
) -> Reply {
    let fields = json!({
        "RequestId": id, "HostId": host, "Code": fault.code, "Message": fault.message,
    });
    let body = match shape {
        Shape::Json => fields.to_string(),
        Shape::Xml => format!("{XML_HEAD}<Error>{}</Error>", xml_of(&fields)),
    };
    reply(fault.status, shape, body, id, call, fault.code, access_key)
}

fn reply(
    status: u16,
    shape: Shape,
    body: String,
    id: &str,
    call: &'static str,
    code: &'static str,
    access_key: String,
) -> Reply {
    let kind = match shape {
        Shape::Json => "application/json;charset=utf-8",
        Shape::Xml => "text/xml;charset=utf-8",
    };
    Reply {
        status,
        headers: vec![("content-type", kind.to_owned()), ("x-acs-request-id", id.to_owned())],
        body: body.into_bytes(),
        request_id: id.to_owned(),
        call,
        code,
        access_key,
    }
}
