//! Our sockets that outlive us: TIME_WAIT, orphans, whatever a SIGKILL left. EFFECT.
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::units::OwnMark;

use super::diag::{Diag, Found, INET, INET6, MPTCP, States, TCP};

/// On whose behalf the rules are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The daemon, at its end: every socket with our marks is its own and may be destroyed.
    Daemon,
    /// Somebody else: a daemon may still be running, and its sockets are left alone.
    Operator,
}

/// What became of the leftovers.
#[derive(Debug)]
pub enum Cleared {
    /// None is left; so many were destroyed.
    Gone(usize),
    /// A process still holds such sockets: none was touched.
    InUse,
    /// So many could not be destroyed.
    Remain(usize),
}

/// A closed MPTCP socket and its subflows end one after the other: look again so often ...
const ROUNDS: usize = 20;
/// ... so long after.
const PAUSE: Duration = Duration::from_millis(10);

/// Destroys the leftovers and makes sure that none is left.
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

/// Whether a process holds a socket with our marks: a daemon runs.
pub fn in_use(own: OwnMark) -> io::Result<bool> {
    held(&Diag::open()?, own)
}

/// A subflow keeps the inode of its MPTCP socket after that is closed: there, the MPTCP socket is asked.
fn held(diag: &Diag, own: OwnMark) -> io::Result<bool> {
    let held = |socket: &Found| socket.inode != 0 && !socket.subflow;
    let all = States::ALL;
    Ok(find(diag, own, TCP, all)?.iter().any(held) || find_mptcp(diag, own, all)?.iter().any(held))
}

/// Waits until no handshake with a listener of ours is under way, for so long at most; gives up the others and says how many.
/// What then comes for one of those meets no socket, but the listener or the server, and either resets it: in a handshake with
/// a listener that is closed, the kernel would drop it without a word (tcp_v4_rcv() in net/ipv4/tcp_ipv4.c).
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

/// Waits until what ended sessions have left in their send buffers has been delivered, for so long at most.
pub fn let_deliver(own: OwnMark, at_most: Duration) -> io::Result<()> {
    let diag = Diag::open()?;
    let start = Instant::now();
    while delivers(&diag, own)? && start.elapsed() < at_most {
        sleep(PAUSE);
    }
    Ok(())
}

/// What no process holds any more and still has something to send; of a subflow, its MPTCP socket knows.
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

/// A kernel without Multipath TCP has no such sockets.
fn find_mptcp(diag: &Diag, own: OwnMark, states: States) -> io::Result<Vec<Found>> {
    match find(diag, own, MPTCP, states) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}
