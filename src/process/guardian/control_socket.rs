//! The control socket: takes the commands of operators on the lock's socket. A caller sends one line and gets a few
//! lines back. EFFECT.
//!
//! A caller cannot block the guardian: the guardian never waits for one, and drops those that send no command.
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use sys::Registered;

use crate::host::reserve::Reserve;
use crate::process::lock::is_trusted;

/// The time within which a caller must send its command.
const PATIENCE: Duration = Duration::from_secs(2);
/// The highest number of callers that have not yet sent a command, and of accepts in one call of
/// [`ControlSocket::answer`].
const CALLERS: usize = 8;
/// The longest line, in bytes: a command word and a path (PATH_MAX is 4096).
const LINE: usize = 4200;

/// A command of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Upgrade to this program; `None`: to the file at the path that the running program was started from.
    Upgrade(Option<PathBuf>),
    /// Drain, and end when the last session has ended.
    Drain,
    /// End now.
    Stop,
}

impl Command {
    /// Returns the line that encodes the command.
    pub fn line(&self) -> Vec<u8> {
        let (word, path) = match self {
            Self::Upgrade(path) => ("upgrade ", path.as_deref().map(|path| path.as_os_str().as_bytes())),
            Self::Drain => ("drain ", None),
            Self::Stop => ("stop ", None),
        };
        [word.as_bytes(), path.unwrap_or_default(), b"\n"].concat()
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let space = line.iter().position(|&byte| byte == b' ')?;
        let (word, rest) = (&line[..space], &line[space + 1..]);
        match word {
            b"upgrade" if rest.is_empty() => Some(Self::Upgrade(None)),
            b"upgrade" => Some(Self::Upgrade(Some(std::ffi::OsString::from_vec(rest.to_vec()).into()))),
            b"drain" => Some(Self::Drain),
            b"stop" => Some(Self::Stop),
            _ => None,
        }
    }
}

/// The connection of an operator whose command is being executed.
#[derive(Debug)]
pub struct Caller(Registered<UnixStream>);

impl Caller {
    /// Wraps the connection of a caller whose command the previous program has read.
    pub fn resumed(stream: OwnedFd) -> Self {
        Self(Registered::new(stream.into()))
    }

    /// Reports progress.
    pub fn say(&mut self, text: &str) {
        self.write("say", text);
    }

    /// Reports success, as the last line.
    pub fn done(mut self, text: &str) {
        self.write("ok", text);
    }

    /// Reports failure, as the last line.
    pub fn refuse(mut self, text: &str) {
        self.write("no", text);
    }

    /// Returns its descriptor, which the next program inherits.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn write(&mut self, word: &str, text: &str) {
        let text = text.replace('\n', " ");
        // Ignore write errors: the caller may have disconnected.
        let _ = (&*self.0).write_all(format!("{word} {text}\n").as_bytes());
    }
}

/// The control connections that have not yet sent a command.
#[derive(Debug, Default)]
pub struct ControlSocket {
    waiting: Vec<(Registered<UnixStream>, Vec<u8>, Instant)>,
    /// The last accept failed, for example because no descriptor was free. Polling the lock would return at once, again
    /// and again, so it is not polled until [`Self::retry`].
    full: bool,
}

impl ControlSocket {
    /// Returns whether a connection can be accepted, and so whether to poll the lock for one.
    pub fn accepts(&self) -> bool {
        !self.full
    }

    /// Allows another accept after one has failed.
    pub fn retry(&mut self) {
        self.full = false;
    }

    /// Accepts the connections of trusted callers, and returns the commands that have arrived. At the descriptor limit
    /// it releases `reserve`.
    pub fn answer(&mut self, lock: BorrowedFd<'_>, reserve: &mut Reserve) -> Vec<(Command, Caller)> {
        // A caller that connects over and over must not keep the guardian from its other work.
        for _ in 0..CALLERS {
            let accept = || accept_with(lock, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
            let accepted = accept().or_else(|err| match err {
                Errno::MFILE | Errno::NFILE => {
                    reserve.release();
                    accept()
                }
                _ => Err(err),
            });
            let Ok(stream) = accepted else {
                self.full = !matches!(accepted, Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED));
                break;
            };
            // Any user of this network namespace can connect.
            if self.waiting.len() < CALLERS && is_trusted(&stream) {
                self.waiting.push((Registered::new(stream.into()), Vec::new(), Instant::now()));
            }
        }
        let mut asked = Vec::new();
        for (stream, mut line, since) in std::mem::take(&mut self.waiting) {
            let mut more = [0; LINE];
            match (&*stream).read(&mut more) {
                Ok(0) => continue,
                Ok(n) => line.extend_from_slice(&more[..n]),
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => continue,
            }
            match line.iter().position(|&byte| byte == b'\n') {
                Some(end) => match Command::parse(&line[..end]) {
                    Some(command) => asked.push((command, Caller(stream))),
                    None => Caller(stream).refuse("this daemon does not know that command"),
                },
                None if line.len() > LINE || since.elapsed() >= PATIENCE => {}
                None => self.waiting.push((stream, line, since)),
            }
        }
        asked
    }

    /// Returns the connections to poll for a command.
    pub fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting.iter().map(|(stream, ..)| stream.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_as_it_was_written() {
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/opt/a b\xff".to_vec()));
        for command in [Command::Upgrade(None), Command::Upgrade(Some(path)), Command::Drain, Command::Stop] {
            let line = command.line();
            assert_eq!(Command::parse(line.strip_suffix(b"\n").unwrap()), Some(command));
        }
        assert_eq!(Command::parse(b"format c:"), None);
        assert_eq!(Command::parse(b""), None);
    }
}
