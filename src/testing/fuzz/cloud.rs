//! Requests to the clouds' dialects: what is read of them and of their bodies, and that only the
//! right one verifies.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::clouds::alibaba::Parameters;
use crate::clouds::alibaba::asked::Wanted as AlibabaWanted;
use crate::clouds::baidu::asked::RemoteCopy;
use crate::clouds::huawei::asked::{Across, Wanted as HuaweiWanted};
use crate::clouds::text::encode;
use crate::clouds::{Claim, Request, Scheme, SignFault};

const SCHEMES: [Scheme; 4] =
    [Scheme::AlibabaRpc, Scheme::AlibabaAcs3, Scheme::Baidu, Scheme::Huawei];
const SECRET: &str = "secret";

/// A request in text: method and target on the first line, then headers, an empty line, the body.
pub(super) fn check(bytes: &[u8]) {
    let request = read(bytes);
    for scheme in SCHEMES {
        let Ok(claim) = Claim::read(scheme, &request) else { continue };
        assert!(!claim.access_key.is_empty(), "{scheme:?}: signed by nobody");
        assert!(claim.valid_sec > 0 && claim.end_sec() > claim.signed_sec);
        // Nobody can guess a signature, but whoever has the secret can make it.
        let told = claim.check(SECRET, claim.signed_sec);
        let signature = claim.signature(SECRET);
        let right = told.is_ok();
        assert_eq!(right, claim.check(SECRET, claim.end_sec()).is_ok(), "{scheme:?}");
        if right {
            let late = claim.check(SECRET, claim.end_sec().saturating_add(1));
            assert_eq!(late, Err(SignFault::Expired), "{scheme:?}");
            assert!(contains(&request, &signature), "{scheme:?}: taken without its signature");
        }
        // The same request says the same.
        let again = Claim::read(scheme, &request);
        assert_eq!(again.as_ref().ok(), Some(&claim), "{scheme:?}");
        // Another method is another request.
        let other = Request { method: format!("{}X", request.method), ..request.clone() };
        if let Ok(other) = Claim::read(scheme, &other) {
            assert_ne!(other.signature(SECRET), signature, "{scheme:?}: the method is not signed");
        }
    }
}

fn contains(request: &Request, signature: &str) -> bool {
    let in_header = request.headers.iter().any(|(_, value)| value.contains(signature));
    // In a query or a form it is escaped, in whatever way.
    in_header || !request.query.is_empty() || !request.body.is_empty()
}

fn read(bytes: &[u8]) -> Request {
    let (head, body) = match bytes.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (bytes, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let (method, target) = lines.next().unwrap_or_default().split_once(' ').unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    };
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: lines.filter_map(header).collect(),
        body: body.to_vec(),
    }
}

/// One that each scheme takes, and one that is nothing.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let rpc = "POST /?Action=CopyImage&Tag.1.Value=v%20w+x&SignatureType=&AccessKeyId=a&\
               SignatureMethod=HMAC-SHA1&SignatureVersion=1.0&SignatureNonce=n&\
               Timestamp=2026-11-21T20%3A25%3A10Z&Signature=x\nhost: h\n\n";
    let form = "POST /\nhost: h\ncontent-type: application/x-www-form-urlencoded\n\n\
                Action=CancelCopyImage&AccessKeyId=a&SignatureMethod=HMAC-SHA1&\
                SignatureVersion=1.0&SignatureNonce=n&Timestamp=2026-11-21T20:25:10Z&Signature=x";
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let acs3 = format!(
        "POST /?ImageId=m-1&a=b+c\nhost: h\nx-acs-action: CopyImage\nx-acs-date: \
         2026-11-21T20:25:11Z\nx-acs-signature-nonce: n\nx-acs-content-sha256: {hash}\n\
         authorization: ACS3-HMAC-SHA256 Credential=a,SignedHeaders=host;x-acs-action;\
         x-acs-content-sha256;x-acs-date;x-acs-signature-nonce,Signature=x\n\n"
    );
    let bce = "POST /v2/image/m-1?remoteCopy\nhost: 127.0.0.1:1\ncontent-length: 2\nauthorization: \
               bce-auth-v1/a/2026-11-21T20:25:11Z/1800//x\n\n{}";
    let sdk = "GET /v1/p/jobs/0\nhost: h\nx-sdk-date: 20261121T202548Z\nauthorization: \
               SDK-HMAC-SHA256 Access=a, SignedHeaders=host;x-sdk-date, Signature=x\n\n";
    let all = [rpc, form, &acs3, bce, sdk, "GET /%\n\n"];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What a dialect has read of a request says the same when it is written anew.
