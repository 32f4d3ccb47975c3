//! Random lives of three daemons at one image, over a store that loses, delays and refuses.
//!
//! Each may be cut off at any moment, and its late requests land at any other.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[cfg(feature = "encrypt")]
use blockferry::error::ErrorKind;
use blockferry::error::Result;
use blockferry::region::{Located, Outcome, Settled, Vote};
use blockferry::store::Fencing;
use blockferry::store::model::Fate;
use tokio::time::{sleep, timeout};

use super::places::{Cloud, Daemon, LONG, bytes, image, read, spec, write};
use crate::world::Dice;

const DAEMONS: u64 = 3;
const ACTS: u64 = 14;
/// Unless `BLOCKFERRY_OBJECT_SEEDS` says otherwise.
const SEEDS: u64 = 150;

/// What was told of jobs, by number.
#[derive(Default, Debug)]
struct Told {
    committed: BTreeSet<u8>,
    cancelled: BTreeSet<u8>,
    /// Jobs that were begun; the next has the next number.
    begun: u8,
    done: std::collections::BTreeMap<&'static str, u32>,
}

fn number(job: blockferry::id::JobId) -> u8 {
    job.as_bytes()[0]
}

async fn act(region: &Daemon, dice: &mut Dice, told: &RefCell<Told>) -> Result<&'static str> {
    let which = dice.roll(10);
    let staged = match which {
        0..=7 => region.jobs().await?.first().map(|told| number(told.spec.job)),
        _ => None,
    };
    match (which, staged) {
        (0..=4, staged) => {
            let job = staged.unwrap_or_else(|| {
                told.borrow_mut().begun += 1;
                told.borrow().begun
            });
            let target = match staged {
                Some(_) => region.reopen(&spec(job)).await?,
                None => region.stage(&spec(job)).await?,
            };
            if dice.roll(6) == 0 {
                return Ok("stage");
            }
            let manifest = write(&*target, &spec(job)).await?;
            let outcome = match dice.roll(4) {
                0 => target.discard().await?,
                1 => return Ok("write"),
                _ => target.commit(&manifest).await?,
            };
            match outcome {
                Outcome::Committed => told.borrow_mut().committed.insert(job),
                Outcome::Cancelled => told.borrow_mut().cancelled.insert(job),
            };
            target.finish().await?;
            Ok("copy")
        }
        (5..=7, Some(job)) => {
            match region.cancel(spec(job).job, &image()).await? {
                Vote::Cancelled { .. } => told.borrow_mut().cancelled.insert(job),
                Vote::Committed => told.borrow_mut().committed.insert(job),
                _ => false,
            };
            Ok("cancel")
        }
        #[cfg(feature = "encrypt")]
        (9, _) if dice.roll(2) == 0 => {
            let to = ["k1", "k2"][usize::try_from(dice.roll(2)).unwrap()].parse().unwrap();
            match region.objects.rewrap(&image(), &to).await {
                // There is no such image, or none that is encrypted.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {}
                done => drop(done?),
            }
            Ok("rewrap")
        }
        (8, _) => {
            region.objects.sweep(true, Duration::ZERO).await?;
            Ok("sweep")
        }
        _ => {
            for found in region.recover(None).await? {
                match found.settled {
                    Settled::Committed => told.borrow_mut().committed.insert(number(found.job)),
                    Settled::RolledBack => told.borrow_mut().cancelled.insert(number(found.job)),
                    _ => false,
                };
            }
            Ok("recover")
        }
    }
}

async fn daemon(cloud: &Cloud, seed: u64, told: &RefCell<Told>) {
    let mut dice = Dice::new(seed);
    for _ in 0..ACTS {
        let (region, store) = cloud.member();
        let fates = Arc::new(Mutex::new(Dice::new(dice.roll(u64::MAX))));
        let hostile = dice.roll(2) == 0;
        store.hook(move |_| match fates.lock().unwrap().roll(60) {
            0 if hostile => Fate::LostBefore,
            1 if hostile => Fate::LostAfter,
            2 if hostile => Fate::Late,
            3 if hostile => Fate::Fails,
            _ => Fate::Answered,
        });
        // Some are cut off in the middle: nothing of them arrives any more.
        let patience =
            Duration::from_millis(if dice.roll(3) == 0 { dice.roll(3000) } else { 90_000 });
        let done = match timeout(patience, act(&region, &mut dice, told)).await {
            Err(_) => "cut off",
            Ok(Err(_)) => "failed",
            Ok(Ok(done)) => done,
        };
        *told.borrow_mut().done.entry(done).or_default() += 1;
        if dice.roll(2) == 0 {
            store.hook(|_| Fate::LostBefore);
        }
        drop(region);
        if dice.roll(4) == 0 {
            cloud.model.land(usize::try_from(dice.roll(3)).unwrap());
        }
        sleep(Duration::from_millis(dice.roll(4000))).await;
    }
}

