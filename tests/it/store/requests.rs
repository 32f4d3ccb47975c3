//! What becomes of requests that fail, are lost, come late, or are falsified: over real connections.

use std::sync::Arc;
use std::time::Duration;

use blockferry::store::model::Lie;
use blockferry::store::{
    Condition, Credentials, Depth, Fencing, Part, Put, S3Options, S3Store, Steady, SteadyOptions,
    Store, Trouble, UploadId, prove,
};
use blockferry::{ErrorKind, Result};
use bytes::Bytes;

use super::server::{Fault, S3Server};

fn brisk() -> SteadyOptions {
    let mut options = SteadyOptions::default();
    options.backoff_first = Duration::from_millis(1);
    options.backoff_max = Duration::from_millis(5);
    options.hedge = false;
    options
}

fn steady(server: &S3Server, options: SteadyOptions) -> Steady {
    let store = S3Store::new(&server.address("p"), &S3Server::options()).unwrap();
    Steady::new(Arc::new(store), options)
}

async fn put(store: &dyn Store, key: &str, text: &'static str, when: Condition) -> Result<Put> {
    store.put(key, Bytes::from_static(text.as_bytes()), &when).await
}

/// What every operation needs to be there.
struct Scene {
    upload: UploadId,
    part: Part,
}

async fn scene(store: &dyn Store) -> Scene {
    put(store, "there", "12345", Condition::Any).await.unwrap();
    let upload = store.upload_begin("multi", "label").await.unwrap().id;
    let part = store.upload_part("multi", &upload, 1, Bytes::from_static(b"part")).await.unwrap();
    Scene { upload, part }
}

const OPERATIONS: [&str; 13] = [
    "PutObject",
    "GetObject",
    "HeadObject",
    "DeleteObject",
    "DeleteObjects",
    "ListObjectsV2",
    "CopyObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListMultipartUploads",
    "ListParts",
];

/// Does the operation, and looks that it did what it should.
async fn perform(store: &dyn Store, operation: &str, scene: &Scene) -> Result<()> {
    let Scene { upload, part } = scene;
    match operation {
        "PutObject" => drop(put(store, "new", "new", Condition::Any).await?),
        "GetObject" => assert_eq!(store.get("there", 10).await?.unwrap().bytes, "12345"),
        "HeadObject" => assert_eq!(store.head("there").await?.unwrap().len, 5),
        "DeleteObject" => store.delete(&["there".into()]).await?,
        "DeleteObjects" => store.delete(&["there".into(), "none".into()]).await?,
        "ListObjectsV2" => assert!(!store.list("", None, 10).await?.entries.is_empty()),
        "CopyObject" => store.copy(&store.address("there"), "copy").await?,
        "CreateMultipartUpload" => drop(store.upload_begin("second", "label").await?),
        "UploadPart" => {
            let bytes = Bytes::from_static(b"part");
            assert_eq!(store.upload_part("multi", upload, 1, bytes).await?, *part);
        }
        "CompleteMultipartUpload" => {
            let parts = std::slice::from_ref(part);
            let put = store.upload_complete("multi", upload, parts, &Condition::Any).await?;
            assert!(matches!(put, Put::Done(Some(_))));
        }
        "AbortMultipartUpload" => store.upload_abort("multi", upload).await?,
        "ListMultipartUploads" => assert!(!store.uploads("").await?.is_empty()),
        _ => assert_eq!(store.parts("multi", upload).await?.unwrap().len(), 1),
    }
    Ok(())
}

