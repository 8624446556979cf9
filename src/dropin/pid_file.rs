//! The file that holds the daemon's number while it runs. EFFECT.
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Fatal};

/// The names that the kernel has for processes of this program, 1.1.0's too: /proc/PID/comm.
const PROGRAM: &str = "tcp-intercept";

/// Removed when it is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// `-p run/x.pid`
    #[error("-p {}: the path must be absolute, as in /run/tcp-intercept.pid", .0.display())]
    Relative(PathBuf),
    /// The process that it names lives.
    #[error("-p {}: another tcp-intercept (pid {pid}) runs with this file: stop it first (kill {pid})", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// Whatever it is, it was not written by a daemon.
    #[error("-p {}: what is in it is no number of a process: is it a pid file? Choose another path, or remove it", .0.display())]
    Foreign(PathBuf),
    /// It cannot be read, removed or written.
    #[error("-p {}: cannot {what} it: {err}; does its directory exist?", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// The kernel's answer.
        err: io::Error,
    },
}

/// Whether `path` can be one of a daemon, which works in `/`.
///
/// # Errors
/// When it is relative.
pub fn check(path: &Path) -> Result<(), PidFileError> {
    if path.is_absolute() { Ok(()) } else { Err(PidFileError::Relative(path.to_owned())) }
}

impl PidFile {
    /// Writes the number of this process; what a dead one left is replaced.
    ///
    /// # Errors
    /// When the file names a process of this program that lives, is no pid file, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        check(path)?;
        let failed = |what| move |err| PidFileError::File { path: path.to_owned(), what, err };
        match fs::read(path) {
            Ok(content) => {
                if let Some(pid) = holder(&content) {
                    return Err(PidFileError::Held { path: path.to_owned(), pid });
                }
                // An empty one was left by somebody who was killed before the number was in it.
                if number(&content).is_none() && !content.is_empty() {
                    return Err(PidFileError::Foreign(path.to_owned()));
                }
                fs::remove_file(path).map_err(failed("replace"))?;
            }
            Err(err) if err.kind() == ErrorKind::NotFound => {}
            Err(err) => return Err(failed("read")(err)),
        }
        // Whoever made it in between is not overwritten.
        let mut file = fs::File::create_new(path).map_err(failed("create"))?;
        let made = Self { path: path.to_owned() };
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(made)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have put another one in its place; and nobody is left to be told that it cannot be removed.
        if fs::read(&self.path).is_ok_and(|content| number(&content) == Some(std::process::id())) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The living process of this program that a pid file names. The number may be another program's by now, or our own.
fn holder(content: &[u8]) -> Option<u32> {
    let pid = number(content).filter(|&pid| pid != std::process::id())?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (comm.trim_end() == PROGRAM).then_some(pid)
}

fn number(content: &[u8]) -> Option<u32> {
    std::str::from_utf8(content).ok()?.trim().parse().ok()
}

impl From<PidFileError> for Fatal {
    fn from(err: PidFileError) -> Self {
        let exit = match err {
            PidFileError::Relative(_) => Exit::Usage,
            PidFileError::Held { .. } => Exit::Unavailable,
            PidFileError::Foreign(_) | PidFileError::File { .. } => Exit::CantCreat,
        };
        Self::new(exit, err.to_string())
    }
}
