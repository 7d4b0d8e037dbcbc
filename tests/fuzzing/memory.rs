//! The system's allocator, up to a bound.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be alive in a process that reads one small input after the other.
pub const MOST: usize = 512 << 20;

/// Refuses what is beyond [`MOST`], which ends the process.
pub struct Bounded;

static ALIVE: AtomicUsize = AtomicUsize::new(0);

// Passed on as it comes; the default `realloc` is made of the other two.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let alive = ALIVE.fetch_add(layout.size(), Ordering::Relaxed).saturating_add(layout.size());
        if alive > MOST {
            ALIVE.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}
