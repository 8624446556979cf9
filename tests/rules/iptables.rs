//! The printed iptables commands, executed.
use lab::Lab;
use tcp_intercept::host::rules::{self, Format};

use crate::line::{both_are_answered, servers};
use crate::support::{Proxy, interfaces};

/// `kind` is `nft` or `legacy`.
fn iptables_intercepts(kind: &str) {
    let lab = Lab::new();
    let _servers = servers(&lab);
    let config = interfaces(&["lan0"]);
    let commands = lab.gateway.enter(|| rules::print(&config, Format::Iptables));
    std::fs::write("/run/commands", &commands).unwrap();
    let on_box = |text: &str| {
        lab.gateway.run(&format!(
            "mkdir -p /run/iptables; for name in iptables ip6tables; do
               ln -sf \"$(command -v $name-{kind})\" /run/iptables/$name
             done; export PATH=/run/iptables:$PATH; {text}"
        ))
    };
    let show = "ip rule; ip -6 rule; ip route show table 5; ip -6 route show table 5";
    let before = lab.gateway.run("ip rule; ip -6 rule");
    on_box("sh -e /run/commands");
    let proxy = Proxy::start(&lab.gateway, &config);
    both_are_answered(&lab, 4001);
    assert_eq!(proxy.taken(), 2, "{commands}");
    on_box("sed -n '/^# To remove them/,$ s/^# \\(i.*\\)/\\1/p' /run/commands > /run/undo; sh -e /run/undo");
    assert_eq!(lab.gateway.run(show), before, "{commands}");
    assert!(!on_box("iptables -t mangle -S; ip6tables -t mangle -S").contains("tcp_intercept"), "{commands}");
}

#[test]
fn the_printed_commands_intercept_with_iptables_nft() {
    lab::netns(|| iptables_intercepts("nft"));
}

#[test]
fn the_printed_commands_intercept_with_iptables_legacy() {
    lab::netns(|| iptables_intercepts("legacy"));
}
