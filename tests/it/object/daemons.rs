//! Several daemons at one image: who is fenced, who takes over, what is left of those who are late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::chunk::Durable;
use blockferry::geometry::{ByteRange, ChunkIndex, ChunkRun, ChunkSize, Geometry};
use blockferry::manifest::Manifest;
use blockferry::region::object::rules::Phase;
use blockferry::region::object::{ObjectOptions, ObjectRegion};
use blockferry::region::{Located, Outcome, Region, Settled, Vote, Wish};
use blockferry::seal::{Seal, seal};
use blockferry::store::Fencing;
use blockferry::store::model::{Fate, Lie};
use bytes::Bytes;

use super::places::{Cloud, LONG, bytes, image, read, spec, write};

const BOTH: [Fencing; 2] = [Fencing::Swap, Fencing::Numbered];

/// Another daemon has cancelled what is staged, at once; of its parts nothing is removed here.
fn cancel_now(cloud: &Cloud) {
    let staged = cloud.head("m-1").unwrap();
    let aborting = staged.moved(Phase::Aborting, None, [7; 16]);
    let aborted = aborting.moved(Phase::Aborted, None, [8; 16]);
    for head in [aborting, aborted] {
        let key = match cloud.fencing {
            Fencing::Numbered => format!("head.{:016x}", head.sight.seq),
            _ => "head".to_owned(),
        };
        cloud.model.insert(&format!("north/images/m-1/{key}"), head.encode());
    }
}

/// A daemon takes a stage over from one that shows no sign of life, and goes on where it was.
#[tokio::test(start_paused = true)]
async fn another_daemon_goes_on_with_nothing_but_the_store() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, frozen), (two, requests)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        write(&*target, &spec(1)).await.unwrap();
        assert_eq!(two.stage(&spec(1)).await.unwrap_err().kind(), ErrorKind::Busy);
        let told = two.jobs().await.unwrap();
        assert!(told.len() == 1 && told[0].owned, "{told:?}");

        // It is stopped, as by a debugger: nothing of it arrives any more.
        frozen.hook(|_| Fate::LostBefore);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let told = two.jobs().await.unwrap();
        assert!(told.len() == 1 && !told[0].owned && told[0].epoch == 1, "{told:?}");
        let recovered = two.recover(None).await.unwrap();
        assert!(matches!(recovered[0].settled, Settled::Kept), "{recovered:?}");
        let next = two.reopen(&told[0].spec).await.unwrap();
        let before = requests.request_count();
        let manifest = write(&*next, &spec(1)).await.unwrap();
        let asked = requests.request_count() - before;
        assert!(asked < 10, "it writes nothing that the store has: {asked} requests");

        // And goes on again.
        frozen.hook(|_| Fate::Answered);
        let refused = target.commit(&manifest).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
        assert_eq!(target.discard().await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(next.commit(&manifest).await.unwrap(), Outcome::Committed);
        next.finish().await.unwrap();
        assert_eq!(read(&one).await, Some(bytes()));
        let told = target.commit(&manifest).await.unwrap();
        assert_eq!(told, Outcome::Committed, "who was fenced is told how its job ended");
        assert_eq!(target.discard().await.unwrap(), Outcome::Committed);
        drop((target, next));
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_daemon_notices_by_itself_and_writes_no_more() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, frozen), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        target.begin().await.unwrap();
        frozen.hook(|_| Fate::LostBefore);
        let next = two.stage(&spec(1)).await.unwrap();
        frozen.hook(|_| Fate::Answered);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(target.sync().await.unwrap_err().kind(), ErrorKind::Fenced);
        let count = frozen.request_count();
        assert_eq!(target.checkpoint(&[]).await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(frozen.request_count(), count, "and asks for nothing any more");
        assert_eq!(next.discard().await.unwrap(), Outcome::Cancelled);
        drop((target, next));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_whose_job_another_has_committed_writes_no_more() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, frozen), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        target.begin().await.unwrap();
        frozen.hook(|_| Fate::LostBefore);
        let next = two.stage(&spec(1)).await.unwrap();
        let manifest = write(&*next, &spec(1)).await.unwrap();
        assert_eq!(next.commit(&manifest).await.unwrap(), Outcome::Committed);
        next.finish().await.unwrap();
        drop(next);
        frozen.hook(|_| Fate::Answered);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(target.sync().await.unwrap_err().kind(), ErrorKind::Fenced, "{fencing:?}");
        let count = frozen.request_count();
        assert_eq!(target.checkpoint(&[]).await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(frozen.request_count(), count, "and asks for nothing any more");
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed, "as it ended");
        assert_eq!(target.discard().await.unwrap(), Outcome::Committed);
        drop(target);
        assert_eq!(read(&two).await, Some(bytes()));
        assert_eq!(cloud.strays(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_from_elsewhere_reaches_the_owner_and_is_cleaned_when_it_is_gone() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, frozen), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        let vote = two.cancel(spec(1).job, &image()).await.unwrap();
        assert_eq!(vote, Vote::Cancelled { first: true, clean: false }, "it may live");
        assert!(target.wishes().await.unwrap().cancelled);
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Cancelled);
        assert_eq!(two.locate(&image()).await.unwrap(), Located::Staged(spec(1).job));
        frozen.hook(|_| Fate::LostBefore);
        drop(target);
        let clean = loop {
            match two.cancel(spec(1).job, &image()).await.unwrap() {
                Vote::Cancelled { first: false, clean: false } => {}
                vote => break vote,
            }
        };
        assert_eq!(clean, Vote::Cancelled { first: false, clean: true });
        assert_eq!(two.locate(&image()).await.unwrap(), Located::Cancelled(spec(1).job));
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
    }
}

