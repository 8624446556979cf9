//! The host's firewall: whether the rules can be installed, and which other rules interfere with them. PURE.
use super::facts::{Facts, LegacyInput, Nft, Rules};
use super::input::{self, Fate};
use super::ruleset::{Chain, Flowtable, Ruleset};
use super::{Finding, Level};
use crate::config::Config;
use crate::exit::Exit;
use crate::units::Mark;

const UNAVAILABLE: Level = Level::Error(Exit::Unavailable);
/// The family and name of the table with the program's own rules.
const OUR_TABLE: (&str, &str) = ("inet", "tcp_intercept");

/// Returns the findings about nftables, its rules, and those of the legacy iptables.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let legacy = facts.legacy_input.iter().filter_map(|found| legacy_input(config.rules.mark, found));
    nft(config, facts).into_iter().chain(legacy).collect()
}

fn nft(config: &Config, facts: &Facts) -> Vec<Finding> {
    let level = if config.rules.manage { UNAVAILABLE } else { Level::Warning };
    match &facts.nft {
        Nft::Missing => {
            let why = "run installs the rules with nft, and check reads this host's own rules with it";
            vec![
                Finding::new(level, "nft", "there is no program nft in the directories of PATH", why)
                    .fix("apt-get install nftables"),
            ]
        }
        Nft::Failed(_) if !facts.privileges.net_admin => {
            let why = "listing them needs CAP_NET_ADMIN: it is unknown whether rules of this host drop intercepted packets";
            vec![Finding::new(Level::Warning, "nft", "the nftables rules cannot be listed", why)]
        }
        Nft::Failed(said) => {
            let why = "the rules are installed with nft; the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET";
            vec![Finding::new(level, "nft", format!("nft cannot list the rules: {said}"), why)]
        }
        Nft::Works { ruleset, refused } => {
            let mut findings = vec![match refused {
                None => Finding::ok("tproxy", "nftables: the kernel accepts the rules"),
                Some(said) => {
                    let why = "the kernel needs CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET, CONFIG_NFT_FIB_INET and CONFIG_NFT_CT";
                    Finding::new(
                        level,
                        "tproxy",
                        format!("nftables: the kernel refuses the rules: {said}"),
                        why,
                    )
                    .fix("modprobe -a nft_tproxy nft_socket nft_fib_inet nft_ct")
                }
            }];
            findings.push(installed(config, &facts.rules));
            findings.extend(others_rules(config, ruleset));
            findings
        }
    }
}

fn installed(config: &Config, rules: &Rules) -> Finding {
    const INSTALL: &str = "tcp-intercept rules install";
    match rules {
        Rules::Installed => Finding::ok("rules", "rules: installed; they match the configuration"),
        Rules::Absent if config.rules.manage => {
            Finding::ok("rules", "rules: not installed; run installs them at its start")
        }
        Rules::Absent => {
            let why = "rules.manage = false: run does not install them either, so nothing is intercepted";
            Finding::new(Level::Warning, "rules", "rules: not installed", why).fix(INSTALL)
        }
        Rules::Differ(in_what) => {
            let what =
                format!("rules: installed, but they differ from the configuration: {}", in_what.join("; "));
            let why = "the kernel intercepts other connections than the configuration says, or none";
            Finding::new(Level::Warning, "rules", what, why).fix(INSTALL)
        }
        Rules::Unknown(why) => {
            Finding::new(Level::Warning, "rules", "rules: it is unknown whether they are installed", why)
        }
    }
}

/// Reports the operator's rules that interfere with interception.
fn others_rules(config: &Config, ruleset: &Ruleset) -> Vec<Finding> {
    let hooked = |hook| {
        let all = ruleset.hooked(hook);
        all.filter(|chain| (chain.family.as_str(), chain.table.as_str()) != OUR_TABLE)
    };
    let input = hooked("input").filter_map(|chain| input_chain(config, ruleset, chain));
    let forward = hooked("forward").filter_map(|chain| forward_chain(ruleset, chain));
    let flowtables = ruleset.flowtables.iter().map(|table| flowtable(ruleset, table));
    input.chain(forward).chain(flowtables).collect()
}

