//! The table of sessions: in memory that outlives a worker, with what the next one needs to go on. EFFECT.
//!
//! A session's slot is the one with the number of its client leg's descriptor, so that nobody has to keep lists of free ones, and no
//! two sessions can have the same.
pub mod header;
pub mod slot;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use self::header::{Header, Unreadable};
use self::slot::Slot;

/// The table, mapped.
#[derive(Debug)]
pub struct Table {
    file: OwnedFd,
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
    /// A new one, for sessions whose client legs have descriptors below `slots`. It takes memory as it is used.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn new(slots: usize) -> Result<Self, TableError> {
        let failed = |err: rustix::io::Errno| TableError::Os { what: "made", err: err.into() };
        let file = memfd_create("tcp-intercept-sessions", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed)?;
        let words = header::WORDS + slots * slot::WORDS;
        ftruncate(&file, (words * size_of::<AtomicU64>()) as u64).map_err(failed)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed)?;
        let table = Self::map(file)?;
        table.header().begin(slots);
        Ok(table)
    }

    /// The one in `file`, which another program has made.
    ///
    /// # Errors
    /// When it is none that this program can read.
    pub fn open(file: OwnedFd) -> Result<Self, TableError> {
        let table = Self::map(file)?;
        let words = table.header().slots()?.checked_mul(slot::WORDS);
        match words.and_then(|words| words.checked_add(header::WORDS)) {
            Some(words) if words <= table.words.len() => Ok(table),
            _ => Err(Unreadable::Short.into()),
        }
    }

    fn map(file: OwnedFd) -> Result<Self, TableError> {
        let failed = |err| TableError::Os { what: "mapped", err };
        let bytes = fstat(&file).map_err(|err| failed(err.into()))?.st_size;
        let words = usize::try_from(bytes).unwrap_or(0) / size_of::<AtomicU64>();
        if words < header::WORDS {
            return Err(Unreadable::Foreign.into());
        }
        let words = sys::map_words(file.as_fd(), words).map_err(failed)?;
        Ok(Self { file, words })
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

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
