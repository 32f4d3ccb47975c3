//! The calls of Alibaba ECS: parameters in, the service's answers out.

use serde_json::{Value, json};

use super::asked::Wanted;
use super::{Parameters, faults};
use crate::clouds::api::Api;
use crate::clouds::calendar::iso;
use crate::clouds::reply::Fault;
use crate::id::{ImageId, RegionName};
use crate::job::Endpoint;
use crate::service::{
    Caller, CopyOrder, IdShape, Image, ImageView, Relation, Rules, Stage, Token, alibaba_token,
};

/// What must differ in a retry, so that it says nothing of the request. \[D\]
const NOT_ASKED: [&str; 9] = [
    "ClientToken",
    "SignatureNonce",
    "Timestamp",
    "Signature",
    "SignatureMethod",
    "SignatureVersion",
    "SignatureType",
    "AccessKeyId",
    "Format",
];
/// The statuses that may be asked for. \[D\]
const STATUSES: [&str; 6] =
    ["Creating", "Waiting", "Available", "UnAvailable", "CreateFailed", "Deprecated"];
const GIB: u64 = 1 << 30;

/// The order of the checks is a choice \[C\]: missing parameters, the token, regions, the source,
/// the format of names and keys, then what [`ImageService::check`](crate::service::ImageService)
/// looks at, and whether it is a dry run.
pub(super) async fn copy_image(
    api: &Api,
    caller: &Caller,
    asked: &Parameters,
    once: &str,
) -> Result<Value, Fault> {
    let region = asked.mandatory("RegionId")?;
    let image = asked.mandatory("ImageId")?;
    let token = token(caller, asked, once)?;
    let legs = api.service.replayed(&token).map_err(|told| faults::of_copy(&told))?;
    if let Some(leg) = legs.as_ref().and_then(|legs| legs.first()) {
        return Ok(json!({"ImageId": leg.target.image.as_str()}));
    }
    let known = api.service.regions(caller);
    let region: RegionName = region.parse().map_err(|_| faults::SOURCE_REGION)?;
    if !known.contains(&region) {
        return Err(faults::SOURCE_REGION);
    }
    // Without one it is the source's own. [C]
    let to: RegionName = match asked.find("DestinationRegionId") {
        Some(to) => to.parse().map_err(|_| faults::DESTINATION_REGION)?,
        None => region.clone(),
    };
    if !known.contains(&to) {
        return Err(faults::DESTINATION_REGION);
    }
    let image: ImageId = image.parse().map_err(|_| faults::NO_IMAGE)?;
    let source = Endpoint::new(region, image);
    let (_, relation) = api.service.source(caller, &source).map_err(|t| faults::of_copy(&t))?;
    if relation == Relation::Public {
        return Err(faults::NO_IMAGE);
    }
    let new = api.service.new_image_id(IdShape::Alibaba, &to).map_err(|_| faults::INTERNAL)?;
    let mut order = CopyOrder::new(source, vec![Endpoint::new(to, new.clone())], Rules::ALIBABA);
    let Wanted { name, description, tags, key } = Wanted::read(asked)?;
    (order.name, order.description, order.tags, order.key) = (name, description, tags, key);
    order.token = Some(token);
    if asked.boolean("DryRun")? {
        let checked = api.service.check(caller, &order);
        return Err(checked.map_or_else(|told| faults::of_copy(&told), |()| faults::DRY_RUN));
    }
    let legs = api.service.start(caller, order).await.map_err(|told| faults::of_copy(&told))?;
    let made = legs.first().map_or(new, |leg| leg.target.image.clone());
    Ok(json!({"ImageId": made.as_str()}))
}

