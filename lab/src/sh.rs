//! Commands whose failure is a panic that shows what they said.
use std::process::Command;

/// Runs `command` to its end and gives its standard output.
///
/// # Panics
/// When it cannot be started or ends badly; `what` names it.
pub(crate) fn run(command: &mut Command, what: &str) -> String {
    let output = command.output().unwrap_or_else(|err| panic!("`{what}` cannot be started: {err}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "`{what}` failed ({}):\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout.into_owned()
}
