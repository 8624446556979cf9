//! The rules that bring connections to the listener: an nft table, a policy rule and a route for each address family,
//! and two sysctls. `docs/rules.md` describes how they work. EFFECT.
//!
//! [`plan`] computes the wanted state and the changes that lead to it (PURE, as are `ruleset`, `chains`, `state`,
//! `change`, `compare`, `iptables` and `error`). `observe` reads the host and `apply` changes it (EFFECT, as are `nft`,
//! `netlink`, `sysctl`, `diag`, `leftovers` and `removal`). All functions here block, need no runtime, and work in the
//! network namespace of the calling thread.

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

/// The time that cleanly ended sessions get to deliver their remaining data before their sockets are destroyed.
const DELIVERY: Duration = Duration::from_secs(2);

/// The result of [`install`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The state before; [`Verdict::Installed`] means that these rules were in place and nothing was changed.
    pub found: Verdict,
    /// The owner, which removes the rules. At its end a daemon removes the rules of [`RulesOwner::Daemon`], also those
    /// that a killed daemon left.
    pub owner: RulesOwner,
    /// The differences from the configuration before, one sentence each.
    pub differences: Vec<String>,
    /// The changes made, sysctls included: "add …", "set …".
    pub changes: Vec<String>,
    /// Remarks about the host for the operator.
    pub remarks: Vec<String>,
}

/// The result of [`status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The overall state.
    pub verdict: Verdict,
    /// The differences from the configuration, one sentence each.
    pub differences: Vec<String>,
    /// Remarks about the host for the operator.
    pub remarks: Vec<String>,
    /// Whether new connections are intercepted; `None` without a table.
    pub gate: Option<Gate>,
}

/// The output format of [`print`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The input of `nft -f -`.
    Nft,
    /// Commands of iptables for a shell.
    Iptables,
}

/// Installs the rules that `config` asks for: all or none. Leaves parts alone that are right already. Rules that an
/// operator has installed stay the operator's, also if `owner` is the daemon ([`Installed::owner`]).
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

/// Opens or closes the gate for new connections in one small transaction. The rules must be installed. A daemon closes
/// the gate at its limit, and opens it at its start, because a previous daemon may have left it closed.
pub fn gate(gate: Gate) -> Result<(), RulesError> {
    let step = match gate {
        Gate::Open => "open the gate for new connections",
        Gate::Closed => "close the gate for new connections",
    };
    nft::transact(step, &gate.script())
}

/// Waits up to `at_most` until no handshake with one of our listeners is in progress. Destroys the remaining handshakes
/// and returns their number; later segments of these are answered with a reset. For a daemon that has closed the gate
/// and is about to end.
pub fn end_handshakes(own: OwnMark, at_most: Duration) -> Result<usize, RulesError> {
    let ended = leftovers::end_handshakes(own, at_most);
    ended.map_err(|err| RulesError::io("wait for handshakes in progress", &err))
}

/// Destroys all sockets with our marks and returns their number. Sockets with data to deliver get 2 s for it first.
///
/// For a daemon that ends and leaves its rules installed. Otherwise a client that reuses its port would meet such a
/// socket: without a listener, `tproxy` gives a SYN to a socket in TIME_WAIT.
pub fn destroy_leftovers(own: OwnMark) -> Result<usize, RulesError> {
    let step = "destroy leftover sockets";
    leftovers::let_deliver(own, DELIVERY).map_err(|err| RulesError::io(step, &err))?;
    match leftovers::clear(own, Caller::Daemon) {
        Ok(Cleared::Gone(count)) => Ok(count),
        Ok(Cleared::Remain(_) | Cleared::InUse) => {
            Err(RulesError::Failed { step: step.to_owned(), why: "new ones keep appearing".to_owned() })
        }
        Err(err) => Err(RulesError::io(step, &err)),
    }
}

/// Returns the changes that [`install`] would make on this host if nothing were installed, as text to read or to run.
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
    format!("# First, by netlink:\n{before}# Then, by nft -f -:\n{table}# Last:\n{after}")
}

fn look(config: &Config) -> Result<(Plan, Seen, bool), RulesError> {
    let ipv6 = observe::ipv6();
    Ok((Plan::new(config, ipv6), observe::seen(config.rules.table)?, ipv6))
}
