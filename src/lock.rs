//! One instance per network namespace: SO_REUSEPORT would let a second one bind, and each would get half of the connections. EFFECT.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use sys::Registered;

use crate::exit::{Exit, Fatal};

/// A name in the abstract namespace, which belongs to the network namespace and vanishes with the process.
const NAME: &[u8] = b"tcp-intercept";
/// Operators and second instances that wait to be heard.
const BACKLOG: i32 = 16;

/// Held as long as the instance lives.
#[derive(Debug)]
pub struct Lock {
    socket: Registered<OwnedFd>,
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
            Ok(()) => listen(&socket, BACKLOG).map(|()| Self::held(socket)).map_err(failed),
            Err(Errno::ADDRINUSE) => Err(LockError::Held { pid: holder(&name) }),
            Err(err) => Err(failed(err)),
        }
    }
}

impl Lock {
    /// The one that this socket is, which a program before this one has taken.
    pub fn held(socket: OwnedFd) -> Self {
        Self { socket: Registered::new(socket) }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connection to the daemon that holds the lock of this network namespace; `None`: there is none.
///
/// # Errors
/// When it does not let anybody in, as it must be busy for long.
pub fn call() -> io::Result<Option<UnixStream>> {
    let name = SocketAddrUnix::new_abstract_name(NAME)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &name) {
        Ok(()) => Ok(Some(socket.into())),
        Err(Errno::CONNREFUSED) => Ok(None),
        Err(err) => Err(err.into()),
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
