//! Signals that are read instead of striking.
use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

use libc::c_int;

use crate::descriptors::Registered;

/// Waiting signals, to be read one by one. They stay blocked for good, also in processes and threads that are made later.
#[derive(Debug)]
pub struct Signals(Registered<File>);

impl Signals {
    /// Watches for `signals` (numbers of signal(7)). Call it before there is a second thread: one that does not block them would
    /// get them.
    ///
    /// # Errors
    /// Those of signalfd(2), `EINVAL` for what is no signal.
    pub fn watch(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` is a valid signal set, and nothing is asked back.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // SAFETY: `set` is a valid signal set.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made, and nothing else owns it.
        Ok(Self(Registered::new(unsafe { File::from_raw_fd(fd) })))
    }

    /// The number of a signal that has come; `None`: none waits.
    ///
    /// # Errors
    /// None are known.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match (&*self.0).read_exact(&mut info) {
            // ssi_signo is the first of its members.
            Ok(()) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(err) => Err(err),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_of(signals: &[c_int]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset() writes the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was written.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: `set` is a valid signal set.
        if unsafe { libc::sigaddset(&mut set, signal) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_waits_until_it_is_read() {
        let signals = Signals::watch(&[libc::SIGWINCH]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: a signal to this very thread, which blocks it.
        unsafe { libc::raise(libc::SIGWINCH) };
        assert_eq!(signals.next().unwrap(), Some(libc::SIGWINCH));
        assert_eq!(signals.next().unwrap(), None);
    }
}
