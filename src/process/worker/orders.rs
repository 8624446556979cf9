//! What the guardian tells the worker and hears from it, and what the worker does besides its sessions. WIRING.
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::Registered;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Interval, interval, timeout};

use super::{TICK, host};
use crate::log::Log;
use crate::process::daemon::listeners::Listeners;
use crate::session::shared::Shared;
use crate::state::crash::{self, Point};

/// How often a worker that drains looks whether it is done.
const LOOK: Duration = Duration::from_millis(100);
/// How often it says how many are left.
const SAY: Duration = Duration::from_secs(10);
/// The longest that the end of a worker waits for the gate and for handshakes: more than these take where `nft` works.
const TO_ADMIT: Duration = Duration::from_secs(5);

/// Datagrams each way. Both ends are in the table that guardian and worker share, so neither ever reads as ended; one channel serves all
/// workers, one after the other.
#[derive(Debug)]
pub struct Channel {
    guardian: Registered<UnixDatagram>,
    worker: Registered<UnixDatagram>,
}

/// What the threads of a worker hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Continue,
    /// Every session is to end, now.
    Stop,
    /// Everything stays as it is, and nobody touches it.
    Quiesce,
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
pub enum Message {
    /// End, for this reason.
    Stop(String),
    /// Let new connections be routed, for this reason, and say when none is left.
    Drain(String),
    /// Rest.
    Quiesce,
}

impl Channel {
    /// Makes a channel.
    ///
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn new() -> io::Result<Self> {
        let (guardian, worker) = UnixDatagram::pair()?;
        [&guardian, &worker].into_iter().try_for_each(|end| end.set_nonblocking(true))?;
        Ok(Self { guardian: Registered::new(guardian), worker: Registered::new(worker) })
    }

    /// Discards what is on its way, for another worker.
    pub fn clear(&self) {
        for end in [&self.guardian, &self.worker] {
            while end.recv(&mut [0]).is_ok() {}
        }
    }

    /// The guardian's end, to wait for.
    pub fn guardian(&self) -> &UnixDatagram {
        &self.guardian
    }

    /// A copy of the worker's end, to wait for.
    ///
    /// # Errors
    /// EMFILE.
    pub fn worker_end(&self) -> io::Result<OwnedFd> {
        self.worker.as_fd().try_clone_to_owned()
    }

    /// The guardian tells the worker.
    pub fn tell(&self, word: &Message) {
        let text = match word {
            Message::Stop(why) => format!("stop {why}"),
            Message::Drain(why) => format!("drain {why}"),
            Message::Quiesce => "rest ".to_owned(),
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

    fn heard(&self) -> Option<Message> {
        let mut text = [0; 256];
        let len = self.worker.recv(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text[..len]);
        let (word, why) = text.split_once(' ')?;
        Some(match word {
            "stop" => Message::Stop(why.to_owned()),
            "drain" => Message::Drain(why.to_owned()),
            "rest" => Message::Quiesce,
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

/// What connects the control thread with the guardian.
pub struct Control<'a> {
    /// The channel.
    pub channel: &'a Channel,
    /// Readable when a message has come.
    pub messages: AsyncFd<OwnedFd>,
    /// Readable when the guardian has ended.
    pub guardian: AsyncFd<OwnedFd>,
}

/// Moves the gate and follows the guardian's messages, until the worker is to end.
pub async fn until_the_end(
    shared: &Arc<Shared>,
    Control { channel, messages, guardian }: Control<'_>,
    log: &Log,
    mut drain: Drain<'_>,
) -> End {
    let ended = |order| End { order, orphan: false };
    let header = shared.table.header();
    let mut ticks = interval(TICK);
    channel.report(Report::Ready);
    loop {
        tokio::select! {
            ready = messages.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                while let Some(word) = channel.heard() {
                    match word {
                        Message::Stop(why) => {
                            tracing::info!("{why}: stopping");
                            // The gate is closed here, for good: the host thread finds it where it should be.
                            shared.occupancy.drain();
                            shared.occupancy.moved(true);
                            let _ = timeout(TO_ADMIT, host::admit_no_more(shared)).await;
                            return ended(Order::Stop);
                        }
                        Message::Drain(why) => drain.start(shared, &why),
                        Message::Quiesce => return ended(Order::Quiesce),
                    }
                }
            }
            _ = guardian.readable(), if !drain.orphan => drain.orphaned(shared).await,
            _ = ticks.tick() => {
                crash::at(Point::Control);
                header.control_heartbeat();
                header.set_sessions(shared.occupancy.sessions());
                log.tick();
            }
            () = drained(&mut drain.draining, shared) => {
                if drain.orphan {
                    return End { order: Order::Stop, orphan: true };
                }
                channel.report(Report::Drained);
            }
        }
    }
}

/// The drain of a worker, once it is told to drain or has lost its guardian.
pub struct Drain<'a> {
    draining: Option<Draining>,
    orphan: bool,
    listeners: &'a Listeners,
}

struct Draining {
    looks: Interval,
    said: Option<Instant>,
    empty: bool,
    reported: bool,
    deadline: Option<Instant>,
    /// Comes when no handshake is under way any more.
    admitted: Option<oneshot::Receiver<()>>,
}

impl<'a> Drain<'a> {
    /// Not started.
    pub fn new(listeners: &'a Listeners) -> Self {
        Self { draining: None, orphan: false, listeners }
    }

    /// Has new connections routed.
    pub fn start(&mut self, shared: &Arc<Shared>, why: &str) {
        if self.draining.is_some() {
            return;
        }
        let left = shared.occupancy.sessions();
        tracing::info!("{why}: draining: new connections are routed past us, {left} sessions go on");
        shared.occupancy.drain();
        shared.gate.notify_one();
        self.draining = Some(Draining {
            looks: interval(LOOK),
            said: None,
            empty: false,
            reported: false,
            deadline: None,
            admitted: Some(host::admit_no_more(shared)),
        });
    }

    /// Nobody would start another worker any more: new connections are routed.
    async fn orphaned(&mut self, shared: &Arc<Shared>) {
        self.start(shared, "the guardian is gone");
        self.orphan = true;
        if let Some(draining) = &mut self.draining {
            if let Some(admitted) = draining.admitted.take() {
                let _ = timeout(TO_ADMIT, admitted).await;
            }
            draining.deadline = Instant::now().checked_add(shared.config.stop.drain_deadline);
            draining.reported = false;
        }
        // A listener that is shut no longer listens, however many descriptors of it there are.
        self.listeners.iter().flatten().for_each(|listener| drop(listener.shutdown(Shutdown::Read)));
    }
}

/// Waits until the last session has ended, and counts down in the log. Without a drain it waits for ever.
async fn drained(draining: &mut Option<Draining>, shared: &Shared) {
    let Some(draining) = draining else { return std::future::pending().await };
    if let Some(admitted) = &mut draining.admitted {
        let _ = admitted.await;
        draining.admitted = None;
    }
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
