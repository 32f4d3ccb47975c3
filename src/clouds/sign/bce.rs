//! Baidu's bce-auth-v1: the path, the query and headers, under a key made for the time stamp. Pure.
//!
//! It signs no body but by a hash that the client may send along, and has no nonce: who can listen
//! can repeat a request for as long as it is good. Use TLS.

use super::{Claim, Scheme, SignFault, sha256_hex};
use crate::clouds::calendar::parse_iso;
use crate::clouds::request::Request;
use crate::clouds::text::{canonical_query, encode, encode_path};

/// The longest time that a signature may be good for. \[C\]
const VALID_SEC_MAX: i64 = 86_400;
const CONTENT: &str = "x-bce-content-sha256";

pub(super) fn read(request: &Request) -> Result<Claim, SignFault> {
    let malformed = SignFault::Malformed("authorization");
    let authorization =
        request.header("authorization").ok_or(SignFault::Missing("authorization"))?;
    let parts: Vec<&str> = authorization.split('/').collect();
    let [version, access_key, stamp, seconds, names, signature] = parts[..] else {
        return Err(malformed);
    };
    let valid_sec = seconds.parse::<i64>().ok().filter(|sec| (1..=VALID_SEC_MAX).contains(sec));
    let (Some(signed_sec), Some(valid_sec)) = (parse_iso(stamp), valid_sec) else {
        return Err(malformed);
    };
    if version != "bce-auth-v1" || access_key.is_empty() || signature.is_empty() {
        return Err(malformed);
    }
    if let Some(hash) = request.header(CONTENT)
        && !hash.eq_ignore_ascii_case(&sha256_hex(&request.body))
    {
        return Err(SignFault::Malformed(CONTENT));
    }
    let path = request.decoded_path().ok_or(SignFault::Malformed("path"))?;
    let pairs = request.query_pairs().ok_or(SignFault::Malformed("query"))?;
    let signed = pairs.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
    let query = canonical_query(signed.map(|(name, value)| (&**name, &**value)));
    let headers = header_lines(request, names).ok_or(malformed)?;
    Ok(Claim {
        scheme: Scheme::Baidu,
        access_key: access_key.to_owned(),
        signed_sec,
        valid_sec,
        nonce: None,
        string_to_sign: [&request.method, &encode_path(&path), &query, &headers]
            .map(|s| &**s)
            .join("\n"),
        prefix: parts[..4].join("/"),
        signature: signature.to_owned(),
    })
}

/// `enc(name):enc(value)` lines, sorted. Without names: host, those of the content, Baidu's own.
fn header_lines(request: &Request, names: &str) -> Option<String> {
    let by_default = |name: &str| {
        matches!(name, "host" | "content-length" | "content-type" | "content-md5")
            || name.starts_with("x-bce-")
    };
    let wanted: Vec<String> = if names.is_empty() {
        let all = request.headers.iter().map(|(name, _)| name.as_str());
        all.filter(|name| by_default(name)).map(str::to_owned).collect()
    } else {
        names.split(';').map(str::to_ascii_lowercase).collect()
    };
    // The host is the region.
    if !wanted.iter().any(|name| name == "host") {
        return None;
    }
    let mut lines = Vec::new();
    for name in wanted {
        let value = request.header(&name)?.trim();
        if !value.is_empty() {
            lines.push(format!("{}:{}", encode(&name), encode(value)));
        }
    }
    lines.sort_unstable();
    Some(lines.join("\n"))
}
