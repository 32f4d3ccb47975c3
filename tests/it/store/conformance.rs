//! What every store must do, whatever stands behind it: the same suite for the model, for the S3
//! server of these tests, and for servers of the lab.

use std::sync::Arc;

use blockferry::geometry::ByteRange;
use blockferry::location::BucketAddress;
use blockferry::store::model::Model;
use blockferry::store::{
    Condition, Depth, Part, Proven, Put, S3Options, S3Store, Steady, SteadyOptions, Store,
    abort_until_gone, prove,
};
use blockferry::{Error, ErrorKind};
use bytes::Bytes;

use super::server::S3Server;

const MIB: usize = 1 << 20;

fn noise(len: usize, seed: u8) -> Bytes {
    let mut state = u64::from(seed) + 1;
    let byte = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    (0..len).map(byte).collect()
}

async fn written(store: &dyn Store, key: &str, bytes: impl Into<Bytes>) {
    let put = store.put(key, bytes.into(), &Condition::Any).await.unwrap();
    assert!(matches!(put, Put::Done(_)), "{put:?}");
}

async fn keys(store: &dyn Store, prefix: &str, limit: usize) -> Vec<String> {
    let (mut all, mut after): (Vec<String>, Option<String>) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, after.as_deref(), limit).await.unwrap();
        assert!(page.entries.len() <= limit, "a page of {}", page.entries.len());
        all.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            return all;
        }
        after = all.last().cloned();
    }
}

async fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get("r/none", 10).await.unwrap(), None);
    assert_eq!(store.head("r/none").await.unwrap(), None);
    let bytes = noise(MIB + 7, 1);
    written(store, "r/a b+c=d@e,f:g", bytes.clone()).await;
    let read = store.get("r/a b+c=d@e,f:g", 2 << 20).await.unwrap().unwrap();
    assert_eq!(read.bytes, bytes);
    let meta = store.head("r/a b+c=d@e,f:g").await.unwrap().unwrap();
    assert_eq!((meta.len, &meta.version), (u64::try_from(bytes.len()).unwrap(), &read.version));
    let too_long = store.get("r/a b+c=d@e,f:g", 100).await.unwrap_err();
    assert_eq!(too_long.kind(), ErrorKind::Corrupt, "{too_long:?}");

    written(store, "r/empty", "").await;
    assert_eq!(store.get("r/empty", 10).await.unwrap().unwrap().bytes, "");
    store.delete(&["r/empty".into(), "r/a b+c=d@e,f:g".into(), "r/none".into()]).await.unwrap();
    store.delete(&["r/none".into()]).await.unwrap();
    assert_eq!(store.head("r/empty").await.unwrap(), None);
    for key in ["", "/a", "a/../b", "a//b", "a\n"] {
        let refused = store.get(key, 1).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{key:?}");
    }
}

async fn ranges_are_of_the_version_that_was_pinned(store: &dyn Store) {
    let bytes = noise(300_000, 2);
    written(store, "p/x", bytes.clone()).await;
    let version = store.head("p/x").await.unwrap().unwrap().version.unwrap();
    let range = ByteRange::new(1_000, 200_000);
    let read = store.get_range("p/x", range, Some(&version)).await.unwrap();
    assert_eq!(read, bytes.slice(1_000..201_000));
    assert_eq!(store.get_range("p/x", range, None).await.unwrap(), read);
    let past = store.get_range("p/x", ByteRange::new(299_000, 2_000), None).await.unwrap_err();
    assert_eq!(past.kind(), ErrorKind::SourceChanged, "{past:?}");
    written(store, "p/x", noise(300_000, 3)).await;
    let changed = store.get_range("p/x", range, Some(&version)).await.unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::SourceChanged, "{changed:?}");
    store.delete(&["p/x".into()]).await.unwrap();
    let gone = store.get_range("p/x", range, Some(&version)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::SourceChanged, "{gone:?}");
    let none = store.get_range("p/x", range, None).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none:?}");
}

