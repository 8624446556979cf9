//! Signals that are read from a descriptor (signalfd) instead of interrupting the process.
use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

use libc::c_int;

use crate::descriptors::Registered;

/// Pending signals, read one by one. They stay blocked permanently, also in processes and threads that are created
/// later.
#[derive(Debug)]
pub struct Signals(Registered<File>);

impl Signals {
    /// Blocks `signals` (numbers of signal(7)) and watches for them. Call it before there is a second thread: the
    /// kernel delivers signals to threads that do not block them.
    ///
    /// # Errors
    /// Returns the errors of signalfd(2), and `EINVAL` for an invalid signal number.
    pub fn watch(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` is a valid signal set, and the pointer for the old set may be null.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // SAFETY: `set` is a valid signal set.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nothing else owns it.
        Ok(Self(Registered::new(unsafe { File::from_raw_fd(fd) })))
    }

    /// Returns the number of the next pending signal; `None` if there is none.
    ///
    /// # Errors
    /// Returns the errors of read(2); none are known here.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match (&*self.0).read_exact(&mut info) {
            // `ssi_signo` is the first member of the structure.
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
    // SAFETY: sigemptyset() has initialised the set.
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
        // SAFETY: raise() sends the signal to this thread, which blocks it.
        unsafe { libc::raise(libc::SIGWINCH) };
        assert_eq!(signals.next().unwrap(), Some(libc::SIGWINCH));
        assert_eq!(signals.next().unwrap(), None);
    }
}
