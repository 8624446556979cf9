//! Our sockets that outlive us: TIME_WAIT, orphans, whatever a SIGKILL left. EFFECT.
use std::io;
use std::thread::sleep;
use std::time::Duration;

use crate::units::OwnMark;

use super::diag::{Diag, Found, INET, INET6, MPTCP, TCP};

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

/// A closed MPTCP socket and its subflows end one after the other: look again so often, so long after.
const ROUNDS: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Destroys the leftovers and makes sure that none is left.
pub fn clear(own: OwnMark, caller: Caller) -> io::Result<Cleared> {
    let diag = Diag::open()?;
    if caller == Caller::Operator && held(&diag, own)? {
        return Ok(Cleared::InUse);
    }
    let mut destroyed = 0;
    for _ in 0..ROUNDS {
        let left = find(&diag, own, TCP)?;
        if left.is_empty() {
            return Ok(Cleared::Gone(destroyed));
        }
        left.iter().try_for_each(|socket| diag.destroy(socket))?;
        destroyed += left.len();
        sleep(PAUSE);
    }
    match find(&diag, own, TCP)?.len() {
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
    Ok(find(diag, own, TCP)?.iter().any(held) || find_mptcp(diag, own)?.iter().any(held))
}

fn find(diag: &Diag, own: OwnMark, protocol: u32) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for family in [INET, INET6] {
        for mark in [own.server(), own.client()] {
            all.extend(diag.find(family, protocol, mark, own.mask())?);
        }
    }
    Ok(all)
}

/// A kernel without Multipath TCP has no such sockets.
fn find_mptcp(diag: &Diag, own: OwnMark) -> io::Result<Vec<Found>> {
    match find(diag, own, MPTCP) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}
