//! The messages between guardian and worker, and the control thread of the worker. WIRING.
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

/// The interval at which a draining worker checks whether it is done.
const LOOK: Duration = Duration::from_millis(100);
/// The interval at which it logs how many sessions are left.
const SAY: Duration = Duration::from_secs(10);
/// The longest time that a stopping worker waits for the gate and for handshakes. Where `nft` works, they take less.
const TO_ADMIT: Duration = Duration::from_secs(5);

/// A pair of datagram sockets. Guardian and worker share a descriptor table with both ends, so neither end ever reads
/// end of file. One channel serves all workers, one after the other.
#[derive(Debug)]
pub struct Channel {
    guardian: Registered<UnixDatagram>,
    worker: Registered<UnixDatagram>,
}

/// An order to the threads of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Continue.
    Continue,
    /// End every session now.
    Stop,
    /// Leave everything as it is, and touch nothing.
    Quiesce,
}

/// A report of the worker to the guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The worker accepts connections.
    Ready,
    /// The worker drains, and the last session has ended.
    Drained,
}

/// A message of the guardian to the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// End, for this reason.
    Stop(String),
    /// Drain, for this reason, and report when no session is left.
    Drain(String),
    /// Come to rest.
    Quiesce,
}

impl Channel {
    /// Makes a channel.
    ///
    /// # Errors
    /// Fails with EMFILE or ENFILE if no descriptor is free.
    pub fn new() -> io::Result<Self> {
        let (guardian, worker) = UnixDatagram::pair()?;
        [&guardian, &worker].into_iter().try_for_each(|end| end.set_nonblocking(true))?;
        Ok(Self { guardian: Registered::new(guardian), worker: Registered::new(worker) })
    }

    /// Discards the messages in transit, before another worker uses the channel.
    pub fn clear(&self) {
        for end in [&self.guardian, &self.worker] {
            while end.recv(&mut [0]).is_ok() {}
        }
    }

    /// Returns the guardian's end, to wait for reports.
    pub fn guardian(&self) -> &UnixDatagram {
        &self.guardian
    }

    /// Returns a copy of the worker's end, to wait for messages.
    ///
    /// # Errors
    /// Fails with EMFILE if no descriptor is free.
    pub fn worker_end(&self) -> io::Result<OwnedFd> {
        self.worker.as_fd().try_clone_to_owned()
    }

    /// Sends a message to the worker.
    pub fn tell(&self, word: &Message) {
        let text = match word {
            Message::Stop(why) => format!("stop {why}"),
            Message::Drain(why) => format!("drain {why}"),
            Message::Quiesce => "rest ".to_owned(),
        };
        // Ignore the error: the guardian notices if the worker does not act on the message.
        let _ = self.guardian.send(text.as_bytes());
    }

    /// Returns the next report of the worker, if there is one.
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

/// The end of a worker.
pub struct End {
    /// The order to its threads.
    pub order: Order,
    /// The guardian is gone: this process must undo the changes to the host.
    pub orphan: bool,
}

/// The control thread's connections to the guardian.
pub struct Control<'a> {
    /// The channel.
    pub channel: &'a Channel,
    /// Readable when a message has arrived.
    pub messages: AsyncFd<OwnedFd>,
    /// Readable when the guardian has ended.
    pub guardian: AsyncFd<OwnedFd>,
}

/// Follows the guardian's messages, and drains if the guardian ends, until the worker has to end.
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
                            // The gate is closed here, for good. Because it is recorded as closed, the host thread does
                            // not move it.
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

/// The drain of a worker. It starts with a message, or when the guardian ends.
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
    /// Resolves when no handshake is under way any more.
    admitted: Option<oneshot::Receiver<()>>,
}

impl<'a> Drain<'a> {
    /// Returns a drain that has not started.
    pub fn new(listeners: &'a Listeners) -> Self {
        Self { draining: None, orphan: false, listeners }
    }

    /// Starts to drain: new connections are routed.
    pub fn start(&mut self, shared: &Arc<Shared>, why: &str) {
        if self.draining.is_some() {
            return;
        }
        let left = shared.occupancy.sessions();
        tracing::info!("{why}: draining: new connections are routed past us, {left} sessions continue");
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

    /// Drains because the guardian is gone: nothing would start another worker.
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
        // A listener that is shut down no longer listens, however many descriptors refer to it.
        self.listeners.iter().flatten().for_each(|listener| drop(listener.shutdown(Shutdown::Read)));
    }
}

/// Waits until the last session has ended or the deadline has passed, and counts down in the log. Without a drain it
/// waits forever.
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
        // Connections that the kernel took before the gate was closed may arrive a moment later. So two checks in a row
        // must find no session.
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
