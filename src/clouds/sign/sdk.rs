//! Huawei's SDK-HMAC-SHA256: the path, the query, headers that the client names, the body. Pure.
//!
//! It has no nonce: who can listen can repeat a request for as long as it is good. Use TLS.

use super::{Authorization, CLOCK_SKEW_SEC, Claim, Scheme, SignFault, header_lines, sha256_hex};
use crate::clouds::calendar::parse_basic;
use crate::clouds::request::Request;
use crate::clouds::text::{canonical_query, encode_path};

const SCHEME: &str = "SDK-HMAC-SHA256";
const CONTENT: &str = "x-sdk-content-sha256";
const DATE: &str = "x-sdk-date";

pub(super) fn read(request: &Request) -> Result<Claim, SignFault> {
    let header = |name: &'static str| request.header(name).ok_or(SignFault::Missing(name));
    let authorization = Authorization::read(request, SCHEME, "Access")?;
    let is_signed = |name: &str| authorization.is_signed(name);
    // The host is the region.
    if !["host", DATE].into_iter().all(is_signed) {
        return Err(SignFault::Missing("SignedHeaders"));
    }
    let stamp = header(DATE)?;
    let signed_sec = parse_basic(stamp).ok_or(SignFault::Malformed(DATE))?;
    let hash = sha256_hex(&request.body);
    if request.header(CONTENT).is_some_and(|sent| !sent.eq_ignore_ascii_case(&hash)) {
        return Err(SignFault::Malformed(CONTENT));
    }
    let path = request.decoded_path().ok_or(SignFault::Malformed("path"))?;
    let path = encode_path(&path);
    let slash = if path.ends_with('/') { "" } else { "/" };
    let pairs = request.query_pairs().ok_or(SignFault::Malformed("query"))?;
    let query = canonical_query(pairs.iter().map(|(name, value)| (&**name, &**value)));
    let Authorization { access_key, names, signature } = authorization;
    let lines = header_lines(request, &names).ok_or(SignFault::Malformed("SignedHeaders"))?;
    let canonical = format!("{}\n{path}{slash}\n{query}\n{lines}\n{names}\n{hash}", request.method);
    Ok(Claim {
        scheme: Scheme::Huawei,
        access_key,
        signed_sec,
        valid_sec: CLOCK_SKEW_SEC,
        nonce: None,
        string_to_sign: format!("{SCHEME}\n{stamp}\n{}", sha256_hex(canonical.as_bytes())),
        prefix: String::new(),
        signature,
    })
}
