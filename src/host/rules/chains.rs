//! The nftables rules, chain by chain; `docs/rules.md` describes them for operators. PURE.
use crate::config::{Config, Interface};
use crate::units::{Mark, OwnMark, Port};

use super::ruleset::{Chain, GATE, Hook, Rule, Ruleset};

/// The priority NF_IP_PRI_RAW: before conntrack (-200), so that `notrack` works.
const RAW: i32 = -300;
/// A priority behind NF_IP_PRI_NAT_DST (-100): there, on a box that masquerades, replies have the client's address
/// again.
const BEHIND_DSTNAT: i32 = -90;
/// Matches the first segment of a connection.
const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// Matches the answer to a SYN.
const SYN_ACK: &str = "tcp flags & (fin | syn | rst | ack) == (syn | ack)";
/// Matches the segments that follow the handshake's first two.
const ACK: &str = "tcp flags & (fin | syn | rst | ack) == ack";

// Comments of rules that are in more than one chain.
const OTHERS: &str = "only TCP, and ICMP errors about it";
const ROUTED_FLOW: &str = "routed since: not for what is in TIME_WAIT";
const TIME_WAIT: &str = "no full socket: is it for that?";
const HALF: &str = "in TIME_WAIT, or not yet accepted: to its socket";

/// Returns the rules that `config` asks for, on a host with or without IPv6.
pub(super) fn ruleset(config: &Config, ipv6: bool) -> Ruleset {
    let families = if ipv6 { vec![V4, V6] } else { vec![V4] };
    let icmp = if ipv6 { "{ tcp, icmp, icmpv6 }" } else { "{ tcp, icmp }" };
    let words = Words {
        families,
        others: format!("meta l4proto != {icmp}"),
        divert: divert(config.rules.mark),
        port: config.listen.port,
    };
    let own = config.rules.own_mark;
    let chains = vec![
        take(&words),
        route(&words, own),
        full(&words, own),
        Chain { name: GATE, hook: None, rules: Vec::new() },
        syn(&words, own),
        time_wait(&words),
        client_leg(&words, own, &config.rules.interfaces),
        server_leg(&words, own, config.rules.mark),
        client_leg_out(own),
    ];
    Ruleset { sets: words.families.iter().flat_map(sets).collect(), chains }
}

/// An address family of the ruleset, with nft's terms for it.
struct Family {
    nfproto: &'static str,
    ip: &'static str,
    taken: &'static str,
    routed: &'static str,
    addr: &'static str,
    listener: &'static str,
}

const V4: Family = Family {
    nfproto: "ipv4",
    ip: "ip",
    taken: "taken4",
    routed: "routed4",
    addr: "ipv4_addr",
    listener: "127.0.0.1",
};
const V6: Family = Family {
    nfproto: "ipv6",
    ip: "ip6",
    taken: "taken6",
    routed: "routed6",
    addr: "ipv6_addr",
    listener: "[::1]",
};

impl Family {
    /// Returns the expression for the flow of a client's packet, as the sets store it.
    fn flow(&self) -> String {
        format!("{0} saddr . tcp sport . {0} daddr . tcp dport", self.ip)
    }

    /// Returns the expression for the same flow in a server's packet.
    fn reply(&self) -> String {
        format!("{0} daddr . tcp dport . {0} saddr . tcp sport", self.ip)
    }

    fn tproxy(&self, port: Port) -> String {
        format!("tproxy {} to {}:{port}", self.ip, self.listener)
    }
}

/// The expressions that the chains share.
struct Words {
    families: Vec<Family>,
    /// Matches packets that are neither TCP nor ICMP; an ICMP error may belong to a TCP connection.
    others: String,
    divert: String,
    port: Port,
}

impl Words {
    fn per_family(&self, rules: impl Fn(&Family) -> Vec<Rule>) -> Vec<Rule> {
        self.families.iter().flat_map(rules).collect()
    }
}

/// Returns the statement that sets the divert mark and leaves all other bits unchanged.
fn divert(mark: Mark) -> String {
    match (!mark.mask(), mark.value()) {
        (0, value) => format!("meta mark set {value:#x}"),
        (others, value) => format!("meta mark set meta mark & {others:#x} | {value:#x}"),
    }
}

/// The limits of the set of intercepted flows. The answer to a SYN cookie comes within a round trip; if it is lost, the
/// client repeats its data after 1, 3, 7 and 15 s. At 17,000 new connections a second the set is full, and further
/// connections are routed.
const TAKEN: &str = "timeout 15s; size 262144";
/// The limits of the set of routed flows. TIME_WAIT lasts 60 s (TCP_TIMEWAIT_LEN). Only connections that meet a
/// leftover socket are in this set.
const ROUTED: &str = "timeout 70s; size 65536";

