//! The nft table as data: rendered for `nft -f -`, outlined to be compared with what `nft -j` lists. PURE.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::config::{Config, Interface};
use crate::units::{Mark, OwnMark, Port};

/// Our table in the family `inet`; whatever has another name is not ours.
pub const TABLE: &str = "tcp_intercept";
/// The chain that every new connection passes first. Empty: open.
pub const GATE: &str = "gate";
/// The chain that no packet passes: its comments remember what the kernel must not forget ([`super::state`]).
pub const STATE: &str = "state";

/// NF_IP_PRI_RAW: before conntrack (-200), so that `notrack` works.
const RAW: i32 = -300;
/// Behind NF_IP_PRI_NAT_DST (-100): on a box that masquerades, replies have the client's address again.
const BEHIND_DSTNAT: i32 = -90;
/// One SYN and nothing else of what tells a segment's kind.
const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// A segment of a connection that should exist.
const ACK: &str = "tcp flags & (fin | syn | rst | ack) == ack";

/// The table's sets and chains, in the order in which nft reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    sets: Vec<(&'static str, String)>,
    chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    name: &'static str,
    hook: Option<Hook>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: String,
    comment: &'static str,
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `prerouting`, `output`, …
    pub point: String,
    /// Chains of one hook run by ascending priority.
    pub priority: i32,
    /// What becomes of a packet that no rule decided on.
    pub policy: String,
}

/// What identifies a ruleset in the kernel: names, hooks, and the rules' comments in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The names of the sets.
    pub sets: BTreeSet<String>,
    /// The chains by name.
    pub chains: BTreeMap<String, Shape>,
}

/// One chain of an [`Outline`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// `None`: only reached by a jump.
    pub hook: Option<Hook>,
    /// One a rule; a rule without a comment has an empty one.
    pub comments: Vec<String>,
}

/// Whether new connections are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They are.
    Open,
    /// They are routed as if this program did not exist; what was taken before stays with us.
    Closed,
}

/// An address family of the ruleset, with the words that nft has for it.
struct Family {
    nfproto: &'static str,
    ip: &'static str,
    set: &'static str,
    addr: &'static str,
    listener: &'static str,
}

const V4: Family =
    Family { nfproto: "ipv4", ip: "ip", set: "syn4", addr: "ipv4_addr", listener: "127.0.0.1" };
const V6: Family = Family { nfproto: "ipv6", ip: "ip6", set: "syn6", addr: "ipv6_addr", listener: "[::1]" };

impl Family {
    fn flow(&self) -> String {
        format!("{0} saddr . tcp sport . {0} daddr . tcp dport", self.ip)
    }

    fn tproxy(&self, port: Port) -> String {
        format!("tproxy {} to {}:{port}", self.ip, self.listener)
    }
}

impl Ruleset {
    /// The rules that `config` asks for, on a host with or without IPv6.
    pub fn new(config: &Config, ipv6: bool) -> Self {
        let families = if ipv6 { vec![V4, V6] } else { vec![V4] };
        let icmp = if ipv6 { "{ tcp, icmp, icmpv6 }" } else { "{ tcp, icmp }" };
        let words = Words {
            families,
            carriers: format!("meta l4proto {icmp}"),
            divert: divert(config.rules.mark),
            port: config.listen.port,
        };
        let own = config.rules.own_mark;
        let chains = vec![
            full(&words),
            Chain { name: GATE, hook: None, rules: Vec::new() },
            remember(&words),
            syn(&words, own),
            client_leg(&words, own, &config.rules.interfaces),
            server_leg(&words, own, config.rules.mark),
            client_leg_out(own),
        ];
        Self { sets: words.families.iter().map(|family| (family.set, flow_set(family))).collect(), chains }
    }

    /// What the kernel should list.
    pub fn outline(&self) -> Outline {
        let shape = |chain: &Chain| {
            let comments = chain.rules.iter().map(|rule| rule.comment.to_owned()).collect();
            (chain.name.to_owned(), Shape { hook: chain.hook.clone(), comments })
        };
        Outline {
            sets: self.sets.iter().map(|(name, _)| (*name).to_owned()).collect(),
            chains: self.chains.iter().map(shape).collect(),
        }
    }

    /// A number that changes whenever a rule does (FNV-1a, so that every build of the program computes the same).
    pub fn fingerprint(&self) -> u64 {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, fnv)
    }
}

/// What all chains are written with.
struct Words {
    families: Vec<Family>,
    /// TCP, and the ICMP errors that belong to TCP connections (trap 8).
    carriers: String,
    divert: String,
    port: Port,
}

/// Sets the divert mark and no bit beside it.
fn divert(mark: Mark) -> String {
    match (!mark.mask(), mark.value()) {
        (0, value) => format!("meta mark set {value:#x}"),
        (others, value) => format!("meta mark set meta mark & {others:#x} | {value:#x}"),
    }
}

fn flow_set(family: &Family) -> String {
    let addr = family.addr;
    let kind = format!("type {addr} . inet_service . {addr} . inet_service");
    format!("{kind}; flags dynamic,timeout; timeout 1m; size 65536;")
}

fn rule(text: impl Into<String>, comment: &'static str) -> Rule {
    Rule { text: text.into(), comment }
}

fn hook(point: &str, priority: i32) -> Option<Hook> {
    Some(Hook { point: point.to_owned(), priority, policy: "accept".to_owned() })
}

