//! The lab as a program: `lab demo` shows on real traffic what tcp-intercept does.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_macros, reason = "this program's purpose is what it prints")]
use std::process::ExitCode;

mod demo;
mod report;
mod soak;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("demo") => lab::program(demo::run),
        Some("soak") => lab::program(soak::run),
        _ => {
            eprintln!("usage: lab demo | soak");
            ExitCode::from(64)
        }
    }
}
