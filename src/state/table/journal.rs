//! One direction of a session in the table: what the next worker needs of it, before it is done. PURE.
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::word::{YES, store};

/// Words of a direction.
pub const WORDS: usize = 4;
const PIPE: usize = 0;
const PASSED_ON: usize = 1;
const SHUT: usize = 2;
const URGENT: usize = 3;

const PIPE_TAG: u64 = 0xa5;
const FD_BITS: u32 = 28;
const SEEN: u64 = 0x5e_0000;
const TAKEN: u64 = 0x7a_0000;

/// Where one direction of it is.
#[derive(Debug, Clone, Copy)]
pub struct Journal(&'static [AtomicU64; WORDS]);

/// A direction as its slot has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObservedDirection {
    /// The pipe's ends: where bytes come out, where they go in.
    pub pipe: Option<(RawFd, RawFd)>,
    /// Bytes that were passed on.
    pub passed_on: u64,
    /// The sink's write side was shut, or was about to be.
    pub shut: bool,
    /// An urgent byte that is on its way.
    pub urgent: Option<Urgent>,
}

/// An urgent byte, on its way from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgent {
    /// It has been seen, and may have been taken from the source.
    Seen(u8),
    /// It has been taken, and may have been given to the sink.
    Taken(u8),
}

impl Journal {
    /// The one in these words.
    pub(super) fn new(words: &'static [AtomicU64; WORDS]) -> Self {
        Self(words)
    }

    /// A pipe will be filled. It is here before the first byte is in it.
    pub fn pipe(&self, read: RawFd, write: RawFd) {
        let [read, write] = [read, write].map(|fd| u64::from(fd.cast_unsigned()));
        self.set(PIPE, PIPE_TAG << (2 * FD_BITS) | read << FD_BITS | write);
    }

    /// The pipe is empty, and somebody else's next.
    pub fn no_pipe(&self) {
        self.set(PIPE, 0);
    }

    /// So many bytes were passed on so far.
    pub fn passed_on(&self, bytes: u64) {
        self.set(PASSED_ON, bytes);
    }

    /// The sink's write side is about to be shut.
    pub fn shut(&self) {
        self.set(SHUT, YES);
    }

    /// Where an urgent byte is; `None`: there is none.
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

    /// Another worker goes on from here.
    pub fn resumed(&self, way: &ObservedDirection) {
        self.urgent(way.urgent);
        self.passed_on(way.passed_on);
        match way.pipe {
            Some((read, write)) => self.pipe(read, write),
            None => self.no_pipe(),
        }
    }

    /// What it says; `None`: nothing that this program has written.
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
