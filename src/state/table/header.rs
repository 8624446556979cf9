//! The header of the session table: its layout, the counters, and the state of each thread. PURE.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::metrics::Counters;

use super::slot::WORDS as SLOT_WORDS;

/// Number of words before the first slot.
pub const WORDS: usize = 1024;
/// Number of threads that have a place in the header; a worker has no more.
pub const THREADS: usize = 64;

/// The version of the layout. Increment it when a word changes its meaning: a program refuses a table that it would
/// misread. New counters at the end of [`Counters`] need no new version, as unused words are 0.
pub const LAYOUT: u64 = 1;

const MAGIC: u64 = u64::from_be_bytes(*b"tcp-icpt");

const KIND: usize = 0;
const LAYOUT_WORD: usize = 1;
const SLOTS: usize = 2;
const SLOT_SIZE: usize = 3;
const GENERATION: usize = 4;
const SESSIONS: usize = 5;
const CRASH_POINTS: usize = 6;
const CONTROL_HEARTBEAT: usize = 7;
const HOST_HEARTBEAT: usize = 8;
const COUNTERS: usize = 64;
const FIRST_THREAD: usize = 192;
/// Words of a thread: a cache line, so that threads do not contend for one.
const THREAD: usize = 8;
const HEARTBEAT: usize = 0;
const CURRENT_SESSION: usize = 1;

const _: () = assert!(Counters::COUNT <= FIRST_THREAD - COUNTERS && FIRST_THREAD + THREADS * THREAD <= WORDS);

/// The words before the first slot.
#[derive(Debug, Clone, Copy)]
pub struct Header(&'static [AtomicU64]);

/// The state that one thread of the worker publishes.
#[derive(Debug, Clone, Copy)]
pub struct Thread(&'static [AtomicU64]);

/// The reasons why a table cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not a session table.
    #[error("this is not a session table")]
    Foreign,
    /// Another version of the program made it.
    #[error("the session table has layout {0}, and this program knows layout {LAYOUT}")]
    Layout(u64),
    /// It is shorter than its header says.
    #[error("the session table is shorter than its header says")]
    Short,
}

impl Header {
    /// Returns the header in these words.
    pub fn new(words: &'static [AtomicU64]) -> Self {
        Self(words)
    }

    /// Initialises the header of a new table.
    pub fn begin(&self, slots: usize) {
        self.set(LAYOUT_WORD, LAYOUT);
        self.set(SLOTS, slots as u64);
        self.set(SLOT_SIZE, SLOT_WORDS as u64);
        self.set(KIND, MAGIC);
    }

    /// Returns the number of slots.
    ///
    /// # Errors
    /// This program cannot read the table.
    pub fn slots(&self) -> Result<usize, Unreadable> {
        let layout = self.get(LAYOUT_WORD);
        match (self.get(KIND), layout, self.get(SLOT_SIZE)) {
            (MAGIC, LAYOUT, size) if size == SLOT_WORDS as u64 => {
                usize::try_from(self.get(SLOTS)).map_err(|_| Unreadable::Short)
            }
            (MAGIC, ..) => Err(Unreadable::Layout(layout)),
            _ => Err(Unreadable::Foreign),
        }
    }

    /// Starts the next worker's generation and returns its number, from 1.
    pub fn begin_generation(&self) -> u64 {
        self.set(GENERATION, self.generation() + 1);
        self.generation()
    }

    /// Returns the number of the present worker.
    pub fn generation(&self) -> u64 {
        self.get(GENERATION)
    }

    /// Returns the number of sessions that the worker last stored.
    pub fn sessions(&self) -> u64 {
        self.get(SESSIONS)
    }

    /// Stores the number of sessions.
    pub fn set_sessions(&self, sessions: u32) {
        self.set(SESSIONS, sessions.into());
    }

    /// Increments the heartbeat of the worker's control thread.
    pub fn control_heartbeat(&self) {
        self.0[CONTROL_HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the heartbeats of the control threads of all workers.
    pub fn control_heartbeats(&self) -> u64 {
        self.get(CONTROL_HEARTBEAT)
    }

    /// Increments the heartbeat of the thread that changes the host.
    pub fn host_heartbeat(&self) {
        self.0[HOST_HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the heartbeats of the host threads of all workers.
    pub fn host_heartbeats(&self) -> u64 {
        self.get(HOST_HEARTBEAT)
    }

    /// Returns the counters, which cover all workers.
    pub fn counters(&self) -> Counters {
        Counters::over(&self.0[COUNTERS..FIRST_THREAD])
    }

    /// Returns the state of the thread with this number, modulo [`THREADS`].
    pub fn thread(&self, n: usize) -> Thread {
        let first = FIRST_THREAD + n % THREADS * THREAD;
        Thread(&self.0[first..first + THREAD])
    }

    /// Returns the set of crash points that have taken effect, one bit each.
    pub fn crash_points(&self) -> &'static AtomicU64 {
        &self.0[CRASH_POINTS]
    }

    fn get(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn set(&self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Release);
    }
}

impl Thread {
    /// Increments the thread's heartbeat.
    pub fn heartbeat(&self) {
        self.0[HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the thread's heartbeats.
    pub fn heartbeats(&self) -> u64 {
        self.0[HEARTBEAT].load(Ordering::Relaxed)
    }

    /// Stores the number of the session that the thread drives, if any.
    pub fn set_current_session(&self, session: Option<usize>) {
        self.0[CURRENT_SESSION].store(session.map_or(0, |slot| slot as u64 + 1), Ordering::Relaxed);
    }

    /// Returns the number of the session that the thread drives.
    pub fn current_session(&self) -> Option<usize> {
        usize::try_from(self.0[CURRENT_SESSION].load(Ordering::Relaxed)).ok()?.checked_sub(1)
    }
}
