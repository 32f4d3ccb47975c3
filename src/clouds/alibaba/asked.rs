//! What a CopyImage asks for of its image. Pure.

use std::collections::BTreeMap;

use super::{Parameters, faults};
use crate::clouds::reply::Fault;
use crate::service::{alibaba_description, alibaba_name, alibaba_tag_key, alibaba_tag_value};

/// The most labels of an image. \[D\]
const TAG_COUNT_MAX: usize = 20;

/// How the new image is to be named, labelled and encrypted; in the order in which it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) tags: BTreeMap<String, String>,
    /// `Some` of nothing is the region's own.
    pub(crate) key: Option<String>,
}

impl Wanted {
    pub(crate) fn read(asked: &Parameters) -> Result<Self, Fault> {
        Ok(Self {
            name: name(asked)?,
            description: description(asked)?,
            tags: tags(asked)?,
            key: key(asked)?,
        })
    }
}

fn name(asked: &Parameters) -> Result<String, Fault> {
    let Some(name) = asked.find("DestinationImageName") else { return Ok(String::new()) };
    alibaba_name(name).map_err(|_| faults::NAME_MALFORMED)?;
    Ok(name.to_owned())
}

fn description(asked: &Parameters) -> Result<String, Fault> {
    let Some(text) = asked.find("DestinationDescription") else { return Ok(String::new()) };
    alibaba_description(text).map_err(|_| faults::DESCRIPTION_MALFORMED)?;
    Ok(text.to_owned())
}

fn tags(asked: &Parameters) -> Result<BTreeMap<String, String>, Fault> {
    let mut tags = BTreeMap::new();
    // Those of a greater number than may be are not looked for, but may not be there.
    let numbered = |name: &str| name.strip_prefix("Tag.")?.split('.').next()?.parse::<usize>().ok();
    if asked.all().filter_map(|(name, _)| numbered(name)).any(|n| !(1..=TAG_COUNT_MAX).contains(&n))
    {
        return Err(faults::invalid("Tag.N.Key"));
    }
    for number in 1..=TAG_COUNT_MAX {
        let value = asked.find(&format!("Tag.{number}.Value")).unwrap_or_default();
        let Some(key) = asked.find(&format!("Tag.{number}.Key")) else {
            if value.is_empty() {
                continue;
            }
            return Err(faults::invalid("Tag.N.Key"));
        };
        alibaba_tag_key(key).map_err(|_| faults::invalid("Tag.N.Key"))?;
        alibaba_tag_value(value).map_err(|_| faults::invalid("Tag.N.Value"))?;
        tags.insert(key.to_owned(), value.to_owned());
    }
    Ok(tags)
}

/// The key to encrypt under. `Encrypted` without one asks for the region's own: the first it knows.
fn key(asked: &Parameters) -> Result<Option<String>, Fault> {
    match (asked.boolean("Encrypted")?, asked.find("KMSKeyId")) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(faults::ENCRYPTED_ILLEGAL),
        (true, key) => Ok(Some(key.unwrap_or_default().to_owned())),
    }
}
