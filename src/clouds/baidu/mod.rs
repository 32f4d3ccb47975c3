//! Baidu BCC of version 2: remoteCopy, cancelRemoteCopy, images shown, listed and deleted, signed
//! by bce-auth-v1, with one listener a region.

pub(crate) mod asked;
mod faults;

use serde_json::{Value, json};

use self::asked::RemoteCopy;
use crate::clouds::api::{Api, Refused};
use crate::clouds::calendar::iso;
use crate::clouds::reply::{Fault, Reply, Trouble};
use crate::clouds::request::Request;
use crate::clouds::sign::Scheme;
use crate::id::{ImageId, RegionName};
use crate::job::Endpoint;
use crate::service::{Caller, CopyOrder, IdShape, Image, ImageView, Relation, Rules};

/// Images on one page, at most and where nobody says. \[C\]
const PAGE_MAX: usize = 1000;
const GIB: u64 = 1 << 30;

/// What a path, a method and a query ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    RemoteCopy(String),
    CancelRemoteCopy(String),
    GetImage(String),
    ListImages,
    DeleteImage(String),
}

impl Call {
    fn of(method: &str, path: &str, query: &[(String, String)]) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        // The action is a key of the query, with or without an empty value.
        let asks = |name: &str| query.iter().any(|(known, _)| known == name);
        Some(match (method, &parts[..]) {
            ("POST", ["v2", "image", image]) if asks("remoteCopy") => {
                Self::RemoteCopy((*image).to_owned())
            }
            ("POST", ["v2", "image", image]) if asks("cancelRemoteCopy") => {
                Self::CancelRemoteCopy((*image).to_owned())
            }
            ("GET", ["v2", "image"]) => Self::ListImages,
            ("GET", ["v2", "image", image]) => Self::GetImage((*image).to_owned()),
            ("DELETE", ["v2", "image", image]) => Self::DeleteImage((*image).to_owned()),
            _ => return None,
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::RemoteCopy(_) => "RemoteCopy",
            Self::CancelRemoteCopy(_) => "CancelRemoteCopy",
            Self::GetImage(_) => "GetImage",
            Self::ListImages => "ListImages",
            Self::DeleteImage(_) => "DeleteImage",
        }
    }
}

/// Answers one request to that region.
pub(crate) async fn answer(api: &Api, region: &RegionName, request: &Request, id: &str) -> Reply {
    let query = request.query_pairs().unwrap_or_default();
    let path = request.decoded_path();
    let call = path.as_deref().and_then(|path| Call::of(&request.method, path, &query));
    let name = call.as_ref().map_or("", Call::name);
    let looks = matches!(call, Some(Call::GetImage(_) | Call::ListImages));
    let entry = match api.admit(Scheme::Baidu, request, !looks) {
        Ok(entry) => entry,
        Err(refused) => return fault_reply(&of_entry(&refused), id, name, String::new()),
    };
    let key = entry.caller.key.clone();
    let Some(call) = call else { return fault_reply(&faults::NO_PATH, id, name, key) };
    match call_of(api, &entry.caller, region, &call, request, &query).await {
        // What has nothing to say has an empty body.
        Ok(Value::Null) => reply(200, Vec::new(), id, name, "", key),
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
        Refused::NoKey(_) => faults::NO_ACCESS_KEY,
        Refused::NonceUsed | Refused::TooMany => faults::THROTTLED,
    }
}

async fn call_of(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    call: &Call,
    request: &Request,
    query: &[(String, String)],
) -> Result<Value, Fault> {
    let id = |image: &str| image.parse::<ImageId>().map_err(|_| faults::NO_IMAGE);
    match call {
        Call::RemoteCopy(image) => remote_copy(api, caller, region, id(image)?, request).await,
        Call::CancelRemoteCopy(image) => {
            let told = api.service.cancel(caller, region, &id(image)?).await;
            told.map(|_| Value::Null).map_err(|told| faults::of_cancel(&told))
        }
        Call::GetImage(image) => {
            let view = api.service.image(caller, region, &id(image)?).ok_or(faults::NO_IMAGE)?;
            Ok(json!({"image": row(&view).ok_or(faults::NO_IMAGE)?}))
        }
        Call::ListImages => list_images(api, caller, region, query),
        Call::DeleteImage(image) => {
            let image = id(image)?;
            let seen = api.service.image(caller, region, &image);
            let is_public = seen.is_some_and(|view| view.relation == Relation::Public);
            let told = api.service.delete(caller, region, &image, false).await;
            told.map(|()| Value::Null).map_err(|told| faults::of_delete(&told, is_public))
        }
    }
}

