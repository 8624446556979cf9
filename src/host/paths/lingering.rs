//! Endpoints whose address has vanished and may return, such as when a DHCP client releases its address while the cable
//! is unplugged. PURE.
//!
//! When an endpoint is deleted, the kernel ends its subflows, and existing connections get no others. If the endpoint
//! stays, the subflows continue when the address returns.
use std::time::{Duration, Instant};

use crate::config::{Mptcp, MptcpPath, PathAt};

use super::endpoint::{Endpoint, Existing, Flags};
use super::plan::Seen;

/// How long an endpoint waits for its address to return.
pub const LINGER: Duration = Duration::from_secs(300);

/// The endpoints that served at the last look, and those that wait for their address.
#[derive(Debug, Clone, Default)]
pub struct Served(Vec<One>);

#[derive(Debug, Clone)]
struct One {
    path: String,
    endpoint: Endpoint,
    gone: Option<Instant>,
}

/// Returns the endpoints in the record, each with every path that it may belong to. A process that takes over does not
/// know which of them served. Endpoints that no longer match the settings of a path are left out.
pub fn claims(mptcp: &Mptcp, seen: &Seen) -> Vec<(String, Endpoint)> {
    let ours = seen.endpoints.iter().filter(|have| seen.record.places.contains(&have.endpoint.place));
    let claims = |have: &Existing| {
        // The id is ignored: the id of a path applies only to a new endpoint.
        let endpoint = Endpoint { id: None, ..have.endpoint };
        let paths = mptcp.paths.iter().filter(move |path| is_of(path, &endpoint, seen));
        paths.map(move |path| (path.to_string(), endpoint))
    };
    ours.flat_map(claims).collect()
}

fn is_of(path: &MptcpPath, endpoint: &Endpoint, seen: &Seen) -> bool {
    let there = match &path.at {
        PathAt::Device(name) => seen.devices.get(name).copied().flatten() == Some(endpoint.device),
        PathAt::Address(ip) => *ip == endpoint.place.address,
    };
    let flags = Flags::new(path.announce.is_some(), path.backup);
    there && (endpoint.place.port, endpoint.flags) == (path.announce, flags)
}

impl Served {
    /// Starts with `claims`, as if their addresses existed or had vanished just now.
    pub fn at_first(claims: Vec<(String, Endpoint)>) -> Self {
        Self(claims.into_iter().map(|(path, endpoint)| One { path, endpoint, gone: None }).collect())
    }

    /// Returns the endpoints that may stay at the time `now`, each with its path.
    pub fn claims(&self, now: Instant) -> Vec<(String, Endpoint)> {
        let waited = |one: &&One| one.gone.is_none_or(|gone| now.duration_since(gone) < LINGER);
        self.0.iter().filter(waited).map(|one| (one.path.clone(), one.endpoint)).collect()
    }

    /// Records the endpoints that serve, and those that stay although their address has vanished.
    pub fn update(
        &mut self,
        serving: Vec<(String, Endpoint)>,
        lingering: Vec<(String, Endpoint)>,
        now: Instant,
    ) {
        let since = |path: &str, endpoint: &Endpoint| {
            let before = self.0.iter().find(|one| one.path == path && one.endpoint == *endpoint);
            before.and_then(|one| one.gone).unwrap_or(now)
        };
        let gone = |(path, endpoint): (String, Endpoint)| {
            let gone = Some(since(&path, &endpoint));
            One { path, endpoint, gone }
        };
        let lingering: Vec<One> = lingering.into_iter().map(gone).collect();
        let serving = serving.into_iter().map(|(path, endpoint)| One { path, endpoint, gone: None });
        self.0 = serving.chain(lingering).collect();
    }

    /// Returns the time from `now` until the wait of the first endpoint ends.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = |gone: Instant| LINGER.saturating_sub(now.duration_since(gone));
        self.0.iter().filter_map(|one| one.gone).map(left).min()
    }
}
