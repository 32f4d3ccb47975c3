//! What the fuzz targets share: a body by its name, under an allocator that counts.

#[path = "../../tests/heap/mod.rs"]
mod heap;

use blockferry::testing::fuzz::{Effort, body};
pub use libfuzzer_sys;

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// The entry of the target of that name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::run($name, data));
    };
}

/// Runs the body of that name.
///
/// # Panics
/// When something does not hold, or when it took more memory than twice its window.
pub fn run(name: &str, data: &[u8]) {
    let body = body(name).expect("a target is named after its body");
    let allowed = 2 * (body.window)(data.len());
    let peak = heap::peak_of(|| (body.run)(data, Effort::Quick));
    assert!(peak <= allowed, "{peak} bytes of heap for {} bytes; {allowed} allowed", data.len());
}
