//! `check`: reports problems of the configuration and the host, with the reason and the command that fixes each. PURE.
//!
//! [`facts`] holds the state of the host as data; [`gather`] collects it (EFFECT). [`judge()`] derives findings from it
//! and, like the rest of this module, has no effect (PURE).
pub mod facts;
mod firewall;
pub mod gather;
mod input;
mod judge;
mod legs;
mod paths;
pub mod ruleset;
mod show;
mod sysctls;
mod wan;

use crate::config::Faults;
use crate::exit::Exit;

pub use judge::judge;
pub use show::{json, text};

/// The result of one check: in order, or a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its severity.
    pub level: Level,
    /// A stable one-word name of the subject, for programs that read the findings.
    pub name: &'static str,
    /// The observation, with its value.
    pub what: String,
    /// The reason why it matters; empty if nothing is wrong.
    pub why: String,
    /// The commands that fix it, in order.
    pub fix: Vec<String>,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// Information without an effect on most connections.
    Note,
    /// Some connections are impaired.
    Warning,
    /// `run` cannot do what the configuration requires; `check` exits with this status.
    Error(Exit),
}

impl Finding {
    fn new(level: Level, name: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { level, name, what: what.into(), why: why.into(), fix: Vec::new() }
    }

    fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, name, what, "")
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }
}

/// Converts the faults of a configuration to findings.
pub fn faults(faults: &Faults) -> Vec<Finding> {
    faults.lines().map(|line| Finding::new(Level::Error(Exit::Config), "config", line, "")).collect()
}

/// Returns the exit status: that of a missing capability, which causes other errors, else that of the first error.
pub fn exit(findings: &[Finding]) -> Exit {
    let errors = || {
        findings
            .iter()
            .filter_map(|finding| if let Level::Error(exit) = finding.level { Some(exit) } else { None })
    };
    errors().find(|exit| *exit == Exit::NoPerm).or_else(|| errors().next()).unwrap_or(Exit::Ok)
}

#[cfg(test)]
mod tests;
