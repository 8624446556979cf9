//! What Multipath TCP (RFC 8684) comes to on a leg. EFFECT.
use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Protocol, Socket};

use super::Leg;
use crate::host::kernel::LegOptions;
use crate::log;
use crate::state::record::{Mptcp, Path, Paths};

/// What a leg knows of it.
#[derive(Debug)]
pub(super) struct Multipath {
    /// It is an MPTCP socket, be it fallen back or not.
    socket: bool,
    became: Cell<Mptcp>,
    seen: OnceCell<Box<Paths>>,
}

impl Multipath {
    pub fn of(socket: &Socket, options: &LegOptions) -> io::Result<Self> {
        let is = options.mptcp && socket.protocol()? == Some(Protocol::MPTCP);
        let became = match options.mptcp {
            false => Mptcp::Off,
            true if is => Mptcp::Yes,
            true => Mptcp::Fallback,
        };
        Ok(Self { socket: is, became: Cell::new(became), seen: OnceCell::new() })
    }
}

impl Leg {
    /// An MPTCP socket, be it fallen back or not: reading from it costs memory for the length asked for.
    pub fn is_mptcp_socket(&self) -> bool {
        self.multipath.socket
    }

    /// The time for which sent data may stay unacknowledged on this leg, where the kernel does not watch that itself: MPTCP sockets refuse
    /// TCP_USER_TIMEOUT.
    pub fn stall_limit(&self, options: &LegOptions) -> Option<Duration> {
        options.stall_on_mptcp.filter(|_| self.is_mptcp_socket())
    }

    /// What has become of Multipath TCP so far; asks the kernel only where it is in use.
    pub fn mptcp(&self) -> Mptcp {
        match self.multipath.became.get() {
            Mptcp::Yes if sys::is_mptcp(self.as_fd()).is_ok_and(|yes| !yes) => Mptcp::Broken,
            known => known,
        }
    }

    /// Why it is TCP, as its dialling has shown.
    pub fn mptcp_became(&self, what: Mptcp) {
        self.multipath.became.set(what);
    }

    /// Each path has timed out, and no other came for `net.mptcp.close_timeout`: the kernel says no more of it than that it is not
    /// connected (mptcp_worker() in net/mptcp/protocol.c).
    pub(super) fn lost_its_paths(&self, err: &io::Error) -> bool {
        self.multipath.socket && err.kind() == io::ErrorKind::NotConnected
    }

    /// Its paths: those that there are, or those that there were before the kernel closed them. A closed one is gone or has lost
    /// its counts.
    pub(super) fn paths(&self) -> Option<Paths> {
        let seen = self.multipath.seen.get().map(|seen| Paths::clone(seen));
        [seen, self.paths_now()].into_iter().flatten().max_by_key(Paths::carried)
    }

    /// Keeps what is known of its paths: with its last FIN the kernel closes them, and where a round trip is shorter than our next
    /// step it has forgotten them before the record is written.
    pub(super) fn remember_paths(&self) {
        if log::recording()
            && let Some(paths) = self.paths_now()
        {
            let _ = self.multipath.seen.set(Box::new(paths));
        }
    }

    fn paths_now(&self) -> Option<Paths> {
        if self.multipath.became.get() != Mptcp::Yes {
            return None;
        }
        let subflows = sys::subflows(self.as_fd()).ok()?;
        let path = |subflow: &sys::Subflow| {
            let sys::Subflow { local, remote, sent, received } = *subflow;
            Path { local: local.ip(), remote: remote.ip(), sent, received }
        };
        Some(Paths(subflows.iter().map(path).collect())).filter(|paths| paths.count() > 0)
    }
}
