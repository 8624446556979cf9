//! The targets of the log: standard error, a file, or the journal. EFFECT.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::stdio::stderr;

use super::LogError;
use crate::config::LogTarget;

/// The socket of journald: sd_journal_send(3).
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// Bytes of lines that are collected before they are written.
const BATCH: usize = 64 << 10;

/// An open target.
#[derive(Debug)]
pub enum Target {
    Stderr,
    File(File),
    Journal(UnixDatagram),
}

impl Target {
    /// Opens the target.
    ///
    /// # Errors
    /// The file cannot be opened, or no process listens on the journal's socket.
    pub fn open(target: &LogTarget) -> Result<Self, LogError> {
        match target {
            LogTarget::Stderr => Ok(Self::Stderr),
            LogTarget::File(path) => {
                let opened = append(path).map(Self::File);
                opened.map_err(|err| LogError::File { path: path.display().to_string(), err })
            }
            LogTarget::Journal => journal().map(Self::Journal).map_err(LogError::Journal),
        }
    }

    /// Returns the descriptor that the target owns; `None` for standard error.
    pub fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Stderr => None,
            Self::File(file) => Some(file.as_raw_fd()),
            Self::Journal(socket) => Some(socket.as_raw_fd()),
        }
    }
}

/// Writes lines to a target, in batches except to the journal. May block.
#[derive(Debug)]
pub struct Output {
    pub target: Target,
    batch: Vec<u8>,
}

impl Output {
    /// Creates an output to `target`.
    pub fn new(target: Target) -> Self {
        Self { target, batch: Vec::new() }
    }

    /// Writes a line, with the next [`flush`](Self::flush) at the latest.
    pub fn line(&mut self, priority: u8, text: &[u8]) {
        if let Target::Journal(socket) = &mut self.target {
            let entry = journal_entry(priority, text);
            // Reconnect: journald may have been restarted.
            if socket.send(&entry).is_err() && socket.connect(JOURNAL).is_ok() {
                let _ = socket.send(&entry);
            }
            return;
        }
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes the collected lines.
    pub fn flush(&mut self) {
        // A failure cannot be reported, as the log itself has failed. Later lines may succeed.
        let _ = match &self.target {
            Target::Stderr => write_all(stderr(), &self.batch),
            Target::File(file) => write_all(file.as_fd(), &self.batch),
            Target::Journal(_) => Ok(()),
        };
        self.batch.clear();
    }
}

/// Writes all of `bytes`. It waits for room even if another process has made the target non-blocking.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)),
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn append(path: &Path) -> io::Result<File> {
    // Opening a FIFO only for writing would wait for a reader.
    let fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    // If the log file is a terminal, it must not become the daemon's controlling terminal.
    let flags = OFlags::NOCTTY.bits().cast_signed();
    OpenOptions::new().read(fifo).append(true).create(true).custom_flags(flags).open(path)
}

fn journal() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL)?;
    Ok(socket)
}

/// Encodes an entry in the journal's native protocol: FIELD=value lines. A value that contains a line feed is
/// preceded by its length instead, as a 64-bit little-endian number.
fn journal_entry(priority: u8, text: &[u8]) -> Vec<u8> {
    let mut entry = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=tcp-intercept\nMESSAGE").into_bytes();
    if text.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(text.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(text);
    entry.push(b'\n');
    entry
}
