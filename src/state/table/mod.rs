//! The session table, in memory that outlives a worker: the next worker resumes the sessions from it. EFFECT.
//!
//! A session's slot number is the descriptor number of its client leg. So no list of free slots is needed, and two
//! sessions cannot share one.
pub mod header;
pub mod journal;
pub mod slot;
#[cfg(test)]
mod tests;
mod word;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use sys::Visible;

use self::header::{Header, Unreadable};
use self::slot::Slot;

/// Returns the time on the clock that the table uses. It continues across workers.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The table, mapped for the whole life of the process.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    words: &'static [AtomicU64],
}

/// The reasons why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A system call failed.
    #[error("the session table cannot be {what}: {err}")]
    Os {
        /// The step: "made" or "mapped".
        what: &'static str,
        /// The error of the system call.
        err: io::Error,
    },
    /// The content is not usable.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Table {
    /// Creates a table for sessions whose client legs have descriptors below `slots`. Returns it with its file. Its
    /// memory is allocated on use.
    ///
    /// # Errors
    /// The kernel has no memory or descriptor for it.
    pub fn new(slots: usize) -> Result<(Self, OwnedFd), TableError> {
        let failed = |err: rustix::io::Errno| TableError::Os { what: "made", err: err.into() };
        let file = memfd_create("tcp-intercept-sessions", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed)?;
        let words = header::WORDS + slots * slot::WORDS;
        ftruncate(&file, (words * size_of::<AtomicU64>()) as u64).map_err(failed)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed)?;
        let table = Self::map(file.as_fd(), Visible::ToAll)?;
        table.header().begin(slots);
        Ok((table, file))
    }

    /// Opens the table in `file`, which another program has made.
    ///
    /// # Errors
    /// This program cannot read the table.
    pub fn open(file: BorrowedFd<'_>) -> Result<Self, TableError> {
        Self::read(file, Visible::ToAll)
    }

    /// Works like [`Self::open`], but other processes do not see what this one writes to the table.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn rehearsed(file: BorrowedFd<'_>) -> Result<Self, TableError> {
        Self::read(file, Visible::ToSelf)
    }

    fn read(file: BorrowedFd<'_>, visible: Visible) -> Result<Self, TableError> {
        let table = Self::map(file, visible)?;
        let words = table.header().slots()?.checked_mul(slot::WORDS);
        match words.and_then(|words| words.checked_add(header::WORDS)) {
            Some(words) if words <= table.words.len() => Ok(table),
            _ => Err(Unreadable::Short.into()),
        }
    }

    fn map(file: BorrowedFd<'_>, visible: Visible) -> Result<Self, TableError> {
        let failed = |err| TableError::Os { what: "mapped", err };
        let bytes = fstat(file).map_err(|err| failed(err.into()))?.st_size;
        let words = usize::try_from(bytes).unwrap_or(0) / size_of::<AtomicU64>();
        if words < header::WORDS {
            return Err(Unreadable::Foreign.into());
        }
        let words = sys::map_words(file, words, visible).map_err(failed)?;
        Ok(Self { words })
    }

    /// Returns the header.
    pub fn header(&self) -> Header {
        Header::new(&self.words[..header::WORDS])
    }

    /// Returns the slot of the session whose client leg has this descriptor; `None` if the table has no room for it.
    pub fn slot(&self, client: RawFd) -> Option<Slot> {
        let first = header::WORDS + usize::try_from(client).ok()?.checked_mul(slot::WORDS)?;
        let words = self.words.get(first..first + slot::WORDS)?;
        words.try_into().ok().map(Slot::new)
    }
}
