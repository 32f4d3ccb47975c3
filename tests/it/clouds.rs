//! The three dialects over a real service: signed requests in, the vendors' words out; and the door
//! that lets them in.

mod errors;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockferry::clouds::{
    AccessKey, Api, ApiOptions, Claim, Door, DoorLimits, Face, Keys, Reply, Request, Scheme,
    Secret, serve_admin,
};
use blockferry::engine::Engine;
use blockferry::options::EngineOptions;
#[cfg(feature = "encrypt")]
use blockferry::options::{CopyOptions, Encryption};
use blockferry::region::DirRegion;
#[cfg(feature = "encrypt")]
use blockferry::service::ImageState;
use blockferry::service::{Caller, Image, ImageKind, ImageService, ServiceOptions, ServiceRegion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::world::{MIB, PATIENCE, World, image, noise, rate, region};
#[cfg(feature = "encrypt")]
use crate::world::{committed, request};

const KEY: &str = "AKIDTEST";
const SECRET: &str = "a-secret";
const HOST: &str = "127.0.0.1:1";
const SOURCE: &str = "30e55148-0000-4000-8000-0000000000a1";
const SECOND: &str = "30e55148-0000-4000-8000-0000000000a2";

/// Region `a` with images of all kinds, region `b` empty; key [`KEY`] of project `p`.
struct Lab {
    world: World,
    api: Arc<Api>,
}

impl Lab {
    async fn new() -> Self {
        Self::with(ApiOptions::default()).await
    }

    async fn with(options: ApiOptions) -> Self {
        Self::of(options, |_, place| ServiceRegion::new(Arc::new(place))).await
    }

    /// Regions with keys: `key-1` and `key-2` in `a`, `key-3` and `key-1` in `b`.
    #[cfg(feature = "encrypt")]
    async fn with_keys() -> Self {
        let ring = Arc::new(blockferry::keys::MemoryKeyring::new());
        for key in ["key-1", "key-2", "key-3"] {
            ring.add(&key.parse().unwrap()).unwrap();
        }
        let place_of = |name: &str, place: DirRegion| {
            let keys = if name == "a" { ["key-1", "key-2"] } else { ["key-3", "key-1"] };
            ServiceRegion::new(Arc::new(place.with_keys(ring.clone())))
                .with_keys(keys.map(|key| key.parse().unwrap()))
        };
        Self::of(ApiOptions::default(), place_of).await
    }

    async fn of(options: ApiOptions, place_of: impl Fn(&str, DirRegion) -> ServiceRegion) -> Self {
        let world = World::in_memory();
        let engine = world.engine().await;
        let state = world.path("daemon");
        let own = Engine::open(EngineOptions::new(&state).with_threads(2)).await.unwrap();
        let mut of_service = ServiceOptions::new(&state);
        for name in ["a", "b"] {
            let place = DirRegion::open_root(world.path(name)).unwrap();
            of_service = of_service.with_region(region(name), place_of(name, place));
        }
        let service = ImageService::open(own, of_service).await.unwrap();
        for (id, project, kind, shared) in [
            (SOURCE, "p", ImageKind::Custom, ""),
            (SECOND, "p", ImageKind::Custom, ""),
            ("system", "vendor", ImageKind::System, ""),
            ("iso", "p", ImageKind::Iso, ""),
            ("shared", "q", ImageKind::Custom, "p"),
            ("given", "p", ImageKind::Custom, "q"),
            ("foreign", "q", ImageKind::Custom, ""),
        ] {
            world.put(&engine, &noise(7, MIB), &format!("a/{id}")).await;
            let mut known = Image::new(region("a"), image(id), project);
            known.kind = kind;
            known.shared_with.extend((!shared.is_empty()).then(|| shared.to_owned()));
            service.put_image(known).await.unwrap();
        }
        let mut keys = Keys::new();
        keys.add(AccessKey { secret: Secret::new(SECRET), caller: caller() }).unwrap();
        let api = Arc::new(Api::new(Arc::new(service), keys, options));
        Self { world, api }
    }

    /// So slow that no copy to `b` ends.
    fn slow(&self) {
        self.api.service().engine().limit_region(&region("b"), rate(1)).unwrap();
    }

    async fn alibaba(&self, params: &[(&str, &str)]) -> (u16, Value) {
        told(self.api.answer(&Face::Alibaba, &rpc(params)).await)
    }

    async fn baidu(&self, at: &str, method: &str, target: &str, body: &str) -> (u16, Value) {
        told(self.api.answer(&Face::Baidu(region(at)), &bce(method, target, body)).await)
    }

    async fn huawei(&self, at: &str, method: &str, target: &str, body: &str) -> (u16, Value) {
        told(self.api.answer(&Face::Huawei(region(at)), &sdk(method, target, body)).await)
    }
}

fn caller() -> Caller {
    let star = vec!["*".to_owned()];
    Caller { project: "p".into(), key: KEY.into(), regions: star.clone(), images: star }
}

fn told(reply: Reply) -> (u16, Value) {
    let body = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    (reply.status, body)
}

/// Seconds since 1970, as `date -u` with that format would write them.
#[expect(clippy::disallowed_methods, reason = "a client signs with the time of day")]
fn stamp(basic: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let days = i64::try_from(now / 86_400).unwrap() + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    let (h, m, s) = (now / 3600 % 24, now / 60 % 60, now % 60);
    if basic {
        format!("{year:04}{month:02}{day:02}T{h:02}{m:02}{s:02}Z")
    } else {
        format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
    }
}

fn nonce() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string()
}

fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// A call of Alibaba's signed the RPC way. `_secret` and `_nonce` are ours.
fn rpc(params: &[(&str, &str)]) -> Request {
    let find = |name: &str| params.iter().find(|(known, _)| *known == name).map(|(_, v)| *v);
    let nonce = find("_nonce").map_or_else(nonce, str::to_owned);
    let stamp = find("Timestamp").map_or_else(|| stamp(false), str::to_owned);
    let mut all: Vec<(&str, &str)> = vec![
        ("AccessKeyId", find("AccessKeyId").unwrap_or(KEY)),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("SignatureNonce", &nonce),
        ("Timestamp", &stamp),
        ("Format", find("Format").unwrap_or("JSON")),
        ("SignatureType", ""),
    ];
    let ours = ["_secret", "_nonce", "AccessKeyId", "Timestamp", "Format"];
    all.extend(params.iter().filter(|(name, _)| !ours.contains(name)));
    let query: Vec<_> = all.iter().map(|(n, v)| format!("{}={}", quoted(n), quoted(v))).collect();
    let mut request = Request {
        method: "POST".into(),
        path: "/".into(),
        query: format!("{}&Signature=x", query.join("&")),
        headers: vec![("host".into(), HOST.into()), ("content-length".into(), "0".into())],
        body: Vec::new(),
    };
    let claim = Claim::read(Scheme::AlibabaRpc, &request).unwrap();
    let signature = claim.signature(find("_secret").unwrap_or(SECRET));
    request.query = format!("{}&Signature={}", query.join("&"), quoted(&signature));
    request
}

fn at(method: &str, target: &str, body: &str, headers: &[(&str, &str)]) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        headers: headers.iter().map(owned).collect(),
        body: body.as_bytes().to_vec(),
    }
}

/// Signs a request whose `authorization` ends with an `x` in the place of the signature.
fn signed(scheme: Scheme, mut request: Request) -> Request {
    let signature = Claim::read(scheme, &request).unwrap().signature(SECRET);
    let header = request.headers.iter_mut().find(|(name, _)| name == "authorization").unwrap();
    header.1.pop();
    header.1.push_str(&signature);
    request
}

fn bce(method: &str, target: &str, body: &str) -> Request {
    let authorization = format!("bce-auth-v1/{KEY}/{}/1800//x", stamp(false));
    let len = body.len().to_string();
    let headers = [("host", HOST), ("content-length", &*len), ("authorization", &*authorization)];
    signed(Scheme::Baidu, at(method, target, body, &headers))
}

fn sdk(method: &str, target: &str, body: &str) -> Request {
    let authorization =
        format!("SDK-HMAC-SHA256 Access={KEY}, SignedHeaders=host;x-sdk-date, Signature=x");
    let stamp = stamp(true);
    let headers = [("host", HOST), ("x-sdk-date", &*stamp), ("authorization", &*authorization)];
    signed(Scheme::Huawei, at(method, target, body, &headers))
}

fn copy<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut params = vec![("Action", "CopyImage"), ("RegionId", "a"), ("DestinationRegionId", "b")];
    params.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    if !more.iter().any(|(name, _)| *name == "ImageId") {
        params.push(("ImageId", SOURCE));
    }
    params.extend(more.iter().filter(|(_, value)| *value != "-"));
    params.retain(|(_, value)| *value != "-");
    params
}

