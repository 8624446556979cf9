//! Calls of the system's program `nft`: runs transactions and lists the kernel's tables. EFFECT.
use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::RulesError;

/// The time limit of one call: ten times the time for a foreign ruleset with 200,000 elements.
const DEADLINE: Duration = Duration::from_secs(20);
/// The time limit after a call of this process has exceeded [`DEADLINE`]: several hanging calls take hardly longer than
/// one.
const DEADLINE_AGAIN: Duration = Duration::from_secs(1);
/// Whether the last call of this process exceeded its time limit.
static HANGS: AtomicBool = AtomicBool::new(false);
/// The time limit for the end of a killed process.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// Runs `script` as one transaction; `step` describes it, as a phrase after "could not".
pub fn transact(step: &str, script: &str) -> Result<(), RulesError> {
    run(step, &["-f", "-"], script).map(drop)
}

/// Runs `nft` with `arguments` and returns its output.
pub fn list(step: &str, arguments: &[&str]) -> Result<String, RulesError> {
    run(step, arguments, "")
}

fn run(step: &str, arguments: &[&str], script: &str) -> Result<String, RulesError> {
    let failed = |why: String| RulesError::Failed { step: step.to_owned(), why };
    let ended = start(arguments, script).map_err(|err| match err.kind() {
        // The kernel answers EACCES where a directory of PATH cannot be searched.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            RulesError::NoNft { path: env::var("PATH").unwrap_or_default() }
        }
        _ => failed(format!("cannot run nft: {err}")),
    })?;
    match ended {
        None => Err(failed(format!(
            "nft did not end in time ({DEADLINE:?}) and was killed: does `nft list tables` end?"
        ))),
        Some(Ended { status, output, .. }) if status.success() => Ok(output),
        Some(Ended { status, errors, .. }) => {
            Err(failure(step, &format!("nft {} ({status})", errors.trim_end())))
        }
    }
}

struct Ended {
    status: ExitStatus,
    output: String,
    errors: String,
}

/// Runs nft to its end; `None` if it did not end in time. It reads and writes files in memory instead of pipes, so that
/// neither process ever waits for the other.
fn start(arguments: &[&str], script: &str) -> io::Result<Option<Ended>> {
    let file = || -> io::Result<File> { Ok(memfd_create("nft", MemfdFlags::CLOEXEC)?.into()) };
    let (mut input, output, errors) = (file()?, file()?, file()?);
    input.write_all(script.as_bytes())?;
    input.rewind()?;
    let mut command = Command::new("nft");
    command.args(arguments).env("LC_ALL", "C");
    // Otherwise a transaction of a dead worker could come after those of the next worker.
    sys::die_with_caller(&mut command);
    let mut child = command.stdin(input).stdout(output.try_clone()?).stderr(errors.try_clone()?).spawn()?;
    let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => process,
        Err(err) => {
            child.kill()?;
            child.wait()?;
            return Err(err.into());
        }
    };
    let deadline = if HANGS.load(Ordering::Relaxed) { DEADLINE_AGAIN } else { DEADLINE };
    let ended = ends_within(&process, deadline);
    HANGS.store(!ended, Ordering::Relaxed);
    if !ended {
        child.kill()?;
        // A process that hangs in the kernel does not die; it is left behind.
        if ends_within(&process, AFTER_KILL) {
            child.wait()?;
        }
        return Ok(None);
    }
    let status = child.wait()?;
    let read = |mut file: File| -> io::Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Some(Ended { status, output: read(output)?, errors: read(errors)? }))
}

fn ends_within(process: &OwnedFd, time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, Some(&time))).is_ok_and(|ready| ready > 0)
}

/// Returns the error for the output of nft. Its exit status gives no reason, so the text decides.
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
    fn a_failure_is_classified_by_the_operators_remedy() {
        let tproxy =
            "nft /dev/stdin:30:5-99: Error: Could not process rule: No such file or directory\n tproxy ip to";
        assert_eq!(failure("x", tproxy).exit(), Exit::Unavailable);
        assert_eq!(failure("x", "nft Operation not permitted (you must be root)").exit(), Exit::NoPerm);
        assert_eq!(failure("x", "nft Error: syntax error").exit(), Exit::OsErr);
    }
}
