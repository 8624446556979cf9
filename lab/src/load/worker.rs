//! A thread that works until it is told to stop.
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::host::Host;

/// The flag that tells a worker's thread to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A thread on a host. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub(super) struct Worker<T> {
    stop: Stop,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Runs `work` on a thread that lives on `host`.
    pub(super) fn start(host: &Host, work: impl FnOnce(Stop) -> T + Send + 'static) -> Self {
        let (stop, host) = (Stop::default(), host.clone());
        let told = stop.clone();
        let thread = std::thread::spawn(move || host.enter(|| work(told)));
        Self { stop, thread: Some(thread) }
    }
}

impl<T> Worker<T> {
    /// Stops the thread and returns its result.
    pub(super) fn finish(mut self) -> T {
        self.stop.0.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap_or_else(|| unreachable!("a worker ends once"));
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
