//! Processes.
use std::fs;
use std::io;
use std::num::NonZeroI32;

/// Which of the two processes goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called; this is the other's number.
    Parent(NonZeroI32),
    /// The new one.
    Child,
}

/// Duplicates this process.
///
/// # Errors
/// Those of fork(2), and `ResourceBusy` when there is more than one thread: the child would have only the calling one, and
/// whatever the others had locked would stay locked in it.
pub fn fork() -> io::Result<Fork> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{threads} threads run already")));
    }
    // SAFETY: there is no other thread, so the child is a whole copy of this process, and no lock or allocation is half done.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(NonZeroI32::new(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_duplicated() {
        std::thread::spawn(|| assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::ResourceBusy))
            .join()
            .unwrap();
    }
}
