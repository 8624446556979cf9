//! The table of sessions: in memory that outlives a worker, with what the next one needs to go on. EFFECT.
//!
//! A session's slot is the one with the number of its client leg's descriptor, so that nobody has to keep lists of free ones, and no
//! two sessions can have the same.
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

/// The time on the clock by which the table tells it: it runs on from one worker to the next.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The table, mapped for as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    words: &'static [AtomicU64],
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The kernel's no.
    #[error("the table of sessions cannot be {what}: {err}")]
    Os {
        /// Made or mapped.
        what: &'static str,
        /// Its answer.
        err: io::Error,
    },
    /// What is in it.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Table {
    /// A new one, for sessions whose client legs have descriptors below `slots`, and the file that it is in. It takes memory as it is
    /// used.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
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

    /// The one in `file`, which another program has made.
    ///
    /// # Errors
    /// When it is none that this program can read.
    pub fn open(file: BorrowedFd<'_>) -> Result<Self, TableError> {
        Self::read(file, Visible::ToAll)
    }

    /// As [`Self::open`], but what is written to it nobody else sees.
    ///
    /// # Errors
    /// The same.
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

    /// What it says of the whole.
    pub fn header(&self) -> Header {
        Header::new(&self.words[..header::WORDS])
    }

    /// The slot of the session whose client leg has this descriptor; `None`: the table has no room for it.
    pub fn slot(&self, client: RawFd) -> Option<Slot> {
        let first = header::WORDS + usize::try_from(client).ok()?.checked_mul(slot::WORDS)?;
        let words = self.words.get(first..first + slot::WORDS)?;
        words.try_into().ok().map(Slot::new)
    }
}
