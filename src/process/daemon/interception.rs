//! How connections come to the listeners, and how that ends. WIRING.
use std::time::Duration;

use crate::config::Config;
use crate::exit::Fatal;
use crate::host::paths;
use crate::host::rules::{self, Gate, RulesOwner};
use crate::host::wan;

/// What the handshakes that are under way have at the end: a SYN-ACK that was lost is sent again after a second
/// (TCP_TIMEOUT_INIT in include/net/tcp.h).
const HANDSHAKES: Duration = Duration::from_secs(2);

/// How connections come to the listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// The daemon installs the rules, and removes them when it ends.
    Managed,
    /// `rules install` did, or should have done: what differs is said.
    Expected,
    /// By whatever the operator has installed, be it ours or commands for iptables.
    Foreign,
}

/// Has connections come to the listeners; says whether it is ours to end that.
pub fn begin(config: &Config, how: Interception) -> Result<bool, Fatal> {
    match how {
        Interception::Managed => manage(config),
        Interception::Expected => {
            let status = rules::status(config).map_err(rules::Errors::from)?;
            for difference in status.differences.iter().chain(&status.remarks) {
                tracing::warn!("rules (not managed by this program): {difference}");
            }
            reopen_gate(&status).map_err(rules::Errors::from)?;
            Ok(false)
        }
        Interception::Foreign => {
            // A host that has only iptables has no gate either.
            let reopened = rules::status(config).and_then(|status| reopen_gate(&status));
            if let Err(err) = reopened {
                tracing::debug!("rules: {err}");
            }
            Ok(false)
        }
    }
}

/// Another daemon may have left the gate closed.
fn reopen_gate(status: &rules::Status) -> Result<(), rules::RulesError> {
    if status.gate == Some(Gate::Closed) { rules::gate(Gate::Open) } else { Ok(()) }
}

fn manage(config: &Config) -> Result<bool, Fatal> {
    let installed = rules::install(config, RulesOwner::Daemon)?;
    rules::gate(Gate::Open).map_err(rules::Errors::from)?;
    for change in &installed.changes {
        tracing::info!("rules: {change}");
    }
    for remark in &installed.remarks {
        tracing::warn!("rules: {remark}");
    }
    let ours = installed.owner == RulesOwner::Daemon;
    if !ours {
        tracing::info!("rules: installed by `rules install`; they are used, and left when this ends");
    }
    Ok(ours)
}

/// Before the listeners are closed: has new connections routed, and waits for the handshakes that are under way. A client whose SYN
/// was answered and whose next packet met no listener would hear nothing, and wait.
pub fn admit_no_more(config: &Config) {
    let admitted =
        rules::gate(Gate::Closed).and_then(|()| rules::end_handshakes(config.rules.own_mark, HANDSHAKES));
    match admitted {
        Ok(0) => {}
        Ok(left) => tracing::info!("{left} handshakes that had not ended after {HANDSHAKES:?} were given up"),
        // As where somebody else's rules bring the connections: they cannot be told to route.
        Err(err) => tracing::debug!("connections may come until the listeners are closed: {err}"),
    }
}

/// All sockets are closed: takes everything away that `run` has made on this host and that is its own; the rules if they are `ours`.
pub fn undo(config: &Config, ours: bool) -> Result<(), Fatal> {
    wan::sync::clear(config.rules.own_mark);
    paths::sync::clear(config);
    end(config, ours)
}

/// All sockets are closed: what is left of them is not in use. Removes the rules if they are `ours`; where they stay, a client that uses
/// its port again must not meet a leftover socket.
fn end(config: &Config, ours: bool) -> Result<(), Fatal> {
    let own = config.rules.own_mark;
    if ours {
        let removed = rules::remove(own, rules::Caller::Daemon)?;
        for change in removed.changes.iter().chain(&removed.remarks) {
            tracing::info!("rules: {change}");
        }
        return Ok(());
    }
    // Left as they were found. Where there is no gate, none was closed.
    if let Err(err) = rules::gate(Gate::Open) {
        tracing::debug!("rules: {err}");
    }
    // A kernel that does not let them be destroyed makes no bad end of a good one.
    match rules::destroy_leftovers(own) {
        Ok(destroyed) => tracing::info!("rules: left as they are; {destroyed} leftover sockets destroyed"),
        Err(err) => tracing::warn!(
            "rules: left as they are; for up to a minute a port just used may not connect again, as leftover sockets stay: {err}"
        ),
    }
    Ok(())
}
