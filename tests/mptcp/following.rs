//! While the daemon runs, the endpoints follow address changes by DHCP, an operator or a cable.
use lab::{Daemon, Host, netns};

use crate::support::{BIN, become_endpoints, endpoints, says};

const PATH: [&str; 2] = ["server.mptcp=true", "mptcp.path=[{device='wan1'}, {address='10.9.0.1'}]"];

fn plug(host: &Host, device: &str) {
    host.ip(&format!("link add {device} type veth peer name {device}-end"));
    host.ip(&format!("link set {device}-end up"));
    host.ip(&format!("link set {device} up"));
}

fn give(host: &Host, address: &str, device: &str) {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    host.ip(&format!("address add {address} dev {device} {nodad}"));
}

#[test]
fn a_device_that_comes_late_goes_and_comes_back_is_waited_for() {
    netns(|| {
        let host = Host::new("box");
        let daemon = Daemon::start(&host, BIN, &PATH);
        says(&daemon, "wan1: there is no such device yet");
        says(&daemon, "10.9.0.1: no device has it yet");
        for _ in 0..2 {
            plug(&host, "wan1");
            give(&host, "10.3.1.1/24", "wan1");
            become_endpoints(&host, &["10.3.1.1 fullmesh dev wan1"]);
            host.ip("link delete wan1");
            become_endpoints(&host, &[]);
        }
        let (status, log) = daemon.stop();
        assert!(status.success() && !log.contains("\"ERROR\""), "{log}");
    });
}

#[test]
fn addresses_that_change_are_followed() {
    netns(|| {
        let host = Host::new("box");
        plug(&host, "wan1");
        plug(&host, "lan0");
        let daemon = Daemon::start(&host, BIN, &PATH);
        says(&daemon, "wan1: it has no address yet");
        give(&host, "192.0.2.7/24", "wan1");
        become_endpoints(&host, &["192.0.2.7 fullmesh dev wan1"]);
        // A second address of the same network changes nothing, nor does one of another device.
        give(&host, "192.0.2.8/24", "wan1");
        give(&host, "10.1.0.1/24", "lan0");
        give(&host, "fd03::7/64", "wan1");
        become_endpoints(&host, &["192.0.2.7 fullmesh dev wan1", "fd03::7 fullmesh dev wan1"]);
        // DHCP assigns another address.
        host.ip("-4 address flush dev wan1");
        give(&host, "198.51.100.7/24", "wan1");
        become_endpoints(&host, &["198.51.100.7 fullmesh dev wan1", "fd03::7 fullmesh dev wan1"]);
        // When the link goes down, IPv6 addresses disappear and IPv4 addresses stay. The link may come back.
        host.ip("link set wan1 down");
        says(&daemon, "the address fd03::7 has gone; connections that use it wait for it");
        host.ip("link set wan1 up");
        give(&host, "fd03::8/64", "wan1");
        become_endpoints(&host, &["198.51.100.7 fullmesh dev wan1", "fd03::8 fullmesh dev wan1"]);
        // The address of the other path appears, and moves to another device.
        give(&host, "10.9.0.1/24", "lan0");
        become_endpoints(
            &host,
            &["10.9.0.1 fullmesh dev lan0", "198.51.100.7 fullmesh dev wan1", "fd03::8 fullmesh dev wan1"],
        );
        host.ip("address delete 10.9.0.1/24 dev lan0");
        give(&host, "10.9.0.1/24", "wan1");
        become_endpoints(
            &host,
            &["10.9.0.1 fullmesh dev wan1", "198.51.100.7 fullmesh dev wan1", "fd03::8 fullmesh dev wan1"],
        );
        daemon.kill9();
        assert!(Daemon::start(&host, BIN, &["server.mptcp=true"]).stop().0.success());
        assert_eq!(endpoints(&host), [""; 0]);
    });
}
