//! The hosts of the benchmark: what is the same for all ways.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::plan::Plan;
use crate::host::Host;
use crate::topology::{Ip, Lab};

/// From how many addresses the client connects.
const ADDRESSES: u8 = 16;
/// What the client and the server need besides two descriptors for each session.
const SPARE_DESCRIPTORS: usize = 400;

/// Client, box and server, ready for any way.
#[derive(Debug)]
pub(super) struct Scene {
    pub lab: Lab,
    pub plan: Plan,
    /// The addresses that the client connects from.
    pub addresses: Vec<IpAddr>,
}

impl Scene {
    /// Gives the hosts what `plan` needs.
    pub fn set(lab: Lab, plan: Plan) -> Self {
        raise_descriptor_limit(2 * plan.most_idle() + SPARE_DESCRIPTORS);
        let addresses: Vec<IpAddr> = (0..ADDRESSES).map(|n| Ipv4Addr::new(10, 1, 0, 16 + n).into()).collect();
        for address in &addresses {
            lab.client().ip(&format!("address add {address}/24 dev eth0"));
        }
        // What a proxy leaves behind must not be in the way of what is routed after it.
        lab.gateway.sysctl("net.ipv4.tcp_early_demux", "0");
        // A client that uses its ports again after a second, and a box that is set up for such clients.
        lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1");
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        for host in [lab.client(), &lab.gateway, &lab.server] {
            congestion_control(host, &plan.congestion_control);
        }
        Self { lab, plan, addresses }
    }

    /// Where the server of a way listens: no two ways use the same connection's addresses and ports.
    pub fn server(&self, port: u16) -> SocketAddr {
        self.lab.server_at(Ip::V4, port)
    }
}

/// Gives every route of `host` a congestion control. A sysctl would do for the whole host, but a namespace may only
/// set what the initial one has allowed.
fn congestion_control(host: &Host, name: &str) {
    for route in host.ip("-4 route show table main").lines() {
        host.ip(&format!("-4 route replace {route} congctl {name}"));
    }
}

fn raise_descriptor_limit(needed: usize) {
    let needed = needed as u64;
    let mut limit = getrlimit(Resource::Nofile);
    assert!(
        limit.maximum.is_none_or(|maximum| maximum >= needed),
        "the idle sessions need {needed} descriptors, and `ulimit -Hn` is {:?}: raise it, or measure without them: \
         ONLY=bulk1,bulk8,rtt,conn",
        limit.maximum
    );
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap_or_else(|err| panic!("the limit of descriptors: {err}"));
}
