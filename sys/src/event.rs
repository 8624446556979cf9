//! Sockets and the runtime's event loop.
use std::io;
use std::os::fd::OwnedFd;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket that could not be registered, and why.
#[derive(Debug)]
pub struct Unregistered {
    /// The socket, open as before.
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

/// Registers `socket`, which must be non-blocking, with this thread's runtime.
///
/// # Errors
/// Those of epoll_ctl(2), with the socket: ENOMEM, and ENOSPC when `fs.epoll.max_user_watches` is reached.
pub fn async_socket(socket: Socket, interest: Interest) -> Result<AsyncFd<Socket>, Unregistered> {
    // SAFETY: a `Socket` owns its descriptor, has the same one as long as it lives, and `AsyncFd` owns the `Socket`.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(|failed| {
        let (socket, err) = failed.into_parts();
        Unregistered { socket, err }
    })
}

/// Registers any other descriptor that can be waited for: a pidfd, say.
///
/// # Errors
/// As [`async_socket`], and `EPERM` for what cannot be waited for.
pub fn async_descriptor(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, has the same one as long as it lives, and `AsyncFd` owns the `OwnedFd`.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(io::Error::from)
}
