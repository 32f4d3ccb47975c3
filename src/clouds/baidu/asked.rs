//! What the body of a remoteCopy asks for. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::faults;
use crate::clouds::reply::Fault;
use crate::clouds::request::{BodyFault, Request};
use crate::id::RegionName;
use crate::service::{TARGET_COUNT_MAX, baidu_name};

/// A new image's name, and the regions where it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteCopy {
    pub(crate) name: String,
    /// Each once, in the order in which they were named.
    pub(crate) regions: Vec<RegionName>,
}

#[derive(Debug, Deserialize)]
struct Body {
    name: Option<String>,
    #[serde(rename = "destRegion")]
    regions: Option<Vec<String>>,
}

impl RemoteCopy {
    pub(crate) const REGION_COUNT_MAX: usize = TARGET_COUNT_MAX;

    pub(crate) fn read(request: &Request) -> Result<Self, Fault> {
        let body: Body = request.json_body().map_err(|told| match told {
            BodyFault::Malformed => faults::MALFORMED_JSON,
            BodyFault::Empty | BodyFault::Inappropriate => faults::INAPPROPRIATE,
        })?;
        let name = body.name.unwrap_or_default();
        baidu_name(&name).map_err(|_| faults::INAPPROPRIATE)?;
        let mut named = body.regions.ok_or(faults::INAPPROPRIATE)?;
        // One that comes twice counts once. [C]
        let mut seen = BTreeSet::new();
        named.retain(|region| seen.insert(region.clone()));
        let regions: Result<Vec<RegionName>, _> = named.iter().map(|name| name.parse()).collect();
        let regions = regions.map_err(|_| faults::REGION)?;
        if regions.is_empty() || regions.len() > Self::REGION_COUNT_MAX {
            return Err(faults::INAPPROPRIATE);
        }
        Ok(Self { name, regions })
    }
}
