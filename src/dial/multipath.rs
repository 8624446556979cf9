//! Multipath TCP towards the server (RFC 8684): asked for where it is not known to fail, and what came of it is remembered. EFFECT.
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use super::destinations::Kind;
use super::memory::Memory;
use crate::leg::Leg;
use crate::record::Mptcp;

/// Whether one session's server leg asks for Multipath TCP.
pub struct Multipath<'a> {
    server: IpAddr,
    wanted: bool,
    avoided: bool,
    memory: &'a Memory,
}

impl<'a> Multipath<'a> {
    /// Towards `server`, if it is `wanted` and not known to fail there.
    pub fn new(server: IpAddr, wanted: bool, memory: &'a Memory) -> Self {
        let avoided = wanted && memory.known().avoids(server, Kind::Mptcp, Instant::now());
        Self { server, wanted, avoided, memory }
    }

    /// Whether the leg is to be an MPTCP socket. One that falls back stays one, and has its costs; a TCP socket has not.
    pub(super) fn asks(&self) -> bool {
        self.wanted && !self.avoided
    }

    /// What came of it, now that `leg` is connected; a failure is remembered for the next dial.
    pub(super) fn conclude(&self, leg: &Leg) {
        let became = match leg.is_mptcp_socket() {
            _ if !self.wanted => return,
            _ if self.avoided => Mptcp::Avoided,
            false => Mptcp::Refused,
            true if leg.mptcp() == Mptcp::Yes => return,
            // The kernel leaves the option out from the third SYN on: mptcp_active_should_disable() in net/mptcp/ctrl.c.
            true if sys::handshake(leg.as_fd()).is_ok_and(|how| how.retransmits > 0) => Mptcp::Lost,
            true => Mptcp::Fallback,
        };
        leg.mptcp_became(became);
        if matches!(became, Mptcp::Fallback | Mptcp::Lost) {
            self.memory.known().failed(self.server, Kind::Mptcp, Instant::now());
        }
    }
}
