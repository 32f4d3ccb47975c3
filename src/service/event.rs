//! What followers are told: one event for each durable change, as one line of JSON. Pure.

use serde_json::{Map, Value, json};

use crate::service::catalog::Change;
use crate::service::model::CopyState;
use crate::service::status::Stage;

/// Something that has happened and is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its number since the service was opened, from 1. A gap: the reader was too slow.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The fields that tell it, as a JSON object.
    pub fields: Map<String, Value>,
}

impl Event {
    /// The event that a change is; `None` for one that followers need not know of.
    pub(crate) fn of(change: &Change, number: u64, unix_ms: u64) -> Option<Self> {
        let told = match change {
            Change::Copy(copy) => {
                let error = match &copy.state {
                    CopyState::Failed { kind, message } => {
                        json!({"kind": kind.name(), "message": message})
                    }
                    _ => Value::Null,
                };
                json!({
                    "event": "copy",
                    "job": copy.job.to_string(),
                    "state": Stage::of(&copy.state, None).name(),
                    "project": copy.project,
                    "source": {"region": copy.source.region.as_str(),
                               "image": copy.source.image.as_str()},
                    "target": {"region": copy.target.region.as_str(),
                               "image": copy.target.image.as_str()},
                    "error": error,
                })
            }
            Change::Image(image) => json!({
                "event": "image",
                "region": image.region.as_str(),
                "image": image.id.as_str(),
                "project": image.project,
                "state": image.state.name(),
            }),
            Change::NoImage(end) => json!({
                "event": "image",
                "region": end.region.as_str(),
                "image": end.image.as_str(),
                "state": "gone",
            }),
            Change::NoCopy(_) | Change::Token(..) | Change::NoToken(_) => return None,
        };
        let Value::Object(fields) = told else { return None };
        Some(Self { number, unix_ms, fields })
    }

    /// The event on one line, without its end: `number`, `unix_ms`, `event`, then its fields.
    pub fn line(&self) -> String {
        let mut line = Map::new();
        line.insert("number".into(), self.number.into());
        line.insert("unix_ms".into(), self.unix_ms.into());
        line.extend(self.fields.clone());
        Value::Object(line).to_string()
    }
}
