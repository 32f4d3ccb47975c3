//! The one HTTP client of a store: it follows nowhere, and spreads over the addresses of a name.

use std::net::ToSocketAddrs;
use std::time::Duration;

use object_store::client::HttpClient;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use crate::error::{Error, ErrorKind, Result};
use crate::geometry::{to_u64, to_usize};
use crate::host;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many idle connections are kept: as many as requests may be under way.
const IDLE_COUNT_MAX: usize = 64;

/// A client that answers a redirect as what it is: a refusal.
///
/// A request that was followed elsewhere would take its body and its session's token along, and a
/// write would become a read, whose success is none of the write's.
pub(super) fn client(allow_http: bool) -> Result<HttpClient> {
    let client = reqwest::Client::builder()
        .user_agent(concat!("blockferry/", env!("CARGO_PKG_VERSION")))
        .https_only(!allow_http)
        .redirect(Policy::none())
        // A connection for each request: HTTP/2 would put all on one, which is slower.
        .http1_only()
        // Deadlines of whole requests are ours: they grow with the bytes that are moved.
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_COUNT_MAX)
        .dns_resolver(Spread)
        // Lengths are those of the objects.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .build();
    client.map(HttpClient::new).map_err(|error| {
        Error::new(ErrorKind::Invalid, "set up a client for the object store").because(error)
    })
}

/// Asks the host for the addresses of a name, and begins with any of them: a store has many.
#[derive(Debug)]
struct Spread;

impl Resolve for Spread {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let looked_up = host::spawn_blocking(move || {
                // The port is the URL's.
                (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter)
            });
            let mut addresses = looked_up.await??;
            let dice = u64::from_le_bytes(*host::random()?.first_chunk().unwrap_or(&[0; 8]));
            let count = to_u64(addresses.len()).max(1);
            addresses.rotate_left(to_usize(dice % count));
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
