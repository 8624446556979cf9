//! The system's `nft`: one transaction in, the kernel's view out. EFFECT.
use std::env;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use super::error::RulesError;

/// Runs `script` as one transaction; `step` is what it does, after "could not".
pub fn transact(step: &str, script: &str) -> Result<(), RulesError> {
    run(step, &["-f", "-"], script).map(drop)
}

/// What `nft ARGUMENTS` prints.
pub fn list(step: &str, arguments: &[&str]) -> Result<String, RulesError> {
    run(step, arguments, "")
}

fn run(step: &str, arguments: &[&str], script: &str) -> Result<String, RulesError> {
    let output = start(arguments, script).map_err(|err| match err.kind() {
        // The second is the answer where a directory of PATH cannot be searched.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            RulesError::NoNft { path: env::var("PATH").unwrap_or_default() }
        }
        _ => RulesError::Failed { step: step.to_owned(), why: format!("nft does not run: {err}") },
    })?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failure(step, &format!("nft {} ({})", stderr.trim_end(), output.status))),
    }
}

fn start(arguments: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A program that ends without reading has said why on its standard error.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(script.as_bytes());
    }
    child.wait_with_output()
}

/// nft answers in words only.
fn failure(step: &str, text: &str) -> RulesError {
    let (step, says) = (step.to_owned(), |words: &str| text.contains(words));
    if says("Operation not permitted") {
        RulesError::NoPermission { step, why: text.to_owned() }
    } else if says("tproxy") && (says("No such file or directory") || says("not supported")) {
        RulesError::NoKernelSupport { step, nft: text.to_owned() }
    } else {
        RulesError::Failed { step, why: text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_failure_is_told_by_what_the_operator_can_do_about_it() {
        let tproxy =
            "nft /dev/stdin:30:5-99: Error: Could not process rule: No such file or directory\n tproxy ip to";
        assert_eq!(failure("x", tproxy).exit(), Exit::Unavailable);
        assert_eq!(failure("x", "nft Operation not permitted (you must be root)").exit(), Exit::NoPerm);
        assert_eq!(failure("x", "nft Error: syntax error").exit(), Exit::OsErr);
    }
}
