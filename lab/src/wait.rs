//! Waiting for what must become true, instead of sleeping.
use std::time::{Duration, Instant};

/// Whether `done` became true within `limit`; asked every two milliseconds.
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

/// Waits until `done`; panics with `what` was waited for when it does not come within `limit`.
pub fn wait_until(what: &str, limit: Duration, done: impl FnMut() -> bool) {
    assert!(becomes(limit, done), "waited {limit:?} in vain: {what}");
}
