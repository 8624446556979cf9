//! Registration of sockets and other descriptors with the event loop of the runtime.
use std::io;
use std::os::fd::OwnedFd;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket that could not be registered, with the error.
#[derive(Debug)]
pub struct Unregistered {
    /// The socket, still open.
    pub socket: Socket,
    /// The error of epoll_ctl(2).
    pub err: io::Error,
}

impl From<Unregistered> for io::Error {
    /// Closes the socket.
    fn from(unregistered: Unregistered) -> Self {
        unregistered.err
    }
}

/// Registers `socket`, which must be non-blocking, with the runtime of this thread.
///
/// # Errors
/// Returns the socket with the error of epoll_ctl(2): ENOMEM, or ENOSPC if `fs.epoll.max_user_watches` is reached.
pub fn async_socket(socket: Socket, interest: Interest) -> Result<AsyncFd<Socket>, Unregistered> {
    // SAFETY: a `Socket` owns its descriptor, keeps the same one for its lifetime, and `AsyncFd` owns the `Socket`.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(|failed| {
        let (socket, err) = failed.into_parts();
        Unregistered { socket, err }
    })
}

/// Registers any other descriptor that epoll supports, such as a pidfd.
///
/// # Errors
/// Returns the errors of [`async_socket`], and `EPERM` for a descriptor that epoll does not support.
pub fn async_descriptor(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, keeps the same one for its lifetime, and `AsyncFd` owns the `OwnedFd`.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}
