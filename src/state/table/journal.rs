//! The journal of one direction: what the next worker needs to resume it, stored before each step. PURE.
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::word::{YES, store};

/// Number of words of a direction.
pub const WORDS: usize = 4;
const PIPE: usize = 0;
const PASSED_ON: usize = 1;
const SHUT: usize = 2;
const URGENT: usize = 3;

const PIPE_TAG: u64 = 0xa5;
const FD_BITS: u32 = 28;
const SEEN: u64 = 0x5e_0000;
const TAKEN: u64 = 0x7a_0000;

/// The words of one direction in the session table.
#[derive(Debug, Clone, Copy)]
pub struct Journal(&'static [AtomicU64; WORDS]);

/// The state of a direction as read from its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObservedDirection {
    /// The read end and the write end of the pipe.
    pub pipe: Option<(RawFd, RawFd)>,
    /// Number of bytes that were passed on.
    pub passed_on: u64,
    /// The sink's write side was shut, or was about to be.
    pub shut: bool,
    /// An urgent byte that has not been passed on yet.
    pub urgent: Option<Urgent>,
}

/// An urgent byte between the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgent {
    /// The worker has seen it, and may have taken it from the source.
    Seen(u8),
    /// The worker has taken it, and may have passed it on to the sink.
    Taken(u8),
}

impl Journal {
    /// Returns the journal in these words.
    pub(super) fn new(words: &'static [AtomicU64; WORDS]) -> Self {
        Self(words)
    }

    /// Records the pipe before the first byte is in it.
    pub fn pipe(&self, read: RawFd, write: RawFd) {
        let [read, write] = [read, write].map(|fd| u64::from(fd.cast_unsigned()));
        self.set(PIPE, PIPE_TAG << (2 * FD_BITS) | read << FD_BITS | write);
    }

    /// Records that the pipe is empty: another session may use it next.
    pub fn no_pipe(&self) {
        self.set(PIPE, 0);
    }

    /// Records the number of bytes that were passed on.
    pub fn passed_on(&self, bytes: u64) {
        self.set(PASSED_ON, bytes);
    }

    /// Records that the sink's write side is about to be shut.
    pub fn shut(&self) {
        self.set(SHUT, YES);
    }

    /// Records the state of an urgent byte; `None` if there is none.
    pub fn urgent(&self, byte: Option<Urgent>) {
        self.set(
            URGENT,
            match byte {
                None => 0,
                Some(Urgent::Seen(byte)) => SEEN | u64::from(byte),
                Some(Urgent::Taken(byte)) => TAKEN | u64::from(byte),
            },
        );
    }

    /// Records the state from which another worker resumes the direction.
    pub fn resumed(&self, way: &ObservedDirection) {
        self.urgent(way.urgent);
        self.passed_on(way.passed_on);
        match way.pipe {
            Some((read, write)) => self.pipe(read, write),
            None => self.no_pipe(),
        }
    }

    /// Returns the state; `None` if the words were not written by this program.
    pub(super) fn read(&self) -> Option<ObservedDirection> {
        let mask = (1 << FD_BITS) - 1;
        let fd = |bits: u64| RawFd::try_from(bits & mask).ok();
        let pipe = match self.get(PIPE) {
            0 => None,
            pipe if pipe >> (2 * FD_BITS) == PIPE_TAG => Some((fd(pipe >> FD_BITS)?, fd(pipe)?)),
            _ => return None,
        };
        let shut = match self.get(SHUT) {
            0 => false,
            YES => true,
            _ => return None,
        };
        let urgent = self.get(URGENT);
        let byte = urgent as u8;
        let urgent = match urgent & !0xff {
            0 if urgent == 0 => None,
            SEEN => Some(Urgent::Seen(byte)),
            TAKEN => Some(Urgent::Taken(byte)),
            _ => return None,
        };
        Some(ObservedDirection { pipe, passed_on: self.get(PASSED_ON), shut, urgent })
    }

    fn get(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn set(&self, word: usize, value: u64) {
        store(&self.0[word], value);
    }
}
