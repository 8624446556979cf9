//! Findings as text for people and as JSON for programs. PURE.
use std::fmt::Write;

use serde_json::json;

use super::{Finding, Level};
use crate::exit::Exit;

/// Formats each finding as a group of lines, the most severe last, where a terminal shows them; then their numbers.
pub fn text(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| rank(finding.level));
    let mut text = String::new();
    for Finding { level, what, why, fix, .. } in sorted {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<8} {what}", name(*level));
        if !why.is_empty() {
            let _ = writeln!(text, "         {why}");
        }
        for command in fix {
            let _ = writeln!(text, "          fix: {command}");
        }
    }
    let count = |level| findings.iter().filter(|finding| rank(finding.level) == level).count();
    let _ = writeln!(text, "errors: {}, warnings: {}, notes: {}", count(3), count(2), count(1));
    if findings.iter().flat_map(|finding| &finding.fix).any(|command| command.starts_with("sysctl")) {
        let _ = writeln!(
            text,
            "Settings made with sysctl last until the next boot: to keep them, add them to \
             /etc/sysctl.d/60-tcp-intercept.conf."
        );
    }
    text
}

/// Formats one JSON object: the findings in the order of the checks, and the exit status.
pub fn json(findings: &[Finding], exit: Exit) -> String {
    let findings = findings.iter().map(|Finding { level, name: about, what, why, fix }| {
        json!({ "level": name(*level), "name": about, "what": what, "why": why, "fix": fix })
    });
    let all = json!({ "exit": exit as u8, "findings": findings.collect::<Vec<_>>() });
    format!("{all:#}\n")
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "warning",
        Level::Error(_) => "error",
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::Ok => 0,
        Level::Note => 1,
        Level::Warning => 2,
        Level::Error(_) => 3,
    }
}
