//! `check`: what is wrong in the configuration and on this host, why it matters, and the command that fixes it. PURE.
//!
//! [`facts`] are what this host is like, as data; [`gather`] finds them out (EFFECT); [`judge()`] makes findings of them
//! and, as all else here, touches nothing (PURE).
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

/// One thing that is as it should be, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about, in one word that does not change: for programs that read this.
    pub name: &'static str,
    /// What is so, with its value.
    pub what: String,
    /// Why it matters; empty where nothing is wrong.
    pub why: String,
    /// The commands that mend it, in their order.
    pub fix: Vec<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Some connections will suffer.
    Warning,
    /// `run` cannot do what the configuration asks for; `check` ends with this status.
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

/// What is wrong in a configuration, as findings.
pub fn faults(faults: &Faults) -> Vec<Finding> {
    faults.lines().map(|line| Finding::new(Level::Error(Exit::Config), "config", line, "")).collect()
}

/// The status of the gravest error: a missing capability is the cause of others, so it goes before them.
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
