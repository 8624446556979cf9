//! Commands whose failure is a panic, or an error, that shows what they said.
use std::io;
use std::process::Command;

/// Runs `command` to its end and gives its standard output.
///
/// # Panics
/// When it cannot be started or ends badly; `what` names it.
pub(crate) fn run(command: &mut Command, what: &str) -> String {
    try_run(command, what).unwrap_or_else(|err| panic!("{err}"))
}

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or ends badly; `what` names it.
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
