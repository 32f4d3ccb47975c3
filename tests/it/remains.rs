//! What a crash or a failure leaves in the middle of a step, and what is made of it.

use std::fs;

use blockferry::engine::CancelAnswer;
use blockferry::id::JobId;

use crate::world::{KIB, World, committed, ended, image, noise, request, small};

const TARGETS: [(&str, &str); 2] = [("b/disk", "b"), ("target/image", "target")];

/// The stage's folder below the world, and that of its data.
fn folders(name: &str, job: JobId) -> (String, String) {
    match name {
        "b" => {
            let stage = format!("b/.blockferry/stage/{job}");
            (stage.clone(), format!("{stage}/image"))
        }
        _ => (format!("files/.blockferry-{job}"), format!("files/.blockferry-{job}")),
    }
}

#[tokio::test]
async fn a_commit_whose_stage_was_not_quite_removed_is_still_a_commit() {
    for (target, name) in TARGETS {
        let world = World::new();
        world.m.insert(&image("source"), noise(1, 256 * KIB));
        let engine = world.engine().await;
        let job = engine.copy(request("m/source", target, small())).await.unwrap();
        committed(ended(&job).await);
        // A crash after the journal is unlinked and before its folder is.
        let stage = world.path(&folders(name, job.id()).0);
        fs::create_dir(&stage).unwrap();
        let reply = engine.cancel(job.id()).await.unwrap();
        assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted, "{target}");
        assert_eq!(engine.show(job.id()).await.unwrap().state.name(), "committed");
        assert!(!stage.exists());
    }
}