fn input_chain(config: &Config, ruleset: &Ruleset, chain: &Chain) -> Option<Finding> {
    let (mark, path) = (config.rules.mark, chain.path());
    let (level, what) = match input::fate(config, ruleset, chain) {
        Fate::Accepted => return None,
        Fate::Dropped => (UNAVAILABLE, format!("the input chain {path} drops intercepted packets")),
        Fate::Depends => (
            Level::Warning,
            format!(
                "the input chain {path} drops intercepted packets unless their interface or address is accepted"
            ),
        ),
    };
    let why = "intercepted packets are delivered to this host: they pass input, not forward, and an accept in another \
               chain does not help. To keep the rule, add it to the configuration of your firewall";
    let rule =
        format!("nft insert rule {path} meta mark and {:#x} == {:#x} accept", mark.mask(), mark.value());
    Some(Finding::new(level, "input-chain", what, why).fix(rule))
}

fn forward_chain(ruleset: &Ruleset, chain: &Chain) -> Option<Finding> {
    if !chain.refuses(ruleset) {
        return None;
    }
    let what = format!("the forward chain {} filters", chain.path());
    let why = "intercepted connections do not pass this chain, so those that it refuses are relayed. Refuse TCP \
               before it is diverted, in a prerouting chain with a priority below -300 (raw)";
    Some(Finding::new(Level::Warning, "forward-chain", what, why))
}

fn flowtable(ruleset: &Ruleset, table: &Flowtable) -> Finding {
    let Flowtable { family, table: of, name } = table;
    let used = |chain: &&Chain| chain.family == *family && chain.table == *of;
    let uses = |expr: &serde_json::Value| {
        expr.pointer("/flow/flowtable").is_some_and(|flow| flow == &format!("@{name}"))
    };
    let rules = ruleset.chains.iter().filter(used).flat_map(|chain| {
        let rules = chain.rules.iter().filter(|rule| rule.expr.iter().any(uses));
        rules.map(|rule| format!("nft delete rule {} handle {}", chain.path(), rule.handle))
    });
    let what = format!("the flowtable {family} {of} {name} offloads connections");
    let why = "packets of an offloaded connection pass no rules, so it is not intercepted. Connections that were \
               routed while tcp-intercept was stopped remain routed";
    let finding = Finding::new(Level::Warning, "flowtable", what, why);
    let finding = rules.fold(finding, Finding::fix);
    finding.fix(format!("nft delete flowtable {family} {of} {name}"))
}

/// Does the same as [`input_chain`] for the legacy iptables, by comparing the lines of `-S INPUT`.
fn legacy_input(mark: Mark, found: &LegacyInput) -> Option<Finding> {
    let program = found.program;
    let Some(rules) = &found.rules else {
        let why = "rules that nft does not show may drop intercepted packets; the program that lists them is not installed";
        return Some(Finding::new(
            Level::Warning,
            "input-chain",
            format!("this host has rules of {program}"),
            why,
        ));
    };
    let drops = |line: &str| {
        matches!(line, "-P INPUT DROP" | "-A INPUT -j DROP") || line.starts_with("-A INPUT -j REJECT")
    };
    let accepts = format!("-A INPUT -m mark --mark {mark} -j ACCEPT");
    let (dropped, accepted) = (rules.lines().any(drops), rules.lines().any(|line| line == accepts));
    if !dropped || accepted {
        return None;
    }
    let what =
        format!("the INPUT chain of {program} drops intercepted packets unless another rule accepts them");
    let why = "intercepted packets are delivered to this host: they pass INPUT, not FORWARD";
    let rule = format!("{program} -I INPUT -m mark --mark {mark} -j ACCEPT");
    Some(Finding::new(Level::Warning, "input-chain", what, why).fix(rule))
}
