//! Waiting for a condition instead of sleeping.
use std::time::{Duration, Instant};

/// Returns whether `done` became true within `limit`. It is polled every two milliseconds.
pub fn becomes(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `done` is true. Panics and names `what` if that takes longer than `limit`.
pub fn wait_until(what: &str, limit: Duration, done: impl FnMut() -> bool) {
    assert!(becomes(limit, done), "waited {limit:?} without success: {what}");
}