fn sets(family: &Family) -> [(&'static str, String); 2] {
    let flow = format!("type {0} . inet_service . {0} . inet_service", family.addr);
    let set = |limits: &str| format!("{flow}; flags dynamic,timeout; {limits};");
    [(family.taken, set(TAKEN)), (family.routed, set(ROUTED))]
}

fn rule(text: impl Into<String>, comment: &'static str) -> Rule {
    Rule { text: text.into(), comment }
}

fn hook(point: &str, priority: i32) -> Option<Hook> {
    Some(Hook { point: point.to_owned(), priority, policy: "accept".to_owned() })
}

/// Returns the chain for a SYN that goes to the listener.
fn take(words: &Words) -> Chain {
    let rules = words.per_family(|family| {
        let flow = family.flow();
        let text = format!("meta nfproto {} delete @{} {{ {flow} }}", family.nfproto, family.routed);
        vec![rule(text, "a port that is used again: no longer routed")]
    });
    Chain { name: "take", hook: None, rules }
}

/// Returns the chain for a SYN that is routed. A socket of ours in TIME_WAIT may have the same addresses and ports, for
/// example if the client reuses its port after the daemon has stopped. It must not receive the following packets.
fn route(words: &Words, own: OwnMark) -> Chain {
    let in_use = format!("socket mark & {:#x} != 0x0 accept", own.mask());
    let others = format!("socket mark & {:#x} == 0x0 accept", own.mask());
    let mut rules = vec![rule(in_use, "a connection of ours is not disturbed")];
    rules.extend(words.per_family(|family| {
        let text =
            format!("meta nfproto {} delete @{} {{ {} }}", family.nfproto, family.taken, family.flow());
        vec![rule(text, "a port that is used again: no longer taken")]
    }));
    rules.push(rule(others, "the socket of another program"));
    rules.extend(words.per_family(|family| {
        let remember = format!("update @{} {{ {} }}", family.routed, family.flow());
        let text = format!("meta nfproto {} socket transparent 1 {remember}", family.nfproto);
        vec![rule(text, "a leftover socket is in its way: remember it")]
    }));
    rules.push(rule("accept", "routed"));
    Chain { name: "route", hook: None, rules }
}

/// Returns the chain to which the closed gate leads: new connections are routed, but a repeated SYN of an intercepted
/// connection is not.
fn full(words: &Words, own: OwnMark) -> Chain {
    let mut rules = words.per_family(|family| {
        let text = format!("meta nfproto {} {} @{} return", family.nfproto, family.flow(), family.taken);
        vec![rule(text, "taken before")]
    });
    rules.push(rule(format!("socket mark & {:#x} != 0x0 return", own.mask()), "taken before"));
    rules.push(rule("counter goto route", "new connections are routed"));
    Chain { name: "full", hook: None, rules }
}

/// Returns the chain that decides on every SYN: intercept or route.
fn syn(words: &Words, own: OwnMark) -> Chain {
    let mut rules = vec![
        rule(format!("jump {GATE}"), "open, or closed: then new connections are routed"),
        rule(format!("meta mark & {:#x} != 0x0 goto route", own.mask()), "from our own sockets: no loop"),
        rule("tcp option mptcp subtype 1 goto route", "MP_JOIN: belongs to another connection"),
        rule("tcp option 19 exists goto route", "TCP-MD5 (BGP)"),
        rule("tcp option 29 exists goto route", "TCP-AO (BGP)"),
        rule(
            "fib daddr type { local, anycast, broadcast, multicast } goto route",
            "addressed to the box itself",
        ),
    ];
    rules.extend(words.per_family(|family| {
        let (tproxy, divert) = (family.tproxy(words.port), &words.divert);
        // A SYN that does not fit into the set (during a flood) is routed. Otherwise the listener could answer it with
        // a SYN cookie, and no rule could recognise the client's answer.
        let remember = format!("update @{} {{ {} }}", family.taken, family.flow());
        let take = format!("{remember} {tproxy} {divert} notrack counter goto take");
        vec![rule(
            format!("meta nfproto {} meta l4proto tcp {take}", family.nfproto),
            "intercept, if it can be remembered and the daemon listens",
        )]
    }));
    rules.push(rule("goto route", "nobody listens, or nothing can be remembered"));
    Chain { name: "syn", hook: None, rules }
}

/// Returns the chain for packets that match a socket in TIME_WAIT or one not yet accepted, for which `socket mark` does
/// not match. A packet may instead belong to a connection that was routed later, from a reused port. The chain accepts
/// such a packet, so that it is routed.
fn time_wait(words: &Words) -> Chain {
    let rules = words.per_family(|family| {
        let (flow, reply, routed) = (family.flow(), family.reply(), family.routed);
        let syn_ack = format!("meta nfproto {} {SYN_ACK} update @{routed} {{ {reply} }}", family.nfproto);
        vec![
            rule(syn_ack, "a leftover socket is in its way: remember it"),
            rule(format!("{flow} @{routed} accept"), ROUTED_FLOW),
            rule(format!("{reply} @{routed} accept"), ROUTED_FLOW),
        ]
    });
    Chain { name: "time_wait", hook: None, rules }
}

/// Returns the base chain for the clients' packets, before conntrack.
fn client_leg(words: &Words, own: OwnMark, interfaces: &[Interface]) -> Chain {
    let mut rules = vec![rule(format!("{} return", words.others), OTHERS)];
    if let Some(names) = names(interfaces) {
        rules.push(rule(format!("iifname != {names} return"), "not from where clients are"));
    }
    let divert = &words.divert;
    let (mask, client, server) = (own.mask(), own.client(), own.server());
    rules.push(rule(format!("{SYN} goto syn"), "a new connection"));
    // Each `socket` expression repeats the socket lookup, so the most frequent packets come first.
    rules.extend([
        rule(
            format!(
                "socket mark & {mask:#x} == {client:#x} socket transparent 1 {divert} notrack counter accept"
            ),
            "client leg: to its socket",
        ),
        rule(format!("socket mark & {mask:#x} == {server:#x} return"), "server leg: met behind dstnat"),
        rule(
            format!("socket transparent 1 socket mark & {mask:#x} != {client:#x} return"),
            "the socket of another program",
        ),
        rule("socket transparent 1 jump time_wait", TIME_WAIT),
        rule(format!("socket transparent 1 {divert} notrack counter accept"), HALF),
    ]);
    rules.extend(words.per_family(|family| {
        let (flow, tproxy) = (family.flow(), family.tproxy(words.port));
        let text = format!("{ACK} {flow} @{} {tproxy} {divert} notrack counter accept", family.taken);
        vec![rule(text, "the answer to a SYN cookie: no socket yet")]
    }));
    Chain { name: "client_leg", hook: hook("prerouting", RAW), rules }
}

/// Returns the base chain for the servers' packets, behind dstnat. `socket mark` does not match sockets in TIME_WAIT.
fn server_leg(words: &Words, own: OwnMark, mark: Mark) -> Chain {
    let (divert, own) = (&words.divert, own.mask());
    let rules = vec![
        rule(format!("{} return", words.others), OTHERS),
        rule(format!("meta mark & {:#x} == {:#x} return", mark.mask(), mark.value()), "diverted already"),
        rule(
            format!("socket mark & {own:#x} != 0x0 socket transparent 1 {divert} counter accept"),
            "server leg: to its socket",
        ),
        rule(format!("socket mark & {own:#x} == 0x0 return"), "the socket of another program"),
        rule("socket transparent 1 jump time_wait", TIME_WAIT),
        rule(format!("socket transparent 1 {divert} counter accept"), HALF),
    ];
    Chain { name: "server_leg", hook: hook("prerouting", BEHIND_DSTNAT), rules }
}

/// Returns the base chain for packets to clients. Conntrack must see neither direction of a client leg; otherwise it
/// would take both legs for one connection.
///
/// The rule matches TCP only: in IGMP and MLD reports of the kernel, the field of the mark contains a length
/// (`reserved_tailroom` in include/linux/skbuff.h).
fn client_leg_out(own: OwnMark) -> Chain {
    let text =
        format!("meta l4proto tcp meta mark & {:#x} == {:#x} notrack counter", own.mask(), own.client());
    let rules = vec![rule(text, "client leg: what we answer")];
    Chain { name: "client_leg_out", hook: hook("output", RAW), rules }
}

/// Returns the names as an nft expression; `None` if there are none. The names are sorted, so that their order in the
/// configuration does not change the ruleset.
fn names(interfaces: &[Interface]) -> Option<String> {
    let mut quoted: Vec<String> = interfaces.iter().map(|name| format!("\"{}\"", name.as_str())).collect();
    quoted.sort();
    quoted.dedup();
    match quoted.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("{{ {} }}", several.join(", "))),
    }
}
