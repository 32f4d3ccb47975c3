//! Wrapped keys in object stores: what they are bound to, and how long they stay; and what an
//! encrypted copy keeps on record of its source.

use std::sync::Arc;

use blockferry::ErrorKind;
use blockferry::id::JobId;
use blockferry::job::JobSpec;
use blockferry::region::{Outcome, PlainObjectRegion, Region, Target};
use blockferry::store::model::{Fate, Model};
use blockferry::store::{Fencing, Store};

use super::encrypted::{Made, machine};
use super::places::{Cloud, bytes, image, read, spec, write};
use crate::encrypt::{key, keys, marked, under};
use crate::world::{KIB, region};

/// The job of that number, to be encrypted under that key.
fn locked(number: u8, under: &str) -> JobSpec {
    let mut job = spec(number);
    job.key = Some(key(under));
    job
}

async fn commit(target: Arc<dyn Target>, job: &JobSpec) {
    let manifest = write(&*target, job).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
}

/// A data key that somebody else knows, wrapped for this very job under a key that both may use.
#[tokio::test(start_paused = true)]
async fn a_staged_key_that_is_not_under_the_jobs_key_is_not_taken() {
    let ring = keys();
    let begun = async |under: &str| {
        let made = Made { cloud: Cloud::new(Fencing::Swap), keys: ring.clone() };
        let mut job = spec(1);
        job.key = Some(key(under));
        let target = made.daemon().0.stage(&job).await.unwrap();
        target.begin().await.unwrap();
        drop(target);
        let keys = made.cloud.model.keys();
        let kept = keys.into_iter().find(|key| key.contains("/key-")).unwrap();
        (made, job, kept)
    };
    let (made, job, own) = begun("k1").await;
    let (elsewhere, _, theirs) = begun("k2").await;
    // Nor is anybody asked for it.
    ring.remove(&key("k2"), None).unwrap();
    made.cloud.model.remove(&own);
    made.cloud.model.insert(&theirs, elsewhere.cloud.model.bytes(&theirs).unwrap());
    let (region, _) = made.daemon();
    let target = region.reopen(&job).await.unwrap();
    let manifest = write(&*target, &job).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    assert_eq!(region.list().await.unwrap()[0].key, Some(key("k1")));
    assert!(made.wrapped() == 1 && made.cloud.model.bytes(&theirs).is_none());
    assert_eq!(read(&region).await, Some(bytes()));
}

/// The whole keys of what an attempt of that job has written.
fn written(cloud: &Cloud, job: JobId) -> Vec<String> {
    let folder = format!("/{job}.");
    cloud.model.keys().into_iter().filter(|key| key.contains(&folder)).collect()
}

/// Who keeps what an earlier copy has written cannot have a later one of the same name take it.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_copy_of_an_image_has_written_is_not_taken_for_a_later_ones() {
    let made = Made::new(keys()).await;
    let (model, first, second) = (&made.cloud.model, spec(1).job, locked(2, "k1"));
    let kept: Vec<_> = written(&made.cloud, first)
        .into_iter()
        .map(|key| (model.bytes(&key).unwrap(), key))
        .collect();
    assert!(kept.len() > 3, "{kept:?}");
    let (region, _) = made.daemon();
    region.remove(&image()).await.unwrap();
    // Attempts are counted from one again.
    model.remove("north/images/m-1/head");
    let target = region.stage(&second).await.unwrap();
    target.begin().await.unwrap();
    drop(target);
    written(&made.cloud, second.job).iter().for_each(|key| model.remove(key));
    for (bytes, key) in kept {
        let key = key.replace(&first.to_string(), &second.job.to_string());
        assert!(key.contains(".00000001/"), "{key}");
        model.insert(&key, bytes.to_vec());
    }
    let target = region.reopen(&second).await.unwrap();
    let restored = target.begin().await;
    // Its own key is gone, and another one is not opened.
    let refused = restored.map(|restored| restored.data_bytes);
    assert!(matches!(&refused, Err(error) if error.kind() == ErrorKind::Denied), "{refused:?}");
}

/// What is put again because nobody knows whether it is there may arrive twice, the first one last.
#[tokio::test(start_paused = true)]
async fn a_manifest_that_lands_after_the_commit_is_the_one_that_was_committed() {
    for fencing in [Fencing::Swap, Fencing::Numbered] {
        let made = Made { cloud: Cloud::new(fencing), keys: keys() };
        let ((region, store), job) = (made.daemon(), locked(1, "k1"));
        let target = region.stage(&job).await.unwrap();
        let manifest = write(&*target, &job).await.unwrap();
        store.hook(|call| match call.verb == "put" && call.key.ends_with("/manifest") {
            true => Fate::Late,
            false => Fate::Answered,
        });
        let unclear = target.commit(&manifest).await.unwrap_err();
        assert_eq!(unclear.kind(), ErrorKind::Unavailable, "{unclear}");
        store.hook(|_| Fate::Answered);
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        assert_eq!(made.cloud.model.late().len(), 1);
        made.cloud.model.land_all();
        assert_eq!(read(&made.daemon().0).await, Some(bytes()), "{fencing:?}");
    }
}

/// Each attempt keeps the data key, wrapped; one that nobody has tidied up after still does.
#[tokio::test(start_paused = true)]
async fn another_key_is_given_to_all_that_is_left_of_the_copy() {
    let made = Made { cloud: Cloud::new(Fencing::Swap), keys: keys() };
    let ((region, _), job) = (made.daemon(), locked(1, "k1"));
    let target = region.stage(&job).await.unwrap();
    target.begin().await.unwrap();
    drop(target);
    commit(region.reopen(&job).await.unwrap(), &job).await;
    assert_eq!(made.wrapped(), 2);
    assert_eq!(region.rewrap(&image(), &key("k2")).await.unwrap(), key("k1"));
    assert_eq!(made.wrapped(), 1, "one is wrapped by the key that was given up");
    assert_eq!(read(&made.daemon().0).await, Some(bytes()));
}

/// With most stores it is a digest of the content, which anybody can compare with a guess.
#[tokio::test(flavor = "multi_thread")]
async fn the_etag_of_a_plain_object_is_not_kept_with_its_encrypted_copy() {
    let (model, ring, state) = (Model::new(), keys(), tempfile::tempdir().unwrap());
    let here = machine(&model, Some(&ring)).await;
    let raw = Arc::new(model.client(""));
    model.insert("raw", marked(300 * KIB));
    let version = raw.head("raw").await.unwrap().unwrap().version.unwrap().to_string();
    assert!(version.len() >= 8, "{version}");
    let plain = PlainObjectRegion::new(raw, "raw", "model://bucket/raw", state.path());
    here.engine.register(region("raw"), Arc::new(plain)).await.unwrap();
    let told = |prefix: &str| {
        let keys = model.keys().into_iter().filter(|key| key.starts_with(prefix));
        keys.filter(|key| {
            let all = [key.as_bytes(), &model.bytes(key).unwrap()].concat();
            all.windows(version.len()).any(|window| window == version.as_bytes())
        })
        .collect::<Vec<_>>()
    };
    here.copy("raw/raw", "north/one", under("k1")).await;
    assert_eq!(told("north/"), Vec::<String>::new());
    // One in clear, to see that the search finds what there is.
    here.copy("raw/raw", "south/two", crate::world::small()).await;
    assert_ne!(told("south/"), Vec::<String>::new());
}
