//! Regions in object stores, on a store in memory that loses, delays and denies answers as asked.

mod daemons;
#[cfg(feature = "encrypt")]
mod encrypted;
mod engines;
mod faults;
mod lives;
mod over_http;
mod places;
#[cfg(feature = "encrypt")]
mod wrapped;

use blockferry::store::Fencing;
use blockferry::testing::conformance;

use places::Bucket;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_region_conforms_where_heads_are_swapped() {
    conformance(&Bucket(Fencing::Swap)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_region_conforms_where_heads_are_numbered() {
    conformance(&Bucket(Fencing::Numbered)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_region_conforms_where_one_daemon_decides_alone() {
    conformance(&Bucket(Fencing::None)).await;
}