async fn live(cloud: Cloud, seed: u64) -> Told {
    let told = RefCell::new(Told::default());
    let all = (0..DAEMONS).map(|n| daemon(&cloud, seed * DAEMONS + n, &told));
    let mut all = all.collect::<Vec<_>>().into_iter();
    let (one, two, three) = (all.next().unwrap(), all.next().unwrap(), all.next().unwrap());
    tokio::join!(one, two, three);

    let (region, _) = cloud.member();
    let settle = async || {
        for found in region.recover(None).await.unwrap() {
            assert!(!matches!(found.settled, Settled::Failed(_)), "{found:?}");
        }
    };
    settle().await;
    let check = async || {
        let (committed, cancelled) = {
            let told = told.borrow();
            (told.committed.clone(), told.cancelled.clone())
        };
        let told = format!("{committed:?} committed, {cancelled:?} cancelled");
        assert!(committed.is_disjoint(&cancelled), "both told: {told}");
        assert!(committed.len() <= 1, "two jobs made one image: {told}");
        match region.locate(&image()).await.unwrap() {
            Located::Committed(Some(job)) => {
                assert!(!cancelled.contains(&number(job)), "{job}: {told}");
                assert_eq!(read(&*region).await, Some(bytes()));
            }
            found => {
                assert!(committed.is_empty(), "{found:?}: {told}");
                assert_eq!(read(&*region).await, None);
            }
        }
    };
    check().await;
    cloud.model.land_all();
    settle().await;
    check().await;
    cloud.model.advance_ms(u64::try_from(LONG.as_millis()).unwrap());
    region.objects.sweep(true, Duration::from_secs(1)).await.unwrap();
    check().await;
    if let Located::Staged(job) = region.locate(&image()).await.unwrap() {
        while !matches!(
            region.cancel(job, &image()).await.unwrap(),
            Vote::Cancelled { clean: true, .. } | Vote::Unknown
        ) {}
    }
    region.recover(None).await.unwrap();
    region.objects.sweep(true, Duration::ZERO).await.unwrap();
    assert_eq!(cloud.strays(), Vec::<String>::new());
    told.take()
}

async fn lives(cloud: impl Fn() -> Cloud) {
    let seeds = std::env::var("BLOCKFERRY_OBJECT_SEEDS").ok().and_then(|text| text.parse().ok());
    let first = std::env::var("BLOCKFERRY_OBJECT_SEED").ok().and_then(|text| text.parse().ok());
    let mut done = std::collections::BTreeMap::<&str, u32>::new();
    let (first, count) = first.map_or((0, seeds.unwrap_or(SEEDS)), |first| (first, 1));
    for seed in first..first + count {
        struct Tell(u64);
        impl Drop for Tell {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    eprintln!("in the life of BLOCKFERRY_OBJECT_SEED={}", self.0);
                }
            }
        }
        let _tell = Tell(seed);
        for (what, count) in live(cloud(), seed).await.done {
            *done.entry(what).or_default() += count;
        }
    }
    eprintln!("{:?}: {count} lives: {done:?}", cloud().fencing);
}

#[tokio::test(start_paused = true)]
async fn three_daemons_never_disagree_where_heads_are_swapped() {
    lives(|| Cloud::new(Fencing::Swap)).await;
}

#[tokio::test(start_paused = true)]
async fn three_daemons_never_disagree_where_heads_are_numbered() {
    lives(|| Cloud::new(Fencing::Numbered)).await;
}

#[cfg(feature = "encrypt")]
#[tokio::test(start_paused = true)]
async fn three_daemons_never_disagree_about_an_encrypted_image() {
    lives(|| Cloud::encrypted(Fencing::Swap)).await;
}

#[cfg(feature = "encrypt")]
#[tokio::test(start_paused = true)]
async fn three_daemons_never_disagree_about_an_encrypted_image_where_heads_are_numbered() {
    lives(|| Cloud::encrypted(Fencing::Numbered)).await;
}
