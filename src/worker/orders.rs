//! What the guardian tells the worker and hears from it, and what the worker does besides its sessions. WIRING.
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::time::{Interval, interval};

use super::TICK;
use crate::daemon::gate::Guard;
use crate::daemon::{Interception, interception};
use crate::log::Log;
use crate::shared::Shared;

/// How often a worker that drains looks whether it is done.
const LOOK: Duration = Duration::from_millis(100);
/// How often it says how many are left.
const SAY: Duration = Duration::from_secs(10);

/// A line each way. Both ends are in the table that guardian and worker share, so none of them ever ends.
#[derive(Debug)]
pub struct Channel {
    guardian: UnixDatagram,
    worker: UnixDatagram,
}

/// What the threads of a worker hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    GoOn,
    /// Every session is to end, now.
    Stop,
    /// Everything stays as it is, and nobody touches it.
    Rest,
}

/// What a worker has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It takes connections.
    Ready,
    /// It drains, and the last session has ended.
    Drained,
}

/// What the guardian tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// End, for this reason.
    Stop(String),
    /// Let new connections be routed, for this reason, and say when none is left.
    Drain(String),
    /// Rest.
    Rest,
}

impl Channel {
    /// A new one: nothing that was told before is heard.
    ///
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn new() -> io::Result<Self> {
        let (guardian, worker) = UnixDatagram::pair()?;
        [&guardian, &worker].into_iter().try_for_each(|end| end.set_nonblocking(true))?;
        Ok(Self { guardian, worker })
    }

    /// Its descriptors: the guardian's end, the worker's.
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.guardian.as_raw_fd(), self.worker.as_raw_fd()]
    }

    /// The guardian's end, to wait for.
    pub fn guardian(&self) -> &UnixDatagram {
        &self.guardian
    }

    /// The guardian tells the worker.
    pub fn tell(&self, word: &Word) {
        let text = match word {
            Word::Stop(why) => format!("stop {why}"),
            Word::Drain(why) => format!("drain {why}"),
            Word::Rest => "rest ".to_owned(),
        };
        // A worker that hears nothing is noticed by what it does not do.
        let _ = self.guardian.send(text.as_bytes());
    }

    /// What the worker has reported, if anything.
    pub fn reported(&self) -> Option<Report> {
        let mut text = [0; 16];
        match self.guardian.recv(&mut text).ok().map(|len| &text[..len])? {
            b"ready" => Some(Report::Ready),
            b"drained" => Some(Report::Drained),
            _ => None,
        }
    }

    fn report(&self, report: Report) {
        let text: &[u8] = match report {
            Report::Ready => b"ready",
            Report::Drained => b"drained",
        };
        let _ = self.worker.send(text);
    }

    fn heard(&self) -> Option<Word> {
        let mut text = [0; 256];
        let len = self.worker.recv(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text[..len]);
        let (word, why) = text.split_once(' ')?;
        Some(match word {
            "stop" => Word::Stop(why.to_owned()),
            "drain" => Word::Drain(why.to_owned()),
            "rest" => Word::Rest,
            _ => return None,
        })
    }
}

/// How a worker came to its end.
pub struct End {
    /// What its threads are to do.
    pub order: Order,
    /// There is no guardian any more: whatever has to be undone on the host is this process's to do.
    pub orphan: bool,
}

