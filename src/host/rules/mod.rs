//! The rules that bring connections to the listener: an nft table, a policy rule and a route for each address family,
//! and two sysctls. How they work is in `docs/rules.md`. EFFECT.
//!
//! [`plan`] says what should be there and what has to change (PURE, as are `ruleset`, `chains`, `state`, `change`, `compare`, `iptables` and
//! `error`); `observe` and `apply` look and change (EFFECT, as are `nft`, `netlink`, `sysctl`, `diag` and `leftovers`).
//! All functions here block, need no runtime, and work in the network namespace of the calling thread.

mod apply;
mod chains;
pub mod change;
mod compare;
mod diag;
mod error;
mod iptables;
mod leftovers;
pub(crate) mod netlink;
pub(crate) mod nft;
pub(crate) mod observe;
pub mod plan;
mod removal;
pub mod ruleset;
pub mod state;
mod sysctl;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::time::Duration;

use crate::config::Config;
use crate::units::OwnMark;

use change::Op;
pub use compare::Verdict;
pub use error::{Errors, RulesError};
use leftovers::Cleared;
pub use leftovers::{Caller, in_use};
use plan::{Plan, Seen};
pub use removal::{Removed, remove};
pub use ruleset::Gate;
pub use state::RulesOwner;

/// What sessions that ended in order may still have to deliver gets so long before it is destroyed.
const DELIVERY: Duration = Duration::from_secs(2);

/// What [`install`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// What was there before; [`Verdict::Installed`]: exactly these rules, and nothing was changed.
    pub found: Verdict,
    /// Who removes the rules: a daemon removes at its end what is [`RulesOwner::Daemon`]'s, also what a SIGKILL left.
    pub owner: RulesOwner,
    /// What differed, one sentence each.
    pub differences: Vec<String>,
    /// What was done, sysctls included: "add …", "set …".
    pub changes: Vec<String>,
    /// What the operator should know about the host.
    pub remarks: Vec<String>,
}

/// What [`status`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In a word.
    pub verdict: Verdict,
    /// What differs from the configuration, one sentence each.
    pub differences: Vec<String>,
    /// What the operator should know about the host.
    pub remarks: Vec<String>,
    /// Whether new connections are let in; `None` without a table.
    pub gate: Option<Gate>,
}

/// What [`print`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What `nft -f -` gets.
    Nft,
    /// Commands for a shell.
    Iptables,
}

/// Makes the host as `config` asks for: all or nothing. What is right already is not touched. `keeper` says on whose
/// behalf; what an operator installed stays his ([`Installed::owner`]).
pub fn install(config: &Config, owner: RulesOwner) -> Result<Installed, Errors> {
    let (plan, seen, ipv6) = look(config)?;
    let plan = plan.installed_by(owner);
    if let Some(route) = plan.obstacle(&seen) {
        let table = config.rules.table.get();
        return Err(RulesError::TableTaken { table, route: route.clone() }.into());
    }
    let ops = plan.ops(&seen);
    apply::apply(&ops)?;
    Ok(Installed {
        found: compare::verdict(&plan, &seen),
        owner: plan.owner(&seen),
        differences: compare::differences(&plan, &seen),
        changes: ops.iter().map(Op::to_string).collect(),
        remarks: compare::remarks(&plan, &seen, ipv6),
    })
}

/// Compares the host with `config`.
pub fn status(config: &Config) -> Result<Status, RulesError> {
    let (plan, seen, ipv6) = look(config)?;
    Ok(Status {
        verdict: compare::verdict(&plan, &seen),
        differences: compare::differences(&plan, &seen),
        remarks: compare::remarks(&plan, &seen, ipv6),
        gate: seen.table.as_ref().map(|table| table.gate),
    })
}

/// Opens or closes the gate for new connections: one small transaction, for a daemon that has reached its limit. The
/// rules must be installed. A daemon opens it at its start, as it may find what another left closed.
pub fn gate(gate: Gate) -> Result<(), RulesError> {
    let step = match gate {
        Gate::Open => "open the gate for new connections",
        Gate::Closed => "close the gate for new connections",
    };
    nft::transact(step, &gate.script())
}

/// Waits, for so long at most, until no handshake with a listener of ours is under way, and gives up the others: what comes for
/// one of those is answered with a reset. Gives their number. For a daemon that has closed the gate and is about to end.
pub fn end_handshakes(own: OwnMark, at_most: Duration) -> Result<usize, RulesError> {
    let ended = leftovers::end_handshakes(own, at_most);
    ended.map_err(|err| RulesError::io("wait for handshakes under way", &err))
}

/// Destroys all sockets with our marks, for a daemon that ends and leaves its rules: a client that uses its port again
/// would meet them (`tproxy` gives a SYN to a socket in TIME_WAIT when nobody listens). Gives their number.
/// What has data to deliver gets a moment for it first.
pub fn destroy_leftovers(own: OwnMark) -> Result<usize, RulesError> {
    let step = "destroy leftover sockets";
    leftovers::let_deliver(own, DELIVERY).map_err(|err| RulesError::io(step, &err))?;
    match leftovers::clear(own, Caller::Daemon) {
        Ok(Cleared::Gone(count)) => Ok(count),
        Ok(Cleared::Remain(_) | Cleared::InUse) => {
            Err(RulesError::Failed { step: step.to_owned(), why: "new ones keep coming".to_owned() })
        }
        Err(err) => Err(RulesError::io(step, &err)),
    }
}

/// What [`install`] would do on this host if nothing were installed, as text to read or to run.
pub fn print(config: &Config, format: Format) -> String {
    let plan = Plan::new(config, observe::ipv6()).installed_by(RulesOwner::Operator);
    match format {
        Format::Iptables => iptables::commands(config, &plan),
        Format::Nft => print_nft(&plan),
    }
}

fn print_nft(plan: &Plan) -> String {
    let fresh = Seen { sysctls: observe::readable_sysctls(), ..Seen::default() };
    let (mut before, mut after) = (String::new(), String::new());
    let mut table = String::new();
    for op in plan.ops(&fresh) {
        // Writing to a String cannot fail.
        let _ = match op {
            Op::AddRule(rule) => writeln!(before, "# {} rule add {}", rule.family.ip(), rule.words()),
            Op::AddRoute(route) => writeln!(before, "# {} route add {}", route.family.ip(), route.words()),
            Op::Sysctl { sysctl, to, .. } => writeln!(after, "# echo {to} > {}", sysctl.path()),
            Op::Table { new, .. } => write!(table, "{}", change::script(new.as_deref())),
            Op::DeleteRule(_) | Op::DeleteRoute(_) => Ok(()),
        };
    }
    format!("# Before it, by netlink:\n{before}# What nft gets:\n{table}# After it:\n{after}")
}

fn look(config: &Config) -> Result<(Plan, Seen, bool), RulesError> {
    let ipv6 = observe::ipv6();
    Ok((Plan::new(config, ipv6), observe::seen(config.rules.table)?, ipv6))
}
