//! The lab as a program: measures tcp-intercept on bad links, compares it with other ways, and runs soak tests.
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

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match words.next().as_deref() {
        Some("bench") => command(Plan::from_words(PathBuf::new(), words), bench),
        Some("demo") => command(demo::Kind::demo(words), demo::run),
        Some("lab") => command(demo::Kind::lab(words), demo::run),
        Some("never-drop") => {
            command(never_drop::times(words), |binary, times| never_drop::run(&binary, times))
        }
        Some("paths") => command(paths::Plan::from_words(words), paths::run),
        Some("soak") => command(soak::minutes(words), |binary, minutes| soak::run(&binary, minutes)),
        _ => Err(usage()),
    };
    done.unwrap_or_else(|message| {
        eprintln!("{message}");
        ExitCode::from(USAGE)
    })
}

/// Runs a command in its own namespaces with the options that `words` select. Prints the usage if a word is invalid.
fn command<Options>(
    options: Result<Options, String>,
    work: impl FnOnce(PathBuf, Options) -> ExitCode,
) -> Result<ExitCode, String> {
    let options = options?;
    Ok(lab::program(|| match binary() {
        Some(binary) => work(binary, options),
        None => {
            eprintln!("tcp-intercept is not in this program's directory: run cargo build --release");
            ExitCode::FAILURE
        }
    }))
}

fn usage() -> String {
    format!(
        "usage: lab bench [ROUNDS=9] [SECONDS=2] [ONLY=bulk1,rtt] [IDLE=1000] [CONGESTION=cubic] [BASE=FILE] [OUT=DIRECTORY]
       lab demo | lab [PROFILE=clean,lte] [OUT=DIRECTORY]
       lab never-drop [TIMES=100]
       lab paths [{}] [ipv6] [net.KEY=VALUE] [SECTION.KEY=VALUE]
       lab soak [MINUTES=60]",
        paths::scenes()
    )
}

/// Returns the path of the `tcp-intercept` program, which is built in the same directory as this one.
fn binary() -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?.with_file_name("tcp-intercept");
    let binary = lab::reachable(&binary);
    binary.is_file().then_some(binary)
}

fn bench(binary: PathBuf, plan: Plan) -> ExitCode {
    let out = plan.out.clone();
    let results = lab::bench::run(Plan { binary, ..plan }, |what| eprintln!("  {what}"));
    let report = Report::new();
    report.section("tcp-intercept compared with the other ways");
    results.conditions().iter().for_each(|line| report.say(line));
    report.table(&lab::bench::rows(&results));
    if let Err(err) = keep(&results, &out) {
        eprintln!("cannot save the results in {}: {err}", out.display());
        return ExitCode::FAILURE;
    }
    let out = out.display();
    report.say(&format!(
        "\n  Saved in {out}: results.json and bench.svg. To renew the documentation, put this table into"
    ));
    report.say(&format!("docs/bench.md, then: cp {out}/bench.svg docs/"));
    ExitCode::SUCCESS
}

fn keep(results: &Results, out: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("results.json"), format!("{:#}\n", lab::bench::json(results)))?;
    std::fs::write(out.join("bench.svg"), lab::bench::plot(results))
}
