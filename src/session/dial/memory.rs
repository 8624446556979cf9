//! The results of earlier dials, shared by all threads. EFFECT.
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::destinations::{Destinations, Kind};
use crate::state::record::Mptcp;

/// The servers with which Fast Open or Multipath TCP fails.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Destinations>);

impl Memory {
    pub(super) fn known(&self) -> MutexGuard<'_, Destinations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the state of Multipath TCP at the end of a session with `server`. Success is known only then: a
    /// middlebox can pass the handshake and not the data (RFC 8684, section 3.7).
    pub fn ended(&self, server: IpAddr, became: Mptcp) {
        match became {
            Mptcp::Yes => self.known().worked(server, Kind::Mptcp),
            Mptcp::Broken => self.known().failed(server, Kind::Mptcp, Instant::now()),
            Mptcp::Off | Mptcp::Refused | Mptcp::Fallback | Mptcp::Lost | Mptcp::Avoided => {}
        }
    }
}
