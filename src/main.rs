//! The program's entry. WIRING.
#![forbid(unsafe_code)]
use std::process::ExitCode;

fn main() -> ExitCode {
    tcp_intercept::cli::main()
}
