//! The host thread, which changes the host while the daemon runs: the gate, the WAN routes, the MPTCP paths. It may
//! block on `nft` and netlink; no other thread waits for it. WIRING.
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::interval;

use super::{Order, TICK};
use crate::host::paths::sync::Paths;
use crate::host::wan::sync::Mirror;
use crate::process::daemon::gate::Guard;
use crate::process::daemon::{Interception, interception};
use crate::session::shared::Shared;
use crate::state::crash::{self, Point};

/// The running host thread.
pub struct Host {
    handle: JoinHandle<()>,
    start: Sender<Start>,
}

struct Start {
    interception: Interception,
    first: bool,
    done: oneshot::Sender<()>,
}

impl Host {
    /// Starts the thread, which waits for [`Self::start`].
    ///
    /// # Errors
    /// Fails if the kernel refuses a thread, a descriptor or memory.
    pub fn prepare(shared: &Arc<Shared>, ordered: &watch::Receiver<Order>) -> io::Result<Self> {
        let (start, started) = channel::<Start>();
        let (shared, ordered) = (Arc::clone(shared), ordered.clone());
        let runtime = crash::or_fail(Point::Host, || Builder::new_current_thread().enable_all().build())?;
        // Its reserve is taken before the other threads accept connections: in a full table they would take all.
        let guard = Guard::new();
        let work = move || {
            if let Ok(start) = started.recv() {
                work(&runtime, &shared, guard, start, ordered);
            }
        };
        let handle = thread::Builder::new().name("host".into()).spawn(work)?;
        Ok(Self { handle, start })
    }

    /// Lets the thread work until the worker's threads are ordered to end. The receiver resolves after the first look
    /// at the host.
    pub fn start(&self, interception: Interception, first: bool) -> oneshot::Receiver<()> {
        let (done, looked) = oneshot::channel();
        // Ignore the error: the thread can only have panicked, and a panic ends the process.
        let _ = self.start.send(Start { interception, first, done });
        looked
    }

    /// Waits for the end of the thread.
    pub fn end(self) {
        let _ = self.handle.join();
    }
}

fn work(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    mut guard: Guard,
    start: Start,
    mut ordered: watch::Receiver<Order>,
) {
    let Start { interception, first, done } = start;
    let managed = interception == Interception::Managed;
    runtime.block_on(async {
        let (mirror, paths) = match first {
            true => (Mirror::start(&shared.config, managed), Paths::start(&shared.config)),
            false => (Mirror::resume(&shared.config, managed), Paths::resume(&shared.config)),
        };
        mirror.map(|mirror| tokio::spawn(mirror.follow()));
        paths.map(|paths| tokio::spawn(paths.follow()));
        let _ = done.send(());
        // The previous worker may have left the gate in the wrong position.
        let unsure = !first && interception != Interception::Foreign;
        if unsure {
            guard.distrust();
        }
        tokio::select! {
            () = watch_gate(shared, guard) => {}
            _ = ordered.wait_for(|order| *order != Order::Continue) => {}
        }
    });
}

async fn watch_gate(shared: &Shared, mut guard: Guard) {
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            () = shared.gate.notified() => guard.look(shared),
            () = guard.later(shared) => guard.look_again(shared),
            _ = ticks.tick() => shared.table.header().host_heartbeat(),
        }
    }
}

/// Closes the gate and waits for the handshakes under way, on a thread of its own. The receiver resolves when that is
/// done.
pub fn admit_no_more(shared: &Arc<Shared>) -> oneshot::Receiver<()> {
    let (done, admitted) = oneshot::channel();
    let copy = Arc::clone(shared);
    let work = move || {
        interception::admit_no_more(&copy.config);
        let _ = done.send(());
    };
    if let Err(err) = thread::Builder::new().name("admit".into()).spawn(work) {
        // The closure is gone, and the sender with it, so the receiver resolves at once.
        tracing::debug!("connections may come until the listeners are closed: {err}");
    }
    admitted
}