/// What a fenced attempt writes late is seen by nobody, and swept after a while.
#[tokio::test(start_paused = true)]
async fn a_late_write_of_a_fenced_attempt_is_invisible_and_swept_after_a_grace_period() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, late), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        late.hook(|call| match call.key.contains(".00000001/0") && call.verb == "put" {
            true => Fate::Late,
            false => Fate::Answered,
        });
        write(&*target, &spec(1)).await.unwrap_err();
        drop(target);
        late.hook(|_| Fate::LostBefore);
        let mut vote = two.cancel(spec(1).job, &image()).await.unwrap();
        while !matches!(vote, Vote::Cancelled { clean: true, .. }) {
            vote = two.cancel(spec(1).job, &image()).await.unwrap();
        }
        assert_eq!(cloud.strays(), Vec::<String>::new());
        // Another job has committed meanwhile.
        let next = two.stage(&spec(2)).await.unwrap();
        let manifest = write(&*next, &spec(2)).await.unwrap();
        assert_eq!(next.commit(&manifest).await.unwrap(), Outcome::Committed);
        next.finish().await.unwrap();
        cloud.model.land_all();
        assert_eq!(read(&two).await, Some(bytes()), "nobody sees it");
        let stray: Vec<String> =
            cloud.model.keys().into_iter().filter(|key| key.contains("0101.")).collect();
        assert_eq!(stray.len(), 1, "a chunk came late");

        assert!(two.sweep(true, LONG).await.unwrap().is_empty(), "it is too young");
        cloud.model.advance_ms(u64::try_from(LONG.as_millis()).unwrap());
        let told = two.sweep(true, LONG).await.unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(cloud.model.keys().iter().all(|key| !key.contains("0101.")));
        assert_eq!(read(&two).await, Some(bytes()), "and the image is whole");
        assert!(two.sweep(true, Duration::ZERO).await.unwrap().is_empty(), "{fencing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_does_not_apply_only_tells() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, _) = cloud.daemon();
    let key = format!("north/images/m-1/{}.00000001/manifest", spec(9).job);
    cloud.model.insert(&key, "late");
    cloud.model.insert("north/images/m-1/notes.txt", "not ours");
    cloud.model.insert(&format!("north/jobs/{}/limits", spec(9).job), "late");
    let told = one.sweep(false, Duration::ZERO).await.unwrap();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(cloud.model.keys().len(), 3);
    assert_eq!(one.sweep(true, Duration::ZERO).await.unwrap(), told);
    assert_eq!(cloud.model.keys(), ["north/images/m-1/notes.txt"], "what is not ours stays");
}

