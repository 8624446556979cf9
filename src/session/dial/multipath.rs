//! Multipath TCP towards the server (RFC 8684). EFFECT.
//!
//! A leg asks for it unless it is known to fail with that server, and the result is remembered.
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::DialError;
use super::destinations::Kind;
use super::memory::Memory;
use crate::session::leg::Leg;
use crate::state::record::Mptcp;

/// A shorter timeout leaves no time for an ordinary SYN. `net.mptcp.syn_retrans_before_tcp_fallback` is 2, so the
/// SYNs of the first 3 s carry the option. The answer to the next may take another second.
const BEFORE_AN_ORDINARY_SYN: Duration = Duration::from_secs(4);

/// The decision whether one session's server leg asks for Multipath TCP.
pub struct Multipath<'a> {
    server: IpAddr,
    wanted: bool,
    avoided: bool,
    memory: &'a Memory,
}

impl<'a> Multipath<'a> {
    /// Decides for `server`: ask if Multipath TCP is `wanted` and not known to fail there.
    pub fn new(server: IpAddr, wanted: bool, memory: &'a Memory) -> Self {
        let avoided = wanted && memory.known().avoids(server, Kind::Mptcp, Instant::now());
        Self { server, wanted, avoided, memory }
    }

    /// Returns whether to create an MPTCP socket. A socket that falls back stays an MPTCP socket with its costs; a
    /// TCP socket has none.
    pub(super) fn asks(&self) -> bool {
        self.wanted && !self.avoided
    }

    /// Records the result on the connected `leg`, and remembers a failure for the next dial.
    pub(super) fn conclude(&self, leg: &Leg) {
        let became = match leg.is_mptcp_socket() {
            _ if !self.wanted => return,
            _ if self.avoided => Mptcp::Avoided,
            false => Mptcp::Refused,
            true if leg.mptcp() == Mptcp::Yes => return,
            // The kernel itself omits the option from later SYNs: mptcp_active_detect_blackhole() in
            // net/mptcp/ctrl.c.
            true if sys::handshake(leg.as_fd()).is_ok_and(|how| how.retransmits > 0) => Mptcp::Lost,
            true => Mptcp::Fallback,
        };
        leg.mptcp_became(became);
        if matches!(became, Mptcp::Fallback | Mptcp::Lost) {
            self.failed();
        }
    }

    /// Records that the dial failed. It counts as a failure of Multipath TCP if our timeout left no time for an
    /// ordinary SYN.
    pub(super) fn conclude_without(&self, err: &DialError) {
        if self.asks() && matches!(err, DialError::TimedOut { after } if *after < BEFORE_AN_ORDINARY_SYN) {
            self.failed();
        }
    }

    fn failed(&self) {
        self.memory.known().failed(self.server, Kind::Mptcp, Instant::now());
    }
}
