//! The lab as a program: `lab demo` shows on real traffic what tcp-intercept does.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_macros, reason = "this program's purpose is what it prints")]
use std::path::Path;
use std::process::ExitCode;

use lab::bench::{Plan, Results};

use report::Report;

mod demo;
mod paths;
mod report;
mod soak;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("bench") => lab::program(bench),
        Some("demo") => lab::program(demo::run),
        Some("paths") => lab::program(paths::run),
        Some("soak") => lab::program(soak::run),
        _ => {
            eprintln!(
                "usage: lab bench | demo | paths [even even-loss bonded bonded-loss cuts outage short] [ipv6] [net.KEY=VALUE] | soak"
            );
            ExitCode::from(64)
        }
    }
}

fn bench() -> ExitCode {
    let Some(binary) = demo::binary() else {
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