/// Parameters; status, code and message of the answer.
type Case<'a> = (Vec<(&'a str, &'a str)>, (u16, &'a str, &'a str));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_of_alibaba_has_its_status_code_and_message() {
    let lab = Lab::new().await;
    let long = "d".repeat(257);
    let no_image = (404, "InvalidImageId.NotFound", "The specified ImageId does not exist.");
    let name = "InvalidImageName.Malformed";
    let name = (400, name, "The specified destination image name is wrongly formed.");
    let text = "InvalidDescription.Malformed";
    let text = (400, text, "The specified destination description is wrongly formed.");
    let mandatory = "that is mandatory for processing this request is not supplied.";
    let cases: Vec<Case<'_>> = vec![
        (copy(&[("RegionId", "-")]), (400, "MissingParameter", mandatory)),
        (copy(&[("ImageId", "-")]), (400, "MissingParameter", mandatory)),
        (
            copy(&[("RegionId", "x")]),
            (400, "SourceRegion.NotFound", "The source region not found."),
        ),
        (
            copy(&[("DestinationRegionId", "x")]),
            (400, "DestinationRegion.NotFound", "The destination region not found."),
        ),
        (copy(&[("ImageId", "none")]), no_image),
        (copy(&[("ImageId", "../a")]), no_image),
        (copy(&[("ImageId", "system")]), no_image),
        (copy(&[("ImageId", "foreign")]), no_image),
        (copy(&[("ImageId", "iso")]), (403, "OperationDenied", "")),
        (
            copy(&[("ImageId", "shared")]),
            (
                403,
                "OperationDenied.SameRegionOnly",
                "The image shared from others can not be copied to another region directly.",
            ),
        ),
        (
            copy(&[("DestinationRegionId", "a")]),
            (
                403,
                "IncorrectDestinationRegion",
                "The destination region is not equal the target region.",
            ),
        ),
        // Without a destination it is the source's own region.
        (copy(&[("DestinationRegionId", "-")]), (403, "IncorrectDestinationRegion", "")),
        (copy(&[("DestinationImageName", "x")]), name),
        (copy(&[("DestinationImageName", "acs:x")]), name),
        (copy(&[("DestinationDescription", &long)]), text),
        (copy(&[("DestinationDescription", "http://x")]), text),
        (
            copy(&[("KMSKeyId", "k")]),
            (
                400,
                "InvalidParameter.EncryptedIllegal",
                "The specified parameter Encrypted must be true when kmsKeyId is not empty.",
            ),
        ),
        (
            copy(&[("Encrypted", "True"), ("KMSKeyId", "k")]),
            (400, "InvalidParameter.KmsNotEnabled", "The specified operation need enable KMS."),
        ),
        (copy(&[("Encrypted", "maybe")]), (400, "InvalidParameter", "Encrypted")),
        (copy(&[("Tag.21.Key", "k")]), (400, "InvalidParameter", "Tag")),
        (copy(&[("Tag.1.Value", "v")]), (400, "InvalidParameter", "Tag")),
        (copy(&[("ClientToken", &long)]), (400, "InvalidParameter", "ClientToken")),
        (
            copy(&[("DryRun", "true")]),
            (400, "DryRunOperation", "Request validation has been passed with DryRun flag set."),
        ),
        (
            vec![("Action", "CancelCopyImage"), ("RegionId", "b")],
            (
                400,
                "MissingParameter",
                "The input parameter \"ImageId\" that is mandatory for processing this request is not supplied.",
            ),
        ),
        (
            vec![("Action", "CancelCopyImage"), ("RegionId", "x"), ("ImageId", "i")],
            (404, "InvalidRegionId.NotFound", "The specified RegionId does not exist."),
        ),
        (vec![("Action", "CancelCopyImage"), ("RegionId", "b"), ("ImageId", "i")], no_image),
        (
            vec![("Action", "CancelCopyImage"), ("RegionId", "a"), ("ImageId", SOURCE)],
            (
                400,
                "ImageCreatedNotFromCopy",
                "The specified image is not the target image of a copy action.",
            ),
        ),
        (vec![("Action", "DeleteImage"), ("RegionId", "a"), ("ImageId", "none")], no_image),
        (
            vec![("Action", "DeleteImage"), ("RegionId", "a"), ("ImageId", "system")],
            (403, "Forbbiden", "User not authorized to operate on the specified resource."),
        ),
        (
            vec![("Action", "DeleteImage"), ("RegionId", "a"), ("ImageId", "given")],
            (403, "InvalidImage.SharedToOthers", ""),
        ),
        (vec![("Action", "DescribeImages")], (400, "MissingParameter", mandatory)),
        (
            vec![("Action", "DescribeImages"), ("RegionId", "x")],
            (404, "InvalidRegionId.NotFound", "The specified RegionId does not exist."),
        ),
        (
            vec![("Action", "DescribeImages"), ("RegionId", "a"), ("PageSize", "101")],
            (400, "InvalidParameter", "PageSize"),
        ),
        (
            vec![("Action", "DescribeImages"), ("RegionId", "a"), ("Status", "Odd")],
            (400, "InvalidParameter", "Status"),
        ),
        (
            vec![("Action", "Nothing")],
            (
                404,
                "InvalidAction.NotFound",
                "Specified api is not found, please check your url and method.",
            ),
        ),
        (
            vec![("Action", "DescribeRegions"), ("AccessKeyId", "AKID0")],
            (404, "InvalidAccessKeyId.NotFound", "Specified access key is not found."),
        ),
        (
            vec![("Action", "DescribeRegions"), ("_secret", "wrong")],
            (
                400,
                "SignatureDoesNotMatch",
                "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&",
            ),
        ),
        (
            vec![("Action", "DescribeRegions"), ("Timestamp", "2020-01-01T00:00:00Z")],
            (400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."),
        ),
    ];
    for (params, (status, code, message)) in cases {
        let (seen, body) = lab.alibaba(&params).await;
        let said = body["Message"].as_str().unwrap_or_default();
        assert_eq!((seen, body["Code"].as_str()), (status, Some(code)), "{params:?}: {body}");
        let whole =
            message.ends_with('.') && message.chars().next().is_some_and(char::is_uppercase);
        let fits = if whole { said == message } else { said.contains(message) };
        assert!(fits, "{params:?}: {said}");
        assert_eq!(body["HostId"], HOST);
        assert_eq!(body["RequestId"].as_str().unwrap().len(), 36);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_by_alibaba_s_calls_from_start_to_cancel() {
    let lab = Lab::new().await;
    lab.slow();
    let named = [
        ("DestinationImageName", "镜像-1"),
        ("ClientToken", "t"),
        ("Tag.1.Key", "k"),
        ("Tag.1.Value", "v"),
    ];
    let (status, first) = lab.alibaba(&copy(&named)).await;
    assert_eq!(status, 200, "{first}");
    let id = first["ImageId"].as_str().unwrap();
    let (status, again) = lab.alibaba(&copy(&named)).await;
    assert_eq!((status, &again["ImageId"]), (200, &first["ImageId"]));
    assert_ne!(again["RequestId"], first["RequestId"]);
    let other = [("ClientToken", "t"), ("ImageId", SECOND)];
    let (status, told) = lab.alibaba(&copy(&other)).await;
    assert_eq!((status, told["Code"].as_str()), (400, Some("IdempotentParameterMismatch")));
    let (_, told) = lab.alibaba(&copy(&[])).await;
    assert_eq!(told["Code"], "OperationDenied.ImageCopyConflict");
    let (_, told) =
        lab.alibaba(&copy(&[("ImageId", SECOND), ("DestinationImageName", "镜像-1")])).await;
    assert_eq!(told["Code"], "InvalidImageName.Duplicated");
    let describe = |status: &'static str| {
        let mut params = vec![("Action", "DescribeImages"), ("RegionId", "b"), ("ImageId", id)];
        params.extend((!status.is_empty()).then_some(("Status", status)));
        params
    };
    let (_, told) = lab.alibaba(&describe("")).await;
    assert_eq!(told["TotalCount"], 0, "a copying image is seen only when asked for");
    let (_, told) = lab.alibaba(&describe("Creating,Waiting")).await;
    let row = &told["Images"]["Image"][0];
    assert_eq!(row["ImageName"], "镜像-1");
    assert_eq!(row["Tags"]["Tag"][0], json!({"TagKey": "k", "TagValue": "v"}));
    assert!(row["Progress"].as_str().unwrap().ends_with('%') && row["Size"].is_u64());
    assert_eq!(row["IsCopied"], true);
    for (image, at) in [(id, "b"), (SOURCE, "a")] {
        let params =
            [("Action", "DeleteImage"), ("RegionId", at), ("ImageId", image), ("Force", "true")];
        let (status, told) = lab.alibaba(&params).await;
        assert_eq!((status, told["Message"].as_str()), (403, Some("The Image is coping.")));
    }
    let cancel = [("Action", "CancelCopyImage"), ("RegionId", "b"), ("ImageId", id)];
    let (status, told) = lab.alibaba(&cancel).await;
    assert_eq!(status, 200);
    assert_eq!(told.as_object().unwrap().len(), 1, "the number of the request alone: {told}");
    let (_, told) = lab.alibaba(&describe("Creating,Waiting,Available")).await;
    assert_eq!(told["TotalCount"], 0);
    assert_eq!(lab.alibaba(&cancel).await.1["Code"], "InvalidImageId.NotFound");
    // XML where nothing else is asked for.
    let xml = lab
        .api
        .answer(&Face::Alibaba, &rpc(&[("Action", "DescribeRegions"), ("Format", "XML")]))
        .await;
    let text = String::from_utf8(xml.body).unwrap();
    assert!(
        text.contains("<DescribeRegionsResponse><Regions><Region><RegionId>a</RegionId>"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_signed_once_is_taken_once_and_not_too_often() {
    let lab = Lab::with(ApiOptions::default().with_requests_per_sec(20)).await;
    let request = rpc(&[("Action", "DescribeRegions"), ("_nonce", "mine")]);
    assert_eq!(lab.api.answer(&Face::Alibaba, &request).await.status, 200);
    let again = lab.api.answer(&Face::Alibaba, &request).await;
    assert_eq!((again.status, again.code), (400, "SignatureNonceUsed"));
    // A daemon that has restarted remembers no nonce, and still makes no second copy.
    let copy = rpc(&[
        ("Action", "CopyImage"),
        ("RegionId", "a"),
        ("ImageId", SOURCE),
        ("DestinationRegionId", "b"),
        ("_nonce", "once"),
    ]);
    let made = told(lab.api.answer(&Face::Alibaba, &copy).await);
    assert_eq!(made.0, 200, "{}", made.1);
    let mut keys = Keys::new();
    keys.add(AccessKey { secret: Secret::new(SECRET), caller: caller() }).unwrap();
    let restarted = Api::new(lab.api.service().clone(), keys, ApiOptions::default());
    let again = told(restarted.answer(&Face::Alibaba, &copy).await);
    assert_eq!((again.0, &again.1["ImageId"]), (200, &made.1["ImageId"]));
    let other = told(restarted.answer(&Face::Alibaba, &copy).await);
    assert_eq!(other.1["Code"], "SignatureNonceUsed");
    let mut throttled = 0;
    for _ in 0..200 {
        let reply = lab.api.answer(&Face::Alibaba, &rpc(&[("Action", "DescribeRegions")])).await;
        throttled += usize::from(reply.code == "Throttling");
    }
    assert!(throttled > 0);
    // Strangers use up nobody's allowance: they are told who they are not.
    let stranger = rpc(&[("Action", "DescribeRegions"), ("_secret", "wrong")]);
    assert_eq!(lab.api.answer(&Face::Alibaba, &stranger).await.code, "SignatureDoesNotMatch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_by_baidu_s_calls_and_every_error_of_theirs() {
    let lab = Lab::new().await;
    let long = format!(r#"{{"name":"{}","destRegion":["b"]}}"#, "n".repeat(1025));
    let source = format!("/v2/image/{SOURCE}?remoteCopy");
    for (method, target, body, wanted) in [
        ("POST", "/v2/image/none?remoteCopy=", r#"{"destRegion":["b"]}"#, (404, "NoSuchObject")),
        ("POST", "/v2/image/foreign?remoteCopy", r#"{"destRegion":["b"]}"#, (404, "NoSuchObject")),
        ("POST", &source, r#"{"destRegion":["x"]}"#, (409, "Image.RegionNotSupportCopy")),
        ("POST", &source, r#"{"destRegion":["b","a"]}"#, (409, "Image.RegionNotSupportCopy")),
        ("POST", &source, "", (400, "InappropriateJSON")),
        ("POST", &source, "{", (400, "MalformedJSON")),
        ("POST", &source, "[]", (400, "InappropriateJSON")),
        ("POST", &source, r#"{"destRegion":[]}"#, (400, "InappropriateJSON")),
        ("POST", &source, r#"{"destRegion":"b"}"#, (400, "InappropriateJSON")),
        ("POST", &source, r#"{"destRegion":[1]}"#, (400, "InappropriateJSON")),
        ("POST", &source, r#"{"name":1,"destRegion":["b"]}"#, (400, "InappropriateJSON")),
        ("POST", &source, &long, (400, "InappropriateJSON")),
        (
            "POST",
            "/v2/image/system?remoteCopy",
            r#"{"destRegion":["b"]}"#,
            (409, "Image.ImageNotSupportCopy"),
        ),
        (
            "POST",
            "/v2/image/iso?remoteCopy",
            r#"{"destRegion":["b"]}"#,
            (409, "Image.ImageNotSupportCopy"),
        ),
        (
            "POST",
            &format!("/v2/image/{SOURCE}?cancelRemoteCopy="),
            "",
            (409, "Image.ImageStatusForbidden"),
        ),
        ("POST", "/v2/image/none?cancelRemoteCopy", "", (404, "NoSuchObject")),
        ("GET", "/v2/image/none", "", (404, "NoSuchObject")),
        ("DELETE", "/v2/image/none", "", (404, "NoSuchObject")),
        ("DELETE", "/v2/image/system", "", (403, "Image.UnCustomImageCannotBeDeleted")),
        ("DELETE", "/v2/image/given", "", (409, "Image.ImageHasBeenSharedToOthers")),
        ("DELETE", "/v2/image/shared", "", (403, "AccessDenied")),
        ("PUT", "/v2/image/none", "", (400, "InvalidURI")),
    ] {
        let (status, told) = lab.baidu("a", method, target, body).await;
        assert_eq!(
            (status, told["code"].as_str()),
            (wanted.0, Some(wanted.1)),
            "{method} {target} {body:.60}"
        );
        assert!(told["message"].is_string() && told["requestId"].is_string(), "{told}");
    }
    lab.slow();
    let (status, told) =
        lab.baidu("a", "POST", &source, r#"{"name":"n","destRegion":["b","b"]}"#).await;
    let rows = told["result"].as_array().unwrap();
    assert_eq!((status, rows.len()), (200, 1), "{told}");
    assert_eq!((&rows[0]["region"], &rows[0]["code"]), (&json!("b"), &json!("")));
    let id = rows[0]["imageId"].as_str().unwrap();
    let at = format!("/v2/image/{id}");
    assert_eq!(lab.baidu("b", "GET", &at, "").await.1["image"]["status"], "Creating");
    assert_eq!(
        lab.baidu("b", "DELETE", &at, "").await.1["code"],
        "Image.CreatingImageCannotBeDeleted"
    );
    let of_copy = format!("{at}?remoteCopy");
    let told = lab.baidu("b", "POST", &of_copy, r#"{"destRegion":["a"]}"#).await.1;
    assert_eq!(told["message"], "Image status is not Available.");
    assert_eq!(lab.baidu("b", "POST", &format!("{at}?cancelRemoteCopy"), "").await.0, 200);
    assert_eq!(lab.baidu("b", "GET", &at, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_by_huawei_s_calls_and_our_own_cancel() {
    let lab = Lab::new().await;
    lab.slow();
    let path = format!("/v1/cloudimages/{SOURCE}/cross_region_copy");
    let body = r#"{"name":"n","region":"b","project_name":"b","agency_name":"ims"}"#;
    let (status, told) = lab.huawei("a", "POST", &path, body).await;
    assert_eq!(status, 200, "{told}");
    let job = told["job_id"].as_str().unwrap();
    let by_project = format!("/v1/p/jobs/{job}");
    let (_, told) = lab.huawei("a", "GET", &by_project, "").await;
    assert_eq!((&told["status"], &told["end_time"]), (&json!("RUNNING"), &json!("")));
    assert!(told["entities"].get("process_percent").is_none());
    assert_eq!(lab.huawei("a", "GET", &format!("/v1/other/jobs/{job}"), "").await.0, 400);
    let progress = format!("/v1/cloudimages/job/{job}");
    let (_, told) = lab.huawei("a", "GET", &progress, "").await;
    let percent = told["entities"]["process_percent"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&percent), "{told}");
    let image = told["entities"]["image_id"].as_str().unwrap().to_owned();
    let (_, told) = lab.huawei("b", "GET", &format!("/v2/cloudimages?id={image}"), "").await;
    assert_eq!(told["images"][0]["status"], "saving");
    let cancel = format!("/blockferry/v1/jobs/{job}/cancel");
    let (status, told) = lab.huawei("a", "POST", &cancel, "").await;
    assert_eq!(
        (status, &told["status"], &told["error_code"]),
        (200, &json!("FAIL"), &json!("BLOCKFERRY.0003"))
    );
    let (status, told) = lab.huawei("b", "GET", &format!("/v2/images/{image}"), "").await;
    assert_eq!((status, &told["error"]["code"]), (404, &json!("IMG.0144")));
    let in_region = format!("/v2.1/cloudimages/{SOURCE}/copy");
    for (body, code) in [
        ("", "IMG.0007"),
        ("{", "IMG.0001"),
        ("[]", "IMG.0001"),
        (r#"{"name":1}"#, "IMG.0001"),
        (r#"{"name":" n"}"#, "IMG.0003"),
        (r#"{"name":"n","cmk_id":"k"}"#, "IMG.0095"),
    ] {
        let (status, told) = lab.huawei("a", "POST", &in_region, body).await;
        assert_eq!((status, told["error"]["code"].as_str()), (400, Some(code)), "{body}");
    }
    let (status, told) = lab.huawei("a", "GET", "/nothing", "").await;
    assert_eq!((status, &told["error_code"]), (404, &json!("APIGW.0101")));
    let (_, told) = lab.huawei("a", "GET", "/v3/projects?name=a", "").await;
    assert_eq!(told["projects"][0]["id"], "p");
}

// ---- Keys ----

#[cfg(feature = "encrypt")]
impl Lab {
    /// Waits until the image is there in full; the key it is under, as its region says.
    async fn key_of(&self, at: &str, id: &str) -> Option<String> {
        let caller = caller();
        let available = timeout(PATIENCE, async {
            loop {
                let view = self.api.service().image(&caller, &region(at), &image(id)).unwrap();
                let state = view.image.state;
                if state == ImageState::Available {
                    return view.image.key;
                }
                assert_eq!(state, ImageState::Creating, "{at}/{id}");
                sleep(Duration::from_millis(5)).await;
            }
        });
        let told = available.await.unwrap();
        let images = self.api.service().engine().images(&region(at)).await.unwrap();
        let found = images.into_iter().find(|info| info.image == image(id)).unwrap();
        assert_eq!(found.key.map(|key| key.to_string()), told, "the service knows");
        if told.is_some() {
            let clear = noise(7, MIB);
            let bytes = std::fs::read(self.world.data_of(at, id)).unwrap();
            assert!(bytes.chunks(64).zip(clear.chunks(64)).all(|(cell, text)| cell != text));
            let opened = self.api.service().engine().region(&region(at)).unwrap();
            let opened = opened.open(&image(id)).await.unwrap();
            let whole = blockferry::geometry::ByteRange::new(0, MIB);
            assert!(opened.read_at(whole).await.unwrap() == clear);
        }
        told
    }

    /// An encrypted image of region `a` that the service knows.
    async fn put_encrypted(&self, id: &str, key: &str, project: &str, shared: &str) {
        let how = CopyOptions::new().with_encryption(Encryption::Key(key.parse().unwrap()));
        let engine = self.api.service().engine();
        let job = engine.copy(request(&format!("a/{SOURCE}"), &format!("a/{id}"), how)).await;
        committed(job.unwrap().wait().await);
        let mut known = Image::new(region("a"), image(id), project);
        known.shared_with.extend((!shared.is_empty()).then(|| shared.to_owned()));
        self.api.service().put_image(known).await.unwrap();
    }

    async fn huawei_copy(&self, id: &str, body: &str) -> Result<String, String> {
        let path = format!("/v2.1/cloudimages/{id}/copy");
        let (status, told) = self.huawei("a", "POST", &path, body).await;
        if status != 200 {
            return Err(told["error"]["code"].as_str().unwrap().to_owned());
        }
        let job = format!("/v1/cloudimages/job/{}", told["job_id"].as_str().unwrap());
        let (_, told) = self.huawei("a", "GET", &job, "").await;
        Ok(told["entities"]["image_id"].as_str().unwrap().to_owned())
    }
}

#[cfg(feature = "encrypt")]
const LOCKED: &str = "30e55148-0000-4000-8000-0000000000b1";
#[cfg(feature = "encrypt")]
const ELSEWHERE: &str = "30e55148-0000-4000-8000-0000000000b2";
#[cfg(feature = "encrypt")]
const SHARED: &str = "30e55148-0000-4000-8000-0000000000b3";

#[cfg(feature = "encrypt")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alibaba_encrypts_under_the_key_of_the_destination() {
    let lab = Lab::with_keys().await;
    lab.put_encrypted(LOCKED, "key-1", "p", "").await;
    lab.put_encrypted(ELSEWHERE, "key-2", "p", "").await;
    lab.put_encrypted(SHARED, "key-1", "q", "p").await;
    let copied = async |more: &[(&str, &str)]| {
        let (status, told) = lab.alibaba(&copy(more)).await;
        assert_eq!(status, 200, "{more:?}: {told}");
        told["ImageId"].as_str().unwrap().to_owned()
    };
    for (number, (more, at, key)) in [
        (vec![("Encrypted", "true"), ("KMSKeyId", "key-1")], "b", "key-1"),
        (vec![("Encrypted", "true")], "b", "key-3"),
        (vec![("ImageId", LOCKED)], "b", "key-1"),
        (vec![("ImageId", LOCKED), ("Encrypted", "true")], "b", "key-3"),
        (vec![("ImageId", ELSEWHERE), ("Encrypted", "true")], "b", "key-3"),
        (vec![("Encrypted", "true"), ("DestinationRegionId", "a")], "a", "key-1"),
        (
            vec![
                ("ImageId", LOCKED),
                ("Encrypted", "true"),
                ("KMSKeyId", "key-2"),
                ("DestinationRegionId", "a"),
            ],
            "a",
            "key-2",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("name-{number}");
        let more: Vec<_> = more.into_iter().chain([("DestinationImageName", &*name)]).collect();
        let id = copied(&more).await;
        assert_eq!(lab.key_of(at, &id).await.as_deref(), Some(key), "{more:?}");
    }
    let encrypted = (403, "OperationDeined.EncryptedSnapshot");
    for (more, wanted) in [
        (
            vec![("Encrypted", "true"), ("KMSKeyId", "key-2")],
            (404, "InvalidParameter.KMSKeyId.NotFound"),
        ),
        (vec![("KMSKeyId", "key-1")], (400, "InvalidParameter.EncryptedIllegal")),
        (vec![("ImageId", ELSEWHERE)], encrypted),
        (vec![("ImageId", SHARED), ("DestinationRegionId", "a")], encrypted),
    ] {
        let (status, told) = lab.alibaba(&copy(&more)).await;
        assert_eq!((status, told["Code"].as_str()), (wanted.0, Some(wanted.1)), "{told}");
    }
    let (_, told) = lab.alibaba(&copy(&[("ImageId", ELSEWHERE)])).await;
    let message = "The image contains encrypted snapshots, which do not support copying.";
    assert_eq!(told["Message"], message);
}

#[cfg(feature = "encrypt")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn baidu_copies_encrypted_images_under_their_key_where_that_is_known() {
    let lab = Lab::with_keys().await;
    lab.put_encrypted(LOCKED, "key-1", "p", "").await;
    lab.put_encrypted(ELSEWHERE, "key-2", "p", "").await;
    lab.put_encrypted(SHARED, "key-1", "q", "p").await;
    let body = r#"{"name":"n","destRegion":["b"]}"#;
    let (status, told) =
        lab.baidu("a", "POST", &format!("/v2/image/{LOCKED}?remoteCopy"), body).await;
    assert_eq!(status, 200, "{told}");
    let id = told["result"][0]["imageId"].as_str().unwrap().to_owned();
    assert_eq!(lab.key_of("b", &id).await.as_deref(), Some("key-1"));
    let (_, told) = lab.baidu("b", "GET", &format!("/v2/image/{id}"), "").await;
    assert_eq!(told["image"]["encrypted"], true, "{told}");
    for id in [ELSEWHERE, SHARED] {
        let (status, told) =
            lab.baidu("a", "POST", &format!("/v2/image/{id}?remoteCopy"), body).await;
        let code = told["code"].as_str();
        assert_eq!((status, code), (409, Some("Image.ImageNotSupportCopy")), "{told}");
    }
}

#[cfg(feature = "encrypt")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huawei_takes_another_key_and_lets_no_encrypted_image_leave_its_region() {
    let lab = Lab::with_keys().await;
    let made = lab.huawei_copy(SOURCE, r#"{"name":"first","cmk_id":"key-1"}"#).await.unwrap();
    assert_eq!(lab.key_of("a", &made).await.as_deref(), Some("key-1"));
    for (body, key) in [
        (r#"{"name":"kept"}"#, "key-1"),
        (r#"{"name":"other","cmk_id":"key-2"}"#, "key-2"),
        (r#"{"name":"none","cmk_id":""}"#, "key-1"),
    ] {
        let id = lab.huawei_copy(&made, body).await.unwrap();
        assert_eq!(lab.key_of("a", &id).await.as_deref(), Some(key), "{body}");
    }
    for (body, code) in [
        (r#"{"name":"n","cmk_id":"key-1"}"#, "IMG.0096"),
        (r#"{"name":"n","cmk_id":"key-3"}"#, "IMG.0095"),
        (r#"{"name":"n","cmk_id":"../key"}"#, "IMG.0095"),
    ] {
        assert_eq!(lab.huawei_copy(&made, body).await, Err(code.to_owned()), "{body}");
    }
    lab.put_encrypted(SHARED, "key-1", "q", "p").await;
    let told = lab.huawei_copy(SHARED, r#"{"name":"n","cmk_id":"key-2"}"#).await;
    assert_eq!(told, Err("IMG.0197".to_owned()));
    let path = format!("/v1/cloudimages/{made}/cross_region_copy");
    let body = r#"{"name":"n","region":"b","project_name":"b","agency_name":"ims"}"#;
    let (status, told) = lab.huawei("a", "POST", &path, body).await;
    assert_eq!((status, &told["error"]["code"]), (400, &json!("IMG.0105")));
    assert_eq!(told["error"]["message"], "The operation is not supported.");
}

/// A door of that cloud on a free port.
async fn door(
    lab: &Lab,
    face: Face,
    limits: DoorLimits,
    log: Option<mpsc::Sender<String>>,
) -> (SocketAddr, CancellationToken) {
    let closing = CancellationToken::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::bind(address, None, face, lab.api.clone(), limits, log, Arc::default());
    let door = door.await.unwrap();
    let address = door.address().unwrap();
    tokio::spawn(door.serve(closing.clone()));
    (address, closing)
}

/// Sends bytes and reads until the other side has said all that it says.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut told = Vec::new();
    // Answers leave the connection open for another request: the door's patience ends it.
    timeout(PATIENCE, stream.read_to_end(&mut told)).await.unwrap().ok();
    String::from_utf8_lossy(&told).into_owned()
}

fn on_the_wire(request: &Request) -> Vec<u8> {
    let mut head = format!("{} {}?{} HTTP/1.1\r\n", request.method, request.path, request.query);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    head.into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_too_slow_or_no_request_costs_little_and_disturbs_nobody() {
    let lab = Lab::new().await;
    let (log, mut lines) = mpsc::channel(100);
    let limits = DoorLimits::default()
        .with_connections_max(4)
        .with_times(Duration::from_millis(600), Duration::from_millis(300));
    let (address, closing) = door(&lab, Face::Alibaba, limits, Some(log)).await;
    let good = on_the_wire(&rpc(&[("Action", "DescribeRegions")]));
    let told = exchange(address, &good).await;
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("\"RegionId\":\"a\""), "{told}");
    let line = lines.recv().await.unwrap();
    let logged: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&logged["call"], &logged["access_key"]), (&json!("DescribeRegions"), &json!(KEY)));
    assert!(!line.contains(SECRET) && !line.contains("Signature"), "{line}");

    // Two that say nothing and one that stops in the middle of its body: of four places, one is left.
    let idle =
        [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
    let good = on_the_wire(&rpc(&[("Action", "DescribeRegions")]));
    assert!(exchange(address, &good).await.starts_with("HTTP/1.1 200"));
    let mut told = vec![0; 4096];
    let len = timeout(PATIENCE, slow.read(&mut told)).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&told[..len]).into_owned();
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("RequestTimeout"), "{told}");
    drop((idle, slow));

    let head =
        format!("GET /?a={} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "x".repeat(40_000));
    let told = exchange(address, head.as_bytes()).await;
    assert!(
        told.starts_with("HTTP/1.1 400") && told.contains("InvalidRequest.TooLarge"),
        "{told:.300}"
    );
    let endless = format!("GET /?a={}", "x".repeat(400_000));
    let told = exchange(address, endless.as_bytes()).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told:.300}");
    let body = "x".repeat(70_000);
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let told = exchange(address, head.as_bytes()).await;
    assert!(told.is_empty() || told.contains("RequestBodyTooLarge"), "{told:.300}");
    let told = exchange(address, b"\x16\x03\x01\x02\x00 no http at all\r\n\r\n").await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 400"), "{told:.300}");
    let good = on_the_wire(&rpc(&[("Action", "DescribeRegions")]));
    assert!(exchange(address, &good).await.starts_with("HTTP/1.1 200"));

    closing.cancel();
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_are_told_apart_from_the_calls() {
    let lab = Lab::new().await;
    lab.alibaba(&[("Action", "DescribeRegions")]).await;
    let closing = CancellationToken::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let told = serve_admin(address, lab.api.clone(), Arc::default(), closing.clone()).await;
    let (address, serving) = told.unwrap();
    let serving = tokio::spawn(serving);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let page = exchange(address, get("/metrics").as_bytes()).await;
    let line = r#"blockferry_requests_total{cloud="alibaba",call="DescribeRegions",code=""} 1"#;
    assert!(page.contains(line), "{page}");
    assert!(page.contains(r#"blockferry_region_images{region="a"} 7"#), "{page}");
    assert!(exchange(address, get("/healthz").as_bytes()).await.ends_with("ok\n"));
    assert!(exchange(address, get("/").as_bytes()).await.starts_with("HTTP/1.1 404"));
    closing.cancel();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert!(lab.world.path("a").exists());
}

#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_same_is_answered_and_nothing_without() {
    use blockferry::clouds::ServerTls;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{CertificateDer, ServerName};

    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (cert_pem, key_pem) = (cert.pem(), key.serialize_pem());
    let wrong = ServerTls::from_pem(b"no certificate", key_pem.as_bytes()).unwrap_err();
    assert_eq!(wrong.kind(), blockferry::ErrorKind::Invalid);
    let other = KeyPair::generate().unwrap().serialize_pem();
    assert!(ServerTls::from_pem(cert_pem.as_bytes(), other.as_bytes()).is_err());
    let tls = ServerTls::from_pem(cert_pem.as_bytes(), key_pem.as_bytes()).unwrap();

    let lab = Lab::new().await;
    let closing = CancellationToken::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let limits = DoorLimits::default().with_times(Duration::from_secs(1), Duration::from_secs(1));
    let api = lab.api.clone();
    let door = Door::bind(address, Some(tls), Face::Alibaba, api, limits, None, Arc::default());
    let door = door.await.unwrap();
    let address = door.address().unwrap();
    tokio::spawn(door.serve(closing.clone()));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(cert.der().to_vec())).unwrap();
    let connect = async |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(address).await.unwrap();
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
    };
    let good = on_the_wire(&rpc(&[("Action", "DescribeRegions")]));
    let mut stream = connect(&[&rustls::version::TLS13]).await.unwrap();
    stream.write_all(&good).await.unwrap();
    let mut told = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut told)).await.unwrap().ok();
    assert!(told.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&told));
    // Nor is anything older taken where the build could do it.
    let is_older = |version: &&&_| **version != &rustls::version::TLS13;
    for older in rustls::ALL_VERSIONS.iter().filter(is_older) {
        assert!(connect(&[older]).await.is_err(), "{older:?}");
    }
    let told = exchange(address, &good).await;
    assert!(!told.contains("HTTP/1.1 200"), "{told}");
    closing.cancel();
}
