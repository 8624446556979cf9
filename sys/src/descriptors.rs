//! The descriptor table of a process: descriptors that the process owns, and other open ones.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::process::alone;

/// The last of the standard streams, which this module never touches.
const STANDARD: RawFd = 2;
/// The number of descriptors that one poll(2) examines.
const POLLED_AT_ONCE: usize = 1024;
/// The default of `fs.nr_open`: an unlimited RLIMIT_NOFILE allows no more (include/linux/fs.h).
const NR_OPEN: u64 = 1 << 20;

/// The numbers of all [`Registered`] descriptors of this process.
static REGISTERED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
/// The id of the process that has listed its [`Unowned`] descriptors.
static LISTED_BY: AtomicU32 = AtomicU32::new(0);

fn registered() -> MutexGuard<'static, BTreeSet<RawFd>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registered owner of a descriptor: while it lives, [`Unowned`] and [`close_unregistered`] leave the descriptor
/// alone. A process that uses one of these must register every descriptor that it owns.
#[derive(Debug)]
pub struct Registered<T: AsFd>(T);

impl<T: AsFd> Registered<T> {
    /// Registers the descriptor of `owner`. The number of that descriptor must not change.
    pub fn new(owner: T) -> Self {
        registered().insert(owner.as_fd().as_raw_fd());
        Self(owner)
    }
}

impl<T: AsFd> Drop for Registered<T> {
    fn drop(&mut self) {
        // This runs before the owner closes the descriptor: the kernel may reuse a free number immediately.
        registered().remove(&self.0.as_fd().as_raw_fd());
    }
}

impl<T: AsFd> Deref for Registered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the numbers of all open descriptors except the standard three, in ascending order. It uses poll(2), which
/// needs no descriptor and is ten times as fast as listing `/proc/self/fd`.
///
/// # Errors
/// Returns the errors of poll(2); none are known here.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    open_below(table_size().unwrap_or_else(descriptor_limit))
}

/// Returns the size of the descriptor table, which exceeds every number in it. Returns `None` if the process is out of
/// descriptors and cannot open `/proc/self/status`.
fn table_size() -> Option<RawFd> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("FDSize:"))?.trim().parse().ok()
}

/// Returns the numbers of the open descriptors below `limit`.
fn open_below(limit: RawFd) -> io::Result<Vec<RawFd>> {
    let mut open = Vec::new();
    let all: Vec<RawFd> = (STANDARD + 1..limit).collect();
    for some in all.chunks(POLLED_AT_ONCE) {
        let mut polled: Vec<_> = some.iter().map(|&fd| libc::pollfd { fd, events: 0, revents: 0 }).collect();
        // SAFETY: `polled` is readable and writable for `polled.len()` entries.
        match unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) } {
            // EINVAL: more entries than RLIMIT_NOFILE.
            -1 if some.len() > 1 => open.extend(some.iter().filter(|&&fd| is_open(fd))),
            -1 => return Err(io::Error::last_os_error()),
            // poll(2) takes descriptors that were opened with O_PATH for closed ones.
            _ => {
                let is_open = |p: &&libc::pollfd| p.revents & libc::POLLNVAL == 0 || is_open(p.fd);
                open.extend(polled.iter().filter(is_open).map(|p| p.fd));
            }
        }
    }
    Ok(open)
}

/// Returns one more than the highest number that a descriptor of this process may have.
fn descriptor_limit() -> RawFd {
    let mut limit = libc::rlimit { rlim_cur: NR_OPEN, rlim_max: NR_OPEN };
    // SAFETY: `limit` is writable. If the call fails, `limit` keeps its initial values.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    // The hard limit: the soft limit may have been lowered below numbers that are in use.
    RawFd::try_from(limit.rlim_max.max(limit.rlim_cur).min(NR_OPEN)).unwrap_or(RawFd::MAX)
}

/// Open descriptors that nothing in this process owns. The process has inherited them, or another process that shared
/// its table has opened them. Dropping the list closes nothing.
#[derive(Debug)]
pub struct Unowned(BTreeSet<RawFd>);

impl Unowned {
    /// Lists all open descriptors that are not [`Registered`], except the standard three. Call it once in a process,
    /// before the process has a second thread.
    ///
    /// # Errors
    /// `ResourceBusy` if it is called a second time or with more than one thread; else those of [`open_descriptors`].
    pub fn list() -> io::Result<Self> {
        alone()?;
        let me = std::process::id();
        if LISTED_BY.swap(me, Ordering::Relaxed) == me {
            let why = "the descriptors without an owner were listed before";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        let registered = registered();
        Ok(Self(open_descriptors()?.into_iter().filter(|fd| !registered.contains(fd)).collect()))
    }

    /// Returns the numbers, in ascending order.
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.0.iter().copied()
    }

