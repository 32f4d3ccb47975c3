//! Images that are removed while others look at them, remove them too, or put new ones in their
//! place: one call of the one stands still, or kills it, while the other goes on.

use std::sync::Arc;

use blockferry::ErrorKind;
use blockferry::engine::JobOutcome;
#[cfg(feature = "encrypt")]
use blockferry::keys::FileKeyring;
use blockferry::options::{CopyOptions, Limits};
use blockferry::region::{DirRegion, FileRegion, Located, Region};
use blockferry::testing::Action;
#[cfg(feature = "encrypt")]
use blockferry::testing::Simulation;
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep};

use super::host::{
    DESTINATIONS, Daemon, FILE, Host, TARGET, bytes_of, in_simulation, options, request,
};
use crate::world::end;

/// A host with an image at that destination, and two daemons.
async fn with_image(to: usize, options: CopyOptions) -> (Host, Daemon, Daemon) {
    let host = Host::new(7, &bytes_of(0, 70_001), true);
    let first = host.daemon(true).await.unwrap();
    put(&first, to, options).await;
    let second = host.daemon(true).await.unwrap();
    (host, first, second)
}

async fn put(daemon: &Daemon, to: usize, options: CopyOptions) {
    let job = daemon.engine.copy(request("s/image", DESTINATIONS[to], options)).await.unwrap();
    let outcome = job.wait().await;
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
}

/// The region of that destination, as a daemon has it that links the library.
fn at(daemon: &Daemon, to: usize) -> Arc<dyn Region> {
    let process = &daemon.process;
    match to {
        FILE => FileRegion::open_path(process.path(TARGET), process.path("state")).unwrap(),
        _ => Arc::new(dir(daemon)),
    }
}

fn dir(daemon: &Daemon) -> DirRegion {
    let dir = DirRegion::open_root(daemon.process.path("b")).unwrap();
    #[cfg(feature = "encrypt")]
    let dir = dir.with_keys(super::encrypted::keys());
    dir
}

fn remove(at: Arc<dyn Region>, to: usize) -> JoinHandle<blockferry::Result<()>> {
    tokio::spawn(async move { at.remove(&end(DESTINATIONS[to]).image).await })
}

/// Lets others come as far as they can.
async fn a_while() {
    sleep(Duration::from_millis(100)).await;
}

/// Whether what was planned has happened. If not, it does not befall another.
fn was_taken(host: &Host) -> bool {
    let taken = host.sim.taken_count() > 0;
    if !taken {
        host.sim.heal();
    }
    taken
}

/// Every way in which images lie in a folder, and a plain file.
fn ways() -> Vec<(usize, CopyOptions)> {
    vec![
        (0, options()),
        (FILE, options()),
        #[cfg(feature = "encrypt")]
        (0, super::host::encrypted(options())),
    ]
}

/// Tells whether there was such a call.
async fn removed_twice(call: u64, action: Action, to: usize, options: CopyOptions) -> bool {
    let (host, first, second) = with_image(to, options).await;
    let (mine, theirs) = (at(&first, to), at(&second, to));
    host.sim.plan(host.sim.call_count() + call, action);
    let held = remove(mine, to);
    a_while().await;
    let taken = was_taken(&host);
    let told = remove(theirs, to);
    a_while().await;
    if !told.is_finished() {
        // It waits for the other's claim.
        host.sim.release();
        assert_eq!(kind(&held.await.unwrap()), None);
    }
    let told = told.await.unwrap();
    assert!(matches!(kind(&told), None | Some(ErrorKind::NotFound)), "{told:?}");
    if action == Action::KillAfter {
        assert_eq!(host.leftovers(), [""; 0], "call {call}: what the dead one left is gone too");
    }
    host.sim.lose_power(0);
    let visible = host.visible(to);
    assert!(matches!(visible, Ok(None)), "{action:?} at {call} of {to}: {told:?}, {visible:?}");
    taken
}

