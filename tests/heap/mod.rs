//! An allocator that counts: what a thread holds at most, and what the process holds now.
//!
//! Also part of the fuzz crate.
#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
#![expect(dead_code, reason = "each of its users needs a part of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counted.
#[derive(Debug)]
pub(crate) struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The most bytes that this thread holds at once during `work`, above what it held before.
pub(crate) fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before).unsigned_abs()
}

/// The bytes that all threads hold now.
pub(crate) fn live_bytes() -> usize {
    LIVE.load(Ordering::Relaxed)
}

fn count(taken: usize, given_back: usize) {
    LIVE.fetch_add(taken.wrapping_sub(given_back), Ordering::Relaxed);
    let held = HELD.get() + taken.cast_signed() - given_back.cast_signed();
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting neither allocates
// nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller upholds what `alloc` asks.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller upholds what `alloc_zeroed` asks.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller upholds what `dealloc` asks.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old and the new one may both be there while it moves.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller upholds what `realloc` asks.
        unsafe { System.realloc(memory, layout, size) }
    }
}
