//! Signs of life of owners: shown by their pulse, guessed from it by others.
//!
//! A guess costs time when it is wrong and nothing else: who is taken for dead is fenced.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, JobId};
use crate::job::Progress;
use crate::store::{Condition, Put, Store, Version};

use super::notes::{NOTE_LEN_MAX, Pulse};
use super::rules::{Life, Owner, Sight};
use super::{Shared, names};

/// How many jobs are remembered; the others are watched from the beginning.
const WATCHED_COUNT_MAX: usize = 4096;

/// What was seen of owners in other processes, and since when.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Mutex<HashMap<JobId, Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    claim: Owner,
    beat: Option<(Owner, u64)>,
    since: Instant,
    /// Whether it has changed under our eyes.
    moved: bool,
}

impl Watch {
    /// What can be told of the owner now: `beat` is what its pulse says.
    fn judge(&self, sight: &Sight, pulse: Option<&Pulse>, silence: Duration) -> Life {
        let now = Instant::now();
        let beat = pulse.map(|pulse| (pulse.owner, pulse.beat));
        let mut seen = self.seen();
        if seen.len() >= WATCHED_COUNT_MAX && !seen.contains_key(&sight.job) {
            seen.clear();
        }
        let fresh = Seen { claim: sight.owner, beat, since: now, moved: false };
        let known = seen.entry(sight.job).or_insert(fresh);
        if known.claim != sight.owner {
            *known = fresh;
        }
        if known.beat != beat {
            *known = Seen { beat, since: now, moved: true, ..*known };
        }
        match now.duration_since(known.since) >= silence {
            true => Life::Dead,
            false if known.moved => Life::Alive,
            false => Life::Unsure,
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<JobId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The pulse of the job. One that cannot be read counts as none: it is but a sign of life.
    pub(super) async fn pulse(&self, job: JobId) -> Result<Option<(Pulse, Option<Version>)>> {
        let object = match self.store.get(&names::pulse(job), NOTE_LEN_MAX).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
            read => read?,
        };
        let Some(object) = object else { return Ok(None) };
        Ok(Pulse::decode(&object.bytes).ok().map(|pulse| (pulse, object.version)))
    }

    /// Whether the owner of that claim lives, as far as can be told without waiting for it.
    pub(super) async fn life(&self, sight: &Sight, pulse: Option<&Pulse>) -> Life {
        if let Some(lives) = self.household.lives(&sight.owner).await {
            return if lives { Life::Alive } else { Life::Dead };
        }
        if pulse.is_some_and(|pulse| pulse.owner == sight.owner && pulse.let_go) {
            return Life::Dead;
        }
        self.watch.judge(sight, pulse, self.options.silence)
    }

    /// The same, and reads the pulse for it.
    pub(super) async fn life_now(&self, sight: &Sight) -> Result<Life> {
        if let Some(lives) = self.household.lives(&sight.owner).await {
            return Ok(if lives { Life::Alive } else { Life::Dead });
        }
        let pulse = self.pulse(sight.job).await?.map(|(pulse, _)| pulse);
        Ok(self.life(sight, pulse.as_ref()).await)
    }

    /// Until one looks again.
    pub(super) async fn pause(&self) {
        sleep(self.options.beat / 2).await;
    }
}

/// The pulse of an owner: what it shows next, and where it stands.
#[derive(Debug)]
pub(super) struct Heart {
    image: ImageId,
    job: JobId,
    owner: Owner,
    beat: u64,
    version: Option<Version>,
    pub(super) progress: Option<Progress>,
    pub(super) let_go: bool,
}

impl Heart {
    pub(super) fn new(image: &ImageId, job: JobId, owner: Owner) -> Self {
        let image = image.clone();
        Self { image, job, owner, beat: 0, version: None, progress: None, let_go: false }
    }

    /// Whether it was shown at least once, or tried to.
    pub(super) fn is_shown(&self) -> bool {
        self.beat > 0
    }

    fn next(&mut self) -> Bytes {
        self.beat += 1;
        let pulse = Pulse {
            image: self.image.clone(),
            owner: self.owner,
            beat: self.beat,
            let_go: self.let_go,
            progress: self.progress.clone(),
        };
        pulse.encode().into()
    }

    /// Shows the pulse for the first time, over whatever is there.
    pub(super) async fn start(&mut self, store: &dyn Store) -> Result<()> {
        let bytes = self.next();
        match store.put(&names::pulse(self.job), bytes, &Condition::Any).await? {
            Put::Done(version) => self.version = version,
            Put::Refused => return Err(refused(store, self.job)),
            Put::Unknown(error) => return Err(error),
        }
        Ok(())
    }

    /// Shows it again; `false`: somebody has taken it away, or put another in its place.
    ///
    /// Where the store can, it is swapped: a pulse that comes late must not come back after its job
    /// was cleaned.
    pub(super) async fn beat(&mut self, store: &dyn Store, swaps: bool) -> Result<bool> {
        let key = names::pulse(self.job);
        if swaps && self.version.is_none() {
            self.version = store.head(&key).await?.and_then(|meta| meta.version);
        }
        let when = match (swaps, &self.version) {
            (true, Some(version)) => Condition::Match(version.clone()),
            (true, None) => return Ok(false),
            (false, _) => Condition::Any,
        };
        let bytes = self.next();
        match store.put(&key, bytes, &when).await? {
            Put::Done(version) => {
                self.version = version;
                Ok(true)
            }
            Put::Refused => {
                self.version = None;
                Ok(false)
            }
            Put::Unknown(error) => {
                self.version = None;
                Err(error)
            }
        }
    }
}

fn refused(store: &dyn Store, job: JobId) -> Error {
    Error::new(ErrorKind::Unsupported, format!("show that job {job} runs"))
        .within(store.location())
        .hint("the store refuses a write that has no condition")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(15);

    fn sight() -> Sight {
        let owner = Owner { process: [1; 16], claim: [2; 16] };
        Sight::claimed(None, JobId::from_bytes([1; 16]), owner, [3; 16])
    }

    fn pulse(beat: u64) -> Pulse {
        let (image, owner) = ("m".parse().unwrap(), sight().owner);
        Pulse { image, owner, beat, let_go: false, progress: None }
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_alive_while_it_moves_and_dead_when_it_was_still_for_long() {
        let watch = Watch::default();
        let judge = |beat| watch.judge(&sight(), Some(&pulse(beat)), SILENCE);
        assert_eq!(judge(1), Life::Unsure);
        sleep(SILENCE / 2).await;
        assert_eq!(judge(1), Life::Unsure);
        assert_eq!(judge(2), Life::Alive);
        sleep(SILENCE / 2).await;
        assert_eq!(judge(2), Life::Alive);
        sleep(SILENCE / 2).await;
        assert_eq!(judge(2), Life::Dead);
        assert_eq!(judge(3), Life::Alive, "it was only slow");
        sleep(SILENCE).await;
        assert_eq!(watch.judge(&sight(), None, SILENCE), Life::Alive, "its pulse was taken away");
        sleep(SILENCE).await;
        assert_eq!(watch.judge(&sight(), None, SILENCE), Life::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn another_claim_is_watched_from_the_beginning() {
        let watch = Watch::default();
        watch.judge(&sight(), Some(&pulse(1)), SILENCE);
        sleep(SILENCE).await;
        let owner = Owner { process: [7; 16], claim: [7; 16] };
        let taken = sight().taken_over(owner, [8; 16]);
        assert_eq!(watch.judge(&taken, Some(&pulse(1)), SILENCE), Life::Unsure);
    }
}
