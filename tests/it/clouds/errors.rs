//! What goes wrong for one reason in all three clouds, in the words and the shape of each: what is
//! asked, and what is told.

use std::sync::Arc;
use std::time::Duration;

use blockferry::clouds::{ApiOptions, DoorLimits, Face, Request, Scheme};
use blockferry::region::DirRegion;
use blockferry::service::ServiceRegion;
use blockferry::testing::{Hook, Hooked, When};
use blockferry::{Error, ErrorKind};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    HOST, KEY, Lab, SECOND, SOURCE, at, bce, caller, copy, door, exchange, rpc, sdk, signed,
};
use crate::delta::damage;
use crate::world::{PATIENCE, region};

/// A request to one of the clouds.
type Ask = (Face, Request);
/// Status, code and message of an answer.
type Said<'a> = (u16, &'a str, &'a str);

/// Of an image that is not there in full, by Alibaba, Baidu and Huawei.
const UNAVAILABLE: [Said<'static>; 3] = [
    (400, "IncorrectImageStatus", "The image not available."),
    (409, "Image.ImageStatusForbidden", "Image status is not Available."),
    (400, "IMG.0046", "The image is unavailable."),
];

impl Lab {
    /// Starts a copy to `b` by Huawei's call: its job, and its image, whose id all clouds take.
    async fn start(&self) -> (String, String) {
        let path = format!("/v1/cloudimages/{SOURCE}/cross_region_copy");
        let body = r#"{"name":"first","region":"b","project_name":"b","agency_name":"ims"}"#;
        let (status, told) = self.huawei("a", "POST", &path, body).await;
        assert_eq!(status, 200, "{told}");
        let job = told["job_id"].as_str().unwrap().to_owned();
        let (_, told) = self.huawei("a", "GET", &format!("/v1/cloudimages/job/{job}"), "").await;
        (job, told["entities"]["image_id"].as_str().unwrap().to_owned())
    }

