//! A commit stays one when its image is moved or removed before its job has been settled.

use std::pin::pin;

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, JobOutcome};
use blockferry::id::JobId;
use blockferry::job::JobState;
use blockferry::options::CopyOptions;
use blockferry::region::Settled;
use blockferry::testing::Action;
use tokio::time::{Duration, sleep, timeout};

use super::host::{
    AGES, DESTINATIONS, Daemon, FILE, Host, MEMORY, TARGETS, bytes_of, in_simulation, options,
    request,
};
use crate::world::{end, region};

/// How the image goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Away {
    /// By hand, as soon as the commit was on record.
    Moved,
    /// By the library, as soon as it is visible.
    Removed,
}

/// What came of a kill at one call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Came {
    /// The copy has fewer calls.
    NoSuchCall,
    /// There was no image to take away.
    Nothing,
    Went,
}

async fn recover(daemon: &Daemon) {
    for name in TARGETS {
        for found in daemon.engine.recover(&region(name)).await.unwrap() {
            let fits = matches!(found.settled, Settled::Committed | Settled::Forgotten);
            assert!(fits, "{:?}", found.settled);
        }
    }
}

/// The owner stands still before or after one call; if its image is there by then, somebody moves
/// it away, and another process cancels.
async fn hold_at(call: u64, hold: Action, to: usize) -> Came {
    let host = Host::new(7, &bytes_of(0, 70_001), true);
    // Both are there before anybody stands still, maybe with the claim on the index.
    let (daemon, other) = (host.daemon(true).await.unwrap(), host.daemon(true).await.unwrap());
    host.sim.plan(host.sim.call_count() + call, hold);
    let copied = async {
        let request = request("s/image", DESTINATIONS[to], options());
        let job = daemon.engine.copy(request).await.unwrap();
        (job.id(), job.wait().await)
    };
    let meanwhile = async {
        host.sim.taken().await;
        if host.visible(to).unwrap().is_none() {
            host.sim.release();
            return None;
        }
        host.move_away(to);
        let to = end(DESTINATIONS[to]);
        let mut cancelled = pin!(other.engine.cancel_image(&to.region, &to.image));
        // The cancel may have to wait for who decides.
        let told = match timeout(Duration::from_secs(2), cancelled.as_mut()).await {
            Ok(told) => told,
            Err(_) => {
                host.sim.release();
                cancelled.await
            }
        };
        host.sim.release();
        Some(told.unwrap())
    };
    let ((job, outcome), told) = tokio::select! {
        ended = async { tokio::join!(copied, meanwhile) } => ended,
        () = sleep(AGES) => return Came::NoSuchCall,
    };
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    let Some(told) = told else { return Came::Nothing };
    // Nothing is there any more, so the last of them may not know of any.
    let fits = matches!(told.answer, CancelAnswer::AlreadyCommitted | CancelAnswer::NotFound);
    assert!(fits, "job {job} has committed, but {told:?}");
    let shown = daemon.engine.show(job).await.unwrap();
    assert_eq!(shown.state, JobState::Committed);
    Came::Went
}

#[test]
fn a_cancel_of_an_image_that_is_moved_while_its_owner_ends_its_job_never_wins() {
    for to in [0, FILE] {
        let mut went = 0;
        for call in 0.. {
            let holds = [Action::HoldBefore, Action::HoldAfter];
            let came = holds.map(|hold| in_simulation(hold_at(call, hold, to)));
            if came.contains(&Came::NoSuchCall) {
                break;
            }
            went += came.iter().filter(|came| **came == Came::Went).count();
        }
        eprintln!("moved from {} and cancelled: at {went} calls", DESTINATIONS[to]);
        assert!(went > 0, "{}: its image was never there", DESTINATIONS[to]);
    }
}

async fn kill_at(call: u64, to: usize, away: Away, options: CopyOptions) -> Came {
    let host = Host::new(7, &bytes_of(0, 70_001), true);
    let daemon = host.daemon(true).await.unwrap();
    host.sim.plan(host.sim.call_count() + call, Action::KillAfter);
    let copied = timeout(AGES, async {
        let job = daemon.engine.copy(request("s/image", DESTINATIONS[to], options.clone())).await?;
        job.wait().await;
        Ok(job.id())
    });
    let copied: blockferry::Result<JobId> = copied.await.unwrap();
    let killed = host.sim.taken_count() > 0;
    daemon.process.kill();
    host.sim.heal();
    sleep(Duration::from_secs(100)).await;
    let next = host.daemon(true).await.unwrap();
    let Ok(job) = copied else { return Came::Nothing };
    let on_record = next.engine.show(job).await.is_ok_and(|job| job.state == JobState::Committed);
    match away {
        Away::Moved if on_record => host.move_away(to),
        Away::Removed if host.visible(to).unwrap().is_some() => {
            match host.remove(&next, to).await {
                Err(error) if error.kind() == ErrorKind::Busy && killed => {
                    recover(&next).await;
                    host.remove(&next, to).await.unwrap();
                }
                removed => removed.unwrap(),
            }
        }
        _ => return if killed { Came::Nothing } else { Came::NoSuchCall },
    }
    recover(&next).await;
    let told = next.engine.cancel(job).await.unwrap();
    assert_eq!((told.job, told.answer), (Some(job), CancelAnswer::AlreadyCommitted));
    let shown = next.engine.show(job).await.unwrap();
    assert_eq!(shown.state, JobState::Committed);
    assert_eq!(host.leftovers(), [""; 0]);
    let to = end(DESTINATIONS[to]);
    let again =
        next.engine.copy(request("s/image", &format!("{}/{}", to.region, to.image), options));
    let outcome = again.await.unwrap().wait().await;
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    if killed { Came::Went } else { Came::NoSuchCall }
}

fn at_every_call(to: usize, away: Away, options: &CopyOptions) {
    let mut went = 0;
    for call in 0.. {
        match in_simulation(kill_at(call, to, away, options.clone())) {
            Came::NoSuchCall => break,
            Came::Nothing => {}
            Came::Went => went += 1,
        }
    }
    eprintln!("{away:?} from {}: after a kill at {went} calls", DESTINATIONS[to]);
    assert!(went > 0, "{away:?} from {}: the copy never met a kill so late", DESTINATIONS[to]);
}

#[test]
fn an_image_that_is_moved_before_its_job_is_settled_was_committed() {
    at_every_call(0, Away::Moved, &options());
    at_every_call(FILE, Away::Moved, &options());
    #[cfg(feature = "encrypt")]
    at_every_call(0, Away::Moved, &super::host::encrypted(options()));
}

#[test]
fn an_image_that_is_removed_before_its_job_is_settled_was_committed() {
    for to in [0, FILE, MEMORY] {
        at_every_call(to, Away::Removed, &options());
    }
    #[cfg(feature = "encrypt")]
    at_every_call(0, Away::Removed, &super::host::encrypted(options()));
}
