//! The rules as commands of iptables, and the limits of these commands. PURE.
use std::fmt::Write;

use crate::config::Config;

use super::change::Family;
use super::plan::Plan;

/// The limits of iptables compared with nftables, for operators who choose between them.
const CANNOT: &str = "\
# What these commands cannot do, and `rules install` (nftables) can:
# - When the daemon does not run, iptables' TPROXY drops new connections; nftables' lets them be routed.
# - They cannot exempt only the intercepted SYNs from conntrack: on a box that masquerades, connections fail,
#   and a rule that drops INVALID packets may drop theirs.
# - A connection that was answered with a SYN cookie (the accept queue was full) is lost.
# - They cannot distinguish MP_JOIN from other Multipath TCP: no client's Multipath TCP is intercepted.
# - They are not one transaction: between the first command and the last, connections may fail.
# - `rules status` and `rules remove` do not know them: use `rules.manage = false`. To remove them, see the end.
";

/// Returns the commands for `sh`.
pub fn commands(config: &Config, plan: &Plan) -> String {
    let mut text = CANNOT.to_owned();
    for sysctl in plan.sysctls() {
        let target = match sysctl.target(0) {
            0 => "0".to_owned(),
            bit => format!("$(( $(cat {}) | {bit} ))", sysctl.path()),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "echo {target} > {}", sysctl.path());
    }
    let (rules, routes) = plan.netlink();
    for (rule, route) in rules.iter().zip(routes) {
        let ip = rule.family.ip();
        let _ = writeln!(text, "\n{ip} route add {}\n{ip} rule add {}", route.bare(), rule.bare());
        text += &tables(config, rule.family);
    }
    text += "\n# To remove them:\n";
    for (rule, route) in rules.iter().zip(routes) {
        let (ip, iptables) = (rule.family.ip(), program(rule.family));
        for line in undo() {
            let _ = writeln!(text, "# {iptables} -t mangle {line}");
        }
        let _ = writeln!(text, "# {ip} rule delete {}\n# {ip} route delete {}", rule.bare(), route.bare());
    }
    text
}

const fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

const CHAINS: [&str; 3] = ["tcp_intercept_syn", "tcp_intercept_divert", "tcp_intercept"];
const SYN: &str = "-p tcp --tcp-flags FIN,SYN,RST,ACK SYN";

fn tables(config: &Config, family: Family) -> String {
    let (mark, own) = (config.rules.mark, config.rules.own_mark.mask());
    let (listener, icmp) = match family {
        Family::V4 => ("127.0.0.1", "icmp"),
        Family::V6 => ("::1", "icmpv6"),
    };
    let mut lines: Vec<String> = CHAINS.map(|chain| format!("-N {chain}")).to_vec();
    lines.push(format!("-A tcp_intercept_syn -m mark ! --mark 0x0/{own:#x} -j RETURN"));
    let options = [("30", "Multipath TCP"), ("19", "TCP-MD5"), ("29", "TCP-AO")];
    lines.extend(options.map(|(option, name)| {
        format!("-A tcp_intercept_syn -p tcp --tcp-option {option} -m comment --comment \"{name}\" -j RETURN")
    }));
    lines.push("-A tcp_intercept_syn -m addrtype --dst-type LOCAL -j RETURN".to_owned());
    let port = config.listen.port;
    lines.push(format!(
        "-A tcp_intercept_syn -p tcp -j TPROXY --on-ip {listener} --on-port {port} --tproxy-mark {mark}"
    ));
    lines.push(format!("-A tcp_intercept_divert -j MARK --set-xmark {mark}"));
    lines.push("-A tcp_intercept_divert -j ACCEPT".to_owned());
    lines.extend(
        arrivals(config).iter().map(|from| format!("-A tcp_intercept{from} {SYN} -g tcp_intercept_syn")),
    );
    lines.push(format!("-A tcp_intercept {SYN} -j RETURN"));
    let divert = "-m socket --transparent -j tcp_intercept_divert";
    lines.extend(["tcp", icmp].map(|protocol| format!("-A tcp_intercept -p {protocol} {divert}")));
    lines.push("-A PREROUTING -j tcp_intercept".to_owned());
    lines.iter().map(|line| format!("{} -t mangle {line}\n", program(family))).collect()
}

/// Returns one match for each interface; without interfaces, one match for all.
fn arrivals(config: &Config) -> Vec<String> {
    match config.rules.interfaces.as_slice() {
        [] => vec![String::new()],
        some => some.iter().map(|name| format!(" -i '{}'", name.as_str())).collect(),
    }
}

fn undo() -> Vec<String> {
    let emptied = CHAINS.map(|chain| format!("-F {chain}"));
    let gone = CHAINS.map(|chain| format!("-X {chain}"));
    std::iter::once("-D PREROUTING -j tcp_intercept".to_owned()).chain(emptied).chain(gone).collect()
}
