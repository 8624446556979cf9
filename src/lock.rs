//! One instance per network namespace: SO_REUSEPORT would let a second one bind, and each would get half of the connections. EFFECT.
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::exit::{Exit, Fatal};

/// A name in the abstract namespace, which belongs to the network namespace and vanishes with the process.
const NAME: &[u8] = b"tcp-intercept";

/// Held as long as the instance lives.
#[derive(Debug)]
pub struct Lock {
    _socket: OwnedFd,
}

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another tcp-intercept{} runs in this network namespace: stop it first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The other's process, if it can be told.
        pid: Option<i32>,
    },
    /// No socket.
    #[error("cannot make the lock of this network namespace (the abstract socket @tcp-intercept): {0}")]
    Socket(io::Error),
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// When another process of this network namespace holds it.
    pub fn take() -> Result<Self, LockError> {
        let failed = |err: Errno| LockError::Socket(err.into());
        let name = SocketAddrUnix::new_abstract_name(NAME).map_err(failed)?;
        let socket = unix_socket().map_err(failed)?;
        match bind(&socket, &name) {
            // Whoever is refused can ask a listening socket for the process that holds it.
            Ok(()) => listen(&socket, 1).map(|()| Self { _socket: socket }).map_err(failed),
            Err(Errno::ADDRINUSE) => Err(LockError::Held { pid: holder(&name) }),
            Err(err) => Err(failed(err)),
        }
    }
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn holder(name: &SocketAddrUnix) -> Option<i32> {
    let socket = unix_socket().ok()?;
    connect(&socket, name).ok()?;
    Some(socket_peercred(socket.as_fd()).ok()?.pid.as_raw_nonzero().get())
}

impl From<LockError> for Fatal {
    fn from(err: LockError) -> Self {
        Self::new(Exit::Unavailable, err.to_string())
    }
}
