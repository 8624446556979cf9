//! The descriptor table of a process as a whole.
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::alone;

/// Standard input, output and error are nobody's to take.
const STANDARD: RawFd = 2;

/// The process that has taken its inheritance.
static TAKEN_BY: AtomicU32 = AtomicU32::new(0);

/// The numbers of all descriptors that are open, but the standard three.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listing: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // Among them was the one by which they were listed.
    Ok(listing.into_iter().filter(|&fd| fd > STANDARD && is_open(fd)).collect())
}

/// Makes this process the owner of every descriptor that was open when it began, but for the standard three and those in
/// `kept`, which must name all that anything in its memory owns already. To be called once, before it has a second thread or
/// has opened anything else.
///
/// # Errors
/// `ResourceBusy` when it is called again or too late; else those of reading `/proc/self/fd`.
pub fn inherited(kept: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    alone()?;
    let me = std::process::id();
    if TAKEN_BY.swap(me, Ordering::Relaxed) == me {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the inheritance was taken before"));
    }
    let open = open_descriptors()?;
    let strange = open.into_iter().filter(|fd| !kept.contains(fd));
    // SAFETY: it is open, nothing in this process owns it as `kept` has all that something owns, and this is done once.
    Ok(strange.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Closes every descriptor but the standard three and those in `kept`, which must name all that anything in memory owns.
///
/// # Errors
/// `ResourceBusy` when there is a second thread, which may own some; else those of reading `/proc/self/fd`.
pub fn close_others(kept: &[RawFd]) -> io::Result<()> {
    alone()?;
    for fd in open_descriptors()?.into_iter().filter(|fd| !kept.contains(fd)) {
        // SAFETY: nothing in this process owns it, as `kept` has all that something owns.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Lets the descriptors stay open over execve(2), or not.
///
/// # Errors
/// `EBADF` when one is not open.
pub fn set_close_on_exec(descriptors: &[RawFd], close: bool) -> io::Result<()> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    for &fd in descriptors {
        // SAFETY: fcntl() touches no memory of ours.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has the process that `command` starts inherit copies of `descriptors`, under the same numbers, as far as they are still open then.
pub fn inherit(command: &mut Command, descriptors: Vec<RawFd>) -> &mut Command {
    let keep = move || {
        // One that has been closed meanwhile is none that could be inherited.
        descriptors.iter().for_each(|&fd| drop(set_close_on_exec(&[fd], false)));
        Ok(())
    };
    // SAFETY: between fork and exec `keep` does nothing but system calls, and allocates nothing.
    unsafe { command.pre_exec(keep) }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl() touches no memory of ours.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_process_that_has_threads_cannot_take_its_inheritance() {
        // The test's own thread is the second one.
        assert_eq!(inherited(&[]).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn what_is_open_is_listed_and_what_is_closed_is_not() {
        let (one, other) = io::pipe().unwrap();
        let (open, closed) = (one.as_raw_fd(), other.as_raw_fd());
        assert!([open, closed].iter().all(|fd| open_descriptors().unwrap().contains(fd)));
        set_close_on_exec(&[open], false).unwrap();
        set_close_on_exec(&[open], true).unwrap();
    }

    #[test]
    fn a_child_inherits_what_it_is_to_under_the_same_number() {
        let (read, write) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo whole >&{}", write.as_raw_fd())]);
        assert!(inherit(&mut command, vec![write.as_raw_fd()]).status().unwrap().success());
        drop(write);
        assert_eq!(io::read_to_string(read).unwrap(), "whole\n");
    }
}
