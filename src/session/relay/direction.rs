//! One direction of a session: its state, and the pipe with the bytes that the sink has not taken yet. EFFECT.
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::half::{DirectionState, Step};
use super::pool::{Pipe, Pool};
use super::splice;
use crate::session::leg::Leg;
use crate::state::crash::{self, Point};
use crate::state::flow::Side;
use crate::state::table::slot::{Journal, ObservedDirection, Slot, Urgent};

/// One direction. Its journal records each step before the step happens, so that another process can resume the
/// direction.
pub struct Direction {
    pub(super) state: Cell<DirectionState>,
    pub(super) pipe: Cell<Option<Pipe>>,
    pub(super) urgent: Cell<Option<u8>>,
    pause: Cell<Option<Pin<Box<Sleep>>>>,
    pub(super) journal: Journal,
}

/// The two directions of a session.
pub struct Directions {
    /// From the client to the server.
    pub up: Direction,
    /// From the server to the client.
    pub down: Direction,
    pub(super) first_eof: Cell<Option<Side>>,
}

impl Direction {
    fn new(journal: Journal) -> Self {
        Self {
            state: Cell::default(),
            pipe: Cell::default(),
            urgent: Cell::default(),
            pause: Cell::default(),
            journal,
        }
    }

    /// Resumes a direction: `pipe` and the bytes in it come after the `passed_on` bytes that the sink has already
    /// taken.
    pub fn resume(journal: Journal, pipe: Option<(Pipe, usize)>, passed_on: u64, urgent: Option<u8>) -> Self {
        let (pipe, len) = pipe.unzip();
        let state = DirectionState::resume(len.unwrap_or(0), passed_on);
        let pipes = pipe.as_ref().map(|pipe| (pipe.read.as_raw_fd(), pipe.write.as_raw_fd()));
        journal.resumed(&ObservedDirection {
            pipe: pipes,
            passed_on,
            shut: false,
            urgent: urgent.map(Urgent::Taken),
        });
        Self { state: state.into(), pipe: pipe.into(), urgent: urgent.into(), ..Self::new(journal) }
    }

    /// Takes a pipe from the pool and records it in the journal before it is filled.
    ///
    /// # Errors
    /// Those of [`Pool::take`].
    pub(super) fn take_pipe(&self, pool: &Pool) -> io::Result<Pipe> {
        let pipe = pool.take()?;
        self.journal.pipe(pipe.read.as_raw_fd(), pipe.write.as_raw_fd());
        crash::at(Point::Pipe);
        Ok(pipe)
    }

    /// Returns an empty pipe to the pool.
    pub(super) fn give_pipe(&self, pool: &Pool, pipe: Pipe) {
        self.journal.no_pipe();
        crash::at(Point::Returned);
        pool.give(pipe);
    }

    /// Moves bytes from the pipe to the sink; `None` if the sink has no room. An empty pipe goes back to the pool at
    /// once.
    pub(super) fn drain(&self, sink: &Leg, pool: &Pool) -> io::Result<Option<()>> {
        let (Step::Drain(len), Some(pipe)) = (self.state.get().step(), self.pipe.take()) else {
            return Ok(Some(()));
        };
        let drained = splice::drain(&pipe, sink, len);
        crash::at(Point::Drained);
        if let Ok(Some(n)) = drained {
            self.update(|state| state.drained(n));
        }
        match self.state.get().in_pipe() {
            0 => self.give_pipe(pool, pipe),
            _ => self.pipe.set(Some(pipe)),
        }
        drained.map(|n| n.map(drop))
    }

    /// Returns the number of payload bytes that were passed on to the sink.
    pub fn passed_on(&self) -> u64 {
        self.state.get().passed_on()
    }

    /// Returns whether it holds a pipe. It does only while its sink has taken less than the room that it had
    /// reported.
    pub fn holds_pipe(&self) -> bool {
        self.state.get().in_pipe() > 0
    }

    /// Sets or clears the urgent byte that waits for the sink, and records the change in the journal.
    pub(super) fn urgent(&self, byte: Option<u8>) {
        if byte != self.urgent.replace(byte) {
            self.journal.urgent(byte.map(Urgent::Taken));
        }
    }

    pub(super) fn poll_pause(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut pause) = self.pause.take() else { return Poll::Ready(()) };
        let over = pause.as_mut().poll(cx);
        if over.is_pending() {
            self.pause.set(Some(pause));
        }
        over
    }

    pub(super) fn pause(&self, time: Duration) {
        self.pause.set(Some(Box::pin(tokio::time::sleep(time))));
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut DirectionState)) {
        let mut state = self.state.get();
        let before = state.passed_on();
        change(&mut state);
        self.state.set(state);
        if state.passed_on() != before {
            self.journal.passed_on(state.passed_on());
        }
    }
}

impl Directions {
    /// Returns the directions of a new session, whose table entry is `slot`.
    pub fn new(slot: Slot) -> Self {
        Self::resume(Direction::new(slot.up()), Direction::new(slot.down()))
    }

    /// Returns the directions of a resumed session.
    pub fn resume(up: Direction, down: Direction) -> Self {
        Self { up, down, first_eof: Cell::new(None) }
    }

    pub(super) fn moved(&self) -> u64 {
        self.up.passed_on() + self.down.passed_on()
    }

    pub(super) fn half_closed(&self) -> bool {
        self.up.state.get().source_ended() || self.down.state.get().source_ended()
    }
}
