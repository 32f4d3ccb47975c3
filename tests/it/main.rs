//! Does the crate keep its promises? Through its public API only.
#![cfg(feature = "testing")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what it expects by failing where it is not so"
)]

#[cfg(feature = "peer")]
mod bounds;
mod cancel;
mod cli;
#[cfg(feature = "clouds")]
mod clouds;
mod conformance;
mod delta;
#[cfg(feature = "peer")]
mod dialling;
mod encrypt;
mod encrypt_cli;
mod fan;
#[cfg(feature = "object")]
mod headcas;
mod journal;
mod life;
mod model;
#[cfg(feature = "object")]
mod object;
#[cfg(feature = "peer")]
mod peer;
mod places;
mod remains;
mod scale;
mod serve;
#[cfg(feature = "service")]
mod service;
mod shapes;
mod sim;
mod source;
mod space;
#[cfg(feature = "object")]
mod store;
mod tls;
mod verify;
mod world;
