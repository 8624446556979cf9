//! Endpoints whose address has gone and may come back: a cable that is pulled and put back, a DHCP client that gives its address up for
//! that time. PURE.
//!
//! With its endpoint the kernel ends the subflows of an address, and connections that exist get no others. Left alone, they go on when the
//! address is back.
use std::time::{Duration, Instant};

use crate::config::{Mptcp, MptcpPath, PathAt};

use super::endpoint::{Endpoint, Existing, Flags};
use super::plan::Seen;

/// How long an address is waited for.
pub const LINGER: Duration = Duration::from_secs(300);

/// The endpoints that served at the last look, and those that would if their address were back.
#[derive(Debug, Clone, Default)]
pub struct Served(Vec<One>);

#[derive(Debug, Clone)]
struct One {
    path: String,
    endpoint: Endpoint,
    gone: Option<Instant>,
}

/// The endpoints that the record says are ours, each with every path that it may be of: for who goes on where another left off, and does
/// not know which of them served. None of a path that is no longer as it was.
pub fn claims(mptcp: &Mptcp, seen: &Seen) -> Vec<(String, Endpoint)> {
    let ours = seen.endpoints.iter().filter(|have| seen.record.places.contains(&have.endpoint.place));
    let claims = |have: &Existing| {
        // Whatever number it has: the path's is for an endpoint that is made.
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
    /// They may serve, or their addresses may have gone just now.
    pub fn at_first(claims: Vec<(String, Endpoint)>) -> Self {
        Self(claims.into_iter().map(|(path, endpoint)| One { path, endpoint, gone: None }).collect())
    }

    /// Those that have a claim to stay `now`, each with its path.
    pub fn claims(&self, now: Instant) -> Vec<(String, Endpoint)> {
        let waited = |one: &&One| one.gone.is_none_or(|gone| now.duration_since(gone) < LINGER);
        self.0.iter().filter(waited).map(|one| (one.path.clone(), one.endpoint)).collect()
    }

    /// What has become of them: those that serve, and those that stay although their address has gone.
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

    /// How long after `now` the first has waited long enough.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let left = |gone: Instant| LINGER.saturating_sub(now.duration_since(gone));
        self.0.iter().filter_map(|one| one.gone).map(left).min()
    }
}
