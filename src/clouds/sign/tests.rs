//! The vendors' own examples and requests that their SDKs really sent, and what is changed in them.
//! Pure.

use serde_json::Value;

use super::*;
use crate::clouds::calendar::{parse_basic, parse_iso};

/// Two that the vendors print, fourteen that were captured.
fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn scheme(name: &str) -> Scheme {
    match name {
        "alibaba-rpc-hmac-sha1" => Scheme::AlibabaRpc,
        "alibaba-acs3" => Scheme::AlibabaAcs3,
        "baidu-bce-auth-v1" => Scheme::Baidu,
        "huawei-sdk-hmac-sha256" => Scheme::Huawei,
        other => panic!("{other}"),
    }
}

struct Captured {
    scheme: Scheme,
    request: Request,
    access_key: String,
    secret: String,
    string_to_sign: Option<String>,
}

fn captured() -> Vec<Captured> {
    let vectors = vectors();
    let all = vectors["captured"].as_array().unwrap().iter().map(|vector| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let target = text(&vector["target"]);
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let headers = vector["headers"].as_array().unwrap().iter();
        Captured {
            scheme: scheme(vector["scheme"].as_str().unwrap()),
            request: Request {
                method: text(&vector["method"]),
                path: path.to_owned(),
                query: query.to_owned(),
                headers: headers.map(|h| (text(&h[0]).to_lowercase(), text(&h[1]))).collect(),
                body: text(&vector["body"]).into_bytes(),
            },
            access_key: text(&vector["access_key"]),
            secret: text(&vector["secret_key"]),
            string_to_sign: vector["derived"]["string_to_sign"].as_str().map(str::to_owned),
        }
    });
    all.collect()
}

#[test]
fn requests_that_sdks_sent_verify() {
    let all = captured();
    assert_eq!(all.len(), 14);
    for Captured { scheme, request, access_key, secret, string_to_sign } in all {
        let claim = Claim::read(scheme, &request).unwrap();
        assert_eq!(claim.access_key, access_key);
        if let Some(wanted) = string_to_sign.filter(|_| scheme != Scheme::Baidu) {
            assert_eq!(claim.string_to_sign, wanted);
        }
        assert_eq!(claim.check(&secret, claim.signed_sec), Ok(()), "{request:?}");
        let has_nonce = matches!(scheme, Scheme::AlibabaRpc | Scheme::AlibabaAcs3);
        assert_eq!(claim.nonce.is_some(), has_nonce);
    }
}

#[test]
fn the_examples_that_vendors_print_verify() {
    let vectors = vectors();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for vector in vectors["documented"].as_array().unwrap() {
        let scheme = scheme(vector["scheme"].as_str().unwrap());
        let string_to_sign = match scheme {
            Scheme::AlibabaRpc => text(&vector["string_to_sign"]),
            _ => {
                let canonical = text(&vector["canonical_request"]);
                format!("ACS3-HMAC-SHA256\n{}", sha256_hex(canonical.as_bytes()))
            }
        };
        let claim = Claim {
            scheme,
            access_key: text(&vector["access_key"]),
            signed_sec: 0,
            valid_sec: 1,
            nonce: None,
            string_to_sign,
            prefix: String::new(),
            signature: text(&vector["signature"]),
        };
        assert_eq!(claim.check(&text(&vector["secret_key"]), 0), Ok(()));
    }
}

