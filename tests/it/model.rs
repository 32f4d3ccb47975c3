//! Random lives against a model of a few lines: what is visible is exactly what was committed.

use std::collections::BTreeMap;
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::engine::{CancelAnswer, Engine, Job, JobOutcome};
use blockferry::geometry::ByteRange;
use blockferry::id::JobId;
use blockferry::options::Limits;

use crate::world::{
    Dice, KIB, World, ended, image, noise, region, request, small, standing, suspended, until,
};

const IMAGES: u64 = 3;
const IMAGE_BYTES: u64 = 5 * 64 * KIB + 99;

struct Model {
    world: World,
    place: &'static str,
    dice: Dice,
    engine: Engine,
    /// What is visible: the source's number.
    visible: BTreeMap<u64, u64>,
    /// What is staged: the job, the source's number, a handle where this engine runs it.
    staged: BTreeMap<u64, (JobId, u64, Option<Job>)>,
    done: BTreeMap<&'static str, u32>,
}

impl Model {
    async fn new(place: &'static str, seed: u64) -> Self {
        let world = World::in_memory();
        for source in 0..4 {
            world.m.insert(&image(&format!("source-{source}")), noise(source, IMAGE_BYTES));
        }
        let engine = Self::engine(&world).await;
        let (visible, staged, done) = Default::default();
        Self { world, place, dice: Dice::new(seed), engine, visible, staged, done }
    }

    async fn engine(world: &World) -> Engine {
        let often = Duration::from_millis(5);
        world.engine_with(world.options().with_checkpoint(64 * KIB, often)).await
    }

    fn target(&self, n: u64) -> String {
        format!("{}/disk-{n}", self.place)
    }

    async fn step(&mut self) {
        let n = self.dice.roll(IMAGES);
        let name = match self.dice.roll(10) {
            0..=2 => self.start(n).await,
            3 => self.suspend(n).await,
            4..=5 => self.resume(n).await,
            6 => self.cancel(n).await,
            7 => self.crash().await,
            8 => self.recover().await,
            _ => self.remove(n).await,
        };
        *self.done.entry(name).or_default() += 1;
    }

