//! The process at the other end of a Unix socket.
use std::io;
use std::os::fd::BorrowedFd;

use crate::sockopt::{UCRED_WORDS, get};

/// The process that connected to, or listens on, the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id; `None` if it is in a PID namespace that this process cannot see.
    pub pid: Option<i32>,
    /// Its effective user id; 65534 (`kernel.overflowuid`) if the user namespace of this process does not map it.
    pub uid: u32,
}

/// Returns the process at the other end of `sock` (SO_PEERCRED).
pub fn peer(sock: BorrowedFd<'_>) -> io::Result<Peer> {
    // A `struct ucred`: pid, uid, gid.
    let [pid, uid, _]: [u32; UCRED_WORDS] = get(sock, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    let pid = Some(pid.cast_signed()).filter(|&pid| pid > 0);
    Ok(Peer { pid, uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer(one.as_fd()).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        // SAFETY: geteuid() touches no memory and cannot fail.
        assert_eq!(peer.uid, unsafe { libc::geteuid() });
    }
}
