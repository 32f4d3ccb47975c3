//! A request as it came over the wire, before anything in it is believed. Pure.

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::clouds::text::{decode, pairs};

/// A request, bounded by whoever read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as sent, with its escapes.
    pub path: String,
    /// What follows the `?`, as sent; empty without one.
    pub query: String,
    /// Names in lower case and values, in their order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a body is not what was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    Empty,
    /// It is no JSON.
    Malformed,
    /// It is JSON of another shape.
    Inappropriate,
}

impl Request {
    /// The first value of that header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The parameters of the query, decoded; `None` when it is malformed.
    pub(crate) fn query_pairs(&self) -> Option<Vec<(String, String)>> {
        pairs(&self.query)
    }

    /// The parameters of the body, where it says that it is a form; `None` when it is malformed.
    pub(crate) fn form_pairs(&self) -> Option<Vec<(String, String)>> {
        let form = "application/x-www-form-urlencoded";
        let kind = self.header("content-type").unwrap_or_default().as_bytes();
        if !kind.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form.as_bytes()))
        {
            return Some(Vec::new());
        }
        pairs(std::str::from_utf8(&self.body).ok()?)
    }

    /// The body as a JSON object. What is asked for alone costs memory, whatever else it has.
    pub(crate) fn json_body<T: DeserializeOwned>(&self) -> Result<T, BodyFault> {
        let told = |error: serde_json::Error| match error.is_data() {
            true => BodyFault::Inappropriate,
            false => BodyFault::Malformed,
        };
        match self.body.trim_ascii_start() {
            [] => Err(BodyFault::Empty),
            [b'{', ..] => serde_json::from_slice(&self.body).map_err(told),
            // A list would be taken for the fields in their order.
            _ => match serde_json::from_slice::<IgnoredAny>(&self.body) {
                Ok(IgnoredAny) => Err(BodyFault::Inappropriate),
                Err(_) => Err(BodyFault::Malformed),
            },
        }
    }

    /// The path without its escapes; `None` when it is malformed.
    pub(crate) fn decoded_path(&self) -> Option<String> {
        decode(&self.path, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    struct Named {
        name: Option<String>,
    }

    #[test]
    fn a_json_body_is_an_object_of_the_shape_that_is_asked_for() {
        let read = |text: &str| {
            let request = Request { body: text.as_bytes().to_vec(), ..Request::default() };
            request.json_body::<Named>().map(|named| named.name)
        };
        assert_eq!(read(r#" {"name": "a", "more": [[{}]]}"#), Ok(Some("a".into())));
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read(r#"{"name": null}"#), Ok(None));
        for empty in ["", " \n"] {
            assert_eq!(read(empty), Err(BodyFault::Empty));
        }
        for other in [r#"["a"]"#, "1", r#"{"name": 1}"#, r#"{"name": "a", "name": "b"}"#] {
            assert_eq!(read(other), Err(BodyFault::Inappropriate), "{other}");
        }
        for text in ["{", "[", r#"{"name": "a"}}"#, r#"{"name"}"#, "x"] {
            assert_eq!(read(text), Err(BodyFault::Malformed), "{text}");
        }
    }

    #[test]
    fn a_form_is_read_only_where_it_says_so() {
        let mut request = Request { body: b"a=b&c=".to_vec(), ..Request::default() };
        assert_eq!(request.form_pairs(), Some(Vec::new()));
        let kind = "Application/x-www-form-urlencoded; charset=utf-8";
        request.headers.push(("content-type".into(), kind.into()));
        assert_eq!(request.form_pairs().map(|pairs| pairs.len()), Some(2));
        request.body.push(0xff);
        assert_eq!(request.form_pairs(), None);
    }
}
