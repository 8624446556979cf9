//! What the table says of the whole: its layout, what is counted, and how each thread is. PURE.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::metrics::Counters;

use super::slot::WORDS as SLOT_WORDS;

/// Words before the first slot.
pub const WORDS: usize = 1024;
/// Threads that have a place here; there are no more workers than that.
pub const THREADS: usize = 64;

/// Changed whenever a word gets another meaning: a program does not go on with a table that it would misread. New counters at the
/// end of [`Counters`] change nothing, as unused words are 0.
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
/// A cache line for each thread, so that none waits for another's.
const THREAD: usize = 8;
const HEARTBEAT: usize = 0;
const CURRENT_SESSION: usize = 1;

const _: () = assert!(Counters::COUNT <= FIRST_THREAD - COUNTERS && FIRST_THREAD + THREADS * THREAD <= WORDS);

/// The words before the first slot.
#[derive(Debug, Clone, Copy)]
pub struct Header(&'static [AtomicU64]);

/// What one thread of the worker says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Thread(&'static [AtomicU64]);

/// Why a table cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Something else.
    #[error("this is no table of sessions")]
    Foreign,
    /// Another version.
    #[error("the table of sessions has layout {0}, and this program knows layout {LAYOUT}")]
    Layout(u64),
    /// Less than it says.
    #[error("the table of sessions is shorter than it says")]
    Short,
}

impl Header {
    /// Of a table whose words these are.
    pub fn new(words: &'static [AtomicU64]) -> Self {
        Self(words)
    }

    /// Says what a new table is.
    pub fn begin(&self, slots: usize) {
        self.set(LAYOUT_WORD, LAYOUT);
        self.set(SLOTS, slots as u64);
        self.set(SLOT_SIZE, SLOT_WORDS as u64);
        self.set(KIND, MAGIC);
    }

    /// The number of slots, if this program can read them.
    ///
    /// # Errors
    /// When it cannot.
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

    /// Another worker begins; gives its number, from 1 on.
    pub fn begin_generation(&self) -> u64 {
        self.set(GENERATION, self.generation() + 1);
        self.generation()
    }

    /// The number of the present worker.
    pub fn generation(&self) -> u64 {
        self.get(GENERATION)
    }

    /// How many sessions there are, as the worker last said.
    pub fn sessions(&self) -> u64 {
        self.get(SESSIONS)
    }

    /// So many sessions there are.
    pub fn set_sessions(&self, sessions: u32) {
        self.set(SESSIONS, sessions.into());
    }

    /// The worker's control thread is alive.
    pub fn control_heartbeat(&self) {
        self.0[CONTROL_HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the control threads of all workers have said so.
    pub fn control_heartbeats(&self) -> u64 {
        self.get(CONTROL_HEARTBEAT)
    }

    /// The thread that changes the host is alive.
    pub fn host_heartbeat(&self) {
        self.0[HOST_HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the host threads of all workers have said so.
    pub fn host_heartbeats(&self) -> u64 {
        self.get(HOST_HEARTBEAT)
    }

    /// What is counted, for all workers' lives.
    pub fn counters(&self) -> Counters {
        Counters::over(&self.0[COUNTERS..FIRST_THREAD])
    }

    /// What the thread with this number says of itself; there are [`THREADS`] of them.
    pub fn thread(&self, n: usize) -> Thread {
        let first = FIRST_THREAD + n % THREADS * THREAD;
        Thread(&self.0[first..first + THREAD])
    }

    /// The crash points that have struck, a bit each.
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
    /// It goes on.
    pub fn heartbeat(&self) {
        self.0[HEARTBEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has said so.
    pub fn heartbeats(&self) -> u64 {
        self.0[HEARTBEAT].load(Ordering::Relaxed)
    }

    /// It drives the session with this number, or none.
    pub fn set_current_session(&self, session: Option<usize>) {
        self.0[CURRENT_SESSION].store(session.map_or(0, |slot| slot as u64 + 1), Ordering::Relaxed);
    }

    /// The session that it drives.
    pub fn current_session(&self) -> Option<usize> {
        usize::try_from(self.0[CURRENT_SESSION].load(Ordering::Relaxed)).ok()?.checked_sub(1)
    }
}
