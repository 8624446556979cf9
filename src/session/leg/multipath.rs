//! The state of Multipath TCP (RFC 8684) on a leg. EFFECT.
use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Protocol, Socket};

use super::Leg;
use crate::host::kernel::LegOptions;
use crate::log;
use crate::state::record::{Mptcp, Path, Paths};

/// The state of Multipath TCP on one leg.
#[derive(Debug)]
pub(super) struct Multipath {
    /// Whether it is an MPTCP socket, even one that has fallen back to TCP.
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
    /// Returns whether it is an MPTCP socket, even one that has fallen back to TCP. Reading from one costs memory for
    /// the requested length.
    pub fn is_mptcp_socket(&self) -> bool {
        self.multipath.socket
    }

    /// Returns how long sent data may stay unacknowledged on this leg, if the kernel does not enforce it. MPTCP
    /// sockets refuse TCP_USER_TIMEOUT.
    pub fn stall_limit(&self, options: &LegOptions) -> Option<Duration> {
        options.stall_on_mptcp.filter(|_| self.is_mptcp_socket())
    }

    /// Returns the present state of Multipath TCP. It asks the kernel only while Multipath TCP is in use.
    pub fn mptcp(&self) -> Mptcp {
        match self.multipath.became.get() {
            Mptcp::Yes if sys::is_mptcp(self.as_fd()).is_ok_and(|yes| !yes) => Mptcp::Broken,
            known => known,
        }
    }

    /// Records why the leg uses TCP, as the dial has shown.
    pub fn mptcp_became(&self, what: Mptcp) {
        self.multipath.became.set(what);
    }

    /// Returns whether every path has timed out and no new one came within `net.mptcp.close_timeout`. The kernel then
    /// reports only ENOTCONN (mptcp_worker() in net/mptcp/protocol.c).
    pub(super) fn lost_its_paths(&self, err: &io::Error) -> bool {
        self.multipath.socket && err.kind() == io::ErrorKind::NotConnected
    }

    /// Returns the paths: the present ones, or those remembered before the kernel closed them. A closed path has
    /// disappeared or has lost its byte counts.
    pub(super) fn paths(&self) -> Option<Paths> {
        let seen = self.multipath.seen.get().map(|seen| Paths::clone(seen));
        [seen, self.paths_now()].into_iter().flatten().max_by_key(Paths::carried)
    }

    /// Remembers the present paths. The kernel closes them with its last FIN. If a round trip is shorter than our
    /// next step, it has forgotten them before the close record is written.
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