pub(super) fn check_body(bytes: &[u8]) {
    let request = read(bytes);
    if let Ok(copy) = RemoteCopy::read(&request) {
        assert!((1..=RemoteCopy::REGION_COUNT_MAX).contains(&copy.regions.len()));
        let distinct: BTreeSet<_> = copy.regions.iter().collect();
        assert_eq!(distinct.len(), copy.regions.len(), "a region comes twice");
        let regions: Vec<_> = copy.regions.iter().map(|region| region.as_str()).collect();
        let again = with_json(json!({"name": copy.name, "destRegion": regions}));
        assert_eq!(RemoteCopy::read(&again).ok().as_ref(), Some(&copy));
    }
    if let Ok(wanted) = HuaweiWanted::read(&request) {
        let HuaweiWanted { name, description, key } = &wanted;
        assert!(!name.is_empty() && key.as_deref() != Some(""));
        let again = json!({"name": name, "description": description, "cmk_id": key});
        assert_eq!(HuaweiWanted::read(&with_json(again)).ok().as_ref(), Some(&wanted));
    }
    if let Ok(across) = Across::read(&request) {
        let vault = across.has_vault.then_some("");
        let again = json!({
            "region": across.region.as_str(), "project_name": "p", "agency_name": "a",
            "vault_id": vault,
        });
        assert_eq!(Across::read(&with_json(again)).ok().as_ref(), Some(&across));
    }
    let parameters = Parameters::read(&request);
    if let Some(Ok(wanted)) = parameters.map(|parameters| AlibabaWanted::read(&parameters)) {
        let again = Parameters::read(&as_query(&wanted));
        let again = again.and_then(|parameters| AlibabaWanted::read(&parameters).ok());
        assert_eq!(again.as_ref(), Some(&wanted));
    }
}

fn with_json(body: Value) -> Request {
    Request { body: body.to_string().into_bytes(), ..Request::default() }
}

fn as_query(wanted: &AlibabaWanted) -> Request {
    let AlibabaWanted { name, description, tags, key } = wanted;
    let mut query = format!(
        "DestinationImageName={}&DestinationDescription={}&Encrypted={}&KMSKeyId={}",
        encode(name),
        encode(description),
        key.is_some(),
        encode(key.as_deref().unwrap_or_default())
    );
    for (number, (key, value)) in (1..).zip(tags) {
        let (key, value) = (encode(key), encode(value));
        query += &format!("&Tag.{number}.Key={key}&Tag.{number}.Value={value}");
    }
    Request { query, ..Request::default() }
}

/// One that each dialect takes, and some that none does.
pub(super) fn body_seeds() -> Vec<Vec<u8>> {
    let all = [
        "POST /?remoteCopy\n\n\
         {\"name\": \"n\\u00e4me\", \"destRegion\": [\"bj\", \"gz\", \"bj\"], \"x\": [[{}]]}",
        "POST /\n\n\
         {\"name\": \"n\", \"description\": null, \"cmk_id\": \"k\", \"region\": \"cn-south-1\", \
         \"project_name\": \"p\", \"agency_name\": \"ims\", \"vault_id\": \"v\"}",
        "POST /?DestinationImageName=name&Tag.1.Key=k&Tag.1.Value=%20v&Encrypted=TRUE&\
         KMSKeyId=k-1\n\n",
        "POST /?Encrypted=true\ncontent-type: application/x-www-form-urlencoded\n\n\
         DestinationDescription=about+it&Tag.20.Key=last",
        "POST /\n\n{\"destRegion\": {\"name\": []}}",
        "POST /\n\n[\"name\", [\"bj\"]]",
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
