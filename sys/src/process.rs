//! Processes.
use std::fs;
use std::io;
use std::num::NonZeroI32;
use std::os::fd::RawFd;

/// Which of the two processes goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called; this is the other's number.
    Parent(NonZeroI32),
    /// The new one.
    Child,
}

/// Whether the calling thread is the process's only one; `ResourceBusy` if not.
pub(crate) fn alone() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{threads} threads run already"))),
    }
}

/// Duplicates this process.
///
/// # Errors
/// Those of fork(2), and `ResourceBusy` when there is more than one thread: the child would have only the calling one, and
/// whatever the others had locked would stay locked in it.
pub fn fork() -> io::Result<Fork> {
    alone()?;
    // SAFETY: there is no other thread, so the child is a whole copy of this process, and no lock or allocation is half done.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(NonZeroI32::new(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Duplicates this process but for its descriptor table: that both have in common, and what one opens or closes, the other has
/// or has not. Whatever owns a descriptor in the memory of one of them is there in the other's too: only one may drop it.
///
/// # Errors
/// Those of clone(2), and `ResourceBusy` as [`fork`].
pub fn clone_sharing_descriptors() -> io::Result<Fork> {
    alone()?;
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with no stack of its own the child is a copy as fork() makes one; all other arguments are
    // unused. There is no other thread. What the C library does in fork() besides is for several threads, and to know the child's
    // thread number, which it asks the kernel for where it matters (raise()).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(NonZeroI32::new(pid).map_or(Fork::Child, Fork::Parent)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a process that closes every descriptor but the standard three and those in `kept`, does `run` with `state`, and ends with the
/// status that `run` returns. `state` and everything else in the memory of this process is a copy there, and nothing of it is dropped:
/// `run` must use only those objects in it whose descriptors are in `kept`.
///
/// # Errors
/// Those of [`fork`].
pub fn fork_keeping<T>(kept: &[RawFd], state: &T, run: fn(&T) -> u8) -> io::Result<NonZeroI32> {
    let gaps = gaps(kept);
    match fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            // A panic must not unwind into the caller's frames, which would then drop what they own.
            let work = || {
                for &(first, last) in &gaps {
                    // SAFETY: close_range() touches no memory. The owners of these descriptors are never dropped or used here.
                    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
                        return u8::MAX;
                    }
                }
                run(state)
            };
            exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(u8::MAX))
        }
    }
}

/// The ranges of descriptor numbers above the standard three that are not in `kept`.
fn gaps(kept: &[RawFd]) -> Vec<(libc::c_uint, libc::c_uint)> {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter_map(|&fd| fd.try_into().ok()).collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 3;
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd + 1);
    }
    gaps.push((next, libc::c_uint::MAX));
    gaps
}

/// Ends this process as it stands: nothing is dropped, nothing is flushed.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit() does not come back and touches no memory.
    unsafe { libc::_exit(i32::from(status)) }
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

    #[test]
    fn what_is_not_kept_is_in_a_gap() {
        const MAX: u32 = u32::MAX;
        assert_eq!(gaps(&[]), [(3, MAX)]);
        assert_eq!(gaps(&[7, 3, 1]), [(4, 6), (8, MAX)]);
        assert_eq!(gaps(&[4, 5, 5]), [(3, 3), (6, MAX)]);
    }
}