    /// Borrows the descriptor with this number, if it is in the list.
    pub fn get(&self, number: RawFd) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor was open when it was listed. Nothing in this process owns it and could close it, and
        // it stays in the list while it is borrowed.
        self.0.contains(&number).then(|| unsafe { BorrowedFd::borrow_raw(number) })
    }

    /// Takes ownership of the descriptor with this number, if it is in the list.
    pub fn take(&mut self, number: RawFd) -> Option<OwnedFd> {
        // SAFETY: the descriptor is open, nothing in this process owned it, and it is no longer in the list.
        self.0.remove(&number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// Closes all listed descriptors except those in `needed`.
    pub fn keep(&mut self, needed: &BTreeSet<RawFd>) {
        for number in self.0.difference(needed).copied().collect::<Vec<_>>() {
            drop(self.take(number));
        }
    }
}

/// Closes every descriptor that is not [`Registered`], except the standard three.
///
/// # Errors
/// `ResourceBusy` if there is a second thread; else those of [`open_descriptors`].
pub fn close_unregistered() -> io::Result<()> {
    alone()?;
    let registered = registered();
    for fd in open_descriptors()?.into_iter().filter(|fd| !registered.contains(fd)) {
        // SAFETY: the descriptor is open, and nothing in this process owns it: every owner is registered.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Sets whether execve(2) closes `descriptors`.
///
/// # Errors
/// `EBADF` if one of them is not open.
pub fn set_close_on_exec(descriptors: &[RawFd], close: bool) -> io::Result<()> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    for &fd in descriptors {
        // SAFETY: this fcntl() command accesses no memory of this process.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Keeps the descriptors in `handed`, and all that this process does not own, open across execve(2). The kernel closes
/// the others there.
///
/// # Errors
/// Returns the errors of [`open_descriptors`] and [`set_close_on_exec`].
pub fn keep_over_exec(handed: &[RawFd]) -> io::Result<()> {
    let registered = registered();
    let (own, unowned): (Vec<_>, Vec<_>) =
        open_descriptors()?.into_iter().partition(|fd| registered.contains(fd));
    set_close_on_exec(&own, true)?;
    set_close_on_exec(&unowned, false)?;
    set_close_on_exec(handed, false)
}

/// Makes the process that `command` starts inherit copies of `descriptors` under the same numbers. Descriptors that
/// have been closed by then are left out.
pub fn inherit(command: &mut Command, descriptors: Vec<RawFd>) -> &mut Command {
    let keep = move || {
        // An error means that the descriptor has been closed in the meantime.
        descriptors.iter().for_each(|&fd| drop(set_close_on_exec(&[fd], false)));
        Ok(())
    };
    // SAFETY: between fork and exec, `keep` only makes system calls and allocates nothing.
    unsafe { command.pre_exec(keep) }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: this fcntl() command accesses no memory of this process.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_process_with_threads_cannot_list_or_close_unowned_descriptors() {
        // The thread of the test is the second one.
        assert_eq!(Unowned::list().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(close_unregistered().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn open_descriptors_are_found_with_either_source_of_the_table_size() {
        let (one, other) = io::pipe().unwrap();
        let path = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/").unwrap();
        let numbers = [one.as_raw_fd(), other.as_raw_fd(), path.as_raw_fd()];
        assert!(table_size().unwrap() <= descriptor_limit().max(256));
        for open in [open_descriptors().unwrap(), open_below(descriptor_limit()).unwrap()] {
            assert!(numbers.iter().all(|fd| open.contains(fd)), "{numbers:?} {open:?}");
        }
    }

    #[test]
    fn an_owner_is_registered_until_it_is_dropped() {
        let (one, _other) = io::pipe().unwrap();
        let number = one.as_raw_fd();
        let one = Registered::new(one);
        assert!(registered().contains(&number));
        assert_eq!(one.as_raw_fd(), number);
        drop(one);
        assert!(!registered().contains(&number));
    }

    #[test]
    fn a_child_inherits_the_given_descriptor_under_the_same_number() {
        let (read, write) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo whole >&{}", write.as_raw_fd())]);
        assert!(inherit(&mut command, vec![write.as_raw_fd()]).status().unwrap().success());
        drop(write);
        assert_eq!(io::read_to_string(read).unwrap(), "whole\n");
    }
}
