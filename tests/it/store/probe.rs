//! The probe finds out what a store can be relied on for, and leaves nothing there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use blockferry::store::model::{Fate, Lie, Model};
use blockferry::store::{Depth, Fencing, Proven, Store, prove};

async fn proven_of(model: &Model, depth: Depth) -> Proven {
    let store: Arc<dyn Store> = Arc::new(model.client("some/prefix"));
    let proven = prove(&store, depth).await.unwrap();
    assert_eq!(model.keys(), Vec::<String>::new());
    assert_eq!(model.uploads(), Vec::<String>::new());
    proven
}

#[tokio::test]
async fn an_honest_store_proves_everything() {
    let proven = proven_of(&Model::new(), Depth::Races).await;
    assert_eq!(proven.remarks, Vec::<String>::new());
    assert_eq!(proven.fencing(), Fencing::Swap);
    assert!(proven.list_after_write && proven.copy);
    assert!(proven.list_parts && proven.list_uploads && proven.complete_if_absent);
}

#[tokio::test]
async fn a_store_that_lies_about_conditions_is_not_fenced_by_them() {
    for (lie, depth, fencing) in [
        (Lie::Ignores, Depth::Quick, Fencing::None),
        (Lie::WrongStatus, Depth::Quick, Fencing::None),
        (Lie::CreateOnly, Depth::Quick, Fencing::Numbered),
        (Lie::Racy, Depth::Races, Fencing::None),
    ] {
        let model = Model::new();
        model.lie(lie);
        let proven = proven_of(&model, depth).await;
        assert_eq!(proven.fencing(), fencing, "{lie:?}");
        assert!(!proven.remarks.is_empty(), "{lie:?}");
    }
}

#[tokio::test]
async fn a_listing_that_lags_is_not_relied_on() {
    let model = Model::new();
    model.freeze_listings();
    let proven = proven_of(&model, Depth::Quick).await;
    assert!(!proven.list_after_write && !proven.list_uploads);
    assert_eq!(proven.fencing(), Fencing::Swap);
}

#[tokio::test]
async fn a_store_that_denies_everything_is_an_error() {
    let model = Model::new();
    let client = model.client("");
    client.fate_from(0, Fate::Denied);
    let store: Arc<dyn Store> = Arc::new(client);
    let error = prove(&store, Depth::Quick).await.unwrap_err();
    assert_eq!(error.kind(), blockferry::ErrorKind::Denied);
}

#[tokio::test]
async fn an_upload_whose_beginning_got_no_answer_does_not_stay() {
    for nth in 0..2 {
        let model = Model::new();
        let client = model.client("");
        let begun = AtomicUsize::new(0);
        client.hook(move |call| {
            let is_it = call.verb == "upload_begin" && begun.fetch_add(1, SeqCst) == nth;
            if is_it { Fate::LostAfter } else { Fate::Answered }
        });
        let store: Arc<dyn Store> = Arc::new(client);
        prove(&store, Depth::Quick).await.unwrap();
        assert_eq!(model.uploads(), Vec::<String>::new(), "{nth}");
    }
}

/// Whatever single request of a probe fails, it ends, and proves no more than an honest store can.
#[tokio::test]
async fn one_failing_request_proves_less_and_never_more() {
    let whole = proven_of(&Model::new(), Depth::Quick).await;
    for fate in [Fate::LostBefore, Fate::LostAfter, Fate::Fails, Fate::Denied, Fate::Late] {
        for number in 0..60 {
            let model = Model::new();
            let client = model.client("");
            client.fate_at(number, fate);
            let count = client.clone();
            let store: Arc<dyn Store> = Arc::new(client);
            match prove(&store, Depth::Quick).await {
                Ok(proven) if count.request_count() > number => {
                    assert_ne!(proven, whole, "{fate:?} at {number}");
                    // What passes is not taken for what the store cannot do: heads would then be
                    // looked for where they are not.
                    let same = proven.fencing() == whole.fencing();
                    assert!(same || fate == Fate::Denied, "{fate:?} at {number}: {proven:?}");
                }
                Ok(proven) => assert_eq!(proven, whole),
                Err(error) => assert!(error.is_retryable() || fate == Fate::Denied, "{error}"),
            }
        }
    }
}
