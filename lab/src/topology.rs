//! client – box – server. A test can ask for more clients, or for routers in between.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use crate::host::{Host, link};

/// Deviations from the default: one client, one box and one server, on cables with an MTU of 1500.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The number of clients, each on its own cable to the box.
    pub clients: u8,
    /// Two more routers between the first client and the box, joined by a cable with this MTU.
    pub near_mtu: Option<u32>,
    /// Two more routers between the box and the server, joined by a cable with this MTU.
    pub far_mtu: Option<u32>,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 1, near_mtu: None, far_mtu: None }
    }
}

/// The IP version that a test uses; every host has an address of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// Returns the option of `ip` for it: `-4` or `-6`.
    pub fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// Both IP versions, for tests that do the same with each.
pub const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];

/// Hosts in a line, the box in the middle. Client `n` is 10.1.n.2 and fd01:0:0:n::2 behind the box's `lan<n>`; the
/// server is 10.2.0.2 and fd02::2 behind `wan0`.
#[derive(Debug)]
pub struct Lab {
    /// The hosts that open connections.
    pub clients: Vec<Host>,
    /// The box in the path, which forwards between the others. (`box` is a keyword.)
    pub gateway: Host,
    /// The host that accepts connections.
    pub server: Host,
    /// The routers in between.
    between: Vec<Host>,
}

impl Lab {
    /// Builds the default shape: one client, the box, one server.
    pub fn new() -> Self {
        Self::with(Shape::default())
    }

    /// Builds another shape.
    pub fn with(shape: Shape) -> Self {
        let mut lab = Self::without_cable_to_the_server(shape);
        let narrow = shape.far_mtu.map(|mtu| ("far", mtu));
        lab.between.extend(attach(SERVER, &lab.server, narrow, &lab.gateway, "wan0"));
        lab
    }

    /// Builds everything except the cable to the server.
    pub(crate) fn without_cable_to_the_server(shape: Shape) -> Self {
        let (gateway, server) = (router("box"), Host::new("server"));
        let clients: Vec<_> = (0..shape.clients).map(|n| Host::new(&format!("client{n}"))).collect();
        let mut between = Vec::new();
        for (n, client) in (0..).zip(&clients) {
            let narrow = shape.near_mtu.filter(|_| n == 0).map(|mtu| ("near", mtu));
            between.extend(attach(Net(1, n), client, narrow, &gateway, &format!("lan{n}")));
        }
        Self { clients, gateway, server, between }
    }

    /// Returns the first client.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// Returns the address of client `n` with a port.
    pub fn client_at(&self, n: u8, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(Net(1, n).outer(ip), port)
    }

    /// Returns the server's address with a port.
    pub fn server_at(&self, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(SERVER.outer(ip), port)
    }

    /// Returns the box's own address on the clients' side, with a port.
    pub fn gateway_at(&self, ip: Ip, port: u16) -> SocketAddr {
        SocketAddr::new(CLIENT.inner(ip), port)
    }

    /// Returns how many sockets the box has for the connection that `stream` is an end of ([`Host::legs`]).
    pub fn legs(&self, stream: &TcpStream) -> usize {
        self.gateway.legs(stream)
    }

    /// Makes the box behave like most small routers: it masquerades towards the server and drops packets that conntrack
    /// calls invalid. The server gets no route to the clients.
    pub fn masquerade(&self) {
        self.gateway.nft(
            "table inet operator {
                chain postrouting { type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }
                chain forward { type filter hook forward priority filter; ct state invalid counter drop; }
            }",
        );
        self.server.ip("-4 route del default");
        self.server.ip("-6 route del default");
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a host that forwards.
pub(crate) fn router(name: &str) -> Host {
    let host = Host::new(name);
    host.sysctl("net.ipv4.ip_forward", "1");
    host.sysctl("net.ipv6.conf.all.forwarding", "1");
    host
}

/// The networks 10.a.b.0/24 and fd0a:0:0:b::/64. Address .2 is at the end away from the box, .1 at the end towards it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Net(pub u8, pub u8);

/// Between the first client and its box.
pub(crate) const CLIENT: Net = Net(1, 0);
/// Between the server and its box.
pub(crate) const SERVER: Net = Net(2, 0);

impl Net {
    pub fn at(self, ip: Ip, last: u8) -> IpAddr {
        match ip {
            Ip::V4 => Ipv4Addr::new(10, self.0, self.1, last).into(),
            Ip::V6 => {
                Ipv6Addr::new(0xfd00 + u16::from(self.0), 0, 0, self.1.into(), 0, 0, 0, last.into()).into()
            }
        }
    }

    pub fn outer(self, ip: Ip) -> IpAddr {
        self.at(ip, 2)
    }

    pub fn inner(self, ip: Ip) -> IpAddr {
        self.at(ip, 1)
    }

    pub fn addresses(self, last: u8) -> [String; 2] {
        [format!("{}/24", self.at(Ip::V4, last)), format!("{}/64", self.at(Ip::V6, last))]
    }

    pub fn prefixes(self) -> [String; 2] {
        self.addresses(0)
    }
}

/// Attaches an end host to the box, either directly or through two routers joined by a narrow cable.
fn attach(net: Net, end: &Host, narrow: Option<(&str, u32)>, gateway: &Host, device: &str) -> Vec<Host> {
    let Some((name, mtu)) = narrow else {
        join(net, net, (end, "eth0"), (gateway, device), 1500);
        return Vec::new();
    };
    let (outer, inner) = (router(&format!("{name}-outer")), router(&format!("{name}-inner")));
    join(net, net, (end, "eth0"), (&outer, "end0"), 1500);
    join(net, Net(net.0 + 2, 0), (&outer, "box0"), (&inner, "end0"), mtu);
    join(net, Net(net.0 + 4, 0), (&inner, "box0"), (gateway, device), 1500);
    vec![outer, inner]
}

/// Makes a cable with the addresses of `net`. `outer` reaches everything beyond `inner` through it, and `inner` reaches
/// `behind` through it.
pub(crate) fn join(behind: Net, net: Net, outer: (&Host, &str), inner: (&Host, &str), mtu: u32) {
    link(outer.0.end(outer.1, &net.addresses(2)), inner.0.end(inner.1, &net.addresses(1)), mtu);
    route(behind, net, outer.0, inner.0);
}

/// Sets the routes of two hosts that `net` joins.
pub(crate) fn route(behind: Net, net: Net, outer: &Host, inner: &Host) {
    for (ip, prefix) in BOTH.into_iter().zip(behind.prefixes()) {
        outer.ip(&format!("route add default via {}", net.inner(ip)));
        if net.0 != behind.0 {
            inner.ip(&format!("route add {prefix} via {}", net.outer(ip)));
        }
    }
}

/// Makes an end host attached by `net` use CUBIC towards all other hosts. A route's congestion control needs no
/// permission, so this works in a user namespace. It applies to both active and passive opens.
pub(crate) fn speak_cubic(end: &Host, net: Net) {
    for ip in BOTH {
        end.ip(&format!("route replace default via {} congctl cubic", net.inner(ip)));
    }
}
