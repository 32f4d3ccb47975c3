//! Every request of every act, failed in every way: what was told stays true, and another daemon
//! brings everything to a good end.

use std::pin::Pin;
use std::time::Duration;

use blockferry::error::Result;
use blockferry::region::{Located, Outcome, Settled, Vote};
use blockferry::store::Fencing;
use blockferry::store::model::Fate;
use tokio::time::timeout;

use super::places::{Cloud, Daemon, LONG, bytes, image, read, spec, write};

/// What somebody was told, and may rely on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Nothing,
    Started,
    Committed,
    Cancelled,
    Clean,
    Removed,
}

type Act = for<'a> fn(&'a Daemon) -> Pin<Box<dyn Future<Output = (Said, Result<()>)> + 'a>>;

/// How far another daemon had come before it died.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    Staged,
    Written,
    Cancelled,
    Committed,
    Finished,
}

/// Runs an act, and keeps what was said last although it failed then.
macro_rules! act {
    (|$region:ident, $said:ident| $body:block) => {
        (|$region| {
            Box::pin(async move {
                let mut $said = Said::Nothing;
                let said = &mut $said;
                let ended: Result<()> = async {
                    let $said = said;
                    $body
                    Ok(())
                }
                .await;
                ($said, ended)
            })
        }) as Act
    };
}

fn acts() -> Vec<(&'static str, Before, Act)> {
    let copy = act!(|region, said| {
        let target = region.stage(&spec(1)).await?;
        *said = Said::Started;
        let manifest = write(&*target, &spec(1)).await?;
        if target.commit(&manifest).await? == Outcome::Committed {
            *said = Said::Committed;
        }
        target.finish().await?;
    });
    let discard = act!(|region, said| {
        let target = region.stage(&spec(1)).await?;
        write(&*target, &spec(1)).await?;
        assert_eq!(target.discard().await?, Outcome::Cancelled);
        *said = Said::Clean;
    });
    let cancel = act!(|region, said| {
        loop {
            match region.cancel(spec(1).job, &image()).await? {
                Vote::Cancelled { clean: true, .. } => *said = Said::Clean,
                Vote::Cancelled { .. } => *said = Said::Cancelled,
                _ => {}
            }
            if *said == Said::Clean {
                break;
            }
        }
    });
    let recover = act!(|region, said| {
        for found in region.recover(None).await? {
            match found.settled {
                Settled::Committed => *said = Said::Committed,
                Settled::RolledBack => *said = Said::Clean,
                Settled::Failed(error) => return Err(error),
                _ => {}
            }
        }
    });
    let remove = act!(|region, said| {
        region.remove(&image()).await?;
        *said = Said::Removed;
    });
    vec![
        ("copy", Before::Nothing, copy),
        ("cancel by its owner", Before::Nothing, discard),
        ("take over", Before::Staged, copy),
        ("take over what is written", Before::Written, copy),
        ("cancel from elsewhere", Before::Written, cancel),
        ("recover what is staged", Before::Written, recover),
        ("recover a cancel", Before::Cancelled, recover),
        ("recover a commit", Before::Committed, recover),
        ("remove", Before::Finished, remove),
    ]
}

/// A daemon comes so far, and dies.
async fn come_to(cloud: &Cloud, before: Before) {
    if before == Before::Nothing {
        return;
    }
    let (region, store) = cloud.member();
    let target = region.stage(&spec(1)).await.unwrap();
    if before != Before::Staged {
        let manifest = write(&*target, &spec(1)).await.unwrap();
        match before {
            Before::Committed | Before::Finished => {
                assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
            }
            Before::Cancelled => {
                cloud.member().0.cancel(spec(1).job, &image()).await.unwrap();
            }
            _ => {}
        }
        if before == Before::Finished {
            target.finish().await.unwrap();
        }
    }
    store.hook(|_| Fate::LostBefore);
}

