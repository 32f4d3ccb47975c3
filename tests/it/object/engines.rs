//! Two real engines at one bucket, each with a state folder of its own, as on two machines.

use std::sync::Arc;
use std::time::Duration;

use blockferry::engine::{CancelAnswer, Engine};
use blockferry::options::{CopyOptions, EngineOptions, Limits, Verify};
use blockferry::region::object::{ObjectOptions, ObjectRegion};
use blockferry::region::{MemoryRegion, Settled};
use blockferry::store::Fencing;
use blockferry::store::model::{Fate, ModelStore};

use super::places::Cloud;
use crate::world::{
    MIB, committed, ended, image, noise, region, request, rolled_back, small, standing, suspended,
    until,
};

/// One machine: an engine that knows the source, memory of its own, and the bucket.
struct Machine {
    engine: Engine,
    requests: ModelStore,
    own: MemoryRegion,
    _state: tempfile::TempDir,
}

const BYTES: u64 = 3 * MIB + 12_345;

fn source() -> Vec<u8> {
    let mut bytes = noise(1, BYTES);
    bytes[400_000..1_400_000].fill(0);
    bytes[2_000_000..2_500_000].fill(7);
    bytes
}

async fn machine(cloud: &Cloud, shared: &MemoryRegion) -> Machine {
    let state = tempfile::tempdir().unwrap();
    let engine = Engine::open(EngineOptions::new(state.path()).with_threads(2)).await.unwrap();
    let requests = cloud.model.client("north");
    let mut options = ObjectOptions::default();
    (options.beat, options.silence) = (Duration::from_millis(20), Duration::from_millis(400));
    let store = Arc::new(requests.clone());
    let bucket = ObjectRegion::as_another_process(store, cloud.fencing, options).unwrap();
    let own = MemoryRegion::new("own");
    engine.register(region("shared"), Arc::new(shared.clone())).await.unwrap();
    engine.register(region("own"), Arc::new(own.clone())).await.unwrap();
    engine.register(region("bucket"), Arc::new(bucket)).await.unwrap();
    Machine { engine, requests, own, _state: state }
}

