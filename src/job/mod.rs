//! What a copy job is, where it stands, and what it has done: values that are stored, shown and
//! compared. Pure.

mod report;
mod spec;
mod state;

pub use report::{Progress, Receipt, Stall, Stalls, Verified};
pub use spec::{Endpoint, Fingerprint, JobSpec};
pub use state::JobState;

#[cfg(test)]
pub(crate) use spec::tests::sample_spec;
#[cfg(feature = "peer")]
pub(crate) use spec::{decode_attributes, encode_attributes};
pub(crate) use spec::{decode_limits, encode_limits};
