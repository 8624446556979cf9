//! What all workers know of the servers that were dialled. EFFECT.
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::destinations::{Destinations, Kind};
use crate::state::record::Mptcp;

/// Which servers Fast Open and Multipath TCP fail with.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Destinations>);

impl Memory {
    pub(super) fn known(&self) -> MutexGuard<'_, Destinations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What Multipath TCP had become when a session with `server` ended. That it works is known only then: something on the way can
    /// let the handshake pass and not the data (RFC 8684, section 3.7).
    pub fn ended(&self, server: IpAddr, became: Mptcp) {
        match became {
            Mptcp::Yes => self.known().worked(server, Kind::Mptcp),
            Mptcp::Broken => self.known().failed(server, Kind::Mptcp, Instant::now()),
            Mptcp::Off | Mptcp::Refused | Mptcp::Fallback | Mptcp::Lost | Mptcp::Avoided => {}
        }
    }
}