/// A swap of a fenced daemon that lands after everything is decided changes nothing.
#[tokio::test(start_paused = true)]
async fn a_commit_that_lands_late_loses() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, late), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        late.hook(|call| match call.key.contains("/head") && call.verb == "put" {
            true => Fate::Late,
            false => Fate::Answered,
        });
        let unclear = target.commit(&manifest).await.unwrap_err();
        assert_eq!(unclear.kind(), ErrorKind::Unavailable, "{unclear}");
        late.hook(|_| Fate::LostBefore);
        let next = two.stage(&spec(1)).await.unwrap();
        cloud.model.land_all();
        write(&*next, &spec(1)).await.unwrap();
        assert_eq!(next.discard().await.unwrap(), Outcome::Cancelled);
        cloud.model.land_all();
        let found = two.locate(&image()).await.unwrap();
        assert_eq!(found, Located::Cancelled(spec(1).job), "{fencing:?}");
        late.hook(|_| Fate::Answered);
        let told = target.commit(&manifest).await.unwrap();
        assert_eq!(told, Outcome::Cancelled, "who comes late is told the one decision");
        drop((target, next));
        assert_eq!(cloud.strays(), Vec::<String>::new());
    }
}

/// Another daemon cancels while the owner looks for what its commit needs.
#[tokio::test(start_paused = true)]
async fn a_commit_that_finds_its_chunks_gone_is_told_of_the_cancel() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let (one, client) = cloud.daemon();
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        let (there, is_first) = (cloud.clone(), AtomicBool::new(true));
        client.hook(move |call| {
            if call.verb == "list" && is_first.swap(false, SeqCst) {
                cancel_now(&there);
                let parts = format!("/{}.", spec(1).job);
                for key in there.model.keys().iter().filter(|key| key.contains(&parts)) {
                    there.model.remove(key);
                }
            }
            Fate::Answered
        });
        let told = target.commit(&manifest).await;
        assert!(matches!(told, Ok(Outcome::Cancelled)), "{fencing:?}: {told:?}");
    }
}

/// A claim comes true and its answer does not come; before its owner looks, another daemon has
/// cancelled the job and told that it is clean. What was told stays so.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_cancelled_before_its_claim_was_answered_is_not_claimed_again() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let (one, late) = cloud.daemon();
        let (there, is_claimed) = (cloud.clone(), AtomicBool::new(false));
        late.hook(move |call| match call.key.contains("/head") {
            true if call.verb == "put" => {
                is_claimed.store(true, SeqCst);
                Fate::LostAfter
            }
            // It looks for what came of its claim.
            true if is_claimed.swap(false, SeqCst) => {
                cancel_now(&there);
                Fate::Answered
            }
            _ => Fate::Answered,
        });
        let refused = one.stage(&spec(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{fencing:?}: {refused}");
        assert_eq!(cloud.phase("m-1"), Some(Phase::Aborted), "{fencing:?}");
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}: nor what told of it");
        late.hook(|_| Fate::Answered);
        // Whoever starts it anew knows of no other start.
        let target = one.stage(&spec(1)).await.unwrap();
        assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    }
}

