//! The lab as a program: what tcp-intercept makes of bad links, how it compares, and whether it holds.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_macros, reason = "this program's purpose is what it prints")]
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lab::bench::{Plan, Results};

use report::Report;

mod demo;
mod never_drop;
mod paths;
mod report;
mod soak;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("bench") => lab::program(bench),
        Some("demo") => lab::program(demo::demo),
        Some("lab") => lab::program(demo::lab),
        Some("never-drop") => lab::program(never_drop::run),
        Some("paths") => lab::program(paths::run),
        Some("soak") => lab::program(soak::run),
        _ => {
            eprintln!(
                "usage: lab bench | demo | lab | never-drop [TIMES=100] | paths [even even-loss bonded bonded-loss cuts outage short fallback] [ipv6] [net.KEY=VALUE] | soak"
            );
            ExitCode::from(64)
        }
    }
}

/// The program, built in the same directory as this one.
fn binary() -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?.with_file_name("tcp-intercept");
    let binary = lab::reachable(&binary);
    binary.is_file().then_some(binary)
}

fn bench() -> ExitCode {
    let Some(binary) = binary() else {
        eprintln!("tcp-intercept is not built beside this program: cargo build --release");
        return ExitCode::FAILURE;
    };
    let plan = match Plan::from_words(binary, std::env::args().skip(2)) {
        Ok(plan) => plan,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(64);
        }
    };
    let out = plan.out.clone();
    let results = lab::bench::run(plan, |what| eprintln!("  {what}"));
    let report = Report::new();
    report.section("tcp-intercept beside the other ways");
    results.conditions().iter().for_each(|line| report.say(line));
    report.table(&lab::bench::rows(&results));
    if let Err(err) = keep(&results, &out) {
        eprintln!("the results cannot be kept in {}: {err}", out.display());
        return ExitCode::FAILURE;
    }
    let out = out.display();
    report.say(&format!(
        "\n  Kept in {out}: results.json and bench.svg. To renew the documentation, put this table into"
    ));
    report.say(&format!("docs/bench.md, then: cp {out}/bench.svg docs/"));
    ExitCode::SUCCESS
}

fn keep(results: &Results, out: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("results.json"), format!("{:#}\n", lab::bench::json(results)))?;
    std::fs::write(out.join("bench.svg"), lab::bench::plot(results))
}
