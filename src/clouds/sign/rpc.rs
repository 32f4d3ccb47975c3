//! Alibaba's RPC signature: HMAC-SHA1 over all parameters, of the query and of a form. Pure.

use super::{CLOCK_SKEW_SEC, Claim, Scheme, SignFault};
use crate::clouds::calendar::parse_iso;
use crate::clouds::request::Request;
use crate::clouds::text::{canonical_query, encode};

const SIGNATURE: &str = "Signature";

pub(super) fn read(request: &Request) -> Result<Claim, SignFault> {
    let mut pairs = request.query_pairs().ok_or(SignFault::Malformed("query"))?;
    pairs.extend(request.form_pairs().ok_or(SignFault::Malformed("body"))?);
    let find = |name: &'static str| {
        let found = pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        found.filter(|value| !value.is_empty()).ok_or(SignFault::Missing(name))
    };
    let signature = find(SIGNATURE)?;
    let access_key = find("AccessKeyId")?;
    let nonce = find("SignatureNonce")?;
    let stamp = find("Timestamp")?;
    if find("SignatureMethod")? != "HMAC-SHA1" {
        return Err(SignFault::Malformed("SignatureMethod"));
    }
    if find("SignatureVersion")? != "1.0" {
        return Err(SignFault::Malformed("SignatureVersion"));
    }
    let signed_sec = parse_iso(&stamp).ok_or(SignFault::Malformed("Timestamp"))?;
    // Blank parameters are signed too.
    let signed = pairs.iter().filter(|(name, _)| name != SIGNATURE);
    let query = canonical_query(signed.map(|(name, value)| (name.as_str(), value.as_str())));
    Ok(Claim {
        scheme: Scheme::AlibabaRpc,
        access_key,
        signed_sec,
        valid_sec: CLOCK_SKEW_SEC,
        nonce: Some(nonce),
        string_to_sign: format!("{}&%2F&{}", request.method, encode(&query)),
        prefix: String::new(),
        signature,
    })
}