/// Old heads are never collected: one that was is made again by a late create, which then looks
/// like a success.
#[tokio::test(start_paused = true)]
async fn numbered_heads_outlive_every_sweep() {
    let cloud = Cloud::new(Fencing::Numbered);
    let (one, _) = cloud.daemon();
    for number in 1..4 {
        let target = one.stage(&spec(number)).await.unwrap();
        target.begin().await.unwrap();
        assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    }
    let heads = cloud.model.keys();
    assert_eq!(heads.len(), 12 + 1, "{heads:?}");
    assert!(one.sweep(true, Duration::ZERO).await.unwrap().is_empty());
    assert_eq!(cloud.model.keys(), heads);
}

/// Two daemons to which the store proves different things come to an image that nobody has claimed:
/// each looks for heads of the other's kind, and finds none.
#[tokio::test(start_paused = true)]
async fn two_daemons_that_keep_heads_in_different_ways_do_not_both_claim() {
    for ways in [BOTH, [Fencing::Numbered, Fencing::Swap]] {
        let cloud = Cloud::new(ways[0]);
        let other = Cloud { fencing: ways[1], ..cloud.clone() };
        let ((one, _), (two, _)) = (cloud.daemon(), other.daemon());
        let (jobs, mut late) = ((spec(1), spec(2)), spec(3));
        let claims = tokio::join!(one.stage(&jobs.0), two.stage(&jobs.1));
        let claimed = [claims.0.is_ok(), claims.1.is_ok()];
        assert_eq!(claimed.iter().filter(|claimed| **claimed).count(), 1, "{claims:?}");
        let refused = claims.0.err().or(claims.1.err()).unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        // Nor does the one who came second claim another image, of which there is nothing yet.
        late.target.image = "m-2".parse().unwrap();
        let second = if claimed[0] { &two } else { &one };
        let refused = second.stage(&late).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert!(refused.to_string().contains("heads here are"), "{refused}");
        assert_eq!(cloud.phase("m-2"), None);
    }
}

