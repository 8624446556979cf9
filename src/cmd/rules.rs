//! `tcp-intercept rules install | remove | status | print`. WIRING.
use crate::config::Config;
use crate::exit::{Exit, Fatal};
use crate::host::rules::{
    self, Caller, Errors, Format, Gate, Installed, Removed, RulesOwner, Status, Verdict,
};
use crate::host::{paths, wan};

/// A subcommand of `rules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Install the rules of the configuration.
    Install,
    /// Remove the rules of this program.
    Remove,
    /// Compare the installed rules with the configuration.
    Status,
    /// Show what `install` does.
    Print(Format),
}

/// Performs the action; returns the text for standard output. `status` of rules that are not installed is an error
/// (exit 69).
pub fn run(action: Action, config: &Config) -> Result<String, Fatal> {
    match action {
        Action::Install => {
            let mut installed = rules::install(config, RulesOwner::Operator)?;
            installed.remarks.extend(mirror(config));
            Ok(install(&installed))
        }
        Action::Remove => remove(config),
        Action::Status => {
            let mut found = rules::status(config).map_err(Errors::from)?;
            found.remarks.extend(mirror(config));
            status(&found)
        }
        Action::Print(format) => {
            Ok(rules::print(config, format) + &wan::print(config) + &paths::print(config))
        }
    }
}

fn install(report: &Installed) -> String {
    let head = match report.found {
        Verdict::Installed => "already installed: nothing was changed",
        Verdict::Absent => "installed",
        Verdict::Partly | Verdict::Differ => "installed over what was there",
    };
    let found = report.differences.iter().filter(|_| report.found != Verdict::Absent);
    text(head, &[("found", found.collect()), ("did", report.changes.iter().collect())], &report.remarks)
}

/// Returns the state of the routes of `[wan]`, which the daemon manages.
fn mirror(config: &Config) -> Vec<String> {
    wan::status(config).unwrap_or_else(|err| vec![format!("initial window: {err}")])
}

/// Removes the mirror of `[wan]` and the paths of `[mptcp]` first, and then the rules. If one part fails, the others
/// are removed all the same.
fn remove(config: &Config) -> Result<String, Fatal> {
    let own = config.rules.own_mark;
    let by = Caller::Operator;
    let (mut removed, mut failed) = (Removed::default(), None::<Errors>);
    for part in [wan::remove(own, by), paths::remove(own, by), rules::remove(own, by)] {
        match part {
            Ok(Removed { changes, remarks }) => {
                removed.changes.extend(changes);
                removed.remarks.extend(remarks);
            }
            Err(errors) => {
                failed = Some(match failed {
                    Some(first) => first.and(errors),
                    None => errors,
                });
            }
        }
    }
    if let Some(errors) = failed {
        return Err(errors.into());
    }
    let head = if removed.changes.is_empty() { "nothing to remove" } else { "removed" };
    Ok(text(head, &[("did", removed.changes.iter().collect())], &removed.remarks))
}

fn status(report: &Status) -> Result<String, Fatal> {
    let differences = ("found", report.differences.iter().collect());
    let (head, fix) = match report.verdict {
        Verdict::Installed => {
            let head = match report.gate {
                Some(Gate::Closed) => "installed; the gate is closed: new connections are routed",
                _ => "installed",
            };
            return Ok(text(head, &[], &report.remarks));
        }
        Verdict::Absent => ("not installed", "to install them: tcp-intercept rules install"),
        Verdict::Partly => ("partly installed", "to repair them: tcp-intercept rules install"),
        Verdict::Differ => (
            "installed, but from another configuration or version",
            "to replace them: tcp-intercept rules install",
        ),
    };
    let message = text(head, &[differences], &report.remarks);
    Err(Fatal::new(Exit::Unavailable, format!("{message}{fix}")))
}

fn text(head: &str, lists: &[(&str, Vec<&String>)], remarks: &[String]) -> String {
    let items = lists.iter().flat_map(|(label, items)| items.iter().map(move |item| (*label, item.as_str())));
    let remarks = remarks.iter().map(|remark| ("note", remark.as_str()));
    let lines = items.chain(remarks).map(|(label, item)| format!("  {label}: {item}\n"));
    format!("rules: {head}\n{}", lines.collect::<String>())
}
