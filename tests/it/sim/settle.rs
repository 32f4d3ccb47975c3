//! The end of a life: on a host without faults everything comes to its end, and nothing is left.

use std::sync::Mutex;

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, Engine, JobOutcome, Shutdown};
use blockferry::id::JobId;
use blockferry::job::JobState;
use blockferry::region::Settled;

use super::host::{AGES, DESTINATIONS, Host, TARGETS, request, verified};
use super::oracle::Oracle;
use crate::world::{end, region};

/// Brings everything to its end on a host without faults, and checks that it is one.
pub(crate) async fn settle(host: &Host, oracle: &Mutex<Oracle>, dice: u64) -> Result<(), String> {
    let daemon = host.daemon(false).await.map_err(|error| told("open", &error))?;
    let engine = &*daemon.engine;
    let mut left = Vec::new();
    for name in TARGETS {
        let found = engine.recover(&region(name)).await;
        for found in found.map_err(|error| told("recover", &error))? {
            match found.settled {
                Settled::Failed(error) => return Err(told("recover a job", &error)),
                Settled::Running => return Err(format!("job {} runs without owner", found.job)),
                Settled::Kept => left.push(found.job),
                _ => {}
            }
        }
    }
    let (started, may_forget) = {
        let oracle = oracle.lock().unwrap();
        (oracle.started(), oracle.may_forget)
    };
    for (job, _) in &started {
        match engine.show(*job).await {
            Ok(shown) => oracle.lock().unwrap().was_shown(*job, shown.state),
            // Records of jobs that ended more than 30 days ago go.
            Err(error) if may_forget && error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(told("show a started job", &error)),
        }
        left.push(*job);
    }
    for (n, job) in left.iter().enumerate() {
        let target = engine.show(*job).await.map_err(|error| told("show", &error))?.spec.target;
        let to = DESTINATIONS.iter().position(|name| end(name) == target).unwrap();
        oracle.lock().unwrap().was_found(*job, to);
        end_job(engine, oracle, *job, (dice >> (n % 16)) & 1 == 0).await?;
    }
    for job in &left {
        let state = engine.show(*job).await.map_err(|error| told("show", &error))?.state;
        if !state.is_final() {
            return Err(format!("job {job} does not end: {state}"));
        }
        oracle.lock().unwrap().was_shown(*job, state);
    }
    let leftovers = host.leftovers();
    if !leftovers.is_empty() {
        return Err(format!("nothing may be left, but {leftovers:?} is"));
    }
    oracle.lock().unwrap().look(host);
    copy_again(host, oracle, engine).await?;
    all_ended(engine)?;
    engine.shutdown(Shutdown::Suspend, AGES).await;
    daemon.process.kill();
    Ok(())
}

/// Resumes a job or cancels it.
async fn end_job(
    engine: &Engine,
    oracle: &Mutex<Oracle>,
    job: JobId,
    resume: bool,
) -> Result<(), String> {
    if resume {
        match engine.resume(job).await {
            Ok(job) => {
                let outcome = job.wait().await;
                oracle.lock().unwrap().was_told(job.id(), &outcome);
                match outcome {
                    JobOutcome::Committed(_) | JobOutcome::RolledBack { clean: true } => {
                        return Ok(());
                    }
                    JobOutcome::Failed { error, .. } if error.kind() == ErrorKind::Exists => {}
                    JobOutcome::Failed { resumable: false, .. } => return Ok(()),
                    other => return Err(format!("resumed without faults: {other:?}")),
                }
            }
            Err(error) if error.kind() == ErrorKind::SourceChanged => {}
            Err(error) => return Err(told("resume", &error)),
        }
    }
    oracle.lock().unwrap().is_asked(job);
    let reply = engine.cancel(job).await.map_err(|error| told("cancel", &error))?;
    oracle.lock().unwrap().was_answered_of(job, &reply);
    match reply.answer {
        CancelAnswer::AlreadyCommitted | CancelAnswer::NotCancellable => Ok(()),
        answer if answer.is_clean() => Ok(()),
        answer => Err(format!("cancelled without faults: {answer:?}")),
    }
}

/// After all that, each destination takes the next copy, or holds an image.
async fn copy_again(host: &Host, oracle: &Mutex<Oracle>, engine: &Engine) -> Result<(), String> {
    for (n, name) in DESTINATIONS.iter().enumerate() {
        let there = host.visible(n)?.is_some();
        match engine.copy(request("s/image", name, verified(false))).await {
            Err(error) if there && error.kind() == ErrorKind::Exists => {}
            Err(error) => return Err(told("start the next copy", &error)),
            Ok(job) => {
                oracle.lock().unwrap().was_started(job.id(), n);
                let outcome = job.wait().await;
                oracle.lock().unwrap().was_told(job.id(), &outcome);
                if !matches!(outcome, JobOutcome::Committed(_)) {
                    return Err(format!("the next copy: {outcome:?}"));
                }
            }
        }
    }
    debug_assert!(JobState::Committed.is_final());
    Ok(())
}

pub(crate) fn told(what: &str, error: &blockferry::Error) -> String {
    format!("{what}: {}", error.report())
}

/// Once no job runs in an engine, every move that it ever began has ended.
pub(crate) fn all_ended(engine: &Engine) -> Result<(), String> {
    let metrics = engine.metrics();
    let mut counts = metrics.regions.iter().filter(|_| metrics.jobs.is_empty());
    match counts.find(|(_, counts)| !counts.moves.is_balanced()) {
        Some((name, counts)) => Err(format!("moves to {name} went missing: {:?}", counts.moves)),
        None => Ok(()),
    }
}