/// A region goes on as it was begun, where the store proves more than it did then.
#[tokio::test(start_paused = true)]
async fn a_region_whose_heads_are_numbered_stays_so_and_one_whose_heads_are_swapped_too() {
    let cloud = Cloud::new(Fencing::Swap);
    let open = || {
        let store = Arc::new(cloud.model.client("north"));
        ObjectRegion::open(store, ObjectOptions::default()).unwrap()
    };
    cloud.model.lie(Lie::CreateOnly);
    let target = open().stage(&spec(1)).await.unwrap();
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    drop(target);
    cloud.model.lie(Lie::None);
    let region = open();
    let target = region.stage(&spec(2)).await.unwrap();
    assert_eq!(region.fencing().await.unwrap(), Fencing::Numbered);
    let manifest = write(&*target, &spec(2)).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    drop(target);
    assert_eq!(read(&open()).await, Some(bytes()));

    let cloud = Cloud::new(Fencing::Swap);
    let open = || {
        let store = Arc::new(cloud.model.client("north"));
        ObjectRegion::open(store, ObjectOptions::default()).unwrap()
    };
    let target = open().stage(&spec(1)).await.unwrap();
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    drop(target);
    cloud.model.lie(Lie::CreateOnly);
    let refused = open().stage(&spec(2)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("swapped in place"), "{refused}");
    let alone = tempfile::tempdir().unwrap();
    let store = Arc::new(cloud.model.client("north"));
    let alone = ObjectRegion::unfenced(store, alone.path(), ObjectOptions::default()).unwrap();
    let refused = alone.stage(&spec(3)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn heads_kept_one_way_are_not_claimed_the_other_way() {
    let cloud = Cloud::new(Fencing::Numbered);
    let (one, _) = cloud.daemon();
    let target = one.stage(&spec(1)).await.unwrap();
    let other = Cloud { fencing: Fencing::Swap, ..cloud.clone() };
    let refused = other.daemon().0.stage(&spec(2)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_head_is_told_and_left_alone() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, _) = cloud.daemon();
    cloud.model.insert("north/images/m-1/head", "<html>");
    for refused in [
        one.stage(&spec(1)).await.err(),
        one.open(&image()).await.err(),
        one.remove(&image()).await.err(),
        one.cancel(spec(1).job, &image()).await.err(),
        one.list().await.err(),
    ] {
        let refused = refused.unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains("/images/m-1/head"), "{refused}");
    }
    cloud.model.insert("north/images/m-1/head", vec![b'x'; 1 << 20]);
    assert_eq!(one.stage(&spec(1)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(cloud.model.keys(), ["north/images/m-1/head"]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_chunk_or_manifest_is_never_read_as_good() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, _) = cloud.daemon();
    let target = one.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    assert_eq!(read(&one).await, Some(bytes()));
    let of_image = |key: &String| key.contains("/images/") && !key.ends_with("head");
    for key in cloud.model.keys().into_iter().filter(of_image) {
        let good = cloud.model.bytes(&key).unwrap();
        let mut bad = good.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        for bad in [Some(bad), Some(Vec::new()), None] {
            match bad {
                Some(bad) => cloud.model.insert(&key, bad),
                None => cloud.model.remove(&key),
            }
            let refused = match one.open(&image()).await {
                Ok(source) => {
                    let whole = ByteRange::new(0, source.size_bytes());
                    source.read_at(whole).await.unwrap_err()
                }
                Err(refused) => refused,
            };
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "{key}: {refused}");
        }
        cloud.model.insert(&key, good);
    }
    assert_eq!(read(&one).await, Some(bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_the_store_lost_keeps_the_image_from_being_committed() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, _) = cloud.daemon();
    let target = one.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    let chunk = cloud.model.keys().into_iter().find(|key| key.contains("00000002-")).unwrap();
    cloud.model.remove(&chunk);
    let refused = target.commit(&manifest).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    drop(target);
    let target = one.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    assert_eq!(read(&one).await, Some(bytes()));
}

/// Damage is one thing, and a removal by somebody else another.
#[tokio::test(start_paused = true)]
async fn an_image_that_is_removed_while_it_is_read_has_changed_and_is_not_corrupt() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let ((one, _), (two, _)) = (cloud.daemon(), cloud.daemon());
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        let source = one.open(&image()).await.unwrap();
        let range = ByteRange::new(0, 1000);
        let chunk = cloud.model.keys().into_iter().find(|key| key.contains("00000000-")).unwrap();
        let lost = cloud.model.bytes(&chunk).unwrap();
        cloud.model.remove(&chunk);
        assert_eq!(source.read_at(range).await.unwrap_err().kind(), ErrorKind::Corrupt);
        cloud.model.insert(&chunk, lost);
        source.read_at(range).await.unwrap();
        two.remove(&image()).await.unwrap();
        let source = source.read_at(ByteRange::new(2 << 16, 1000)).await.unwrap_err();
        assert_eq!(source.kind(), ErrorKind::SourceChanged, "{fencing:?}: {source}");
    }
}

#[tokio::test(start_paused = true)]
async fn listings_that_are_behind_do_not_keep_an_image_from_being_committed() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let (one, _) = cloud.daemon();
        cloud.model.freeze_listings();
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        assert_eq!(read(&one).await, Some(bytes()));
        cloud.model.thaw_listings();
        target.finish().await.unwrap();
        assert_eq!(read(&one).await, Some(bytes()));
        assert_eq!(cloud.strays(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn wishes_from_another_daemon_arrive_and_a_limit_stays() {
    let cloud = Cloud::new(Fencing::Swap);
    let ((one, _), (two, _)) = (cloud.daemon(), cloud.daemon());
    let target = one.stage(&spec(1)).await.unwrap();
    target.begin().await.unwrap();
    assert!(two.wish(spec(1).job, Wish::Suspend).await.unwrap());
    assert!(target.wishes().await.unwrap().suspend);
    let asked = blockferry::options::Limits::NONE.with_ops_per_sec(3);
    assert!(two.wish(spec(1).job, Wish::Limit(asked)).await.unwrap());
    assert_eq!(target.wishes().await.unwrap().limits, Some(asked));
    assert_eq!(two.job(spec(1).job).await.unwrap().unwrap().limits, asked);
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
    assert!(!two.wish(spec(1).job, Wish::Suspend).await.unwrap());
}

/// Whoever looks every few milliseconds, as an engine does, asks the store once a second.
#[tokio::test(start_paused = true)]
async fn looking_for_wishes_costs_a_few_requests_a_second() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, requests) = cloud.daemon();
    let target = one.stage(&spec(1)).await.unwrap();
    target.begin().await.unwrap();
    let before = requests.request_count();
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        target.wishes().await.unwrap();
    }
    let asked = requests.request_count() - before;
    assert!(asked < 80 * 7 + 50, "{asked} requests in 80 seconds");
    assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
}

