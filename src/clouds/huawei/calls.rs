//! The calls of Huawei IMS: paths, parameters and bodies in, the service's answers out.

use serde_json::{Value, json};

use super::Call;
use super::asked::{Across, Wanted};
use super::faults::{self, Fault};
use crate::clouds::api::Api;
use crate::clouds::calendar::{iso, iso_ms};
use crate::clouds::request::Request;
use crate::id::{ImageId, JobId, RegionName};
use crate::job::Endpoint;
use crate::service::{
    Caller, CopyOrder, CopyState, CopyView, IdShape, Image, ImageKind, ImageView, Relation, Rules,
    Stage, is_uuid,
};

/// Images on one page, where nobody says. \[C\]
const PAGE_DEFAULT: usize = 500;
/// \[C\]
const PAGE_MAX: usize = 1000;
const GIB: u64 = 1 << 30;

pub(super) async fn answer(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    call: &Call,
    request: &Request,
) -> Result<Value, Fault> {
    match call {
        Call::CopyInRegion(image) => {
            let wanted = Wanted::read(request)?;
            let order = order(api, region, region, image, wanted, Rules::HUAWEI_IN_REGION)?;
            copy(api, caller, order).await
        }
        Call::CopyCrossRegion(image) => {
            let across = Across::read(request)?;
            // A whole instance goes to a vault of the other region. [D]
            let mut rules = Rules::HUAWEI_CROSS_REGION;
            rules.whole_instance_elsewhere = across.has_vault;
            let wanted = Wanted::read(request)?;
            let order = order(api, region, &across.region, image, wanted, rules)?;
            copy(api, caller, order).await
        }
        Call::Job { project, job } => {
            let own = project.as_ref().is_none_or(|project| *project == caller.project);
            let view = find_job(api, caller, region, job).filter(|_| own);
            Ok(job_of(&view.ok_or(faults::NO_JOB)?, false))
        }
        Call::JobProgress(job) => {
            Ok(job_of(&find_job(api, caller, region, job).ok_or(faults::NO_JOB)?, true))
        }
        Call::ListImages => list_images(api, caller, region, request),
        Call::ShowImage(image) => {
            let image: ImageId = image.parse().map_err(|_| faults::NO_IMAGE)?;
            let view = api.service.image(caller, region, &image).ok_or(faults::NO_IMAGE)?;
            row(&view).ok_or(faults::NO_IMAGE)
        }
        Call::DeleteImage(image) => {
            let image: ImageId = image.parse().map_err(|_| faults::NO_IMAGE)?;
            let seen = api.service.image(caller, region, &image);
            let is_public = seen.is_some_and(|view| view.relation == Relation::Public);
            let told = api.service.delete(caller, region, &image, false).await;
            told.map(|()| Value::Null).map_err(|told| faults::of_delete(&told, is_public))
        }
        Call::Projects => Ok(json!({
            "projects": [{"id": caller.project, "name": region.as_str(), "enabled": true}],
            "links": {},
        })),
        Call::CancelCopy(job) => {
            let view = find_job(api, caller, region, job).ok_or(faults::NO_JOB)?;
            let target = &view.copy.target;
            let told = api.service.cancel(caller, &target.region, &target.image).await;
            told.map_err(|told| faults::of_cancel(&told))?;
            let view = api.service.copy(caller, view.copy.job).ok_or(faults::NO_JOB)?;
            Ok(job_of(&view, true))
        }
    }
}

fn order(
    api: &Api,
    from: &RegionName,
    to: &RegionName,
    image: &str,
    wanted: Wanted,
    rules: Rules,
) -> Result<CopyOrder, Fault> {
    if !is_uuid(image) {
        return Err(faults::ID_MALFORMED);
    }
    let image: ImageId = image.parse().map_err(|_| faults::ID_MALFORMED)?;
    let new = api.service.new_image_id(IdShape::Huawei, to).map_err(|_| faults::UNKNOWN)?;
    let source = Endpoint::new(from.clone(), image);
    let mut order = CopyOrder::new(source, vec![Endpoint::new(to.clone(), new)], rules);
    (order.name, order.description, order.key) = (wanted.name, wanted.description, wanted.key);
    Ok(order)
}

async fn copy(api: &Api, caller: &Caller, order: CopyOrder) -> Result<Value, Fault> {
    let legs = api.service.start(caller, order).await.map_err(|told| faults::of_copy(&told))?;
    let leg = legs.first().ok_or(faults::UNKNOWN)?;
    Ok(json!({"job_id": leg.job.to_string()}))
}

/// A job that began or ends in this region.
fn find_job(api: &Api, caller: &Caller, region: &RegionName, job: &str) -> Option<CopyView> {
    let job: JobId = job.parse().ok()?;
    let view = api.service.copy(caller, job)?;
    let here = view.copy.source.region == *region || view.copy.target.region == *region;
    here.then_some(view)
}

