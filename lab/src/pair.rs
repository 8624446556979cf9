//! client – near box – WAN – far box – server: a box on each side of the bad link, with one or more paths between them.
use std::net::SocketAddr;

use crate::host::{End, Host, link};
use crate::topology::{BOTH, CLIENT, Ip, Net, SERVER, join, router, speak_cubic};
use crate::wan::{Path, Profile, Wan};

/// Hosts in a line with the WAN in the middle. The client is 10.1.0.2 and fd01::2 behind the near box's `lan0`, the
/// server 10.2.0.2 and fd02::2 behind the far box's `lan0`. Path `n` is `wan<n>` on both boxes: 10.3.n.1 and
/// fd03:0:0:n::1 at the near box, 10.3.n.2 and fd03:0:0:n::2 at the far box.
///
/// The boxes only route, by path 0. Packets from a box's address on another path leave by that path. The client and the
/// server use CUBIC, independent of the machine's default.
#[derive(Debug)]
pub struct Pair {
    /// The paths of the WAN; none if they are plain cables.
    pub paths: Vec<Path>,
    /// The host that opens connections.
    pub client: Host,
    /// The box on the client's side of the WAN.
    pub near: Host,
    /// The box on the server's side of the WAN.
    pub far: Host,
    /// The host that accepts connections.
    pub server: Host,
    _wan: Option<Wan>,
}

impl Pair {
    /// Builds the pair with the paths of a profile.
    pub fn new(profile: &Profile) -> Self {
        let mut pair = Self::apart();
        let wan = Wan::new();
        let conditions = (0..).zip(&profile.paths);
        let lay = |n, near: End<'_>, far: End<'_>, link| wan.lay(n, near, far, link, profile.seed);
        pair.paths =
            conditions.map(|(n, link)| pair.between(n, |near, far| lay(n, near, far, *link))).collect();
        pair.route(pair.paths.len() as u8);
        pair._wan = Some(wan);
        pair
    }

    /// Builds the pair with this many plain cables as paths, without emulation.
    pub fn plain(paths: u8) -> Self {
        let pair = Self::apart();
        (0..paths).for_each(|n| pair.between(n, |near, far| link(near, far, 1500)));
        pair.route(paths);
        pair
    }

    /// Joins the two ends of path `n` by `join`.
    fn between<T>(&self, n: u8, join: impl FnOnce(End<'_>, End<'_>) -> T) -> T {
        let (device, near, far) = (device(n), wan(n).addresses(1), wan(n).addresses(2));
        join(self.near.end(&device, &near), self.far.end(&device, &far))
    }

    /// Makes the hosts, without anything between the boxes yet.
    fn apart() -> Self {
        let (client, server) = (Host::new("client"), Host::new("server"));
        let (near, far) = (router("near"), router("far"));
        join(CLIENT, CLIENT, (&client, "eth0"), (&near, "lan0"), 1500);
        join(SERVER, SERVER, (&server, "eth0"), (&far, "lan0"), 1500);
        speak_cubic(&client, CLIENT);
        speak_cubic(&server, SERVER);
        Self { paths: Vec::new(), client, near, far, server, _wan: None }
    }

    /// Routes everything by path 0. Packets from a box's address on another path use that path, except those to the
    /// box's own side.
    fn route(&self, paths: u8) {
        for (host, side, own, other) in [(&self.near, CLIENT, 1, 2), (&self.far, SERVER, 2, 1)] {
            for (ip, side) in BOTH.into_iter().zip(side.prefixes()) {
                for n in 0..paths {
                    let (own, other) = (wan(n).at(ip, own), wan(n).at(ip, other));
                    let (table, by) = (101 + u32::from(n), format!("default via {other} dev {}", device(n)));
                    let family = ip.option();
                    host.ip(&format!("{family} rule add from {own} priority {table} lookup {table}"));
                    host.ip(&format!("route add throw {side} table {table}"));
                    host.ip(&format!("route add {by} table {table}"));
                    if n == 0 {
                        host.ip(&format!("route add {by}"));
                    }
                }
            }
        }
    }

    /// Returns the client's address with a port.
    pub fn client_at(&self, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(CLIENT.outer(ip), port)
    }

    /// Returns the server's address with a port.
    pub fn server_at(&self, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(SERVER.outer(ip), port)
    }

    /// Returns the near box's address on path `n`, with a port.
    pub fn near_at(&self, n: u8, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(wan(n).at(ip, 1), port)
    }

    /// Returns the far box's address on path `n`, with a port.
    pub fn far_at(&self, n: u8, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(wan(n).at(ip, 2), port)
    }
}

fn wan(n: u8) -> Net {
    Net(3, n)
}

fn device(n: u8) -> String {
    format!("wan{n}")
}
