//! client – box – server, with the rules on the box.
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::peers::{self, Server};
use lab::{BOTH, Ip, Lab};
use tcp_intercept::config::Config;
use tcp_intercept::host::rules::{self, Caller, Installed, Removed, RulesOwner};

pub fn install(lab: &Lab, config: &Config) -> Installed {
    lab.gateway.enter(|| rules::install(config, RulesOwner::Operator)).unwrap()
}

pub fn remove(lab: &Lab, caller: Caller) -> Removed {
    lab.gateway.enter(|| rules::remove(Config::default().rules.own_mark, caller)).unwrap()
}

/// Returns the peer address that the server reports.
pub fn asked(mut stream: TcpStream) -> SocketAddr {
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

pub fn early_demux(lab: &Lab) -> String {
    lab.gateway.run("cat /proc/sys/net/ipv4/tcp_early_demux").trim().to_owned()
}

/// Connects from one port, asks, and returns how long that took.
pub fn quick(lab: &Lab, ip: Ip, port: u16) -> Duration {
    let start = Instant::now();
    let stream = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 80)).unwrap();
    assert_eq!(asked(stream), lab.client_at(0, ip, port));
    start.elapsed()
}

pub fn both_are_answered(lab: &Lab, port: u16) {
    for ip in BOTH {
        quick(lab, ip, port);
    }
}

pub fn servers(lab: &Lab) -> Vec<Server> {
    BOTH.into_iter().map(|ip| Server::start(&lab.server, lab.server_at(ip, 80), peers::whoami)).collect()
}
