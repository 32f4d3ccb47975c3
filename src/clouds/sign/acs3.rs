//! Alibaba's ACS3-HMAC-SHA256: the query, the headers that the client names, the body's hash. Pure.

use super::{Authorization, CLOCK_SKEW_SEC, Claim, Scheme, SignFault, header_lines, sha256_hex};
use crate::clouds::calendar::parse_iso;
use crate::clouds::request::Request;
use crate::clouds::text::canonical_query;

pub(crate) const SCHEME: &str = "ACS3-HMAC-SHA256";
const CONTENT: &str = "x-acs-content-sha256";
const NONCE: &str = "x-acs-signature-nonce";
const DATE: &str = "x-acs-date";

pub(super) fn read(request: &Request) -> Result<Claim, SignFault> {
    let header = |name: &'static str| request.header(name).ok_or(SignFault::Missing(name));
    let authorization = Authorization::read(request, SCHEME, "Credential")?;
    let is_signed = |name: &str| authorization.is_signed(name);
    // What is acted upon has to be signed: the host, and every header of Alibaba's own.
    let own = request.headers.iter().map(|(name, _)| name.as_str());
    let own = own.filter(|name| name.starts_with("x-acs-"));
    if !["host", DATE, NONCE, CONTENT, "x-acs-action"].into_iter().chain(own).all(is_signed) {
        return Err(SignFault::Missing("SignedHeaders"));
    }
    let signed_sec = parse_iso(header(DATE)?).ok_or(SignFault::Malformed(DATE))?;
    let nonce = header(NONCE)?.to_owned();
    let hash = sha256_hex(&request.body);
    if !header(CONTENT)?.eq_ignore_ascii_case(&hash) {
        return Err(SignFault::Malformed(CONTENT));
    }
    let pairs = request.query_pairs().ok_or(SignFault::Malformed("query"))?;
    let query = canonical_query(pairs.iter().map(|(name, value)| (&**name, &**value)));
    let Authorization { access_key, names, signature } = authorization;
    let lines = header_lines(request, &names).ok_or(SignFault::Malformed("SignedHeaders"))?;
    let path = if request.path.is_empty() { "/" } else { &request.path };
    let canonical = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{hash}", request.method);
    Ok(Claim {
        scheme: Scheme::AlibabaAcs3,
        access_key,
        signed_sec,
        valid_sec: CLOCK_SKEW_SEC,
        nonce: Some(nonce),
        string_to_sign: format!("{SCHEME}\n{}", sha256_hex(canonical.as_bytes())),
        prefix: String::new(),
        signature,
    })
}
