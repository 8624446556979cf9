//! The start and the end of interception. WIRING.
use std::time::Duration;

use crate::config::Config;
use crate::exit::Fatal;
use crate::host::paths;
use crate::host::rules::{self, Gate, RulesOwner};
use crate::host::wan;

/// The time for the handshakes under way at the end. A lost SYN-ACK is sent again after a second (TCP_TIMEOUT_INIT in
/// include/net/tcp.h).
const HANDSHAKES: Duration = Duration::from_secs(2);

/// How connections reach the listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// The daemon installs the rules, and removes them when it ends.
    Managed,
    /// The operator uses `rules install`. The daemon logs what differs from the configuration.
    Expected,
    /// The operator has installed any rules, such as ours or commands for iptables.
    Foreign,
}

/// Starts interception. Returns whether the daemon has to remove the rules at its end.
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
            // A host that has only iptables has no gate either, so failure is expected.
            let reopened = rules::status(config).and_then(|status| reopen_gate(&status));
            if let Err(err) = reopened {
                tracing::debug!("rules: {err}");
            }
            Ok(false)
        }
    }
}

/// Opens the gate, which another daemon may have left closed.
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
        tracing::info!(
            "rules: installed by `rules install`; the daemon uses them, and leaves them at its end"
        );
    }
    Ok(ours)
}

/// Closes the gate, so that new connections are routed, and waits for the handshakes under way. Must be called before
/// the listeners are closed. Otherwise a client whose SYN was answered, and whose next packet meets no listener, gets
/// no answer and waits.
pub fn admit_no_more(config: &Config) {
    let admitted =
        rules::gate(Gate::Closed).and_then(|()| rules::end_handshakes(config.rules.own_mark, HANDSHAKES));
    match admitted {
        Ok(0) => {}
        Ok(left) => tracing::info!("{left} handshakes that had not ended after {HANDSHAKES:?} were given up"),
        // Expected if other rules intercept the connections, because those have no gate.
        Err(err) => tracing::debug!("connections may come until the listeners are closed: {err}"),
    }
}

/// Removes everything of its own that `run` has made on this host, and the rules if they are `ours`. All sockets must
/// be closed.
pub fn undo(config: &Config, ours: bool) -> Result<(), Fatal> {
    wan::sync::clear(config.rules.own_mark);
    paths::sync::clear(config);
    end(config, ours)
}

/// Removes the rules if they are `ours`. Otherwise destroys the leftover sockets, so that a client that uses its port
/// again does not meet one. All sockets must be closed: then no leftover socket is in use.
fn end(config: &Config, ours: bool) -> Result<(), Fatal> {
    let own = config.rules.own_mark;
    if ours {
        let removed = rules::remove(own, rules::Caller::Daemon)?;
        for change in removed.changes.iter().chain(&removed.remarks) {
            tracing::info!("rules: {change}");
        }
        return Ok(());
    }
    // The rules stay as they were found, with an open gate. If there is no gate, none was closed.
    if let Err(err) = rules::gate(Gate::Open) {
        tracing::debug!("rules: {err}");
    }
    // The daemon ends successfully even if the kernel cannot destroy the sockets.
    match rules::destroy_leftovers(own) {
        Ok(destroyed) => tracing::info!("rules: left as they are; {destroyed} leftover sockets destroyed"),
        Err(err) => tracing::warn!(
            "rules: left as they are; for up to a minute a port just used may not connect again, as leftover sockets stay: {err}"
        ),
    }
    Ok(())
}
