//! The program's entry.
#![forbid(unsafe_code)]
use std::process::ExitCode;
use tcp_intercept::config::Config;

fn main() -> ExitCode {
    match tcp_intercept::daemon::run(Config::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("tcp-intercept: {err}");
            err.exit.into()
        }
    }
}