/// The caller's token. Without one it is the nonce with its time: who sends the same request once
/// more when that is not remembered, after a restart, is told of the same copy and starts no other.
fn token(caller: &Caller, asked: &Parameters, once: &str) -> Result<Token, Fault> {
    // A token is of one account and one call. [C]
    let (scope, text) = match asked.find("ClientToken") {
        Some(text) => {
            alibaba_token(text).map_err(|_| faults::invalid("ClientToken"))?;
            (format!("alibaba CopyImage {}", caller.project), text.to_owned())
        }
        None => {
            let digest = blake3::hash(once.as_bytes()).to_hex().to_string();
            (format!("alibaba CopyImage nonce {}", caller.key), digest)
        }
    };
    let mut pairs: Vec<_> = asked.all().filter(|(name, _)| !NOT_ASKED.contains(name)).collect();
    pairs.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (name, value) in pairs {
        for part in [name, value] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    Ok(Token { scope, text, request: *hasher.finalize().as_bytes() })
}

/// Region and image of a call that names one image.
fn target(api: &Api, caller: &Caller, asked: &Parameters) -> Result<(RegionName, ImageId), Fault> {
    let region = asked.mandatory("RegionId")?;
    let image = asked.mandatory("ImageId")?;
    let region: RegionName = region.parse().map_err(|_| faults::NO_REGION)?;
    if !api.service.regions(caller).contains(&region) {
        return Err(faults::NO_REGION);
    }
    Ok((region, image.parse().map_err(|_| faults::NO_IMAGE)?))
}

pub(super) async fn cancel_copy_image(
    api: &Api,
    caller: &Caller,
    asked: &Parameters,
) -> Result<Value, Fault> {
    let (region, image) = target(api, caller, asked)?;
    let told = api.service.cancel(caller, &region, &image).await;
    told.map(|_| json!({})).map_err(|told| faults::of_cancel(&told))
}

pub(super) async fn delete_image(
    api: &Api,
    caller: &Caller,
    asked: &Parameters,
) -> Result<Value, Fault> {
    let (region, image) = target(api, caller, asked)?;
    let force = asked.boolean("Force")?;
    let told = api.service.delete(caller, &region, &image, force).await;
    told.map(|()| json!({})).map_err(|told| faults::of_delete(&told))
}

pub(super) fn describe_regions(api: &Api, caller: &Caller) -> Value {
    let regions = api.service.regions(caller).into_iter().map(|region| {
        let region = region.as_str();
        json!({"RegionId": region, "LocalName": region, "RegionEndpoint": ""})
    });
    json!({"Regions": {"Region": regions.collect::<Vec<_>>()}})
}

pub(super) fn describe_images(
    api: &Api,
    caller: &Caller,
    asked: &Parameters,
) -> Result<Value, Fault> {
    let region = asked.mandatory("RegionId")?;
    let region: RegionName = region.parse().map_err(|_| faults::NO_REGION)?;
    // Without one, only those that are available: one that is being copied has to be asked for. [D]
    let statuses: Vec<&str> = asked.find("Status").unwrap_or("Available").split(',').collect();
    if !statuses.iter().all(|status| STATUSES.contains(status)) {
        return Err(faults::invalid("Status"));
    }
    let page = asked.number("PageNumber", 1, 1_000_000)?;
    let size = asked.number("PageSize", 10, 100)?;
    // A list of them is taken, too. [C]
    let ids: Option<Vec<ImageId>> =
        asked.find("ImageId").map(|ids| ids.split(',').filter_map(|id| id.parse().ok()).collect());
    let name = asked.find("ImageName");
    let owner = match asked.find("ImageOwnerAlias") {
        None => None,
        Some("self") => Some(Some(Relation::Own)),
        Some("others") => Some(Some(Relation::Shared)),
        Some("system") => Some(Some(Relation::Public)),
        Some("marketplace") => Some(None),
        Some(_) => return Err(faults::invalid("ImageOwnerAlias")),
    };
    let wanted = |image: &Image, relation: Relation| {
        name.is_none_or(|name| image.name == name)
            && owner.is_none_or(|owner| owner == Some(relation))
    };
    let found = match ids {
        Some(ids) => api.service.images_by_id(caller, &region, &ids).map(|mut views| {
            views.retain(|view| wanted(&view.image, view.relation));
            views
        }),
        None => api.service.images(caller, &region, wanted),
    };
    let found = found.map_err(|_| faults::NO_REGION)?;
    let shown: Vec<(ImageView, &str)> = found
        .into_iter()
        .filter_map(|view| {
            let status = view.stage().words().alibaba?;
            statuses.contains(&status).then_some((view, status))
        })
        .collect();
    let total = shown.len();
    let rows = shown.iter().skip((page - 1) * size).take(size);
    let rows: Vec<Value> = rows.map(|(view, status)| row(view, status)).collect();
    Ok(json!({
        "PageNumber": page, "PageSize": size, "TotalCount": total, "RegionId": region.as_str(),
        "Images": {"Image": rows},
    }))
}

/// One image, with the types that the SDKs expect: sizes as a number and as text, the progress as
/// text with its sign.
fn row(view: &ImageView, status: &str) -> Value {
    let image = &view.image;
    let stage = view.stage();
    let percent = match stage {
        Stage::Done => 100,
        _ => view.copy.as_ref().map_or(0, |copy| copy.percent),
    };
    let progress = format!("{percent}%");
    let remaining = view.copy.as_ref().and_then(|copy| copy.remaining_sec).unwrap_or(0);
    let gib = image.image_bytes.div_ceil(GIB).max(1);
    let owner = match view.relation {
        Relation::Own => "self",
        Relation::Shared => "others",
        Relation::Public => "system",
    };
    let tags = image.tags.iter().map(|(key, value)| json!({"TagKey": key, "TagValue": value}));
    json!({
        "ImageId": image.id.as_str(),
        "ImageName": image.name,
        "Description": image.description,
        "Status": status,
        "Progress": progress,
        "IsCopied": image.copied_by.is_some(),
        "ImageOwnerAlias": owner,
        "CreationTime": iso(image.created_unix_ms),
        "Size": gib,
        "OSType": "linux",
        "Architecture": "x86_64",
        "IsSelfShared": if image.shared_with.is_empty() { "" } else { "true" },
        "IsSubscribed": false,
        "Usage": "none",
        "Tags": {"Tag": tags.collect::<Vec<_>>()},
        "DiskDeviceMappings": {"DiskDeviceMapping": [{
            "Device": "/dev/xvda", "Type": "system", "Size": gib.to_string(), "SnapshotId": "",
            "Format": "", "Progress": progress, "RemainTime": remaining,
        }]},
    })
}
