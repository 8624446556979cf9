//! Changes to the host, one after the other; undone when one fails. EFFECT.
use super::change::{self, Op};
use super::error::{Errors, RulesError};
use super::{netlink, nft, sysctl};

/// Makes all of `ops` or none: if one fails, undoes those before it. The error includes failures of the undo.
pub fn apply(ops: &[Op]) -> Result<(), Errors> {
    for (done, op) in ops.iter().enumerate() {
        let Err(first) = run(op) else { continue };
        let undone = ops[..done].iter().rev().filter_map(|op| run(&op.inverse()).err());
        return Errors::collect(std::iter::once(first).chain(undone)).map_or(Ok(()), Err);
    }
    Ok(())
}

/// Makes one change.
pub fn run(op: &Op) -> Result<(), RulesError> {
    let step = || op.to_string();
    let netlink = |result: std::io::Result<()>| result.map_err(|err| RulesError::io(step(), &err));
    match op {
        Op::AddRule(rule) => netlink(netlink::add_rule(rule)),
        Op::DeleteRule(rule) => netlink(netlink::delete_rule(rule)),
        Op::AddRoute(route) => netlink(netlink::add_route(route)),
        Op::DeleteRoute(route) => netlink(netlink::delete_route(route)),
        Op::Table { new, .. } => nft::transact(&step(), &change::script(new.as_deref())),
        Op::Sysctl { sysctl, to, .. } => {
            sysctl::write(*sysctl, *to).map_err(|err| RulesError::Sysctl { step: step(), err })
        }
    }
}
