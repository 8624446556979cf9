//! Where operators' commands arrive: the lock's socket, one line in, a few lines out. EFFECT.
//!
//! Nobody who comes here can hold the guardian up: it never waits for anybody, and forgets who says nothing.
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

/// How long somebody may take to say what he wants.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many may be about it at once.
const CALLERS: usize = 8;
/// What fits into a line: a path and a word before it.
const LINE: usize = 4200;

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// To be replaced by this program; `None`: by what is now where the running one was started from.
    Upgrade(Option<PathBuf>),
    /// To end when the last session has.
    Drain,
    /// To end now.
    Stop,
}

impl Command {
    /// The line that says so.
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

/// Somebody who is being served.
#[derive(Debug)]
pub struct Caller(Registered<UnixStream>);

impl Caller {
    /// One that was served by another program before.
    pub fn resumed(stream: OwnedFd) -> Self {
        Self(Registered::new(stream.into()))
    }

    /// Tells how it goes on.
    pub fn say(&mut self, text: &str) {
        self.write("say", text);
    }

    /// The last word: it was done.
    pub fn done(mut self, text: &str) {
        self.write("ok", text);
    }

    /// The last word: it was not.
    pub fn refuse(mut self, text: &str) {
        self.write("no", text);
    }

    /// Its descriptor, for the program that takes this one's place.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn write(&mut self, word: &str, text: &str) {
        let text = text.replace('\n', " ");
        // Who does not listen any more has given up.
        let _ = (&*self.0).write_all(format!("{word} {text}\n").as_bytes());
    }
}

/// The control connections on which no command has come yet.
#[derive(Debug, Default)]
pub struct ControlSocket {
    waiting: Vec<(Registered<UnixStream>, Vec<u8>, Instant)>,
    /// There was no descriptor for a connection: polling the lock would return at once, again and again.
    full: bool,
}

impl ControlSocket {
    /// Whether a connection can be accepted: whether to wait for one.
    pub fn accepts(&self) -> bool {
        !self.full
    }

    /// Tries to accept again, after there was no descriptor.
    pub fn retry(&mut self) {
        self.full = false;
    }

    /// Accepts the connections of callers that are trusted; returns the commands that have come. At the descriptor limit it gives up `reserve`.
    pub fn answer(&mut self, lock: BorrowedFd<'_>, reserve: &mut Reserve) -> Vec<(Command, Caller)> {
        // Whoever comes again and again may not keep everything else waiting.
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

    /// Those to wait for.
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
