//! Creation and end of processes.
use std::fs;
use std::io;
use std::num::NonZeroI32;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// The process in which fork() returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The calling process, with the process id of the child.
    Parent(NonZeroI32),
    /// The new process.
    Child,
}

/// Checks that the process has only one thread; else returns `ResourceBusy`. It needs no descriptor.
pub(crate) fn alone() -> io::Result<()> {
    // The link count of the directory is 2 plus one for each subdirectory, and each thread has a subdirectory:
    // proc_task_getattr() in fs/proc/base.c.
    match fs::metadata("/proc/self/task")?.nlink().saturating_sub(2) {
        1 => Ok(()),
        threads => Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{threads} threads run already"))),
    }
}

/// Duplicates this process with fork(2).
///
/// # Errors
/// Returns the errors of fork(2), and `ResourceBusy` if there is more than one thread. The child would have only the
/// calling thread, and locks of other threads would stay locked in it.
pub fn fork() -> io::Result<Fork> {
    alone()?;
    // SAFETY: there is no other thread. The child is a complete copy of this process, and no other thread holds a lock
    // or is inside the allocator.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(NonZeroI32::new(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Runs `child` in a duplicate of this process that shares its descriptor table: a descriptor that one of the two opens
/// or closes is open or closed in both. The duplicate exits with the status that `child` returns, and drops nothing.
/// `child` has only a reference to `state`, so it cannot close descriptors that the caller owns. Returns the process id
/// of the duplicate.
///
/// # Errors
/// Returns the errors of clone(2), and `ResourceBusy` as [`fork`] does.
pub fn spawn_sharing_descriptors<T>(state: &T, child: fn(&T) -> u8) -> io::Result<NonZeroI32> {
    alone()?;
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a new stack, the child is a copy like that of fork(); the kernel ignores the
    // other arguments. There is no other thread. The C library's fork() also handles other threads and caches the
    // child's thread id. The C library asks the kernel for that id where it matters (raise()). The child never returns
    // from here, so that no owner of a descriptor is dropped in both processes.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => exit_now(child(state)),
        Ok(pid) => NonZeroI32::new(pid).filter(|pid| pid.get() > 0).ok_or_else(io::Error::last_os_error),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Makes the kernel kill the process that `command` starts when the calling thread ends (PR_SET_PDEATHSIG).
pub fn die_with_caller(command: &mut Command) -> &mut Command {
    let bind = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: between fork and exec, `bind` only makes a system call and allocates nothing.
    unsafe { command.pre_exec(bind) }
}

/// Starts a process that closes every descriptor except the standard three and those in `kept`, calls `run` with
/// `state`, and exits with the status that `run` returns. Its memory, including `state`, is a copy of that of this
/// process, and it drops nothing. `run` must use only objects whose descriptors are in `kept`. Returns the process id.
///
/// # Errors
/// Returns the errors of [`fork`].
pub fn fork_keeping<T>(kept: &[RawFd], state: &T, run: fn(&T) -> u8) -> io::Result<NonZeroI32> {
    let gaps = gaps(kept);
    match fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            // A panic must not unwind into the caller's frames: these would drop owners of closed descriptors.
            let work = || {
                for &(first, last) in &gaps {
                    // SAFETY: close_range() accesses no memory. This process never drops or uses the owners of these
                    // descriptors.
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

/// Returns the ranges of descriptor numbers above the standard three that are not in `kept`.
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

/// Ends this process immediately: it drops no value and flushes no buffer.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit() does not return and accesses no memory.
    unsafe { libc::_exit(i32::from(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_duplicated() {
        // The thread of the test is the second one.
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(spawn_sharing_descriptors(&(), |()| 0).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn gaps_cover_all_descriptors_that_are_not_kept() {
        const MAX: u32 = u32::MAX;
        assert_eq!(gaps(&[]), [(3, MAX)]);
        assert_eq!(gaps(&[7, 3, 1]), [(4, 6), (8, MAX)]);
        assert_eq!(gaps(&[4, 5, 5]), [(3, 3), (6, MAX)]);
    }
}