async fn conditions_hold(store: &dyn Store, proven: &Proven) {
    let put = |text: &'static str, when| async move { store.put("c/h", text.into(), &when).await };
    if proven.create {
        let Put::Done(Some(first)) = put("1", Condition::Absent).await.unwrap() else {
            unreachable!("a create of what is not there")
        };
        let refused = put("2", Condition::Absent).await.unwrap();
        assert!(matches!(refused, Put::Refused), "{refused:?}");
        let there = store.head("c/h").await.unwrap().unwrap();
        assert_eq!(there.version, Some(first.clone()));
        if proven.swap {
            let swapped = put("3", Condition::Match(first.clone())).await.unwrap();
            assert!(matches!(swapped, Put::Done(Some(_))), "{swapped:?}");
            let stale = put("4", Condition::Match(first.clone())).await.unwrap();
            assert!(matches!(stale, Put::Refused), "{stale:?}");
            assert_eq!(store.get("c/h", 10).await.unwrap().unwrap().bytes, "3");
        }
        store.delete(&["c/h".into()]).await.unwrap();
        if proven.swap {
            let absent = put("5", Condition::Match(first)).await.unwrap();
            assert!(matches!(absent, Put::Refused), "{absent:?}");
        }
    }
}

async fn listings_are_whole_and_in_order(store: &dyn Store) {
    let mut expected: Vec<String> =
        ["a/1", "a/10", "a/2", "a/b/c", "a/b/d", "a-b", "b c/+"].map(|k| format!("l/{k}")).into();
    expected.sort();
    for key in &expected {
        written(store, key, key.clone()).await;
    }
    assert_eq!(keys(store, "l/", 1000).await, expected);
    assert_eq!(keys(store, "l/", 2).await, expected);
    assert_eq!(keys(store, "l/a/b/", 1).await, ["l/a/b/c", "l/a/b/d"]);
    assert_eq!(keys(store, "l/a/1", 10).await, ["l/a/1", "l/a/10"]);
    assert_eq!(keys(store, "l/none", 10).await, Vec::<String>::new());
    let page = store.list("l/a/", Some("l/a/10"), 1).await.unwrap();
    assert_eq!(page.entries[0].key, "l/a/2");
    assert!(page.more && page.entries[0].meta.modified_ms > 0);
    assert_eq!(page.entries[0].meta.len, 5);
    for name in ["x", "y", "z"] {
        written(store, &format!("l/f/{name}/1"), name).await;
        written(store, &format!("l/f/{name}/2"), name).await;
    }
    written(store, "l/f/plain", "").await;
    assert_eq!(store.folders("l/f/").await.unwrap(), ["x", "y", "z"]);
    assert_eq!(store.folders("l/none/").await.unwrap(), Vec::<String>::new());
    let all = keys(store, "l/", 1000).await;
    store.delete(&all).await.unwrap();
    assert_eq!(keys(store, "l/", 1000).await, Vec::<String>::new());
}

async fn copies_stay_in_the_store(store: &dyn Store) {
    let bytes = noise(100_000, 4);
    written(store, "y/from 1", bytes.clone()).await;
    store.copy(&store.address("y/from 1"), "y/to").await.unwrap();
    assert_eq!(store.get("y/to", 1 << 20).await.unwrap().unwrap().bytes, bytes);
    let none = store.copy(&store.address("y/none"), "y/to").await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none:?}");
    let mut elsewhere = store.address("y/to");
    elsewhere.bucket.push('x');
    let other = store.copy(&elsewhere, "y/to").await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Unsupported, "{other:?}");
    store.delete(&["y/from 1".into(), "y/to".into()]).await.unwrap();
}