    /// Asks one after the other; every field of every answer has to be right.
    async fn assert_told<const N: usize>(&self, asked: [Ask; N], wanted: [Said<'_>; N]) {
        for ((face, request), (status, code, message)) in asked.into_iter().zip(wanted) {
            let reply = self.api.answer(&face, &request).await;
            let body: Value = serde_json::from_slice(&reply.body).unwrap();
            let wanted = body_of(&face, code, message, HOST, &reply.request_id);
            assert_eq!((reply.status, body), (status, wanted), "{face:?}: {request:?}");
        }
    }
}

/// An error in the shape of the cloud; Huawei's gateway has one of its own.
fn body_of(face: &Face, code: &str, message: &str, host: &str, id: &str) -> Value {
    match face {
        Face::Alibaba => json!({"RequestId": id, "HostId": host, "Code": code, "Message": message}),
        Face::Baidu(_) => json!({"requestId": id, "code": code, "message": message}),
        _ if code.starts_with("APIGW.") => {
            json!({"error_code": code, "error_msg": message, "request_id": id})
        }
        _ => json!({"error": {"message": message, "code": code}}),
    }
}

/// A copy to another region.
fn copies(from: &str, id: &str, to: &str) -> [Ask; 3] {
    let params = copy(&[("RegionId", from), ("ImageId", id), ("DestinationRegionId", to)]);
    let baidu = json!({"destRegion": [to]}).to_string();
    let huawei = json!({"name": "n", "region": to, "project_name": to, "agency_name": "ims"});
    let path = format!("/v1/cloudimages/{id}/cross_region_copy");
    [
        (Face::Alibaba, rpc(&params)),
        (Face::Baidu(region(from)), bce("POST", &format!("/v2/image/{id}?remoteCopy"), &baidu)),
        (Face::Huawei(region(from)), sdk("POST", &path, &huawei.to_string())),
    ]
}

/// A cancel of the copy that makes an image of region `b`.
fn cancels(image: &str, job: &str) -> [Ask; 3] {
    let params = [("Action", "CancelCopyImage"), ("RegionId", "b"), ("ImageId", image)];
    let path = format!("/v2/image/{image}?cancelRemoteCopy");
    [
        (Face::Alibaba, rpc(&params)),
        (Face::Baidu(region("b")), bce("POST", &path, "")),
        (Face::Huawei(region("a")), sdk("POST", &format!("/blockferry/v1/jobs/{job}/cancel"), "")),
    ]
}

/// A deletion of an image of region `a`.
fn deletions(id: &str) -> [Ask; 3] {
    let params = [("Action", "DeleteImage"), ("RegionId", "a"), ("ImageId", id)];
    [
        (Face::Alibaba, rpc(&params)),
        (Face::Baidu(region("a")), bce("DELETE", &format!("/v2/image/{id}"), "")),
        (Face::Huawei(region("a")), sdk("DELETE", &format!("/v2/images/{id}"), "")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_takes_no_more_says_so_and_an_unfinished_image_is_not_copied() {
    type Narrow = fn(ServiceRegion) -> ServiceRegion;
    let ceilings: [(Narrow, [Said<'_>; 3]); 2] = [
        (
            |place| place.with_images_max(2),
            [
                (403, "QuotaExceed.Image", "The number of images exceeds the limit (2)."),
                (413, "Image.ImageQuotaExceedLimit", "Image number exceeds the limit."),
                (400, "IMG.0015", "The number of private images has reached the maximum allowed."),
            ],
        ),
        (
            |place| place.with_copies_max(1).with_queue_max(1),
            [
                (
                    409,
                    "InvalidOperation.Conflict",
                    "Request was denied due to conflict with a previous request, please try again \
                     later.",
                ),
                (413, "Image.ImageQuotaExceedLimit", "Image number exceeds the limit."),
                (400, "IMG.0060", "The number of tasks exceeds the flow control limit."),
            ],
        ),
    ];
    for (narrow, wanted) in ceilings {
        let place_of = |_: &str, place: DirRegion| narrow(ServiceRegion::new(Arc::new(place)));
        let lab = Lab::of(ApiOptions::default(), place_of).await;
        lab.slow();
        let (_, unfinished) = lab.start().await;
        let (status, told) = lab.alibaba(&copy(&[("ImageId", "given")])).await;
        assert_eq!(status, 200, "{told}");
        lab.assert_told(copies("a", SECOND, "b"), wanted).await;
        lab.assert_told(copies("b", &unfinished, "a"), UNAVAILABLE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_failed_is_told_as_failed_and_its_image_is_not_copied() {
    let lab = Lab::new().await;
    damage(&lab.world.data_of("a", SOURCE), 123_456);
    let (job, image) = lab.start().await;
    let mut followed = lab.api.service().watch(&caller(), job.parse().unwrap()).unwrap();
    let ended = followed.wait_for(|view| view.stage.is_final());
    timeout(PATIENCE, ended).await.unwrap().unwrap();

    let (_, told) = lab.huawei("b", "GET", &format!("/v1/cloudimages/job/{job}"), "").await;
    assert_eq!((&told["status"], &told["error_code"]), (&json!("FAIL"), &json!("IMG.0061")));
    assert_eq!(told["fail_reason"], "The copy failed: corrupt.");
    lab.assert_told(copies("b", &image, "a"), UNAVAILABLE).await;
    let had_failed = [
        (400, "IncorrectImageStatus", "The Image copy has been failed."),
        (409, "Image.ImageStatusForbidden", "Image status is not dest_copying."),
        (409, "BLOCKFERRY.0002", "The copy has failed."),
    ];
    lab.assert_told(cancels(&image, &job), had_failed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_below_is_told_as_an_error_of_the_service_and_says_no_more() {
    let broken: Hook = Arc::new(|point| match (point.operation, point.when) {
        ("cancel" | "remove", When::Before) => Err(Error::new(ErrorKind::Io, "decide")),
        _ => Ok(()),
    });
    let lab = Lab::of(ApiOptions::default(), |_, place| {
        ServiceRegion::new(Arc::new(Hooked::new(Arc::new(place), broken.clone())))
    })
    .await;
    lab.slow();
    let (job, image) = lab.start().await;
    let alibaba = "The request processing has failed due to some unknown error";
    let baidu = (500, "InternalError", "We encountered an internal error. Please try again.");
    let huawei = (400, "IMG.0061", "Unknown system error.");
    let of_cancel = format!("{alibaba}.");
    let wanted = [(500, "InternalError", &*of_cancel), baidu, huawei];
    lab.assert_told(cancels(&image, &job), wanted).await;
    let of_others = format!("{alibaba}, exception or failure.");
    let wanted = [(500, "InternalError", &*of_others), baidu, huawei];
    lab.assert_told(deletions(SECOND), wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_too_often_is_told_so() {
    let mut options = ApiOptions::default();
    // Even the first is too many, so that no clock has a say.
    options.requests_per_sec = 0;
    let lab = Lab::with(options).await;
    let asked = [
        (Face::Alibaba, rpc(&[("Action", "DescribeRegions")])),
        (Face::Baidu(region("a")), bce("GET", "/v2/image", "")),
        (Face::Huawei(region("a")), sdk("GET", "/v2/cloudimages", "")),
    ];
    let wanted = [
        (400, "Throttling", "Request was denied due to request throttling."),
        (429, "TooManyRequests", "Too many requests. Please try again later."),
        (429, "APIGW.0308", "The throttling threshold has been reached"),
    ];
    lab.assert_told(asked, wanted).await;
}

/// The request without that parameter of its query.
fn without(mut request: Request, name: &str) -> Request {
    let kept = request.query.split('&').filter(|pair| pair.split('=').next() != Some(name));
    request.query = kept.collect::<Vec<_>>().join("&");
    request
}

/// The request with that value of that header alone.
fn with(mut request: Request, name: &str, value: &str) -> Request {
    request.headers.retain(|(known, _)| known != name);
    request.headers.push((name.to_owned(), value.to_owned()));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_signature_is_told() {
    let lab = Lab::new().await;
    let describe = || rpc(&[("Action", "DescribeRegions")]);
    let mut undated = without(describe(), "Timestamp");
    undated.query.push_str("&Timestamp=yesterday");
    let names = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce";
    let acs3 = format!("ACS3-HMAC-SHA256 Credential={KEY},SignedHeaders={names},Signature=x");
    let headers = [
        ("host", HOST),
        ("x-acs-action", "DescribeRegions"),
        ("x-acs-content-sha256", ""),
        ("x-acs-date", "yesterday"),
        ("x-acs-signature-nonce", "mine"),
        ("authorization", &*acs3),
    ];
    let bce_of = |key: &str| {
        let stale = format!("bce-auth-v1/{key}/2020-01-01T00:00:00Z/1800//x");
        with(bce("GET", "/v2/image", ""), "authorization", &stale)
    };
    let bce_junk = with(bce("GET", "/v2/image", ""), "authorization", "bce-auth-v1");
    let names = "SignedHeaders=host;x-sdk-date";
    let stale = with(sdk("GET", "/v2/cloudimages", ""), "x-sdk-date", "20200101T000000Z");
    let unsigned = format!("SDK-HMAC-SHA256 Access={KEY}, {names}, Signature=x");
    let stale = with(stale, "authorization", &unsigned);
    let (baidu, huawei) = (Face::Baidu(region("a")), Face::Huawei(region("a")));
    let asked = [
        (Face::Alibaba, undated),
        (Face::Alibaba, at("POST", "/", "", &headers)),
        (Face::Alibaba, without(describe(), "Signature")),
        (baidu.clone(), signed(Scheme::Baidu, bce_of(KEY))),
        (baidu.clone(), bce_of(KEY)),
        (baidu.clone(), bce_of("NOBODY")),
        (baidu, bce_junk),
        (huawei.clone(), signed(Scheme::Huawei, stale.clone())),
        (huawei, stale),
    ];
    let no_date = "Specified time stamp or date value is not well formatted.";
    let wanted = [
        (400, "InvalidTimeStamp.Format", no_date),
        (400, "InvalidTimeStamp.Format", no_date),
        (
            400,
            "IncompleteSignature",
            "The request signature does not conform to standards: Signature.",
        ),
        (400, "RequestExpired", "Request has expired."),
        (
            400,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check \
             your Secret Access Key and signing method. Consult the service documentation for \
             details.",
        ),
        (
            403,
            "InvalidAccessKeyId",
            "The Access Key ID you provided does not exist in our records.",
        ),
        (
            400,
            "InvalidHTTPAuthHeader",
            "The HTTP authorization header is invalid. Consult the service documentation for \
             details.",
        ),
        (401, "APIGW.0301", "Incorrect IAM authentication information: signature expired"),
        (401, "APIGW.0301", "Incorrect IAM authentication information: verify aksk signature fail"),
    ];
    lab.assert_told(asked, wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huawei_deletes_what_is_the_caller_s_own_and_nobody_shares() {
    let lab = Lab::new().await;
    let delete = |id: &str| {
        let request = sdk("DELETE", &format!("/v2/images/{id}"), "");
        (Face::Huawei(region("a")), request)
    };
    let wanted = [
        (400, "IMG.0092", "The image can only be deleted by the owner."),
        (400, "IMG.0094", "The public image cannot be deleted."),
        (400, "IMG.0028", "The image in the request is protected."),
        (404, "IMG.0144", "The image does not exist."),
    ];
    lab.assert_told(["shared", "system", "given", "foreign"].map(delete), wanted).await;
}

#[cfg(feature = "encrypt")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huawei_encrypts_no_image_of_more_than_128_gib() {
    use blockferry::options::CopyOptions;
    use blockferry::service::Image;

    use crate::world::{committed, image, request};

    const LARGE: &str = "30e55148-0000-4000-8000-0000000000a3";
    let lab = Lab::with_keys().await;
    let holes = std::fs::File::create(lab.world.source()).unwrap();
    holes.set_len((128 << 30) + 1).unwrap();
    let engine = lab.world.engine().await;
    let put = request("source/image", &format!("a/{LARGE}"), CopyOptions::new());
    committed(engine.copy(put).await.unwrap().wait().await);
    let known = Image::new(region("a"), image(LARGE), "p");
    lab.api.service().put_image(known).await.unwrap();
    let path = format!("/v2.1/cloudimages/{LARGE}/copy");
    let asked = sdk("POST", &path, r#"{"name":"n","cmk_id":"key-1"}"#);
    let wanted = (400, "IMG.0059", "The size of the image file exceeds the maximum allowed.");
    lab.assert_told([(Face::Huawei(region("a")), asked)], [wanted]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_says_in_its_cloud_s_words_why_a_request_was_not_looked_at() {
    let lab = Lab::new().await;
    // Bodies come with their heads, so that nothing but the one that never comes is late.
    let limits = DoorLimits::default()
        .with_body_bytes_max(100)
        .with_times(PATIENCE, Duration::from_millis(100));
    let common = "host: x\r\nconnection: close\r\n";
    let post = |len: usize, body: &str| {
        format!("POST / HTTP/1.1\r\n{common}content-length: {len}\r\n\r\n{body}").into_bytes()
    };
    let sent = [
        post(101, &"x".repeat(101)),
        format!("GET /?a={} HTTP/1.1\r\n{common}\r\n", "x".repeat(40_000)).into_bytes(),
        post(9, "abc"),
        // HTTP lets it pass, but it is no text.
        [&b"GET / HTTP/1.1\r\nx-odd: \xff\r\n"[..], common.as_bytes(), &b"\r\n"[..]].concat(),
    ];
    for (face, wanted) in [
        (
            Face::Alibaba,
            [
                (413, "RequestBodyTooLarge", "The request body exceeds the maximum size."),
                (400, "InvalidRequest.TooLarge", "The request headers exceed the maximum size."),
                (408, "RequestTimeout", "The request was not sent in time."),
                (400, "InvalidRequest", "The request is malformed."),
            ],
        ),
        (
            Face::Baidu(region("a")),
            [
                (413, "EntityTooLarge", "The request body is too large."),
                (400, "InvalidHTTPRequest", "The request headers are too large."),
                (408, "RequestTimeout", "The request was not sent in time."),
                (400, "InvalidHTTPRequest", "There was an error in the HTTP request."),
            ],
        ),
        (
            Face::Huawei(region("a")),
            [
                (413, "APIGW.0201", "Request entity too large"),
                (400, "APIGW.0201", "Request header fields too large"),
                (408, "APIGW.0201", "Request timeout"),
                (400, "APIGW.0201", "Bad request"),
            ],
        ),
    ] {
        let (address, closing) = door(&lab, face.clone(), limits, None).await;
        for (bytes, (status, code, message)) in sent.iter().zip(wanted) {
            let told = exchange(address, bytes).await;
            let (head, body) = told.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
            let id = head.lines().find_map(|line| line.split_once("request-id: ")).unwrap().1;
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body, body_of(&face, code, message, "", id), "{told}");
        }
        closing.cancel();
    }
}