fn job_of(view: &CopyView, with_progress: bool) -> Value {
    let copy = &view.copy;
    let kind = match copy.source.region == copy.target.region {
        true => "imsCopyImageInRegionJob",
        false => "imsCrossRegionCopyImageJob",
    };
    let (code, reason) = match &copy.state {
        // What exactly went wrong names places that are none of a caller's business.
        CopyState::Failed { kind, .. } => {
            (json!(faults::FAILED), json!(format!("The copy failed: {}.", kind.name())))
        }
        CopyState::Cancelled => (json!(faults::CANCELLED.0), json!(faults::CANCELLED.1)),
        _ => (Value::Null, Value::Null),
    };
    let end = match copy.ended_unix_ms {
        0 => String::new(),
        ended => iso_ms(ended),
    };
    let mut entities = json!({
        "image_name": copy.name, "image_id": copy.target.image.as_str(),
    });
    if with_progress {
        entities["process_percent"] = match view.stage {
            Stage::Done => json!(1),
            _ => json!(f64::from(view.percent) / 100.0),
        };
        let task = if view.stage.is_final() { "" } else { "CopyImage" };
        entities["current_task"] = json!(task);
    }
    json!({
        "job_id": copy.job.to_string(),
        "job_type": kind,
        "begin_time": iso_ms(copy.created_unix_ms),
        "end_time": end,
        "status": view.stage.words().huawei_job,
        "error_code": code,
        "fail_reason": reason,
        "entities": entities,
    })
}

fn list_images(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    request: &Request,
) -> Result<Value, Fault> {
    let asked = request.query_pairs().ok_or(faults::BODY_MALFORMED)?;
    let find = |name: &str| {
        let found = asked.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty())
    };
    let limit = match find("limit") {
        None => PAGE_DEFAULT,
        Some(text) => text.parse().map_err(|_| faults::BODY_MALFORMED)?,
    };
    let relation = match find("__imagetype") {
        None => None,
        Some("gold") => Some(Some(Relation::Public)),
        Some("private") => Some(Some(Relation::Own)),
        Some("shared") => Some(Some(Relation::Shared)),
        Some(_) => Some(None),
    };
    let (id, name, status) = (find("id"), find("name"), find("status"));
    let wanted = |image: &Image, seen: Relation| {
        id.is_none_or(|id| image.id.as_str() == id)
            && name.is_none_or(|name| image.name == name)
            && relation.is_none_or(|relation| relation == Some(seen))
            && find("marker").is_none_or(|marker| image.id.as_str() > marker)
    };
    let found = api.service.images(caller, region, wanted).map_err(|_| faults::NO_REGION)?;
    let rows = found.iter().filter_map(row);
    let rows = rows.filter(|row| status.is_none_or(|status| row["status"] == status));
    let rows: Vec<Value> = rows.take(limit.clamp(1, PAGE_MAX)).collect();
    Ok(json!({"images": rows}))
}

/// One image; `None` for one that is gone.
fn row(view: &ImageView) -> Option<Value> {
    let image = &view.image;
    let status = view.stage().words().huawei_image?;
    let kind = match view.relation {
        Relation::Own => "private",
        Relation::Shared => "shared",
        Relation::Public => "gold",
    };
    let made = iso(image.created_unix_ms);
    let mut row = json!({
        "id": image.id.as_str(),
        "name": image.name,
        "status": status,
        "visibility": if view.relation == Relation::Public { "public" } else { "private" },
        "owner": image.project,
        "created_at": made,
        "updated_at": made,
        "min_disk": image.image_bytes.div_ceil(GIB).max(1),
        "min_ram": 0,
        "protected": false,
        "disk_format": if image.kind == ImageKind::Iso { "iso" } else { "raw" },
        "container_format": "bare",
        "tags": [],
        "file": format!("/v2/images/{}/file", image.id),
        "self": format!("/v2/images/{}", image.id),
        "schema": "/v2/schemas/image",
        "__description": image.description,
        "__imagetype": kind,
        "__image_size": image.image_bytes.to_string(),
        "__isregistered": "true",
        "__os_type": "Linux",
        "__platform": "Other",
        "virtual_env_type": if image.kind == ImageKind::Iso { "IsoImage" } else { "FusionCompute" },
    });
    if view.stage() == Stage::Done {
        row["size"] = json!(image.image_bytes);
    }
    if image.kind == ImageKind::WholeInstance {
        row["__whole_image"] = json!("true");
    }
    if let Some(copy) = &view.copy {
        row["__data_origin"] = json!(format!("image,{}", copy.copy.source.image));
    }
    Some(row)
}
