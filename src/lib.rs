//! Blockferry copies disk images between regions.
//!
//! It is the storage engine behind calls such as CopyImage and CancelCopyImage: a library that a
//! storage daemon links, and a command, `blockferry`, for people and scripts. A copy is visible
//! when it is whole and durable, and never before. It can be cancelled at any moment from any
//! process, and resumed after any crash.
//!
//! # Quick start
//!
//! An [`Engine`](engine::Engine) copies between the regions that are registered with it. Here from
//! memory to a folder:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use blockferry::engine::{CancelAnswer, CopyRequest, Engine, JobOutcome, Shutdown};
//! use blockferry::id::{ImageId, RegionName};
//! use blockferry::job::Endpoint;
//! use blockferry::options::{CopyOptions, EngineOptions, Limits, Verify};
//! use blockferry::region::{DirRegion, MemoryRegion};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (state_dir, root) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! let engine = Engine::open(EngineOptions::new(state_dir.path())).await?;
//! let (north, south) = (RegionName::try_from("north")?, RegionName::try_from("south")?);
//! let (image, copy) = (ImageId::try_from("disk-1")?, ImageId::try_from("disk-1-copy")?);
//!
//! let memory = MemoryRegion::new("north");
//! memory.insert(&image, vec![7; 3 << 20]);
//! engine.register(north.clone(), Arc::new(memory)).await?;
//! engine.register(south.clone(), Arc::new(DirRegion::open_root(root.path())?)).await?;
//!
//! // Answers as soon as the job is durable: from here on it is never forgotten.
//! let options = CopyOptions::new()
//!     .with_verify(Verify::Full)
//!     .with_limits(Limits::NONE.with_bytes_per_sec(1 << 30));
//! let (from, to) = (Endpoint::new(north, image), Endpoint::new(south.clone(), copy.clone()));
//! let job = engine.copy(CopyRequest::new(from, to, options)).await?;
//!
//! // Follow it, or just wait for it.
//! let mut progress = job.watch();
//! let follow = async {
//!     while progress.changed().await.is_ok() {
//!         let now = progress.borrow_and_update();
//!         println!("{}: {} of {} bytes", now.state, now.read_bytes, now.image_bytes);
//!     }
//! };
//! let outcome = tokio::select! {
//!     outcome = job.wait() => outcome,
//!     () = follow => job.wait().await,
//! };
//! let JobOutcome::Committed(receipt) = outcome else { panic!("{outcome:?}") };
//! assert_eq!(receipt.image_bytes, 3 << 20);
//!
//! // Too late to cancel: the answer says so, on every repeat and from any process.
//! let reply = engine.cancel_image(&south, &copy).await?;
//! assert_eq!(reply.answer, CancelAnswer::AlreadyCommitted);
//!
//! engine.shutdown(Shutdown::Suspend, Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The caller brings the tokio runtime, with its clock enabled; [`engine::blocking`] is for those
//! who have none.
//!
//! # Where to look
//!
//! | to | see |
//! |---|---|
//! | copy, resume, cancel, limit, list | [`engine`] |
//! | say what a copy or an engine may do | [`options`] |
//! | read what a job did | [`job`] |
//! | use a folder, a file, a device or memory as a region, or write a region | [`region`] |
//! | copy to and from other daemons, or let them (feature `peer`) | `region::PeerRegion`, `serve` |
//! | keep images with names and states, queue and follow copies (feature `service`) | `service` |
//! | answer three clouds' own calls (feature `clouds`) | `clouds` |
//! | encrypt images at rest (feature `encrypt`) | `keys`, [`options::Encryption`], [`manual::encryption`] |
//! | name images, jobs, keys and regions | [`id`], [`location`] |
//! | handle what goes wrong | [`error`] |
//! | verify an image yourself | [`manifest`], [`seal`], [`chunk`], [`geometry`] |
//! | know what is promised, run it, or read its bytes | [`manual`] |
//!
//! Every public name has one home, its module. Only [`Error`], [`ErrorKind`] and [`Result`] stand
//! here too, because every signature speaks of them.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | none | the library with memory, directory, file and block-device regions |
//! | `cli` | the `blockferry` command |
//! | `object` | object stores, S3 and its kin: `region::ObjectRegion` and `region::PlainObjectRegion`, the module `store`; with `cli`, `blockferry probe` |
//! | `encrypt` | encryption at rest: `keys`, `region::DirRegion::with_keys`; with `object`, `region::object::ObjectRegion::with_keys` |
//! | `peer` | copies between daemons: `region::PeerRegion`, the modules `serve`, `peer` (who may), `wire` (the chunk protocol) and `compress`; with `cli`, `blockferry serve` and `cert` |
//! | `service` | the module `service`: images, queues, tokens and followers above the engine, for daemons |
//! | `clouds` | the module `clouds`: the copy calls of Alibaba ECS, Baidu BCC and Huawei IMS over that; with `cli`, `blockferry api` |
//! | `testing` | the module `testing`: the conformance suite and the fault wrappers, for those who write regions |
//!
//! A feature adds API and never changes what existing code does. Linux only, 5.6 or later.

pub mod chunk;
#[cfg(feature = "encrypt")]
mod cipher;
#[cfg(feature = "clouds")]
pub mod clouds;
mod codec;
#[cfg(any(feature = "object", feature = "peer"))]
pub mod compress;
mod disk;
pub mod engine;
pub mod error;
pub mod geometry;
mod host;
pub mod id;
pub mod job;
mod journal;
#[cfg(feature = "encrypt")]
pub mod keys;
pub mod location;
pub mod manifest;
pub mod manual;
pub mod options;
#[cfg(feature = "peer")]
pub mod peer;
pub mod plan;
#[cfg(feature = "peer")]
mod pump;
pub mod region;
mod sabotage;
pub mod seal;
#[cfg(feature = "peer")]
pub mod serve;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "object")]
pub mod store;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
pub mod throttle;
#[cfg(feature = "peer")]
pub mod wire;

pub use error::{Error, ErrorKind, Result};

/// The examples of the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