/// Another daemon brings it to an end, and finds that what was told is so.
async fn settle(cloud: &Cloud, before: Before, said: Said) {
    let (region, _) = cloud.member();
    for found in region.recover(None).await.unwrap() {
        assert!(!matches!(found.settled, Settled::Failed(_)), "{found:?}");
    }
    let found = region.locate(&image()).await.unwrap();
    match found {
        Located::Committed(job) => {
            assert_eq!(job, Some(spec(1).job));
            let fits = !matches!(said, Said::Cancelled | Said::Clean | Said::Removed);
            assert!(fits, "told {said:?}, and it is committed");
        }
        Located::Staged(_) => {
            let fits = matches!(said, Said::Nothing | Said::Started);
            assert!(fits && before != Before::Committed, "told {said:?}, and it is staged");
            let target = region.stage(&spec(1)).await.unwrap();
            let manifest = write(&*target, &spec(1)).await.unwrap();
            assert_eq!(target.commit(&manifest).await.unwrap(), Outcome::Committed);
            target.finish().await.unwrap();
        }
        _ => {
            let undone = matches!(said, Said::Cancelled | Said::Clean | Said::Removed);
            let fits = undone || said == Said::Nothing;
            assert!(fits, "told {said:?}, and it is {found:?}");
        }
    }
    let there = read(&*region).await;
    assert!(there.is_none() || there == Some(bytes()), "never half an image");
    // What was under way comes in now: it changes nothing.
    cloud.model.land_all();
    assert_eq!(read(&*region).await, there, "what lands late changes nothing");
    cloud.model.advance_ms(u64::try_from(LONG.as_millis()).unwrap());
    region.objects.sweep(true, Duration::from_secs(1)).await.unwrap();
    assert_eq!(read(&*region).await, there, "nor does a sweep");
    if there.is_some() && cloud.head("m-1").is_some_and(|head| head.encrypted) {
        let keys = cloud.model.keys().into_iter().filter(|key| key.contains("/key-"));
        assert_eq!(keys.count(), 1, "one wrapped key opens an image, and no other is left");
    }
    if there.is_some() {
        region.remove(&image()).await.unwrap();
    }
    // A claim may have come true late: its job is found, and can be cancelled.
    while let Located::Staged(job) = region.locate(&image()).await.unwrap() {
        assert!(region.job(job).await.unwrap().is_some(), "a job that is there is found");
        region.cancel(job, &image()).await.unwrap();
    }
    // What came late of a pulse or a probe of a job that is over.
    region.recover(None).await.unwrap();
    assert_eq!(cloud.strays(), Vec::<String>::new(), "nothing is left, told {said:?}");
    let next = region.stage(&spec(2)).await.unwrap();
    assert_eq!(next.discard().await.unwrap(), Outcome::Cancelled, "and another can start");
}

/// The same, and what is done with encrypted images only.
#[cfg(feature = "encrypt")]
fn acts_encrypted() -> Vec<(&'static str, Before, Act)> {
    let rewrap = act!(|region, said| {
        *said = Said::Committed;
        region.objects.rewrap(&image(), &"k2".parse()?).await?;
    });
    [acts(), vec![("rewrap", Before::Finished, rewrap)]].concat()
}

async fn enumerate(new: impl Fn() -> Cloud, acts: Vec<(&'static str, Before, Act)>) {
    let fencing = new().fencing;
    let fates = [
        ("lost before", Fate::LostBefore, false),
        ("lost after", Fate::LostAfter, false),
        ("late", Fate::Late, false),
        ("fails once", Fate::Fails, false),
        ("fails for ever", Fate::Fails, true),
        ("denied for ever", Fate::Denied, true),
        ("dies before", Fate::LostBefore, true),
        ("dies after", Fate::LostAfter, true),
        ("hangs", Fate::Hangs, true),
    ];
    let mut runs = 0;
    for (name, before, act) in acts {
        let mut most = 0;
        for (how, fate, on) in fates {
            for n in 0.. {
                let cloud = new();
                come_to(&cloud, before).await;
                let (region, store) = cloud.member();
                match on {
                    true if fate == Fate::LostAfter => {
                        store.hook(move |call| match call.number.cmp(&n) {
                            std::cmp::Ordering::Less => Fate::Answered,
                            std::cmp::Ordering::Equal => Fate::LostAfter,
                            std::cmp::Ordering::Greater => Fate::LostBefore,
                        });
                    }
                    true => store.fate_from(n, fate),
                    false => store.fate_at(n, fate),
                }
                let (said, ended) = match timeout(Duration::from_secs(300), act(&region)).await {
                    Ok(ended) => ended,
                    Err(_) => (Said::Nothing, Ok(())),
                };
                drop(region);
                let count = store.request_count();
                store.hook(|_| Fate::LostBefore);
                if n >= count {
                    assert!(ended.is_ok(), "{name} without a fault: {ended:?}");
                    break;
                }
                eprintln_on_panic(&format!("{fencing:?}: {name}, request {n} {how}"), async {
                    settle(&cloud, before, said).await;
                })
                .await;
                runs += 1;
                most = most.max(count);
            }
        }
        eprintln!("{fencing:?}: {name}: up to {most} requests");
    }
    eprintln!("{fencing:?}: {runs} runs");
}

/// Says which run it was, if it fails.
async fn eprintln_on_panic(what: &str, run: impl Future<Output = ()>) {
    struct Tell<'a>(&'a str);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("in the run: {}", self.0);
            }
        }
    }
    let _tell = Tell(what);
    run.await;
}

#[tokio::test(start_paused = true)]
async fn any_request_may_fail_in_any_way_where_heads_are_swapped() {
    enumerate(|| Cloud::new(Fencing::Swap), acts()).await;
}

#[tokio::test(start_paused = true)]
async fn any_request_may_fail_in_any_way_where_heads_are_numbered() {
    enumerate(|| Cloud::new(Fencing::Numbered), acts()).await;
}

#[cfg(feature = "encrypt")]
#[tokio::test(start_paused = true)]
async fn any_request_about_an_encrypted_image_may_fail_in_any_way() {
    enumerate(|| Cloud::encrypted(Fencing::Swap), acts_encrypted()).await;
}

#[cfg(feature = "encrypt")]
#[tokio::test(start_paused = true)]
async fn any_request_about_an_encrypted_image_may_fail_in_any_way_where_heads_are_numbered() {
    enumerate(|| Cloud::encrypted(Fencing::Numbered), acts_encrypted()).await;
}
