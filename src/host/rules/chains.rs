//! The rules themselves, chain by chain; `docs/rules.md` tells the same for operators. PURE.
use crate::config::{Config, Interface};
use crate::units::{Mark, OwnMark, Port};

use super::ruleset::{Chain, GATE, Hook, Rule, Ruleset};

/// NF_IP_PRI_RAW: before conntrack (-200), so that `notrack` works.
const RAW: i32 = -300;
/// Behind NF_IP_PRI_NAT_DST (-100): on a box that masquerades, replies have the client's address again.
const BEHIND_DSTNAT: i32 = -90;
/// The first segment of a connection.
const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// What answers it.
const SYN_ACK: &str = "tcp flags & (fin | syn | rst | ack) == (syn | ack)";
/// What follows.
const ACK: &str = "tcp flags & (fin | syn | rst | ack) == ack";

// Comments of rules that are in more than one chain.
const OTHERS: &str = "only TCP, and ICMP errors about it";
const ROUTED_FLOW: &str = "routed since: not for what is in TIME_WAIT";
const TIME_WAIT: &str = "no full socket: is it for that?";
const HALF: &str = "in TIME_WAIT, or not yet accepted: to its socket";

/// The rules that `config` asks for, on a host with or without IPv6.
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

/// An address family of the ruleset, with the words that nft has for it.
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
    /// What a client sends, as it is kept in the sets.
    fn flow(&self) -> String {
        format!("{0} saddr . tcp sport . {0} daddr . tcp dport", self.ip)
    }

    /// The same for what a server sends.
    fn reply(&self) -> String {
        format!("{0} daddr . tcp dport . {0} saddr . tcp sport", self.ip)
    }

    fn tproxy(&self, port: Port) -> String {
        format!("tproxy {} to {}:{port}", self.ip, self.listener)
    }
}

/// What all chains are written with.
struct Words {
    families: Vec<Family>,
    /// What is neither TCP nor an ICMP error, which may belong to a TCP connection (trap 8).
    others: String,
    divert: String,
    port: Port,
}

impl Words {
    fn per_family(&self, rules: impl Fn(&Family) -> Vec<Rule>) -> Vec<Rule> {
        self.families.iter().flat_map(rules).collect()
    }
}

/// Sets the divert mark and no bit beside it.
fn divert(mark: Mark) -> String {
    match (!mark.mask(), mark.value()) {
        (0, value) => format!("meta mark set {value:#x}"),
        (others, value) => format!("meta mark set meta mark & {others:#x} | {value:#x}"),
    }
}

/// A SYN cookie is answered within a round trip; if that answer is lost, data comes again after 1, 3, 7 and 15 s.
/// At 17,000 new connections a second this set is full, and what comes beyond is routed.
const TAKEN: &str = "timeout 15s; size 262144";
/// TIME_WAIT lasts a minute (TCP_TIMEWAIT_LEN). Only connections that meet a leftover socket are in this set.
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

/// A SYN that the listener gets.
fn take(words: &Words) -> Chain {
    let rules = words.per_family(|family| {
        let flow = family.flow();
        let text = format!("meta nfproto {} delete @{} {{ {flow} }}", family.nfproto, family.routed);
        vec![rule(text, "a port that is used again: no longer routed")]
    });
    Chain { name: "take", hook: None, rules }
}

/// A SYN that is routed. A socket of ours in TIME_WAIT may have the same addresses and ports, as when the client uses
/// its port again after the daemon has stopped: it must not get what follows.
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

/// Where the closed gate leads: new connections are routed, the repeated SYN of one that was taken is not.
fn full(words: &Words, own: OwnMark) -> Chain {
    let mut rules = words.per_family(|family| {
        let text = format!("meta nfproto {} {} @{} return", family.nfproto, family.flow(), family.taken);
        vec![rule(text, "taken before")]
    });
    rules.push(rule(format!("socket mark & {:#x} != 0x0 return", own.mask()), "taken before"));
    rules.push(rule("counter goto route", "new connections are routed"));
    Chain { name: "full", hook: None, rules }
}

/// What becomes of a SYN is decided here and nowhere else.
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
        // A SYN that cannot be remembered (a flood has filled the set) is routed: were it answered with a SYN cookie, nobody
        // would know that the answer is for us.
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

/// `socket mark` does not match what is in TIME_WAIT or not yet accepted. This accepts, so that it is routed, what is
/// for no such socket: it belongs to a connection that was routed since, from a port that was used again.
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

/// Before conntrack: what clients send.
fn client_leg(words: &Words, own: OwnMark, interfaces: &[Interface]) -> Chain {
    let mut rules = vec![rule(format!("{} return", words.others), OTHERS)];
    if let Some(names) = names(interfaces) {
        rules.push(rule(format!("iifname != {names} return"), "not from where clients are"));
    }
    let divert = &words.divert;
    let (mask, client, server) = (own.mask(), own.client(), own.server());
    rules.push(rule(format!("{SYN} goto syn"), "a new connection"));
    // Each `socket` looks the socket up anew, so what comes most often is decided with the fewest of them.
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

/// Behind dstnat: what servers send. `socket mark` does not match what is in TIME_WAIT.
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

/// Conntrack sees neither direction of a client leg, or it would take both legs for one connection (trap 7). The kernel's
/// reports of IGMP and MLD leave a length where the mark is read (`reserved_tailroom` in include/linux/skbuff.h).
fn client_leg_out(own: OwnMark) -> Chain {
    let text =
        format!("meta l4proto tcp meta mark & {:#x} == {:#x} notrack counter", own.mask(), own.client());
    let rules = vec![rule(text, "client leg: what we answer")];
    Chain { name: "client_leg_out", hook: hook("output", RAW), rules }
}

/// The same text whatever order they are written in: another order is no other ruleset.
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
