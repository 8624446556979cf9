//! Multipath TCP towards the server (RFC 8684): asked for where it is not known to fail, and what came of it is remembered. EFFECT.
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::DialError;
use super::destinations::Kind;
use super::memory::Memory;
use crate::session::leg::Leg;
use crate::state::record::Mptcp;

/// The SYNs of the first three seconds have the option, as `net.mptcp.syn_retrans_before_tcp_fallback` is 2; the next may take a second to
/// be answered.
const BEFORE_AN_ORDINARY_SYN: Duration = Duration::from_secs(4);

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
            // The kernel itself leaves the option out of a later SYN: mptcp_active_detect_blackhole() in net/mptcp/ctrl.c.
            true if sys::handshake(leg.as_fd()).is_ok_and(|how| how.retransmits > 0) => Mptcp::Lost,
            true => Mptcp::Fallback,
        };
        leg.mptcp_became(became);
        if matches!(became, Mptcp::Fallback | Mptcp::Lost) {
            self.failed();
        }
    }

    /// No leg came about. It is remembered if an ordinary SYN might have fared better: when our timeout left it no time.
    pub(super) fn conclude_without(&self, err: &DialError) {
        if self.asks() && matches!(err, DialError::TimedOut { after } if *after < BEFORE_AN_ORDINARY_SYN) {
            self.failed();
        }
    }

    fn failed(&self) {
        self.memory.known().failed(self.server, Kind::Mptcp, Instant::now());
    }
}