    async fn start(&mut self, n: u64) -> &'static str {
        let source = self.dice.roll(4);
        // Some go fast, some stand still until they are resumed without a limit.
        let options = if self.dice.roll(2) == 0 { small() } else { standing() };
        let stands = options.limits != Limits::NONE;
        let from = format!("m/source-{source}");
        let started = self.engine.copy(request(&from, &self.target(n), options)).await;
        if self.visible.contains_key(&n) || self.staged.contains_key(&n) {
            let wanted =
                if self.staged.contains_key(&n) { ErrorKind::Busy } else { ErrorKind::Exists };
            assert_eq!(started.err().map(|error| error.kind()), Some(wanted));
            return "start refused";
        }
        let job = started.unwrap();
        if stands {
            self.staged.insert(n, (job.id(), source, Some(job)));
            return "start slow";
        }
        assert!(matches!(ended(&job).await, JobOutcome::Committed(_)));
        self.visible.insert(n, source);
        "copy"
    }

    async fn suspend(&mut self, n: u64) -> &'static str {
        let Some((_, source, Some(job))) = self.staged.get(&n).cloned() else { return "idle" };
        suspended(&job.suspend().await);
        self.staged.insert(n, (job.id(), source, None));
        "suspend"
    }

    async fn resume(&mut self, n: u64) -> &'static str {
        let Some((job, source, _)) = self.staged.get(&n).cloned() else { return "idle" };
        let resumed = self.engine.resume(job).await.unwrap();
        // A job that has just committed has no limits any more.
        self.engine.limit(job, Limits::NONE).await.ok();
        assert!(matches!(ended(&resumed).await, JobOutcome::Committed(_)));
        self.staged.remove(&n);
        self.visible.insert(n, source);
        "resume"
    }

    async fn cancel(&mut self, n: u64) -> &'static str {
        let (name, id) = (region(self.place), image(&format!("disk-{n}")));
        let reply = self.engine.cancel_image(&name, &id).await.unwrap();
        match self.staged.remove(&n) {
            Some((job, ..)) => {
                assert_eq!(reply.job, Some(job));
                assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true });
                let again = self.engine.cancel(job).await.unwrap().answer;
                assert_eq!(again, CancelAnswer::AlreadyCancelled { clean: true });
                "cancel"
            }
            None if self.visible.contains_key(&n) => {
                assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted);
                "cancel of an image"
            }
            None => {
                assert_ne!(reply.answer.name(), "cancelled");
                "cancel of nothing"
            }
        }
    }

    /// The engine goes as in a crash; another one comes.
    async fn crash(&mut self) -> &'static str {
        let next = Self::engine(&self.world).await;
        drop(std::mem::replace(&mut self.engine, next));
        let place = self.world.region(self.place);
        until("the crashed engine lets go", async || {
            place.jobs().await.unwrap().iter().all(|staged| !staged.owned)
        })
        .await;
        self.staged.values_mut().for_each(|(_, _, job)| *job = None);
        "crash"
    }

    async fn recover(&mut self) -> &'static str {
        self.engine.recover(&region(self.place)).await.unwrap();
        "recover"
    }

    async fn remove(&mut self, n: u64) -> &'static str {
        let removed = self.world.region(self.place).remove(&image(&format!("disk-{n}"))).await;
        match self.visible.remove(&n) {
            Some(_) => {
                removed.unwrap();
                "remove"
            }
            None => {
                assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotFound);
                "remove of nothing"
            }
        }
    }

    /// What is visible is what was committed, byte for byte, and what is staged is what was started.
    async fn check(&self) {
        let place = self.world.region(self.place);
        let listed = place.list().await.unwrap();
        let names: Vec<_> = listed.iter().map(|info| info.image.as_str().to_owned()).collect();
        let wanted: Vec<_> = self.visible.keys().map(|n| format!("disk-{n}")).collect();
        assert_eq!(names, wanted);
        for (n, source) in &self.visible {
            let found = place.open(&image(&format!("disk-{n}"))).await.unwrap();
            let bytes = found.read_at(ByteRange::new(0, IMAGE_BYTES)).await.unwrap();
            assert!(bytes == noise(*source, IMAGE_BYTES), "disk-{n} has wrong bytes");
        }
        let mut jobs: Vec<_> =
            place.jobs().await.unwrap().iter().map(|staged| staged.spec.job).collect();
        let mut wanted: Vec<_> = self.staged.values().map(|(job, ..)| *job).collect();
        jobs.sort();
        wanted.sort();
        assert_eq!(jobs, wanted);
    }

    async fn rest(&mut self) {
        for n in 0..IMAGES {
            self.cancel(n).await;
            self.remove(n).await;
        }
        self.check().await;
        for info in self.engine.jobs().await.unwrap() {
            assert!(info.state.is_final(), "{info:?}");
            self.engine.forget(info.spec.job).await.unwrap();
        }
        match self.place {
            "n" => assert!(self.world.n.is_empty()),
            folder => self.world.assert_empty(folder),
        }
    }
}

async fn live(place: &'static str, seed: u64, steps: u32) {
    eprintln!("a life in {place} of {steps} steps from seed {seed}");
    let mut model = Model::new(place, seed).await;
    for _ in 0..steps {
        model.step().await;
        model.check().await;
    }
    eprintln!("a life in {place}: {:?}", model.done);
    for step in ["copy", "start slow", "suspend", "resume", "cancel", "crash", "remove"] {
        assert!(model.done.contains_key(step), "no {step}: {:?}", model.done);
    }
    model.rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_lives_in_memory_follow_the_model() {
    for seed in 1..=2 {
        live("n", seed, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_lives_in_a_folder_follow_the_model() {
    for seed in 11..=12 {
        live("b", seed, 300).await;
    }
}
