//! `tcp-intercept upgrade`, `drain` and `stop`: commands to the daemon of this network namespace. WIRING.
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::exit::{Exit, Fatal};
use crate::process::guardian::control_socket::Command;
use crate::process::lock::{self, Call};

/// The longest wait for the daemon's acknowledgement.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a command to the daemon and waits until it is done. Passes progress to `say`; returns the final answer.
///
/// # Errors
/// Fails if there is no daemon, if it does not accept this user, or if it cannot execute the command.
pub fn ask(command: &Command, mut say: impl FnMut(&str)) -> Result<String, Fatal> {
    let unavailable = |text: String| Fatal::new(Exit::Unavailable, text);
    let called = lock::call().map_err(|err| unavailable(format!("the daemon cannot be reached: {err}")))?;
    let nobody = "no tcp-intercept runs in this network namespace (ip netns identify shows its name)";
    let mut stream = match called {
        Call::Daemon(stream) => stream,
        Call::Nobody => return Err(unavailable(nobody.to_owned())),
        Call::Stranger(holder) => {
            return Err(unavailable(format!(
                "{nobody}, or not as root and not as this user: {holder} holds its name; if that is the daemon, call this command \
                 as its user"
            )));
        }
    };
    let lost = |err: &dyn std::fmt::Display| {
        unavailable(format!("the daemon did not report the outcome ({err}): see its log"))
    };
    stream.write_all(&command.line()).map_err(|err| hung_up(&err))?;
    // The daemon acknowledges a command at once. The command itself may take any time.
    stream.set_read_timeout(Some(PATIENCE)).map_err(|err| lost(&err))?;
    for line in BufReader::new(&stream).lines() {
        let line = line.map_err(|err| match err.kind() {
            ErrorKind::WouldBlock => unavailable(
                "the daemon does not answer: its guardian may be gone, and its worker (ps -C tcp-int-worker) about to end with its \
                 last session"
                    .to_owned(),
            ),
            _ => hung_up(&err),
        })?;
        stream.set_read_timeout(None).map_err(|err| lost(&err))?;
        match line.split_once(' ') {
            Some(("say", text)) => say(text),
            Some(("ok", text)) => return Ok(format!("{text}\n")),
            Some(("no", text)) => return Err(unavailable(text.to_owned())),
            _ => return Err(lost(&line)),
        }
    }
    Err(Fatal::new(
        Exit::NoPerm,
        "the daemon has closed the connection: only root and the user that it runs as may command it \
         (or it has just died)",
    ))
}

fn hung_up(err: &std::io::Error) -> Fatal {
    Fatal::new(
        Exit::NoPerm,
        format!(
            "the daemon has closed the connection ({err}): only root and the user that it runs as may command it"
        ),
    )
}

/// Returns the command for `upgrade`. A relative path refers to the current directory.
///
/// # Errors
/// Fails if the current directory no longer exists.
pub fn upgrade(binary: Option<PathBuf>) -> Result<Command, Fatal> {
    let absolute = binary.map(std::path::absolute).transpose();
    let absolute = absolute
        .map_err(|err| Fatal::new(Exit::OsErr, format!("BINARY: the current directory is gone: {err}")))?;
    Ok(Command::Upgrade(absolute))
}
