//! Descriptors that are kept for work that is needed most when there are none left. EFFECT.
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use sys::Registered;

/// Descriptors that are open for no other reason than to be given up. Each is a file of its own, as the system's limit counts files.
pub struct Reserve(Vec<Registered<OwnedFd>>);

impl Reserve {
    /// More than the pipes of a child process take.
    const DESCRIPTORS: usize = 16;

    /// Takes as many as there are.
    pub fn take() -> Self {
        let mut reserve = Self(Vec::new());
        reserve.refill();
        reserve
    }

    /// Gives them up.
    pub fn release(&mut self) {
        self.0.clear();
    }

    /// Takes again what is missing, as far as the kernel grants it.
    pub fn refill(&mut self) {
        while self.0.len() < Self::DESCRIPTORS {
            let Ok(fd) = eventfd(0, EventfdFlags::CLOEXEC) else { return };
            self.0.push(Registered::new(fd));
        }
    }

    /// Does `work` with the descriptors given up.
    pub fn lend<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.release();
        let done = work();
        self.refill();
        done
    }
}
