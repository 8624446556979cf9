//! The return from a failed upgrade. If the new program fails before its first worker is ready, it runs the previous
//! program again in its place, with all sessions. EFFECT.
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sys::Registered;

use super::handover::{Handover, Inherited, Previous, replace};

/// What the previous program needs to run again.
struct Fallback {
    handover: Handover,
    binary: Registered<OwnedFd>,
    arguments: Vec<OsString>,
}

/// A static, so that a failure of the start finds it anywhere in the program.
static FALLBACK: Mutex<Option<Fallback>> = Mutex::new(None);

fn fallback() -> MutexGuard<'static, Option<Fallback>> {
    FALLBACK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arms the fallback: from now on a failure returns to the program that handed over, if that program can be run again.
pub fn arm(Inherited { handover, open }: &mut Inherited) {
    let Some(Previous { binary, arguments }) = handover.previous.clone() else { return };
    if let Some(binary) = open.take(binary) {
        let handover = Handover { previous: None, ..handover.clone() };
        *fallback() = Some(Fallback { handover, binary: Registered::new(binary), arguments });
    }
}

/// Disarms the fallback: the new program works and stays.
pub fn disarm() {
    *fallback() = None;
}

/// Records the log writers, including those of this program. If the previous program runs again, it is their parent and
/// must reap them.
pub fn set_log_writers(processes: Vec<i32>) {
    if let Some(fallback) = &mut *fallback() {
        fallback.handover.log_writers = processes;
    }
}

/// Returns whether a failure leads back to the previous program.
pub fn is_armed() -> bool {
    fallback().is_some()
}

/// Runs the previous program in this one's place, if this one was to replace it. Returns if there is no previous
/// program, or if it cannot be run. There must be no worker, and every descriptor that was handed over must still be
/// open.
pub fn go_back(why: &str) {
    let Some(Fallback { handover, binary, arguments }) = fallback().take() else { return };
    let failed = Some(format!("version {} has failed: {why}", env!("CARGO_PKG_VERSION")));
    let handover = Handover { version: env!("CARGO_PKG_VERSION").to_owned(), failed, ..handover };
    let path = PathBuf::from(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    let err = replace(&path, &arguments, &handover);
    tracing::error!("the previous program cannot be run again: {err}");
}
