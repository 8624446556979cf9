//! Commands whose failure becomes a panic or an error that contains their output.
use std::io;
use std::process::Command;

/// Runs `command` to its end and returns its standard output.
///
/// # Panics
/// The command cannot be started or fails. The message names it by `what`.
pub(crate) fn run(command: &mut Command, what: &str) -> String {
    try_run(command, what).unwrap_or_else(|err| panic!("{err}"))
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// The command cannot be started or fails. The message names it by `what`.
pub(crate) fn try_run(command: &mut Command, what: &str) -> io::Result<String> {
    let output = command.output();
    let output =
        output.map_err(|err| io::Error::new(err.kind(), format!("`{what}` cannot be started: {err}")))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("`{what}` failed ({}):\n{stdout}{stderr}", output.status)))
}