/// Where the closed gate leads: new connections are routed, the repeated SYN of one that was taken is not.
fn full(words: &Words) -> Chain {
    let taken = |family: &Family| {
        let text = format!("meta nfproto {} {} @{} return", family.nfproto, family.flow(), family.set);
        rule(text, "taken before")
    };
    let mut rules: Vec<Rule> = words.families.iter().map(taken).collect();
    rules.push(rule("counter accept", "new connections are routed"));
    Chain { name: "full", hook: None, rules }
}

/// A full set takes nothing more: the connection goes on, only its SYN cookie would not be known.
fn remember(words: &Words) -> Chain {
    let update = |family: &Family| {
        let text = format!("meta nfproto {} update @{} {{ {} }}", family.nfproto, family.set, family.flow());
        rule(text, "remember the SYN, for the answer to a SYN cookie")
    };
    Chain { name: "remember", hook: None, rules: words.families.iter().map(update).collect() }
}

/// What becomes of a SYN is decided here and nowhere else; a packet that leaves this chain is routed.
fn syn(words: &Words, own: OwnMark) -> Chain {
    let mut rules = vec![
        rule(format!("jump {GATE}"), "open, or closed: then new connections are routed"),
        rule(format!("meta mark & {:#x} != 0x0 return", own.mask()), "from our own sockets: no loop"),
        rule("tcp option mptcp subtype 1 return", "MP_JOIN: belongs to another connection"),
        rule("tcp option 19 exists return", "TCP-MD5 (BGP)"),
        rule("tcp option 29 exists return", "TCP-AO (BGP)"),
        rule("fib daddr type { local, anycast, broadcast, multicast } return", "addressed to the box itself"),
    ];
    rules.extend(words.families.iter().map(|family| {
        let tproxy = family.tproxy(words.port);
        let text = format!(
            "meta nfproto {} meta l4proto tcp {tproxy} {} notrack counter goto remember",
            family.nfproto, words.divert
        );
        rule(text, "intercept, if the daemon listens")
    }));
    Chain { name: "syn", hook: None, rules }
}

/// Before conntrack: what clients send.
fn client_leg(words: &Words, own: OwnMark, interfaces: &[Interface]) -> Chain {
    let mut rules = Vec::new();
    if let Some(names) = names(interfaces) {
        rules.push(rule(format!("iifname != {names} return"), "not from where clients are"));
    }
    let Words { carriers, divert, .. } = words;
    let (mask, client) = (own.mask(), own.client());
    rules.push(rule(format!("{SYN} goto syn"), "a new connection"));
    rules.push(rule(
        format!("socket transparent 1 socket mark & {mask:#x} != {client:#x} return"),
        "no client leg: a server leg is met behind dstnat",
    ));
    rules.push(rule(
        format!("{carriers} socket transparent 1 {divert} notrack counter accept"),
        "client leg: to its socket",
    ));
    rules.extend(words.families.iter().map(|family| {
        let (flow, tproxy) = (family.flow(), family.tproxy(words.port));
        let text = format!("{ACK} {flow} @{} {tproxy} {divert} notrack counter accept", family.set);
        rule(text, "the answer to a SYN cookie: no socket yet")
    }));
    Chain { name: "client_leg", hook: hook("prerouting", RAW), rules }
}

/// Behind dstnat: what servers send. `socket mark` does not match what is in TIME_WAIT, hence the second half.
fn server_leg(words: &Words, own: OwnMark, mark: Mark) -> Chain {
    let Words { carriers, divert, .. } = words;
    let own = own.mask();
    let rules = vec![
        rule(format!("meta mark & {:#x} == {:#x} return", mark.mask(), mark.value()), "diverted already"),
        rule(format!("socket mark & {own:#x} == 0x0 return"), "the socket of another program"),
        rule(
            format!("{carriers} socket mark & {own:#x} != 0x0 socket transparent 1 {divert} counter accept"),
            "server leg: to its socket",
        ),
        rule(format!("{SYN} return"), "a new connection: not for what is in TIME_WAIT"),
        rule(
            format!("meta l4proto tcp socket transparent 1 {divert} counter accept"),
            "server leg in TIME_WAIT: to its socket",
        ),
    ];
    Chain { name: "server_leg", hook: hook("prerouting", BEHIND_DSTNAT), rules }
}

/// Conntrack sees neither direction of a client leg, or it would take both legs for one connection (trap 7).
fn client_leg_out(own: OwnMark) -> Chain {
    let text = format!("meta mark & {:#x} == {:#x} notrack counter", own.mask(), own.client());
    let rules = vec![rule(text, "client leg: what we answer")];
    Chain { name: "client_leg_out", hook: hook("output", RAW), rules }
}

fn names(interfaces: &[Interface]) -> Option<String> {
    let quoted: Vec<String> = interfaces.iter().map(|name| format!("\"{}\"", name.as_str())).collect();
    match quoted.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("{{ {} }}", several.join(", "))),
    }
}

/// The inside of the table's braces.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, body) in &self.sets {
            writeln!(f, "  set {name} {{ {body} }}")?;
        }
        self.chains.iter().try_for_each(|chain| chain.fmt(f))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if let Some(Hook { point, priority, policy }) = &self.hook {
            writeln!(f, "    type filter hook {point} priority {priority}; policy {policy};")?;
        }
        for Rule { text, comment } in &self.rules {
            writeln!(f, "    {text} comment \"{comment}\"")?;
        }
        writeln!(f, "  }}")
    }
}

impl Gate {
    /// The transaction for `nft -f -`.
    pub fn script(self) -> String {
        let chain = format!("inet {TABLE} {GATE}");
        match self {
            Self::Open => format!("flush chain {chain}\n"),
            Self::Closed => format!("flush chain {chain}\nadd rule {chain} goto full comment \"closed\"\n"),
        }
    }
}
