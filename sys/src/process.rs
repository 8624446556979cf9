//! Processes.
use std::fs;
use std::io;
use std::num::NonZeroI32;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Which of the two processes goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called; this is the other's number.
    Parent(NonZeroI32),
    /// The new one.
    Child,
}

/// Whether the calling thread is the process's only one; `ResourceBusy` if not. It needs no descriptor.
pub(crate) fn alone() -> io::Result<()> {
    // A directory's links are itself, its name, and a `..` for each directory in it, which here is one a thread:
    // proc_task_getattr() in fs/proc/base.c.
    match fs::metadata("/proc/self/task")?.nlink().saturating_sub(2) {
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

/// Runs `child` in a duplicate of this process that shares its descriptor table: what one of the two opens or closes, the other has or has
/// no longer. The duplicate ends with the status that `child` returns; nothing is dropped in it. As it has no more than a reference, it cannot
/// close what the caller owns. Returns the duplicate's number.
///
/// # Errors
/// Those of clone(2), and `ResourceBusy` as [`fork`].
pub fn spawn_sharing_descriptors<T>(state: &T, child: fn(&T) -> u8) -> io::Result<NonZeroI32> {
    alone()?;
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with no stack of its own the child is a copy as fork() makes one; all other arguments are
    // unused. There is no other thread. What the C library does in fork() besides is for several threads, and to know the child's
    // thread number, which it asks the kernel for where it matters (raise()). The child never returns from here, so that no owner of a
    // descriptor is dropped in both processes.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => exit_now(child(state)),
        Ok(pid) => NonZeroI32::new(pid).filter(|pid| pid.get() > 0).ok_or_else(io::Error::last_os_error),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Has the process that `command` starts die when the calling thread does: PR_SET_PDEATHSIG.
pub fn die_with_caller(command: &mut Command) -> &mut Command {
    let bind = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: between fork and exec `bind` does nothing but a system call, and allocates nothing.
    unsafe { command.pre_exec(bind) }
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
        // The test's own thread is the second one.
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(spawn_sharing_descriptors(&(), |()| 0).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn what_is_not_kept_is_in_a_gap() {
        const MAX: u32 = u32::MAX;
        assert_eq!(gaps(&[]), [(3, MAX)]);
        assert_eq!(gaps(&[7, 3, 1]), [(4, 6), (8, MAX)]);
        assert_eq!(gaps(&[4, 5, 5]), [(3, 3), (6, MAX)]);
    }
}
