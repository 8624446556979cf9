//! Sockets of ours that outlive the process: in TIME_WAIT, orphaned, or left by a SIGKILL. EFFECT.
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::units::OwnMark;

use super::diag::{Diag, Found, INET, INET6, MPTCP, States, TCP};

/// The caller of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The daemon, at its end: every socket with our marks is its own and may be destroyed.
    Daemon,
    /// The operator: a daemon may still be running, and its sockets are left alone.
    Operator,
}

/// The result of [`clear`].
#[derive(Debug)]
pub enum Cleared {
    /// No leftover socket exists any more; contains the number destroyed.
    Gone(usize),
    /// A process has such sockets open: none was destroyed.
    InUse,
    /// Some could not be destroyed; contains their number.
    Remain(usize),
}

/// The highest number of passes: a closed MPTCP socket and its subflows end one after the other.
const ROUNDS: usize = 20;
/// The pause between two passes.
const PAUSE: Duration = Duration::from_millis(10);

/// Destroys the leftover sockets, and checks that none is left.
pub fn clear(own: OwnMark, caller: Caller) -> io::Result<Cleared> {
    let diag = Diag::open()?;
    if caller == Caller::Operator && held(&diag, own)? {
        return Ok(Cleared::InUse);
    }
    let mut destroyed = 0;
    for _ in 0..ROUNDS {
        let left = find(&diag, own, TCP, States::ALL)?;
        if left.is_empty() {
            return Ok(Cleared::Gone(destroyed));
        }
        left.iter().try_for_each(|socket| diag.destroy(socket))?;
        destroyed += left.len();
        sleep(PAUSE);
    }
    match find(&diag, own, TCP, States::ALL)?.len() {
        0 => Ok(Cleared::Gone(destroyed)),
        left => Ok(Cleared::Remain(left)),
    }
}

/// Tells whether a process has a socket with our marks open, that is, whether a daemon runs.
pub fn in_use(own: OwnMark) -> io::Result<bool> {
    held(&Diag::open()?, own)
}

/// Does the same on an open connection. A subflow keeps the inode of its MPTCP socket after that is closed, so the
/// MPTCP socket decides instead.
fn held(diag: &Diag, own: OwnMark) -> io::Result<bool> {
    let held = |socket: &Found| socket.inode != 0 && !socket.subflow;
    let all = States::ALL;
    Ok(find(diag, own, TCP, all)?.iter().any(held) || find_mptcp(diag, own, all)?.iter().any(held))
}

/// Waits up to `at_most` until no handshake with one of our listeners is in progress; destroys the remaining handshakes
/// and returns their number.
///
/// Later segments of a destroyed handshake reach the listener or the server, and either answers with a reset. If the
/// handshake still existed when its listener closes, the kernel would drop them silently (`tcp_v4_rcv()` in
/// net/ipv4/tcp_ipv4.c).
pub fn end_handshakes(own: OwnMark, at_most: Duration) -> io::Result<usize> {
    let diag = Diag::open()?;
    let start = Instant::now();
    loop {
        let left = find(&diag, own, TCP, States::ANSWERED)?;
        if left.is_empty() || start.elapsed() >= at_most {
            left.iter().try_for_each(|socket| diag.destroy(socket))?;
            return Ok(left.len());
        }
        sleep(PAUSE);
    }
}

/// Waits up to `at_most` until the send buffers of ended sessions are delivered.
pub fn let_deliver(own: OwnMark, at_most: Duration) -> io::Result<()> {
    let diag = Diag::open()?;
    let start = Instant::now();
    while delivers(&diag, own)? && start.elapsed() < at_most {
        sleep(PAUSE);
    }
    Ok(())
}

/// Tells whether an orphaned socket still has data or a FIN to deliver. Subflows are skipped: their MPTCP socket
/// decides.
fn delivers(diag: &Diag, own: OwnMark) -> io::Result<bool> {
    let orphan = |socket: &Found| socket.inode == 0 && !socket.subflow;
    let sending = States::DELIVERING;
    Ok(find(diag, own, TCP, sending)?.iter().any(orphan)
        || find_mptcp(diag, own, sending)?.iter().any(orphan))
}

fn find(diag: &Diag, own: OwnMark, protocol: u32, states: States) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for family in [INET, INET6] {
        for mark in [own.server(), own.client()] {
            all.extend(diag.find(family, protocol, states, mark, own.mask())?);
        }
    }
    Ok(all)
}

/// Returns the MPTCP sockets; none if the kernel has no Multipath TCP.
fn find_mptcp(diag: &Diag, own: OwnMark, states: States) -> io::Result<Vec<Found>> {
    match find(diag, own, MPTCP, states) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}
