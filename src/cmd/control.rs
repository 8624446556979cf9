//! `tcp-intercept upgrade`, `drain` and `stop`: asked of the daemon of this network namespace. WIRING.
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::exit::{Exit, Fatal};
use crate::process::guardian::control_socket::Command;
use crate::process::lock::{self, Call};

/// How long a daemon may take to say that it has heard.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for it and waits until it is done; `say` hears how it goes on. Gives the last word.
///
/// # Errors
/// When there is no daemon, it lets us not in, or cannot do it.
pub fn ask(command: &Command, mut say: impl FnMut(&str)) -> Result<String, Fatal> {
    let unavailable = |text: String| Fatal::new(Exit::Unavailable, text);
    let called = lock::call().map_err(|err| unavailable(format!("the daemon cannot be reached: {err}")))?;
    let nobody = "no tcp-intercept runs in this network namespace (ip netns identify says which it is)";
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
        unavailable(format!("the daemon did not say how that ended ({err}): look at its log"))
    };
    stream.write_all(&command.line()).map_err(|err| hung_up(&err))?;
    // Who is heard is answered at once; what he asked for may take as long as it likes.
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
        "the daemon has hung up: only root and the user that it runs as are heard (or it has just died)",
    ))
}

fn hung_up(err: &std::io::Error) -> Fatal {
    Fatal::new(
        Exit::NoPerm,
        format!("the daemon has hung up ({err}): only root and the user that it runs as are heard"),
    )
}

/// What `upgrade` asks for: a path means the directory that it was called in.
///
/// # Errors
/// When that is gone.
pub fn upgrade(binary: Option<PathBuf>) -> Result<Command, Fatal> {
    let absolute = binary.map(std::path::absolute).transpose();
    let absolute = absolute
        .map_err(|err| Fatal::new(Exit::OsErr, format!("BINARY: the current directory is gone: {err}")))?;
    Ok(Command::Upgrade(absolute))
}
