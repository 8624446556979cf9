//! The entry point of the program. WIRING.
#![forbid(unsafe_code)]
use std::process::ExitCode;

fn main() -> ExitCode {
    tcp_intercept::cli::main()
}