/// `is_ours`: the server says of an upload that is gone that it is. Some break down over it: moto
/// answers 500.
async fn uploads_become_objects_or_nothing(store: &dyn Store, proven: &Proven, is_ours: bool) {
    let is_gone = |error: &Error| match error.kind() {
        ErrorKind::NotFound => true,
        ErrorKind::Unavailable => !is_ours,
        _ => false,
    };
    let parts = [noise(5 * MIB, 5), noise(5 * MIB, 6), noise(1234, 7)];
    let id = store.upload_begin("u/x", "label1").await.unwrap().id;
    let mut done: Vec<Part> = Vec::new();
    for (number, bytes) in (1..).zip(&parts) {
        done.push(store.upload_part("u/x", &id, number, bytes.clone()).await.unwrap());
    }
    // Over an earlier one of that number.
    done[0] = store.upload_part("u/x", &id, 1, parts[0].clone()).await.unwrap();
    assert_eq!(store.head("u/x").await.unwrap(), None, "nobody sees it");
    if proven.list_uploads {
        let mut others = Vec::new();
        for name in ["u/y", "u/z"] {
            others.push((name, store.upload_begin(name, "label2").await.unwrap().id));
        }
        let found = store.uploads("u/").await.unwrap();
        let mut found: Vec<_> = found.iter().map(|it| (it.key.as_str(), &it.id)).collect();
        // In any order: Garage's is that of the ids.
        found.sort_unstable_by_key(|(key, _)| *key);
        let all = [("u/x", &id), ("u/y", &others[0].1), ("u/z", &others[1].1)];
        assert_eq!(found, all);
        for (name, other) in others {
            abort_until_gone(store, name, &other).await.unwrap();
        }
        assert_eq!(store.uploads("u/").await.unwrap().len(), 1);
    }
    if proven.list_parts {
        let held = store.parts("u/x", &id).await.unwrap().unwrap();
        let held: Vec<_> = held.iter().map(|part| (part.number, part.len)).collect();
        let five = u64::try_from(5 * MIB).unwrap();
        assert_eq!(held, [(1, five), (2, five), (3, 1234)]);
    }
    let put = store.upload_complete("u/x", &id, &done, &Condition::Any).await.unwrap();
    assert!(matches!(put, Put::Done(_)), "{put:?}");
    let whole = store.get("u/x", 20 << 20).await.unwrap().unwrap();
    assert_eq!(whole.bytes, parts.concat());
    let meta = store.head("u/x").await.unwrap().unwrap();
    assert_eq!(meta.label.as_deref(), Some("label1"));

    let late = store.upload_part("u/x", &id, 1, parts[2].clone()).await.unwrap_err();
    assert!(is_gone(&late), "{late:?}");
    let second = store.upload_begin("u/x", "label2").await.unwrap().id;
    let part = store.upload_part("u/x", &second, 1, parts[2].clone()).await.unwrap();
    if proven.complete_if_absent {
        let list = std::slice::from_ref(&part);
        let refused = store.upload_complete("u/x", &second, list, &Condition::Absent).await;
        assert!(matches!(refused, Ok(Put::Refused)), "{refused:?}");
    }
    abort_until_gone(store, "u/x", &second).await.unwrap();
    store.upload_abort("u/x", &second).await.unwrap();
    if proven.list_parts {
        assert_eq!(store.parts("u/x", &second).await.unwrap(), None);
    }
    let gone = store.upload_complete("u/x", &second, &[part], &Condition::Any).await.unwrap_err();
    assert!(is_gone(&gone), "{gone:?}");
    assert_eq!(store.head("u/x").await.unwrap(), Some(meta), "it is what it was");
    store.delete(&["u/x".into()]).await.unwrap();
}

/// The whole suite; tells what the store has proven.
async fn conform(store: Arc<dyn Store>, is_ours: bool) -> Proven {
    let proven = prove(&store, Depth::Races).await.unwrap();
    let of = store.as_ref();
    reads_what_was_written(of).await;
    ranges_are_of_the_version_that_was_pinned(of).await;
    conditions_hold(of, &proven).await;
    listings_are_whole_and_in_order(of).await;
    if proven.copy {
        copies_stay_in_the_store(of).await;
    }
    uploads_become_objects_or_nothing(of, &proven, is_ours).await;
    of.settle().await;
    assert_eq!(keys(of, "", 1000).await, Vec::<String>::new(), "something is left");
    proven
}

#[tokio::test]
async fn the_model_conforms() {
    let model = Model::new();
    let proven = conform(Arc::new(model.client("a/b")), true).await;
    assert_eq!(proven.remarks, Vec::<String>::new());
    let steady = Steady::new(Arc::new(model.client("")), SteadyOptions::default());
    conform(Arc::new(steady), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let server = S3Server::start().await;
    for prefix in ["", "a/b"] {
        let address = match prefix {
            "" => BucketAddress::parse(&format!("s3://bucket{}", server.words())).unwrap(),
            prefix => server.address(prefix),
        };
        let store = S3Store::open(&address, &S3Server::options()).unwrap();
        let proven = conform(Arc::clone(&store), true).await;
        assert_eq!(proven.remarks, Vec::<String>::new());
        assert!(store.has_checksums());
    }
}

/// `tests/lab/s3.sh` runs this against servers that it has started.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_lab_conforms() {
    let Ok(url) = std::env::var("BLOCKFERRY_LAB_S3") else {
        eprintln!("skipped: BLOCKFERRY_LAB_S3 names no server; tests/lab/s3.sh starts some");
        return;
    };
    let address = BucketAddress::parse(&url).unwrap();
    let store = S3Store::open(&address, &S3Options::default()).unwrap();
    let proven = conform(store, false).await;
    eprintln!("{proven:#?}");
}