#[test]
fn an_image_that_a_second_removal_calls_gone_is_gone_for_good() {
    for (to, options) in ways() {
        for action in [Action::HoldBefore, Action::HoldAfter, Action::KillAfter] {
            let count = (0..)
                .find(|n| !in_simulation(removed_twice(*n, action, to, options.clone())))
                .unwrap();
            assert!(count > 3, "{to}: {count}");
        }
    }
}

/// Tells whether there was such a call.
async fn recovered(call: u64, options: CopyOptions) -> bool {
    let (host, first, second) = with_image(0, options).await;
    let (mine, theirs) = (at(&first, 0), at(&second, 0));
    host.sim.plan(host.sim.call_count() + call, Action::KillAfter);
    remove(mine, 0).await.unwrap().ok();
    let taken = was_taken(&host);
    theirs.recover(None).await.unwrap();
    host.sim.lose_power(0);
    let visible = host.visible(0);
    assert!(visible.is_ok(), "call {call}: half an image: {visible:?}");
    taken
}

#[test]
fn what_a_crash_left_of_a_removal_is_out_of_sight_for_good_before_it_goes() {
    for (to, options) in ways() {
        if to != FILE {
            let count = (0..).find(|n| !in_simulation(recovered(*n, options.clone()))).unwrap();
            assert!(count > 3, "{count}");
        }
    }
}

/// Tells whether there was such a call, and whether another image came while it stood still.
async fn replaced(call: u64, action: Action, to: usize, options: CopyOptions) -> (bool, bool) {
    let (host, first, second) = with_image(to, options.clone()).await;
    let (mine, theirs) = (at(&first, to), at(&second, to));
    host.sim.plan(host.sim.call_count() + call, action);
    let held = remove(mine, to);
    a_while().await;
    let taken = was_taken(&host);
    let told = remove(theirs, to);
    a_while().await;
    let mut came = false;
    if told.is_finished() && kind(&told.await.unwrap()).is_none() && !held.is_finished() {
        came = true;
        put(&second, to, options).await;
        host.sim.release();
        let told = held.await.unwrap();
        assert_eq!(kind(&told), Some(ErrorKind::NotFound), "call {call} of {to}");
        assert!(matches!(host.visible(to), Ok(Some(_))), "call {call} of {to}");
    }
    (taken, came)
}

#[test]
fn an_image_that_has_come_since_is_not_removed_in_place_of_the_one_before_it() {
    for (to, options) in ways() {
        // From its first look on: it has seen the image.
        let mut came_count = 0;
        for n in 0.. {
            let held = |n, action| in_simulation(replaced(n, action, to, options.clone()));
            let (after, before) = (held(n, Action::HoldAfter), held(n + 1, Action::HoldBefore));
            came_count += u32::from(after.1) + u32::from(before.1);
            if !after.0 {
                break;
            }
        }
        assert!(came_count > 0, "{to}: no image came while a removal stood still");
    }
}

/// Tells whether a removal that dies behind that call leaves the image out of sight.
async fn leaves_hidden(call: u64) -> bool {
    let (host, first, _second) = with_image(0, options()).await;
    let mine = at(&first, 0);
    host.sim.plan(host.sim.call_count() + call, Action::KillAfter);
    remove(mine, 0).await.unwrap().ok();
    assert!(was_taken(&host), "no removal came so far");
    matches!(host.visible(0), Ok(None))
}

