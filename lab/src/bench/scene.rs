//! The hosts of the benchmark, and the settings that all ways share.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::plan::Plan;
use crate::host::Host;
use crate::topology::{Ip, Lab};

/// The number of addresses that the client connects from.
const ADDRESSES: u8 = 16;
/// Descriptors of the client and the server beyond two per session.
const SPARE_DESCRIPTORS: usize = 400;

/// Client, box and server, prepared for any way.
#[derive(Debug)]
pub(super) struct Scene {
    pub lab: Lab,
    pub plan: Plan,
    /// The addresses that the client connects from.
    pub addresses: Vec<IpAddr>,
}

impl Scene {
    /// Prepares the hosts for `plan`.
    pub fn set(lab: Lab, plan: Plan) -> Self {
        raise_descriptor_limit(2 * plan.most_idle() + SPARE_DESCRIPTORS);
        let addresses: Vec<IpAddr> = (0..ADDRESSES).map(|n| Ipv4Addr::new(10, 1, 0, 16 + n).into()).collect();
        for address in &addresses {
            lab.client().ip(&format!("address add {address}/24 dev eth0"));
        }
        // The leftovers of a proxy must not affect connections that are routed after it.
        lab.gateway.sysctl("net.ipv4.tcp_early_demux", "0");
        // The client reuses its ports after a second, and the box is configured for such clients.
        lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1");
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        for host in [lab.client(), &lab.gateway, &lab.server] {
            congestion_control(host, &plan.congestion_control);
        }
        Self { lab, plan, addresses }
    }

    /// Returns the server address of a way, so that no two ways share a connection's addresses and ports.
    pub fn server(&self, port: u16) -> SocketAddr {
        self.lab.server_at(Ip::V4, port)
    }
}

/// Sets the congestion control of every route of `host`. A sysctl would cover the whole host, but a namespace may only
/// use the algorithms that the initial namespace allows.
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