/// All regions are looked at first, so that a bad one starts nothing; each leg then ends on its
/// own. \[C\]
async fn remote_copy(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    image: ImageId,
    request: &Request,
) -> Result<Value, Fault> {
    let RemoteCopy { name, regions } = RemoteCopy::read(request)?;
    let mut targets = Vec::with_capacity(regions.len());
    for to in regions {
        let new = api.service.new_image_id(IdShape::Baidu, &to).map_err(|_| faults::INTERNAL)?;
        targets.push(Endpoint::new(to, new));
    }
    let source = Endpoint::new(region.clone(), image);
    // An image that is not there is told before a region that is not.
    api.service.source(caller, &source).map_err(|told| faults::of_copy(&told))?;
    let mut order = CopyOrder::new(source, targets, Rules::BAIDU);
    order.name = name;
    let legs = api.service.start(caller, order).await.map_err(|told| faults::of_copy(&told))?;
    let rows = legs.iter().map(|leg| {
        let (region, image) = (leg.target.region.as_str(), leg.target.image.as_str());
        json!({"region": region, "imageId": image, "errMsg": "", "code": ""})
    });
    Ok(json!({"result": rows.collect::<Vec<_>>()}))
}

fn list_images(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    query: &[(String, String)],
) -> Result<Value, Fault> {
    let find = |name: &str| {
        let found = query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty())
    };
    let most: usize = match find("maxKeys") {
        None => PAGE_MAX,
        Some(text) => text.parse().map_err(|_| faults::INAPPROPRIATE)?,
    };
    let most = most.clamp(1, PAGE_MAX);
    let marker = find("marker").unwrap_or_default();
    let relation = match find("imageType") {
        None | Some("All") => None,
        Some("Custom") => Some(Some(Relation::Own)),
        Some("System") => Some(Some(Relation::Public)),
        Some("Sharing") => Some(Some(Relation::Shared)),
        Some(_) => Some(None),
    };
    let name = find("imageName");
    let wanted = |image: &Image, seen: Relation| {
        image.id.as_str() >= marker
            && name.is_none_or(|name| image.name == name)
            && relation.is_none_or(|relation| relation == Some(seen))
    };
    let found = api.service.images(caller, region, wanted).map_err(|_| faults::DENIED)?;
    let mut rows: Vec<Value> = found.iter().filter_map(row).collect();
    // The marker is the first image of the next page.
    let next = rows.get(most).map(|row| row["id"].clone());
    rows.truncate(most);
    let mut page = json!({
        "marker": marker, "isTruncated": next.is_some(), "maxKeys": most, "images": rows,
    });
    if let Some(next) = next {
        page["nextMarker"] = next;
    }
    Ok(page)
}

/// One image; `None` for one that is gone.
fn row(view: &ImageView) -> Option<Value> {
    let image = &view.image;
    let status = view.stage().words().baidu?;
    let kind = match view.relation {
        Relation::Own => "Custom",
        Relation::Shared => "Sharing",
        Relation::Public => "System",
    };
    let gib = image.image_bytes.div_ceil(GIB).max(1);
    Some(json!({
        "id": image.id.as_str(),
        "name": image.name,
        "type": kind,
        "status": status,
        "desc": image.description,
        "createTime": iso(image.created_unix_ms),
        "osType": "linux",
        "osName": "",
        "osVersion": "",
        "osArch": "x86_64",
        "osBuild": "",
        "osLang": "",
        "specialVersion": "",
        "package": false,
        "encrypted": image.key.is_some(),
        "minDiskGb": gib,
        "diskSize": gib,
        "ephemeralSize": 0,
        "snapshots": [],
    }))
}

fn fault_reply(fault: &Fault, id: &str, call: &'static str, access_key: String) -> Reply {
    // Without one of the three the SDK fails in a way that hides the other two.
    let fields = json!({"requestId": id, "code": fault.code, "message": fault.message});
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
    let headers = vec![
        ("content-type", "application/json;charset=UTF-8".to_owned()),
        ("x-bce-request-id", id.to_owned()),
    ];
    Reply { status, headers, body, request_id: id.to_owned(), call, code, access_key }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_keys_of_the_query_lead_to_calls() {
        let query = |text: &str| crate::clouds::text::pairs(text).unwrap();
        let image = || "m-1".to_owned();
        for (method, path, asked, wanted) in [
            ("POST", "/v2/image/m-1", "remoteCopy", Some(Call::RemoteCopy(image()))),
            ("POST", "/v2/image/m-1", "remoteCopy=", Some(Call::RemoteCopy(image()))),
            ("POST", "/v2/image/m-1", "cancelRemoteCopy=", Some(Call::CancelRemoteCopy(image()))),
            ("GET", "/v2/image/m-1", "", Some(Call::GetImage(image()))),
            ("GET", "/v2/image", "imageType=Custom", Some(Call::ListImages)),
            ("DELETE", "/v2/image/m-1", "", Some(Call::DeleteImage(image()))),
            ("POST", "/v2/image/m-1", "", None),
            ("GET", "/v2/image/m-1/x", "", None),
            ("GET", "/v1/image/m-1", "", None),
        ] {
            assert_eq!(Call::of(method, path, &query(asked)), wanted, "{method} {path}?{asked}");
        }
    }
}
