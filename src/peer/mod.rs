//! Who may speak the chunk protocol with this daemon, and how much of it they may take.
//!
//! A peer proves who it is by a certificate of a private authority ([`Tls`]); what the certificate
//! says is an [`Identity`], and nothing else about it counts. What that identity may do stands in a
//! [`Policy`], which denies what it does not grant. A [`Door`] bounds how many knock, and how many
//! are inside; a [`Seat`] is one connection inside, and shares its identity's window and rate with
//! the others of the same identity. [`MinRate`] tells when a peer that owes bytes is too slow.

mod admission;
mod credits;
mod door;
mod identity;
mod min_rate;
mod pem;
mod policy;
mod tls;

pub use admission::DoorCaps;
pub use credits::{Credits, Lease};
pub use door::{Door, Knock, Seat};
pub use identity::Identity;
pub use min_rate::MinRate;
pub use policy::{Ceilings, Grant, Operation, Policy};
pub use tls::{Tls, TlsFiles, stream_error};

/// A stream inside TLS, of either side: tokio-rustls's own.
pub use tokio_rustls::TlsStream;