/// Looks after the gate, the log and whatever the guardian says, until that ends.
pub async fn until_the_end(
    shared: &Shared,
    channel: &Channel,
    guardian: Pid,
    log: &Log,
    mut keeper: Keeper,
) -> End {
    let ended = |order| End { order, orphan: false };
    // A copy of its own, which it may close.
    let copy = channel.worker.try_clone();
    let words = match copy.and_then(|end| sys::async_descriptor(end.into(), Interest::READABLE)) {
        Ok(words) => words,
        Err(err) => {
            tracing::error!("a worker cannot hear its guardian: {err}");
            std::process::abort();
        }
    };
    let gone = gone(guardian);
    tokio::pin!(gone);
    let mut ticks = interval(TICK);
    channel.report(Report::Ready);
    loop {
        tokio::select! {
            ready = words.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                while let Some(word) = channel.heard() {
                    match word {
                        Word::Stop(why) => {
                            tracing::info!("{why}: stopping");
                            interception::admit_no_more(&shared.config);
                            return ended(Order::Stop);
                        }
                        Word::Drain(why) => keeper.drain(shared, &why),
                        Word::Rest => return ended(Order::Rest),
                    }
                }
            }
            () = &mut gone, if !keeper.orphan => keeper.orphaned(shared),
            () = shared.gate.notified() => keeper.guard.look(shared),
            () = keeper.guard.later(shared) => keeper.guard.look_again(shared),
            _ = ticks.tick() => {
                shared.table.header().say_sessions(shared.occupancy.sessions());
                log.tick();
            }
            () = drained(&mut keeper.draining, shared) => {
                if keeper.orphan {
                    return End { order: Order::Stop, orphan: true };
                }
                channel.report(Report::Drained);
            }
        }
    }
}

/// Waits until there is no guardian any more.
async fn gone(guardian: Pid) {
    let pidfd = match pidfd_open(guardian, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return,
        pidfd => pidfd.map_err(io::Error::from),
    };
    match pidfd.and_then(|pidfd| sys::async_descriptor(pidfd, Interest::READABLE)) {
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(err) => {
            tracing::error!("it would not be noticed if the guardian died: {err}");
            std::future::pending().await
        }
    }
}

/// Looks after the gate, and after the end of a worker that drains.
pub struct Keeper {
    guard: Guard,
    draining: Option<Draining>,
    orphan: bool,
    /// Closed when the guardian is gone.
    close_listeners: Box<dyn Fn()>,
}

struct Draining {
    looks: Interval,
    said: Option<Instant>,
    empty: bool,
    reported: bool,
    deadline: Option<Instant>,
}

impl Keeper {
    /// `after_another`: the gate may not be where it should be.
    pub fn new(interception: Interception, after_another: bool, close_listeners: Box<dyn Fn()>) -> Self {
        let unsure = after_another && interception != Interception::Foreign;
        let guard = if unsure { Guard::unsure() } else { Guard::new() };
        Self { guard, draining: None, orphan: false, close_listeners }
    }

    /// Has new connections routed.
    pub fn drain(&mut self, shared: &Shared, why: &str) {
        if self.draining.is_some() {
            return;
        }
        let left = shared.occupancy.sessions();
        tracing::info!("{why}: draining: new connections are routed past us, {left} sessions go on");
        shared.occupancy.drain();
        self.guard.look(shared);
        interception::admit_no_more(&shared.config);
        let looks = interval(LOOK);
        self.draining = Some(Draining { looks, said: None, empty: false, reported: false, deadline: None });
    }

    /// Nobody would begin another worker any more: connections that come from now on are better routed.
    fn orphaned(&mut self, shared: &Shared) {
        self.drain(shared, "the guardian is gone");
        (self.close_listeners)();
        self.orphan = true;
        if let Some(draining) = &mut self.draining {
            draining.deadline = Instant::now().checked_add(shared.config.stop.drain_deadline);
            draining.reported = false;
        }
    }
}

/// Waits, for ever if it does not drain, until the last session has ended; counts down visibly.
async fn drained(draining: &mut Option<Draining>, shared: &Shared) {
    let Some(draining) = draining else { return std::future::pending().await };
    while !draining.done(shared.occupancy.sessions()) {
        draining.looks.tick().await;
    }
}

impl Draining {
    fn done(&mut self, left: u32) -> bool {
        if self.reported {
            return false;
        }
        // What was accepted by the kernel before the gate was closed may come a moment later.
        let over = left == 0 && std::mem::replace(&mut self.empty, left == 0);
        self.empty = left == 0;
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if !over && !late && self.said.is_none_or(|said| said.elapsed() >= SAY) {
            tracing::info!("draining: {left} sessions are left");
            self.said = Some(Instant::now());
        }
        self.reported = over || late;
        self.reported
    }
}
