//! The calls of three clouds over one [`ImageService`](crate::service::ImageService), as their own
//! SDKs make them.
//!
//! | dialect | signed by | one listener for |
//! |---|---|---|
//! | Alibaba ECS | RPC HMAC-SHA1, ACS3-HMAC-SHA256 | all regions: a parameter names it |
//! | Baidu BCC | bce-auth-v1 | each region: the host is the region |
//! | Huawei IMS | SDK-HMAC-SHA256 | each region: the host is the region |
//!
//! An [`Api`] answers requests; it knows no socket. A [`Door`] lets connections in, within bounds,
//! and hands it what they send. What nobody granted is denied, and what one may not see is not
//! found. `blockferry api` is this with a configuration file, [`Config`].
//!
//! Rules that no document states are choices. They are marked \[C\] where they are made, each in
//! one place: the errors in a dialect's `faults`, the order of checks in its `calls`, names in
//! [`service`](crate::service).
//!
//! What a signature does not cover cannot be trusted without TLS: bce-auth-v1 signs no body, and
//! neither it nor SDK-HMAC-SHA256 has a nonce, so that who can listen can repeat a request while it
//! is good. Alibaba's nonces are remembered while they are good, but not beyond a restart: after
//! one, a CopyImage that is sent again is told of the copy that it has started.

pub(crate) mod alibaba;
mod api;
pub(crate) mod baidu;
mod calendar;
mod config;
mod door;
pub(crate) mod huawei;
mod keys;
mod metrics;
mod nonce;
mod rate;
mod reply;
mod request;
mod sign;
pub(crate) mod text;

pub use api::{Api, ApiOptions, Face};
pub use config::{Config, ImageConfig, KeyConfig, ListenConfig, RegionConfig};
pub use door::{Door, DoorLimits, ServerTls, serve_admin};
pub use keys::{AccessKey, Keys, Secret};
pub use reply::{Reply, Trouble};
pub use request::Request;
pub use sign::{CLOCK_SKEW_SEC, Claim, Scheme, SignFault};
