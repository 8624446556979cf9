//! `tcp-intercept check`. WIRING.
use crate::check;
use crate::config::{Config, Faults};
use crate::exit::Exit;

/// Checks this host for `config`; gives the text for standard output and the status to end with: 78 when the
/// configuration is wrong (nothing else is looked at then), 77 when a capability is missing, 69 when something else
/// that is needed is missing.
pub fn run(config: Result<Config, Faults>, json: bool) -> (String, Exit) {
    let findings = match config {
        Ok(config) => check::judge(&config, &check::gather::facts(&config)),
        Err(faults) => check::faults(&faults),
    };
    let exit = check::exit(&findings);
    (if json { check::json(&findings, exit) } else { check::text(&findings) }, exit)
}