/// Whoever swaps a head and hears nothing reads it back, and knows.
#[tokio::test(start_paused = true)]
async fn a_swap_whose_answer_is_lost_is_known_by_reading_back() {
    for fencing in BOTH {
        let cloud = Cloud::new(fencing);
        let (one, requests) = cloud.daemon();
        requests.hook(|call| match call.key.contains("/head") && call.verb == "put" {
            true => Fate::LostAfter,
            false => Fate::Answered,
        });
        let target = one.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        assert_eq!(read(&one).await, Some(bytes()));
        one.remove(&image()).await.unwrap();
        let target = one.stage(&spec(2)).await.unwrap();
        assert_eq!(target.discard().await.unwrap(), Outcome::Cancelled);
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sparse_image_of_a_tebibyte_costs_requests_for_its_data_only() {
    let cloud = Cloud::new(Fencing::Swap);
    let (one, requests) = cloud.daemon();
    let mut spec = spec(1);
    spec.geometry = Geometry::new(1 << 40, ChunkSize::DEFAULT).unwrap();
    let geometry = spec.geometry;
    let target = one.stage(&spec).await.unwrap();
    let mut restored = target.begin().await.unwrap();
    let chunk = Bytes::from(vec![7; 4 << 20]);
    let mut done = Vec::new();
    let holes = [(0, 99_999), (100_000, 162_143)];
    for (first, count) in holes {
        done.push(target.write_zeroes(ChunkRun::new(ChunkIndex::new(first), count)).await.unwrap());
    }
    for index in [99_999, 262_143].map(ChunkIndex::new) {
        let Seal::Data(sealed) = seal(geometry, index, chunk.clone()) else { continue };
        done.push(target.write(sealed).await.unwrap());
    }
    let done: Vec<Durable> =
        done.iter().map(|written| Durable::recorded(written.run(), written.content())).collect();
    target.checkpoint(&done).await.unwrap();
    done.iter().try_for_each(|chunk| restored.record(chunk)).unwrap();
    let manifest = Manifest::new(restored.table.finish().unwrap(), Some(spec.job), [].into());
    assert_eq!(target.commit(&manifest.unwrap()).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    assert!(requests.request_count() < 40, "{} requests", requests.request_count());
    let stored: usize =
        cloud.model.keys().iter().map(|key| cloud.model.bytes(key).unwrap().len()).sum();
    assert!(stored < 8192, "{stored} bytes are stored of two chunks that pack well");
    let source = one.open(&image()).await.unwrap();
    let last = ByteRange::new((1 << 40) - 5, 5);
    assert_eq!(source.read_at(last).await.unwrap(), vec![7; 5]);
    let extents = source.extents(ByteRange::new(0, 1 << 40)).await.unwrap();
    assert_eq!(extents.len(), 4, "{extents:?}");
}

/// To read, and to look, nothing has to be proven, and nothing is written.
#[tokio::test(start_paused = true)]
async fn a_region_proves_its_store_when_something_is_to_be_decided() {
    for (lie, fencing) in [
        (Lie::None, Some(Fencing::Swap)),
        (Lie::CreateOnly, Some(Fencing::Numbered)),
        (Lie::Ignores, None),
        (Lie::Racy, None),
    ] {
        let cloud = Cloud::new(Fencing::Swap);
        cloud.model.lie(lie);
        let open = || {
            let store = Arc::new(cloud.model.client("north"));
            ObjectRegion::open(store, ObjectOptions::default()).unwrap()
        };
        assert!(open().list().await.unwrap().is_empty());
        assert_eq!(open().locate(&image()).await.unwrap(), Located::Absent);
        assert_eq!(open().jobs().await.unwrap().len(), 0);
        assert!(cloud.model.keys().is_empty());
        let region = open();
        let Some(fencing) = fencing else {
            let refused = region.stage(&spec(1)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
            assert!(cloud.model.keys().is_empty());
            continue;
        };
        let target = region.stage(&spec(1)).await.unwrap();
        assert_eq!(region.fencing().await.unwrap(), fencing);
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        assert_eq!(read(&open()).await, Some(bytes()), "whichever way its heads are kept");
        assert_eq!(open().list().await.unwrap().len(), 1);
        open().remove(&image()).await.unwrap();
        assert_eq!(cloud.strays(), Vec::<String>::new());
    }
}

/// A store may come to prove something else, as after an upgrade.
#[tokio::test(start_paused = true)]
async fn images_whose_heads_are_kept_the_other_way_are_refused_and_not_swept() {
    for (ours, theirs) in [(Fencing::Swap, Fencing::Numbered), (Fencing::Numbered, Fencing::Swap)] {
        let cloud = Cloud::new(theirs);
        let (region, _) = cloud.daemon();
        let target = region.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        let before = cloud.model.keys();

        let (other, _) = Cloud { fencing: ours, ..cloud.clone() }.daemon();
        let errors = [
            other.list().await.map(drop).unwrap_err(),
            other.locate(&image()).await.map(drop).unwrap_err(),
            other.cancel(spec(1).job, &image()).await.map(drop).unwrap_err(),
            other.stage(&spec(2)).await.map(drop).unwrap_err(),
            other.remove(&image()).await.map(drop).unwrap_err(),
            other.sweep(true, Duration::ZERO).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("its heads are"), "{error}");
        }
        let mut after = cloud.model.keys();
        after.retain(|key| before.contains(key));
        assert_eq!(after, before, "nothing is gone");
        assert_eq!(read(&region).await, Some(bytes()));
    }
}

/// One daemon decides in its own folder, and notices, late, that it is not the only one.
#[tokio::test(start_paused = true)]
async fn a_second_daemon_at_a_store_that_fences_nothing_is_noticed_late() {
    let cloud = Cloud::new(Fencing::None);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = folders.each_ref().map(|folder| {
        let store = Arc::new(cloud.model.client("north"));
        ObjectRegion::unfenced(store, folder.path(), ObjectOptions::default()).unwrap()
    });
    let target = one.stage(&spec(1)).await.unwrap();
    let manifest = write(&*target, &spec(1)).await.unwrap();
    assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
    target.finish().await.unwrap();
    two.remove(&image()).await.unwrap();
    let refused = one.locate(&image()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    assert_eq!(two.locate(&image()).await.unwrap(), Located::Absent);
}

/// As by a mistyped `fencing=none`: nothing at the store would keep what it writes from what others
/// have written, or a sweep from images of which it finds no head.
#[tokio::test(start_paused = true)]
async fn who_decides_alone_is_refused_where_others_keep_heads() {
    for theirs in BOTH {
        let cloud = Cloud::new(theirs);
        let (region, _) = cloud.daemon();
        let (alone, _folder) = alone_at(&cloud);
        let target = region.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        let refused = |error: blockferry::Error| {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{theirs:?} {error}");
            assert!(error.report().contains("without fencing=none"), "{}", error.report());
        };
        refused(alone.cancel(spec(1).job, &image()).await.unwrap_err());
        tokio::time::sleep(Duration::from_secs(20)).await;
        match alone.recover(None).await.unwrap().pop().unwrap().settled {
            Settled::Failed(error) => refused(error),
            settled => unreachable!("{settled:?}"),
        }
        assert_eq!(cloud.phase("m-1"), Some(Phase::Active), "{theirs:?}");
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);

        let before = cloud.model.keys();
        refused(alone.remove(&image()).await.unwrap_err());
        refused(alone.cancel(spec(1).job, &image()).await.unwrap_err());
        refused(alone.sweep(true, Duration::ZERO).await.unwrap_err());
        refused(alone.stage(&spec(2)).await.map(drop).unwrap_err());
        refused(alone.open(&image()).await.map(drop).unwrap_err());
        assert_eq!(cloud.model.keys(), before);
        assert_eq!(read(&region).await, Some(bytes()), "{theirs:?}");
    }
}

/// A region of which nobody has put on record yet how its heads are kept.
#[tokio::test(start_paused = true)]
async fn who_decides_alone_puts_it_on_record_before_it_decides_and_not_to_read() {
    for theirs in BOTH {
        let cloud = Cloud::new(theirs);
        let (region, _) = cloud.daemon();
        let target = region.stage(&spec(1)).await.unwrap();
        let manifest = write(&*target, &spec(1)).await.unwrap();
        assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
        target.finish().await.unwrap();
        drop(target);
        let written = cloud.model.bytes("north/way").unwrap();
        cloud.model.remove("north/way");
        let ((alone, _folder), before) = (alone_at(&cloud), cloud.model.keys());
        if theirs == Fencing::Numbered {
            for error in [
                alone.remove(&image()).await.unwrap_err(),
                alone.locate(&image()).await.map(drop).unwrap_err(),
                alone.sweep(true, Duration::ZERO).await.map(drop).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            }
            assert_eq!(cloud.model.keys(), before);
            assert_eq!(read(&region).await, Some(bytes()));
            continue;
        }
        assert_eq!(read(&alone).await, Some(bytes()));
        assert_eq!(alone.list().await.unwrap().len(), 1);
        assert_eq!(cloud.model.keys(), before, "a look writes nothing");
        alone.remove(&image()).await.unwrap();
        let way = cloud.model.bytes("north/way").unwrap();
        assert_ne!(way, written);
        let refused = cloud.daemon().0.stage(&spec(2)).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");

        // Somebody is faster, between the look and the decision.
        let cloud = Cloud::new(Fencing::Swap);
        let (region, _) = cloud.daemon();
        let target = region.stage(&spec(1)).await.unwrap();
        cloud.model.remove("north/way");
        let store = cloud.model.client("north");
        let (model, asked) = (cloud.model.clone(), AtomicBool::new(false));
        store.hook(move |call| {
            // The record was looked for, and the head is read.
            if call.verb == "get" && asked.swap(true, SeqCst) {
                model.insert("north/way", written.clone());
            }
            Fate::Answered
        });
        let folder = tempfile::tempdir().unwrap();
        let alone = ObjectRegion::unfenced(Arc::new(store), folder.path(), Default::default());
        let refused = alone.unwrap().cancel(spec(1).job, &image()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert_eq!(cloud.phase("m-1"), Some(Phase::Active));
        drop(target);
    }
}

/// A daemon that was told that nobody else writes at that store, and has not been there before.
fn alone_at(cloud: &Cloud) -> (ObjectRegion, tempfile::TempDir) {
    let (store, folder) = (Arc::new(cloud.model.client("north")), tempfile::tempdir().unwrap());
    let alone = ObjectRegion::unfenced(store, folder.path(), ObjectOptions::default());
    (alone.unwrap(), folder)
}
