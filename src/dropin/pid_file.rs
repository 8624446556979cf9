//! The file that holds the daemon's process number while it runs. EFFECT.
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Fatal};

/// The name of this program's processes in /proc/PID/comm; those of 1.1.0 have the same name.
const PROGRAM: &str = "tcp-intercept";

/// The pid file, which is removed when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

/// Why the pid file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// The path is relative, as in `-p run/x.pid`.
    #[error("-p {}: the path must be absolute, as in /run/tcp-intercept.pid", .0.display())]
    Relative(PathBuf),
    /// The process that the file names is alive.
    #[error("-p {}: another tcp-intercept (pid {pid}) runs with this file: stop it first (kill {pid})", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// The file contains something other than a process number.
    #[error("-p {}: it contains no process number: is it a pid file? Choose another path, or remove it", .0.display())]
    Foreign(PathBuf),
    /// The file cannot be read, removed or written.
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

/// Checks that `path` is absolute, because a daemon works in `/`.
///
/// # Errors
/// Fails if it is relative.
pub fn check(path: &Path) -> Result<(), PidFileError> {
    if path.is_absolute() { Ok(()) } else { Err(PidFileError::Relative(path.to_owned())) }
}

impl PidFile {
    /// Writes the number of this process. Replaces the file of a dead process.
    ///
    /// # Errors
    /// Fails if the file names a living process of this program, is not a pid file, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        check(path)?;
        let failed = |what| move |err| PidFileError::File { path: path.to_owned(), what, err };
        match fs::read(path) {
            Ok(content) => {
                if let Some(pid) = holder(&content) {
                    return Err(PidFileError::Held { path: path.to_owned(), pid });
                }
                // A process that is killed before it has written its number leaves an empty file.
                if number(&content).is_none() && !content.is_empty() {
                    return Err(PidFileError::Foreign(path.to_owned()));
                }
                fs::remove_file(path).map_err(failed("replace"))?;
            }
            Err(err) if err.kind() == ErrorKind::NotFound => {}
            Err(err) => return Err(failed("read")(err)),
        }
        // `create_new` does not overwrite a file that another process has made in between.
        let mut file = fs::File::create_new(path).map_err(failed("create"))?;
        let made = Self { path: path.to_owned() };
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(made)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another process may have replaced the file. Ignore the error: it cannot be reported any more.
        if fs::read(&self.path).is_ok_and(|content| number(&content) == Some(std::process::id())) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns the living process of this program that a pid file names; `None` if the number now belongs to another
/// program or to this process.
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
