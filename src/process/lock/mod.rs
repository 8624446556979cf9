//! The lock: one instance per network namespace. SO_REUSEPORT would let a second one bind, and each would get half of
//! the connections. EFFECT.
//!
//! An instance holds a name in the abstract namespace of Unix sockets. That belongs to the network namespace, and a
//! name vanishes with its process. Such a name has no permissions: any local user can take it first. So the holder of a
//! name counts only if [it is trusted](is_trusted). If an untrusted process holds the preferred name, the instance
//! takes one that cannot be guessed.
mod holder;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};
use sys::Registered;

use crate::exit::{Exit, Fatal};

pub use self::holder::{Holder, is_trusted};
use self::holder::{Look, holders_of, look, names};

/// The preferred name. A name that cannot be guessed has `-` and 16 hex digits after it.
const NAME: &str = "tcp-intercept";
/// The queue for operators and second instances.
const BACKLOG: i32 = 16;
/// The number of attempts at a name whose holder is unknown, and the pause between two attempts.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// The lock, held for the life of the instance.
#[derive(Debug)]
pub struct Lock {
    socket: Registered<OwnedFd>,
    displaced: Option<Displaced>,
}

/// The report that an untrusted process holds the preferred name.
#[derive(Debug)]
pub struct Displaced {
    /// The untrusted process.
    pub by: Holder,
    /// The name that the instance has taken instead.
    pub name: String,
}

/// Why the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another instance holds the lock.
    #[error(
        "another tcp-intercept{} runs in this network namespace: stop it first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The other's process number, if known.
        pid: Option<i32>,
    },
    /// A socket cannot be made.
    #[error("cannot make the lock of this network namespace (the abstract socket @tcp-intercept): {0}")]
    Socket(io::Error),
}

impl From<Errno> for LockError {
    fn from(err: Errno) -> Self {
        Self::Socket(err.into())
    }
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Fails if another instance holds the lock of this network namespace, or if a socket cannot be made.
    pub fn take() -> Result<Self, LockError> {
        let (socket, displaced) = match take_first_choice()? {
            Ok(socket) => (socket, None),
            Err(by) => {
                let name = unguessable()?;
                let socket = take(&name)?.ok_or(LockError::Socket(Errno::ADDRINUSE.into()))?;
                (socket, Some(Displaced { by, name }))
            }
        };
        let own = displaced.as_ref().map_or(NAME, |displaced| &displaced.name);
        // An earlier instance may have taken a different name. Each listens before it looks, so at least one of two
        // sees the other.
        let others = names().into_iter().filter(|name| name != own).collect();
        let holders = survey(others, |_| false);
        match holders.into_iter().find(|holder| holder.trusted) {
            Some(other) => Err(LockError::Held { pid: other.pid }),
            None => Ok(Self { socket: Registered::new(socket), displaced }),
        }
    }

    /// Adopts the socket of a lock that the previous program has taken.
    pub fn held(socket: OwnedFd) -> Self {
        Self { socket: Registered::new(socket), displaced: None }
    }

    /// Returns the untrusted process that holds the preferred name, for a warning to the operator.
    pub fn displaced(&self) -> Option<&Displaced> {
        self.displaced.as_ref()
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes the preferred name, or returns the untrusted process that holds it.
fn take_first_choice() -> Result<Result<OwnedFd, Holder>, LockError> {
    for _ in 0..TRIES {
        if let Some(socket) = take(NAME)? {
            return Ok(Ok(socket));
        }
        match look(NAME) {
            Look::Held(holder, _) if holder.trusted => return Err(LockError::Held { pid: holder.pid }),
            Look::Held(holder, _) => return Ok(Err(holder)),
            // An instance that has just bound its name may not listen yet. A busy one may have to accept some callers
            // first.
            Look::Refused | Look::Full => sleep(PAUSE),
        }
    }
    match holders_of(&[NAME.to_owned()]).pop() {
        Some(holder) if holder.trusted => Err(LockError::Held { pid: holder.pid }),
        holder => Ok(Err(holder.unwrap_or(Holder::UNKNOWN))),
    }
}

/// Takes `name`; `None` if another process has it.
fn take(name: &str) -> Result<Option<OwnedFd>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
        // A socket that listens lets others connect and identify the process that holds the name.
        Ok(()) => listen(&socket, BACKLOG).map(|()| Some(socket)),
        Err(Errno::ADDRINUSE) => Ok(None),
        Err(err) => Err(err),
    }
}

fn unguessable() -> Result<String, Errno> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{NAME}-{:016x}", u64::from_ne_bytes(bytes)))
}

/// Connects to the holders of `names` until `found` takes a connection, and returns the holders seen so far. Retries a
/// name whose queue is full for half a second: a busy daemon makes room.
fn survey(mut names: Vec<String>, mut found: impl FnMut(Option<OwnedFd>) -> bool) -> Vec<Holder> {
    let mut holders = Vec::new();
    for _ in 0..TRIES {
        let mut full = Vec::new();
        for name in names {
            match look(&name) {
                Look::Held(holder, connection) => {
                    let done = holder.trusted && found(Some(connection));
                    holders.push(holder);
                    if done {
                        return holders;
                    }
                }
                Look::Refused => {}
                Look::Full => full.push(name),
            }
        }
        names = full;
        if names.is_empty() {
            return holders;
        }
        sleep(PAUSE);
    }
    holders.extend(holders_of(&names));
    holders
}

/// The result of looking for the daemon.
#[derive(Debug)]
pub enum Call {
    /// A connection to the daemon.
    Daemon(UnixStream),
    /// No daemon runs in this network namespace.
    Nobody,
    /// A process that this user does not trust holds the daemon's name.
    Stranger(Holder),
}

/// Connects to the daemon that holds the lock of this network namespace.
///
/// # Errors
/// Fails if the daemon takes no connection for half a second, because it is busy.
pub fn call() -> io::Result<Call> {
    let mut connection = None;
    let holders = survey(names(), |found| {
        connection = found;
        true
    });
    if let Some(connection) = connection {
        let stream = UnixStream::from(connection);
        stream.set_nonblocking(false)?;
        return Ok(Call::Daemon(stream));
    }
    if holders.iter().any(|holder| holder.trusted) {
        return Err(Errno::AGAIN.into());
    }
    Ok(holders.into_iter().next().map_or(Call::Nobody, Call::Stranger))
}

impl From<LockError> for Fatal {
    fn from(err: LockError) -> Self {
        Self::new(Exit::Unavailable, err.to_string())
    }
}
