//! What a request is answered, and what of that is told in logs and counts. Pure.

use std::borrow::Cow;

use serde_json::Value;

use crate::clouds::text::xml;

/// An answer, in the dialect's own shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The request's number, which the body or a header also tells.
    pub request_id: String,
    /// The call that was made, where it was understood: `CopyImage`, …
    pub call: &'static str,
    /// The vendor's error code; empty for success.
    pub code: &'static str,
    /// The access key, once it was verified.
    pub access_key: String,
}

/// An error in a vendor's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: Cow<'static, str>,
}

impl Fault {
    pub(crate) const fn new(status: u16, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message: Cow::Borrowed(message) }
    }
}

/// What keeps a request from being looked at, however it is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Its body is longer than may be.
    BodyTooLong,
    /// Its headers or its target are.
    HeadersTooLong,
    /// It did not come in time.
    TooSlow,
    /// It is no request that could be read.
    Malformed,
    /// There are too many.
    TooMany,
}

/// An object as the content of an XML element: a field is an element, a list is one element each.
pub(crate) fn xml_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => xml(text),
        Value::Object(fields) => {
            let mut out = String::new();
            for (name, value) in fields {
                let all = match value {
                    Value::Array(items) => items.iter().collect(),
                    other => vec![other],
                };
                for item in all {
                    out.push_str(&format!("<{name}>{}</{name}>", xml_of(item)));
                }
            }
            out
        }
        Value::Array(items) => items.iter().map(xml_of).collect(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_become_repeated_elements() {
        let value = json!({"A": {"B": [{"C": 1}, {"C": "<x>"}]}, "D": true, "E": null, "F": []});
        let wanted = "<A><B><C>1</C></B><B><C>&lt;x&gt;</C></B></A><D>true</D><E></E>";
        assert_eq!(xml_of(&value), wanted);
    }
}
