//! What the bodies of Huawei's copies ask for. Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::faults::{self, Fault};
use crate::clouds::request::{BodyFault, Request};
use crate::id::RegionName;
use crate::service::{Fault as TextFault, huawei_description, huawei_name};

/// How the new image is to be named and encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) key: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WantedBody {
    name: Option<String>,
    description: Option<String>,
    enterprise_project_id: Option<String>,
    cmk_id: Option<String>,
}

impl Wanted {
    pub(crate) fn read(request: &Request) -> Result<Self, Fault> {
        let body: WantedBody = body(request)?;
        let name = body.name.unwrap_or_default();
        huawei_name(&name).map_err(|fault| match fault {
            TextFault::Missing => faults::NAME_MISSING,
            TextFault::Length => faults::NAME_LONG,
            TextFault::Content => faults::NAME_MALFORMED,
        })?;
        let description = body.description.unwrap_or_default();
        huawei_description(&description).map_err(|fault| match fault {
            TextFault::Length => faults::DESCRIPTION_LONG,
            TextFault::Missing | TextFault::Content => faults::DESCRIPTION_MALFORMED,
        })?;
        if body.enterprise_project_id.is_some_and(|id| !matches!(&*id, "" | "0")) {
            return Err(faults::ENTERPRISE);
        }
        Ok(Self { name, description, key: body.cmk_id.filter(|id| !id.is_empty()) })
    }
}

/// Where a copy across regions is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Across {
    pub(crate) region: RegionName,
    /// A vault of the other region is named, for a whole instance.
    pub(crate) has_vault: bool,
}

#[derive(Debug, Deserialize)]
struct AcrossBody {
    region: Option<String>,
    project_name: Option<String>,
    agency_name: Option<String>,
    vault_id: Option<String>,
}

impl Across {
    pub(crate) fn read(request: &Request) -> Result<Self, Fault> {
        let body: AcrossBody = body(request)?;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        filled(body.project_name).ok_or(faults::PROJECT_NAME)?;
        // Which code says that these are missing is a choice. [C]
        filled(body.agency_name).ok_or(faults::BODY_MALFORMED)?;
        let region = filled(body.region).ok_or(faults::NO_REGION)?;
        let region = region.parse().map_err(|_| faults::NO_REGION)?;
        Ok(Self { region, has_vault: body.vault_id.is_some() })
    }
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Fault> {
    request.json_body().map_err(|told| match told {
        BodyFault::Empty => faults::BODY_EMPTY,
        BodyFault::Malformed | BodyFault::Inappropriate => faults::BODY_MALFORMED,
    })
}