const PASSING: [Fault; 8] = [
    Fault::Status(500, "InternalError"),
    Fault::Status(503, "SlowDown"),
    Fault::Status(429, ""),
    Fault::Status(408, "RequestTimeout"),
    Fault::RetryAfter(503, "ServiceUnavailable", 0),
    Fault::ErrorInSuccess("InternalError"),
    Fault::LostBefore,
    Fault::LostAfter,
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_passes_is_tried_again_on_every_operation() {
    for operation in OPERATIONS {
        for fault in PASSING {
            let server = S3Server::start().await;
            let store = steady(&server, brisk());
            let scene = scene(&store).await;
            let is_read = matches!(operation, "GetObject" | "HeadObject");
            if is_read && matches!(fault, Fault::ErrorInSuccess(_)) {
                // Only who knows the bytes can tell that from an object.
                continue;
            }
            server.fault_at(operation, 0, fault);
            let before = server.count(operation);
            let done = perform(&store, operation, &scene).await;
            let sent = server.count(operation) - before;
            if operation == "CompleteMultipartUpload" && fault == Fault::LostAfter {
                // The upload is gone, for it was completed: the object tells.
                assert_eq!(done.unwrap_err().kind(), ErrorKind::NotFound);
                assert_eq!(store.head("multi").await.unwrap().unwrap().len, 4);
                continue;
            }
            if let Err(error) = done {
                unreachable!("{operation} {fault:?}: {}", error.report());
            }
            assert_eq!(sent, 2, "{operation} {fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_is_told_at_once_in_the_stores_words() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    let scene = scene(&store).await;
    for operation in OPERATIONS {
        for (status, code, kind) in [
            (403, "AccessDenied", ErrorKind::Denied),
            (404, "NoSuchBucket", ErrorKind::NotFound),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
        ] {
            server.fault_always(operation, Fault::Status(status, code));
            let before = server.count(operation);
            // A reply to HEAD has no body, and so no code: there, 404 is all that is known.
            let error = match perform_raw(&store, operation, &scene).await {
                Err(error) => error,
                Ok(()) if operation == "HeadObject" && status == 404 => continue,
                Ok(()) => unreachable!("{operation} {code}"),
            };
            assert_eq!(server.count(operation) - before, 1, "{operation} {code}");
            if operation == "HeadObject" {
                assert!(error.report().contains("TESTREQUEST"), "{}", error.report());
                continue;
            }
            assert_eq!(error.kind(), kind, "{operation} {code}: {}", error.report());
            let trouble = Trouble::of(&error).unwrap();
            assert_eq!((trouble.status, trouble.code.as_str()), (status, code));
            assert_eq!(trouble.request_id.as_deref(), Some("TESTREQUEST"));
        }
    }
}

/// As `perform`, where an object that is not there is no surprise.
async fn perform_raw(store: &dyn Store, operation: &str, scene: &Scene) -> Result<()> {
    match operation {
        "HeadObject" => store.head("there").await.map(drop),
        other => perform(store, other, scene).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_write_without_a_clear_answer_is_never_sent_twice() {
    let mut options = brisk();
    options.deadline = Duration::from_millis(300);
    for (fault, is_there) in [
        (Fault::LostBefore, false),
        (Fault::LostAfter, true),
        (Fault::Status(500, "InternalError"), false),
        (Fault::ErrorInSuccess("InternalError"), false),
        (Fault::Hangs, false),
        (Fault::Late, false),
    ] {
        let server = S3Server::start().await;
        let store = steady(&server, options.clone());
        server.fault_at("PutObject", 0, fault);
        let answer = put(&store, "head", "mine", Condition::Absent).await.unwrap();
        assert!(matches!(answer, Put::Unknown(_)), "{fault:?}: {answer:?}");
        assert_eq!(server.count("PutObject"), 1, "{fault:?}");
        assert_eq!(server.model.bytes("p/head").is_some(), is_there, "{fault:?}");
        assert_eq!(server.land().await, usize::from(fault == Fault::Late));
        assert_eq!(server.model.bytes("p/head").is_some(), is_there || fault == Fault::Late);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_write_that_was_turned_away_is_sent_again() {
    for fault in [
        Fault::Status(503, "SlowDown"),
        Fault::Status(409, "ConditionalRequestConflict"),
        Fault::ErrorInSuccess("SlowDown"),
        Fault::Status(400, "RequestTimeout"),
    ] {
        let server = S3Server::start().await;
        let store = steady(&server, brisk());
        server.fault_at("PutObject", 0, fault);
        let answer = put(&store, "head", "mine", Condition::Absent).await.unwrap();
        assert!(matches!(answer, Put::Done(Some(_))), "{fault:?}: {answer:?}");
        assert_eq!(server.count("PutObject"), 2);

        // It said that it had not; the second try may be refused because of the first.
        server.fault_at("PutObject", 0, fault);
        let answer = put(&store, "head", "mine", Condition::Absent).await.unwrap();
        assert!(matches!(answer, Put::Unknown(_)), "{fault:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_wants_fewer_requests_gets_fewer() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    let first = store.window();
    server.fault_at("ListObjectsV2", 0, Fault::Status(503, "SlowDown"));
    store.list("", None, 1).await.unwrap();
    assert_eq!(store.window(), first / 2);
    let counts = store.counts();
    assert_eq!((counts.requests, counts.retries, counts.throttled), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_given_up() {
    let server = S3Server::start().await;
    let mut options = brisk();
    options.attempts_max = 3;
    let store = steady(&server, options.clone());
    server.fault_always("HeadObject", Fault::Status(500, "InternalError"));
    let error = store.head("x").await.unwrap_err();
    assert_eq!((error.kind(), server.count("HeadObject")), (ErrorKind::Unavailable, 3));
    assert!(error.is_retryable());

    let address = server.address("p");
    drop(server);
    let gone = S3Store::new(&address, &S3Server::options()).unwrap();
    let gone = Steady::new(Arc::new(gone), options);
    // What was accepted before may still be served; a new connection is refused.
    let error = gone.head("x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_break_off_drip_or_never_come_do_not_hold_anybody() {
    let mut options = brisk();
    options.deadline = Duration::from_millis(400);
    for fault in [Fault::Truncated, Fault::Drips, Fault::Hangs] {
        let server = S3Server::start().await;
        let store = steady(&server, options.clone());
        let text = "a text that is long enough to take its time when it comes byte by byte";
        put(&store, "there", text, Condition::Any).await.unwrap();
        server.fault_at("GetObject", 0, fault);
        assert_eq!(store.get("there", 1000).await.unwrap().unwrap().bytes, text, "{fault:?}");
        assert_eq!(server.count("GetObject"), 2, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_falsified_on_their_way_are_not_taken() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    server.fault_at("PutObject", 0, Fault::CorruptedRequest);
    put(&store, "there", "12345", Condition::Any).await.unwrap();
    assert_eq!(server.count("PutObject"), 2);
    assert_eq!(server.model.bytes("p/there").unwrap(), "12345");
    // And a store that no longer vouches for what it got is not believed.
    assert!(store.has_checksums());
    server.fault_at("PutObject", 0, Fault::WithoutChecksum);
    put(&store, "there", "123456", Condition::Any).await.unwrap();
    assert_eq!(server.count("PutObject"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_is_sent_a_second_time() {
    let server = S3Server::start().await;
    let mut options = brisk();
    options.hedge = true;
    let store = steady(&server, options);
    put(&store, "there", "12345", Condition::Any).await.unwrap();
    for _ in 0..20 {
        store.get("there", 10).await.unwrap();
    }
    server.fault_at("GetObject", 0, Fault::Hangs);
    assert_eq!(store.get("there", 10).await.unwrap().unwrap().bytes, "12345");
    let counts = store.counts();
    assert_eq!((counts.hedges, counts.retries), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_runs_to_its_end_and_can_be_waited_for() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    server.fault_at("PutObject", 0, Fault::Slow(300));
    {
        let call = put(&store, "late", "12345", Condition::Any);
        let brief = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(brief.is_err(), "it was answered before it could be dropped");
    }
    store.settle().await;
    assert!(server.model.bytes("p/late").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_requests_does_not_wait_for_later_ones() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    server.hook(|seen| match (seen.operation, seen.nth) {
        ("PutObject", 0) => Fault::Slow(300),
        ("PutObject", _) => Fault::Hangs,
        _ => Fault::None,
    });
    let brief = Duration::from_millis(50);
    let late = tokio::time::timeout(brief, put(&store, "late", "12345", Condition::Any));
    assert!(late.await.is_err(), "it was answered before it could be dropped");
    let mut settled = store.settle();
    assert!(tokio::time::timeout(brief, &mut settled).await.is_err(), "it was not waited for");
    let other = tokio::time::timeout(brief, put(&store, "other", "12345", Condition::Any));
    assert!(other.await.is_err(), "it never ends");
    tokio::time::timeout(Duration::from_secs(10), settled).await.unwrap();
    assert!(server.model.bytes("p/late").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_lie_about_conditions_are_found_out() {
    for (lie, fencing) in [
        (Lie::None, Fencing::Swap),
        (Lie::Ignores, Fencing::None),
        (Lie::WrongStatus, Fencing::None),
        (Lie::CreateOnly, Fencing::Numbered),
    ] {
        let server = S3Server::start().await;
        server.model.lie(lie);
        let store: Arc<dyn Store> = Arc::new(steady(&server, brisk()));
        let proven = prove(&store, Depth::Races).await.unwrap();
        assert_eq!(proven.fencing(), fencing, "{lie:?}: {:?}", proven.remarks);
        assert_eq!(server.model.keys(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_buckets_and_places_are_told_apart() {
    let server = S3Server::start().await;
    let key = |id: &str, secret: &str| {
        let (id, secret) = (id.to_owned(), secret.to_owned());
        S3Options::default().with_credentials(Credentials::Key { id, secret, token: None })
    };
    let kind_of = async |options: S3Options, bucket: &str| {
        let url = format!("s3://{bucket}/p{}", server.words());
        let address = blockferry::location::BucketAddress::parse(&url).unwrap();
        let store = S3Store::open(&address, &options).unwrap();
        store.list("", None, 1).await.unwrap_err()
    };
    let error = kind_of(key("TESTKEY", "wrong"), "bucket").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.report());
    assert!(!error.report().contains("wrong"), "{}", error.report());
    let error = kind_of(key("NOBODY", "wrong"), "bucket").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.report());
    let error = kind_of(S3Server::options(), "another-bucket").await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert!(error.report().contains("make the bucket first"), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_outside_the_prefix_is_ever_named() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    server.model.insert("other/secret", "x");
    server.model.insert("p/odd//key", "x");
    for operation in OPERATIONS {
        let scene = scene(&store).await;
        perform(&store, operation, &scene).await.unwrap();
    }
    for seen in server.seen() {
        let is_whole =
            matches!(seen.operation, "DeleteObjects" | "ListObjectsV2" | "ListMultipartUploads");
        let is_below = seen.path.starts_with("/bucket/p/") || is_whole && seen.path == "/bucket";
        assert!(is_below, "{seen:?}");
    }
    assert!(server.model.bytes("other/secret").is_some());
    assert!(server.model.bytes("p/odd//key").is_some(), "a key that nobody here made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_what_was_not_asked_for_is_neither_believed_nor_endless() {
    const STRANGERS: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <Contents><Key>other/secret</Key><Size>1</Size></Contents>\
        <Contents><Key>p/a/1</Key><Size>1</Size></Contents>\
        <Contents><Key>p/b/1</Key><Size>1</Size></Contents></ListBucketResult>";
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    server.fault_always("ListObjectsV2", Fault::Says(STRANGERS));
    let page = store.list("a/", None, 10).await.unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((keys, page.more), (vec!["a/1"], true));
    // The page behind it is the same one again.
    let error = store.list("a/", Some("a/1"), 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
}

/// Neither a key nor what is to be written goes where nobody was told to go; and a write that was
/// turned into a read by the way is not taken for done.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_refusal_and_is_not_followed() {
    let (server, other) = (S3Server::start().await, S3Server::start().await);
    other.model.insert("p/there", "elsewhere");
    let elsewhere: &'static str = format!("{}/bucket/p/there", other.endpoint()).leak();
    let store = steady(&server, brisk());
    let scene = scene(&store).await;
    for place in [elsewhere, "/bucket/p/there"] {
        for status in [301, 302, 303, 307, 308] {
            for operation in OPERATIONS {
                server.fault_always(operation, Fault::SendsTo(status, place));
                let before = server.seen().len();
                let error = perform(&store, operation, &scene).await.unwrap_err();
                let what = format!("{operation} {status}: {}", error.report());
                assert_eq!(error.kind(), ErrorKind::Invalid, "{what}");
                assert_eq!(Trouble::of(&error).unwrap().status, status, "{what}");
                assert_eq!(server.seen().len() - before, 1, "{what}");
            }
            server.fault_always("PutObject", Fault::SendsTo(status, place));
            let error = put(&store, "head", "mine", Condition::Absent).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{status}: {}", error.report());
        }
    }
    assert!(other.seen().is_empty(), "{:?}", other.seen());
    assert_eq!(server.model.bytes("p/head"), None);
}

/// What a server lists takes no more memory than a page of it, however much it sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_holds_no_more_than_was_asked_for() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    let contents: String =
        (1..=3).map(|n| format!("<Contents><Key>p/a/{n}</Key><Size>1</Size></Contents>")).collect();
    let three = format!("<ListBucketResult>{contents}</ListBucketResult>").leak();
    server.fault_always("ListObjectsV2", Fault::Says(three));
    let page = store.list("a/", None, 2).await.unwrap();
    let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((keys, page.more), (vec!["a/1", "a/2"], true));

    let prefixes = |count: usize| -> &'static str {
        let prefix = |n| format!("<CommonPrefixes><Prefix>p/f/{n}/</Prefix></CommonPrefixes>");
        let all: String = (0..count).map(prefix).collect();
        format!("<ListBucketResult>{all}</ListBucketResult>").leak()
    };
    server.fault_always("ListObjectsV2", Fault::Says(prefixes(1000)));
    assert_eq!(store.folders("f/").await.unwrap().len(), 1000);
    server.fault_always("ListObjectsV2", Fault::Says(prefixes(1001)));
    let error = store.folders("f/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());

    let upload = store.upload_begin("multi", "label").await.unwrap().id;
    let listed = |number: u32, tag: &str| -> &'static str {
        let part = format!(
            "<Part><PartNumber>{number}</PartNumber><Size>1</Size><ETag>{tag}</ETag></Part>"
        );
        format!("<ListPartsResult>{part}</ListPartsResult>").leak()
    };
    server.fault_always("ListParts", Fault::Says(listed(10_000, "t")));
    assert_eq!(store.parts("multi", &upload).await.unwrap().unwrap().len(), 1);
    for odd in [listed(10_001, "t"), listed(1, &"t".repeat(5000))] {
        server.fault_always("ListParts", Fault::Says(odd));
        let error = store.parts("multi", &upload).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{}", error.report());
    }
}

/// Some stores send ten thousand entries at once unless they are told.
#[tokio::test(flavor = "multi_thread")]
async fn every_listing_names_how_much_a_page_may_hold() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    store.list("f/", None, 1000).await.unwrap();
    store.folders("f/").await.unwrap();
    store.uploads("f/").await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for (seen, word) in seen.iter().zip(["max-keys=1000", "max-keys=1000", "max-uploads=1000"]) {
        assert!(seen.query.split('&').any(|it| it == word), "{seen:?}");
    }
}

/// The store room does not know the bytes: whoever reads objects has to check what they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_falsified_object_is_handed_on_to_whoever_knows_its_digest() {
    let server = S3Server::start().await;
    let store = steady(&server, brisk());
    put(&store, "there", "12345", Condition::Any).await.unwrap();
    server.fault_at("GetObject", 0, Fault::Corrupted);
    assert_ne!(store.get("there", 10).await.unwrap().unwrap().bytes, "12345");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_is_repeated_until_the_store_says_that_the_upload_is_gone() {
    let server = S3Server::start().await;
    let store = S3Store::open(&server.address("a"), &S3Server::options()).unwrap();
    let upload = store.upload_begin("u", "label").await.unwrap().id;
    store.upload_part("u", &upload, 1, Bytes::from_static(b"part")).await.unwrap();
    server.fault_at("AbortMultipartUpload", 0, Fault::Feigned);
    blockferry::store::abort_until_gone(&*store, "u", &upload).await.unwrap();
    assert_eq!(server.count("AbortMultipartUpload"), 2);
    assert!(server.model.uploads().is_empty());
}