/// Somebody clears what a removal left that died behind call `cut`, and stands still at that call,
/// until an image that has come since is left in the same way. Tells whether there was such a call.
async fn cleared_late(call: u64, cut: u64) -> bool {
    let (host, first, second) = with_image(0, options()).await;
    let (third, fourth) = (host.daemon(true).await.unwrap(), host.daemon(true).await.unwrap());
    let (mine, clearing, last) = (at(&first, 0), at(&second, 0), at(&fourth, 0));
    host.sim.plan(host.sim.call_count() + cut, Action::KillAfter);
    remove(mine, 0).await.unwrap().ok();
    assert!(was_taken(&host));
    host.sim.plan(host.sim.call_count() + call, Action::HoldAfter);
    let held = tokio::spawn(async move { clearing.recover(None).await.map(drop) });
    a_while().await;
    let taken = host.sim.taken_count() > 1;
    if taken {
        at(&third, 0).recover(None).await.unwrap();
        put(&third, 0, options()).await;
        host.sim.plan(host.sim.call_count() + cut, Action::KillAfter);
        remove(last, 0).await.unwrap().ok();
        assert!(matches!(host.visible(0), Ok(None)), "held at {call}");
    }
    host.sim.heal();
    let told = held.await.unwrap();
    assert_eq!(kind(&told), None, "held at {call}: {told:?}");
    at(&third, 0).recover(None).await.unwrap();
    assert_eq!(host.leftovers(), [""; 0], "held at {call}");
    taken
}

#[test]
fn what_two_removals_left_one_after_the_other_is_told_apart() {
    let cut = (0..).find(|call| in_simulation(leaves_hidden(*call))).unwrap();
    let count = (0..).find(|call| !in_simulation(cleared_late(*call, cut))).unwrap();
    assert!(count > 3, "{count}");
}

/// What somebody does who looks at the image of destination 0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    Open,
    List,
    Locate,
    /// Copies with it as a base.
    Base,
    #[cfg(feature = "encrypt")]
    Rewrap,
}

