//! Removal of the rules, from any state. EFFECT.
use crate::units::OwnMark;

use super::change::Op;
use super::error::{Errors, RulesError};
use super::leftovers::{self, Caller, Cleared};
use super::plan::{self, Seen, SeenTable};
use super::state::{State, Sysctl};
use super::{apply, observe};

/// The result of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// The changes made, sysctls included: "delete …", "set …"; empty if there was nothing of ours.
    pub changes: Vec<String>,
    /// The parts that were left in place, and the reasons.
    pub remarks: Vec<String>,
}

/// Removes the rules; continues after an error, and returns all errors. `own` gives the marks of our sockets if the
/// table has no record of them.
///
/// 1. Ended sessions get up to 2 s to deliver their remaining data.
/// 2. The table loses its chains and keeps only the record. From then on connections are routed, and an interruption
///    loses nothing.
/// 3. Leftover sockets are destroyed and the sysctls restored.
/// 4. The policy rules, the routes and the table are deleted.
pub fn remove(own: OwnMark, caller: Caller) -> Result<Removed, Errors> {
    let mut work = Work { own, caller, removed: Removed::default(), errors: Vec::new() };
    let table = work.keep(observe::nft_table()).flatten();
    let blind = !work.errors.is_empty();
    let state = table.as_ref().and_then(|table| table.state.clone());
    // An error is ignored here: `leftovers_are_gone` reports the same cause.
    let _ = leftovers::let_deliver(state.as_ref().map_or(own, |state| state.own), super::DELIVERY);
    let inert = table.as_ref().is_none_or(|table| work.disarm(table));
    if let (true, Some(table), Some(state)) = (inert, &table, &state) {
        work.restore(table, state);
    }
    let armed = blind || !inert;
    work.unroute(armed);
    if let (true, Some(table)) = (inert, table) {
        work.delete(table, state.as_ref());
    }
    if state.is_none() && !work.removed.changes.is_empty() {
        work.no_record();
    }
    Errors::collect(work.errors).map_or(Ok(work.removed), Err)
}

struct Work {
    own: OwnMark,
    caller: Caller,
    removed: Removed,
    errors: Vec<RulesError>,
}

impl Work {
    fn keep<T>(&mut self, result: Result<T, RulesError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn run(&mut self, op: &Op) -> bool {
        let done = self.keep(apply::run(op)).is_some();
        if done {
            self.removed.changes.push(op.to_string());
        }
        done
    }

    /// Replaces the table by its record; does nothing if there is no record. Returns whether the table may be deleted.
    fn disarm(&mut self, table: &SeenTable) -> bool {
        let Some(state) = &table.state else { return true };
        let op = Op::Table { old: Some(table.listing.clone()), new: Some(plan::inert_table(state)) };
        self.keep(apply::run(&op)).is_some()
    }

    fn delete(&mut self, table: SeenTable, state: Option<&State>) {
        let old = state.map_or(table.listing, plan::inert_table);
        self.run(&Op::Table { old: Some(old), new: None });
    }

    fn restore(&mut self, table: &SeenTable, state: &State) {
        let sysctls = observe::readable_sysctls();
        let seen = Seen { table: Some(table.clone()), sysctls, ..Seen::default() };
        for saved in &state.saved {
            let sysctl = saved.sysctl;
            let Some(to) = plan::restored(&seen, sysctl) else {
                self.remark(sysctl, format!("was {}, but has been changed since: left as it is", saved.was));
                continue;
            };
            if sysctl == Sysctl::EarlyDemux && !self.leftovers_are_gone(state.own, to) {
                continue;
            }
            self.run(&Op::Sysctl { sysctl, from: sysctl.target(to), to });
        }
    }

    /// Destroys leftover sockets; returns whether none is left. With early demux on, the kernel would drop forwarded
    /// packets that match a leftover socket, and their connections would fail.
    fn leftovers_are_gone(&mut self, own: OwnMark, to: u32) -> bool {
        let why = match leftovers::clear(own, self.caller) {
            Ok(Cleared::Gone(0)) => return true,
            Ok(Cleared::Gone(count)) => {
                self.removed.changes.push(format!("destroy {count} leftover sockets"));
                return true;
            }
            Ok(Cleared::InUse) => {
                "a process still holds sockets with our mark (is the daemon running?)".to_owned()
            }
            Ok(Cleared::Remain(count)) => format!("{count} leftover sockets could not be destroyed"),
            Err(err) => format!("leftover sockets could not be destroyed: {err}"),
        };
        let path = Sysctl::EarlyDemux.path();
        self.remark(
            Sysctl::EarlyDemux,
            format!("stays 0, which has no measurable cost: {why}. One minute after they all ended, run: echo {to} > {path}"),
        );
        false
    }

    /// Adds a remark about early demux if the record of its old value is lost, for example by `nft flush ruleset`.
    fn no_record(&mut self) {
        let zero = (Sysctl::EarlyDemux, 0);
        if observe::readable_sysctls().contains(&zero) {
            let path = Sysctl::EarlyDemux.path();
            let what =
                format!("stays 0: the record of its old value is lost. Kernel default: echo 1 > {path}");
            self.remark(Sysctl::EarlyDemux, what);
        }
    }

    fn remark(&mut self, sysctl: Sysctl, what: String) {
        self.removed.remarks.push(format!("{} {what}", sysctl.name()));
    }

    /// Deletes the policy rules and routes, unless an `armed` table still diverts packets to a running daemon.
    fn unroute(&mut self, armed: bool) {
        let Some((rules, routes)) = self.keep(observe::netlink()) else { return };
        let needed = armed && leftovers::in_use(self.own).unwrap_or(true);
        if needed && !(rules.is_empty() && routes.is_empty()) {
            let why = "the nft table is still there and the daemon is running: stop it first, or its connections fail";
            self.errors.push(RulesError::Failed {
                step: "delete the policy rules and routes".to_owned(),
                why: why.to_owned(),
            });
            return;
        }
        rules.into_iter().map(Op::DeleteRule).chain(routes.into_iter().map(Op::DeleteRoute)).for_each(|op| {
            self.run(&op);
        });
    }
}
