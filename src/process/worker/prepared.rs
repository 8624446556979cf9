//! The parts of a worker that can fail, made before it owns a session. WIRING.
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use socket2::Socket;
use sys::Registered;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::interval;

use super::host::Host;
use super::orders::{self, Channel, Control, Drain, Order};
use super::thread::{Thread, ThreadAssignment};
use super::{Resumed, StartReason, TICK, WorkerConfig};
use crate::exit::{Exit, Fatal};
use crate::process::daemon::listeners::Listeners;
use crate::process::daemon::{interception, os};
use crate::process::takeover::Found;
use crate::session::shared::Shared;
use crate::state::crash::{self, Point};

/// The threads, runtimes and registrations of a worker that has no sessions yet. Dropping it closes only its own
/// descriptors.
pub struct Prepared {
    runtime: Runtime,
    orders: watch::Sender<Order>,
    host: Host,
    threads: Vec<Thread>,
    messages: AsyncFd<OwnedFd>,
    guardian: AsyncFd<OwnedFd>,
}

impl Prepared {
    /// Starts the threads, which wait for their sessions, and registers what the control thread waits for.
    ///
    /// # Errors
    /// Fails if the kernel refuses a thread, a descriptor or memory.
    pub fn new(
        shared: &Arc<Shared>,
        listeners: &Listeners,
        channel: &Channel,
        guardian: &Registered<OwnedFd>,
    ) -> Result<Self, Fatal> {
        let runtime = crash::or_fail(Point::Runtime, || Builder::new_current_thread().enable_all().build());
        let runtime = runtime.map_err(os("making the runtime of the control thread"))?;
        let (messages, guardian) = {
            let _entered = runtime.enter();
            let register = |fd: io::Result<OwnedFd>| sys::async_descriptor(fd?, Interest::READABLE);
            let messages = crash::or_fail(Point::Orders, || register(channel.worker_end()));
            let guardian = crash::or_fail(Point::Guardian, || register(guardian.try_clone()));
            (
                messages.map_err(os("registering the guardian's channel"))?,
                guardian.map_err(os("watching for the guardian's death"))?,
            )
        };
        let (orders, ordered) = watch::channel(Order::Continue);
        let start = |(n, own): (usize, &Vec<Registered<Socket>>)| Thread::prepare(n, own, shared, &ordered);
        let host =
            Host::prepare(shared, &ordered).map_err(os("starting the thread that changes the host"))?;
        let threads: io::Result<Vec<_>> = listeners.iter().enumerate().map(start).collect();
        let threads = threads.map_err(os("starting a worker thread"))?;
        Ok(Self { runtime, orders, host, threads, messages, guardian })
    }

    /// Distributes the sessions that were `found`, and runs until the worker is told to end.
    pub(super) fn serve(
        self,
        shared: &Arc<Shared>,
        found: Found,
        config: &WorkerConfig<'_>,
        resumed: &Resumed,
    ) -> Result<Exit, Fatal> {
        let Self { runtime, orders, host, mut threads, messages, guardian } = self;
        for (thread, assignment) in threads.iter_mut().zip(assign(found, config.listeners.len())) {
            thread.start(assignment);
        }
        runtime.block_on(async {
            resumed.log();
            let first = resumed.reason == StartReason::Start;
            let mut looked = host.start(config.setup.interception, first);
            if first {
                // A daemon that is ready has its routes and paths; the sessions of a previous worker had them before. Many
                // routes take time.
                let mut ticks = interval(TICK);
                loop {
                    tokio::select! {
                        _ = &mut looked => break,
                        _ = ticks.tick() => shared.table.header().control_heartbeat(),
                    }
                }
            }
            let mut drain = Drain::new(config.listeners);
            if config.draining {
                drain.start(shared, "as before");
            }
            let control = Control { channel: config.channel, messages, guardian };
            let end = orders::until_the_end(shared, control, config.log, drain).await;
            let _ = orders.send(end.order);
            threads.into_iter().for_each(Thread::end);
            if end.orphan {
                // Otherwise a change that the host thread is making could stay behind.
                host.end();
            }
            if end.order == Order::Stop {
                tracing::info!("stopped: {}", shared.counters);
            }
            if end.orphan {
                interception::undo(&shared.config, config.ours)?;
            }
            Ok(Exit::Ok)
        })
    }
}

/// Distributes the sessions over `threads` threads.
fn assign(found: Found, threads: usize) -> Vec<ThreadAssignment> {
    let mut shares: Vec<_> = (0..threads).map(|_| ThreadAssignment::default()).collect();
    for (n, session) in found.sessions.into_iter().enumerate() {
        shares[n % threads].sessions.push(session);
    }
    for (n, unregistered) in found.unregistered.into_iter().enumerate() {
        shares[n % threads].unregistered.push(unregistered);
    }
    shares
}