async fn look(look: Look, daemon: Daemon, at: DirRegion) -> Result<(), String> {
    let image = end(DESTINATIONS[0]).image;
    let told = match look {
        Look::Open => at.open(&image).await.map(drop),
        Look::List => at.list().await.map(drop),
        Look::Locate => match at.locate(&image).await {
            Ok(Located::Committed(None)) => return Err("it is said to be no copy".to_owned()),
            told => told.map(drop),
        },
        Look::Base => {
            let copy = request("s/image", DESTINATIONS[1], options().with_base(image));
            match daemon.engine.copy(copy).await {
                Ok(job) => {
                    let outcome = job.wait().await;
                    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
        #[cfg(feature = "encrypt")]
        Look::Rewrap => at.rewrap(&image, &"key".parse().unwrap()).await.map(drop),
    };
    match told {
        Err(error) if error.kind() == ErrorKind::NotFound && look != Look::List => Ok(()),
        Err(error) => Err(error.report()),
        Ok(()) => Ok(()),
    }
}

/// The looker stands still at that call, and meanwhile the image is removed, up to that call of the
/// removal. Tells whether there were such calls.
async fn looked_at(how: Look, call: u64, up_to: u64, options: CopyOptions) -> (bool, bool) {
    let (host, first, second) = with_image(0, options).await;
    let (mine, theirs) = (dir(&first), at(&second, 0));
    host.sim.plan(host.sim.call_count() + call, Action::HoldAfter);
    let looker = tokio::spawn(look(how, first, mine));
    a_while().await;
    let seen = was_taken(&host);
    host.sim.plan(host.sim.call_count() + up_to, Action::KillAfter);
    let remover = remove(theirs, 0);
    a_while().await;
    let cut = host.sim.taken_count() > u64::from(seen);
    host.sim.heal();
    let told = looker.await.unwrap();
    remover.await.unwrap().ok();
    assert_eq!(told, Ok(()), "{how:?}, held at {call}, removed up to {up_to}");
    (seen, cut)
}

fn at_every_moment_of_a_removal(how: Look, options: &CopyOptions) {
    let at = |call, up_to| in_simulation(looked_at(how, call, up_to, options.clone()));
    let calls = (0..).find(|call| !at(*call, u64::MAX >> 1).0).unwrap();
    let moments = (0..).find(|up_to| !at(0, *up_to).1).unwrap();
    assert!(calls > 2 && moments > 3, "{how:?}: {calls} calls, {moments} moments of a removal");
    for call in 0..calls {
        for up_to in 0..moments {
            at(call, up_to);
        }
    }
    eprintln!("{how:?}: {calls} calls, {moments} moments of a removal");
}

#[test]
fn an_image_that_is_just_being_removed_is_there_or_not_and_never_damaged() {
    for how in [Look::Open, Look::List, Look::Locate] {
        for (_, options) in ways().into_iter().filter(|(to, _)| *to != FILE) {
            at_every_moment_of_a_removal(how, &options);
        }
    }
}

#[test]
fn a_base_that_is_just_being_removed_is_not_found_and_never_damaged() {
    at_every_moment_of_a_removal(Look::Base, &options());
}

#[cfg(feature = "encrypt")]
#[test]
fn an_image_that_is_just_being_removed_is_given_another_key_or_not_found() {
    at_every_moment_of_a_removal(Look::Rewrap, &super::host::encrypted(options()));
}

/// Somebody asks where the image is, and stands still at that call until it has been committed.
/// Tells whether there was such a call.
async fn located(call: u64) -> bool {
    let host = Host::new(7, &bytes_of(0, 70_001), true);
    let (daemon, other) = (host.daemon(true).await.unwrap(), host.daemon(true).await.unwrap());
    let slow = options().with_limits(Limits::NONE.with_bytes_per_sec(20_000));
    let job = daemon.engine.copy(request("s/image", DESTINATIONS[0], slow)).await.unwrap();
    daemon.engine.suspend(job.id()).await.unwrap();
    let asking = at(&other, 0);
    host.sim.plan(host.sim.call_count() + call, Action::HoldAfter);
    let told = tokio::spawn(async move { asking.locate(&end(DESTINATIONS[0]).image).await });
    a_while().await;
    let taken = was_taken(&host);
    let outcome = daemon.engine.resume(job.id()).await.unwrap().wait().await;
    assert!(matches!(outcome, JobOutcome::Committed(_)), "{outcome:?}");
    host.sim.release();
    match told.await.unwrap().unwrap() {
        Located::Staged(of) | Located::Committed(Some(of)) => assert_eq!(of, job.id()),
        told => assert_eq!(told, Located::Committed(Some(job.id())), "held at {call}"),
    }
    taken
}

#[test]
fn an_image_is_located_at_every_moment_of_its_commit() {
    let count = (0..).find(|call| !in_simulation(located(*call))).unwrap();
    assert!(count > 3, "{count}");
}

#[cfg(feature = "encrypt")]
#[test]
fn a_keyring_is_there_whole_or_not_at_all() {
    let actions = [0, 50, 100].map(Action::PowerAfter);
    for action in [Action::KillAfter].into_iter().chain(actions) {
        for call in 0.. {
            let sim = Simulation::new(call);
            let _entered = sim.enter();
            sim.make_dir("keys").unwrap();
            let (first, second) = (sim.process(), sim.process());
            sim.plan(sim.call_count() + call, action);
            let made = FileKeyring::create(first.path("keys/ring"));
            let taken = sim.taken_count() > 0;
            sim.heal();
            let next = if second.is_alive() { second } else { sim.process() };
            match FileKeyring::open(next.path("keys/ring")) {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{action:?} at {call}: {error}");
                    assert!(made.is_err());
                    FileKeyring::create(next.path("keys/ring")).unwrap();
                }
            }
            FileKeyring::open(next.path("keys/ring")).unwrap().add(&"k".parse().unwrap()).unwrap();
            assert_eq!(sim.paths("keys"), ["ring"]);
            if !taken {
                break;
            }
        }
    }
}

fn kind<T>(told: &blockferry::Result<T>) -> Option<ErrorKind> {
    told.as_ref().err().map(blockferry::Error::kind)
}
