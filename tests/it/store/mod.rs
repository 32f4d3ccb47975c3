//! Object stores: what is proven of them, and what becomes of requests.

mod backend;
mod conformance;
mod plain;
mod probe;
mod requests;
pub(crate) mod server;