#[test]
fn whatever_is_changed_in_a_signed_request_breaks_it() {
    for Captured { scheme, request, secret, .. } in captured() {
        let good = Claim::read(scheme, &request).unwrap();
        let holds = |changed: &Request, secret: &str| {
            Claim::read(scheme, changed)
                .is_ok_and(|claim| claim.check(secret, good.signed_sec).is_ok())
        };
        assert!(holds(&request, &secret));
        assert!(!holds(&request, "another secret"));
        let mut changed = request.clone();
        changed.method = "DELETE".into();
        assert!(!holds(&changed, &secret), "method");
        let mut changed = request.clone();
        let join = if changed.query.is_empty() { "" } else { "&" };
        changed.query.push_str(&format!("{join}Force=true"));
        assert!(!holds(&changed, &secret), "query");
        if scheme != Scheme::AlibabaRpc {
            let mut changed = request.clone();
            changed.path.push_str("/x");
            assert!(!holds(&changed, &secret), "path");
            // One that is not signed may be changed, and must not matter.
            for at in 0..request.headers.len() {
                let (name, value) = &request.headers[at];
                let counts = name.starts_with("x-acs") || name == "host" || name == "x-sdk-date";
                let mut changed = request.clone();
                changed.headers[at].1 = format!("{value}1");
                assert!(!counts || !holds(&changed, &secret), "header {name}");
                let mut changed = request.clone();
                changed.headers.remove(at);
                assert!(!counts || !holds(&changed, &secret), "without header {name}");
            }
        }
        if matches!(scheme, Scheme::AlibabaAcs3 | Scheme::Huawei) {
            let mut changed = request.clone();
            changed.body.push(b' ');
            assert!(!holds(&changed, &secret), "body");
        }
        for byte in 0..good.signature.len() {
            let mut claim = good.clone();
            let mut bytes = claim.signature.into_bytes();
            bytes[byte] ^= 1;
            claim.signature = String::from_utf8(bytes).unwrap();
            let told = claim.check(&secret, good.signed_sec);
            assert!(matches!(told, Err(SignFault::Mismatch(_))), "byte {byte}");
        }
    }
}

#[test]
fn a_signature_is_good_for_its_time_alone() {
    for Captured { scheme, request, secret, .. } in captured() {
        let claim = Claim::read(scheme, &request).unwrap();
        let wanted = if scheme == Scheme::Baidu { 1800 } else { CLOCK_SKEW_SEC };
        assert_eq!(claim.valid_sec, wanted);
        let at = |offset: i64| claim.check(&secret, claim.signed_sec + offset);
        for offset in [-CLOCK_SKEW_SEC, 0, claim.valid_sec] {
            assert_eq!(at(offset), Ok(()), "{offset}");
        }
        for offset in [-CLOCK_SKEW_SEC - 1, claim.valid_sec + 1, i64::MAX / 4, i64::MIN / 4] {
            assert_eq!(at(offset), Err(SignFault::Expired), "{offset}");
        }
        let told = claim.check("wrong", claim.signed_sec + 100_000);
        assert!(matches!(told, Err(SignFault::Mismatch(_))), "the clock is for those with a key");
    }
}

#[test]
fn what_signing_needs_is_named_when_it_is_missing() {
    let all = captured();
    let rpc = all.iter().find(|captured| captured.scheme == Scheme::AlibabaRpc).unwrap();
    for name in ["Signature", "AccessKeyId", "SignatureNonce", "Timestamp", "SignatureMethod"] {
        let mut request = rpc.request.clone();
        let parts = request.query.split('&').filter(|part| !part.starts_with(&format!("{name}=")));
        request.query = parts.collect::<Vec<_>>().join("&");
        assert_eq!(Claim::read(Scheme::AlibabaRpc, &request), Err(SignFault::Missing(name)));
    }
    for captured in all.iter().filter(|captured| captured.scheme != Scheme::AlibabaRpc) {
        let mut request = captured.request.clone();
        request.headers.retain(|(name, _)| name != "authorization");
        let told = Claim::read(captured.scheme, &request);
        assert_eq!(told, Err(SignFault::Missing("authorization")));
        for junk in ["", "x", "ACS3-HMAC-SHA256", "bce-auth-v1/////", "SDK-HMAC-SHA256 Access=a"] {
            request.headers.push(("authorization".into(), junk.into()));
            assert!(Claim::read(captured.scheme, &request).is_err(), "{junk}");
            request.headers.pop();
        }
    }
    assert!(parse_iso("2026-11-21T20:25:10Z").is_some() && parse_basic("x").is_none());
}

#[test]
fn a_client_cannot_leave_out_of_its_signature_what_is_acted_upon() {
    let all = captured();
    let acs3 = all.iter().find(|captured| captured.scheme == Scheme::AlibabaAcs3).unwrap();
    for name in ["x-acs-action", "host", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"] {
        let mut request = acs3.request.clone();
        for (known, value) in &mut request.headers {
            if known == "authorization" {
                *value = value.replace(&format!(";{name}"), "").replace(&format!("{name};"), "");
            }
        }
        let told = Claim::read(Scheme::AlibabaAcs3, &request);
        assert_eq!(told, Err(SignFault::Missing("SignedHeaders")), "{name}");
    }
}