fn shared() -> MemoryRegion {
    let shared = MemoryRegion::new("shared");
    shared.insert(&image("source"), source());
    shared
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_up_on_one_machine_and_comes_down_on_the_other() {
    for fencing in [Fencing::Swap, Fencing::Numbered] {
        let (cloud, shared) = (Cloud::new(fencing), shared());
        let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
        let options = small().with_verify(Verify::Full);
        let up = one.engine.copy(request("shared/source", "bucket/m-1", options)).await.unwrap();
        let receipt = committed(ended(&up).await);
        assert!(receipt.zero_bytes > 0 && receipt.verified.rewritten_chunks == 0, "{receipt:?}");
        let down = two.engine.copy(request("bucket/m-1", "own/back", small())).await.unwrap();
        let back = committed(ended(&down).await);
        assert_eq!(back.root, receipt.root, "the same chunks, the same root");
        assert_eq!(two.own.bytes(&image("back")).unwrap(), source());
        let images = two.engine.images(&region("bucket")).await.unwrap();
        assert_eq!((images.len(), images[0].root), (1, Some(receipt.root)));
        let again = two.engine.cancel_image(&region("bucket"), &image("m-1")).await.unwrap();
        assert_eq!(again.answer, CancelAnswer::AlreadyCommitted);
        // Also into chunks of another size.
        let copy = two.engine.copy(request("bucket/m-1", "own/again", CopyOptions::new()));
        committed(ended(&copy.await.unwrap()).await);
        assert_eq!(two.own.bytes(&image("again")).unwrap(), source());
        assert_eq!(cloud.strays(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_is_taken_over_by_one_that_never_heard_of_it() {
    let (cloud, shared) = (Cloud::new(Fencing::Swap), shared());
    let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
    let options = small().with_limits(Limits::NONE.with_bytes_per_sec(MIB));
    let job = one.engine.copy(request("shared/source", "bucket/m-1", options)).await.unwrap();
    let chunks = || cloud.model.keys().iter().filter(|key| key.contains("-")).count();
    until("some chunks are there", async || chunks() > 6).await;
    one.requests.hook(|_| Fate::LostBefore);
    let id = job.id();
    drop(one.engine);
    let there = chunks();
    until("its silence is long enough", async || {
        let found = two.engine.recover(&region("bucket")).await.unwrap();
        found.iter().any(|found| found.job == id && matches!(found.settled, Settled::Kept))
    })
    .await;
    two.engine.limit(id, Limits::NONE).await.unwrap();
    let resumed = two.engine.resume(id).await.unwrap();
    let receipt = committed(ended(&resumed).await);
    assert!(receipt.resumed_bytes >= 6 * 64 * 1024, "what the store has is not sent again");
    assert!(there > 6);
    let down = two.engine.copy(request("bucket/m-1", "own/back", small())).await.unwrap();
    committed(ended(&down).await);
    assert_eq!(two.own.bytes(&image("back")).unwrap(), source());
    assert_eq!(cloud.strays(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_on_one_machine_ends_the_copy_on_the_other() {
    for fencing in [Fencing::Swap, Fencing::Numbered] {
        let (cloud, shared) = (Cloud::new(fencing), shared());
        let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
        let started = one.engine.copy(request("shared/source", "bucket/m-1", standing())).await;
        let job = started.unwrap();
        let pulse = format!("north/jobs/{}/pulse", job.id());
        let pulse_bytes = cloud.model.bytes(&pulse).unwrap();
        let reply = two.engine.cancel_image(&region("bucket"), &image("m-1")).await.unwrap();
        assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true }, "{reply:?}");
        rolled_back(&ended(&job).await);
        let reply = one.engine.cancel(job.id()).await.unwrap();
        assert_eq!(reply.answer, CancelAnswer::AlreadyCancelled { clean: true });
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
        // The third has never heard of it.
        let three = machine(&cloud, &shared).await;
        // Whoever wrote the tombstone died before it removed what spoke of the job.
        cloud.model.insert(&pulse, pulse_bytes);
        three.engine.cancel_image(&region("bucket"), &image("m-1")).await.unwrap();
        assert_eq!(cloud.strays(), Vec::<String>::new(), "{fencing:?}");
        for machine in [&one, &two, &three] {
            let again =
                machine.engine.cancel_image(&region("bucket"), &image("m-1")).await.unwrap();
            let told = (again.job, again.answer);
            let expected = CancelAnswer::AlreadyCancelled { clean: true };
            assert_eq!(told, (Some(job.id()), expected), "{fencing:?}");
        }
        let copy = two.engine.copy(request("shared/source", "bucket/m-1", small())).await.unwrap();
        committed(ended(&copy).await);
    }
}

/// All that is left of such a job is its claim: by the destination it can be ended all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_sign_of_life_is_lost_can_be_cancelled_by_its_destination() {
    for damaged in [true, false] {
        let (cloud, shared) = (Cloud::new(Fencing::Swap), shared());
        let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
        let started = one.engine.copy(request("shared/source", "bucket/m-1", standing())).await;
        let job = started.unwrap().id();
        one.requests.hook(|_| Fate::LostBefore);
        drop(one.engine);
        let pulse = format!("north/jobs/{job}/pulse");
        match damaged {
            true => cloud.model.insert(&pulse, b"no pulse".as_slice()),
            false => cloud.model.remove(&pulse),
        }
        let reply = two.engine.cancel_image(&region("bucket"), &image("m-1")).await.unwrap();
        assert_eq!(reply.job, Some(job));
        assert_eq!(reply.answer, CancelAnswer::Cancelled { clean: true }, "damaged: {damaged}");
        assert_eq!(cloud.strays(), Vec::<String>::new());
        let copy = two.engine.copy(request("shared/source", "bucket/m-1", small())).await.unwrap();
        committed(ended(&copy).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_suspended_on_one_machine_goes_on_at_the_other_at_once() {
    let (cloud, shared) = (Cloud::new(Fencing::Swap), shared());
    let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
    let started = one.engine.copy(request("shared/source", "bucket/m-1", standing())).await;
    let job = started.unwrap();
    suspended(&job.suspend().await);
    let found = two.engine.recover(&region("bucket")).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    two.engine.limit(job.id(), Limits::NONE).await.unwrap();
    let resumed = two.engine.resume(job.id()).await.unwrap();
    committed(ended(&resumed).await);
    // The first machine hears of it when it asks.
    let told = one.engine.resume(job.id()).await.unwrap();
    committed(ended(&told).await);
    assert_eq!(cloud.strays(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_stopped_and_goes_on_is_fenced_and_damages_nothing() {
    let (cloud, shared) = (Cloud::new(Fencing::Swap), shared());
    let (one, two) = (machine(&cloud, &shared).await, machine(&cloud, &shared).await);
    let options = small().with_limits(Limits::NONE.with_bytes_per_sec(MIB));
    let job = one.engine.copy(request("shared/source", "bucket/m-1", options)).await.unwrap();
    let chunks = || cloud.model.keys().iter().filter(|key| key.contains("-")).count();
    until("some chunks are there", async || chunks() > 4).await;
    // Everything that it asks is on its way, and lands when nobody counts on it any more.
    one.requests.hook(|_| Fate::Late);
    until("it is taken for dead", async || {
        let found = two.engine.recover(&region("bucket")).await.unwrap();
        found.iter().any(|found| found.job == job.id() && matches!(found.settled, Settled::Kept))
    })
    .await;
    two.engine.limit(job.id(), Limits::NONE).await.unwrap();
    let resumed = two.engine.resume(job.id()).await.unwrap();
    cloud.model.land_all();
    committed(ended(&resumed).await);
    one.requests.hook(|_| Fate::Answered);
    cloud.model.land_all();
    // It is told how its job has ended.
    committed(ended(&job).await);
    let down = two.engine.copy(request("bucket/m-1", "own/back", small())).await.unwrap();
    committed(ended(&down).await);
    assert_eq!(two.own.bytes(&image("back")).unwrap(), source());
    let bucket = two.engine.region(&region("bucket")).unwrap();
    assert_eq!(bucket.list().await.unwrap().len(), 1);
}
