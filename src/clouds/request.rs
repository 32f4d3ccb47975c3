//! A request as it came over the wire, before anything in it is believed. Pure.

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

    /// The path without its escapes; `None` when it is malformed.
    pub(crate) fn decoded_path(&self) -> Option<String> {
        decode(&self.path, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
