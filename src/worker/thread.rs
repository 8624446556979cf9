//! One thread with its own listeners, pipes and sessions; threads share counters and nothing else that is hot. WIRING.
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::net::sockopt::socket_cookie;
use socket2::Socket;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;

use super::{Order, TICK};
use crate::crash::{self, Point};
use crate::flow::{Flow, Side};
use crate::leg::{Leg, lacks};
use crate::listener::{self, Accepted, Arrival};
use crate::relay::pool::Pool;
use crate::session::{self, Env, Left, Session};
use crate::shared::{Shared, warn_seldom};
use crate::table::{header, now};
use crate::takeover::Abandoned;

/// A runtime looks for new events after so many tasks: low, so that a bulk flow's turns do not hold up an interactive one.
const TASKS_BETWEEN_EVENTS: u32 = 16;

/// What a thread begins with.
pub struct Share {
    listeners: Vec<Socket>,
    /// Sessions to go on with.
    pub sessions: Vec<Abandoned>,
    /// Connections that were accepted by somebody who is gone.
    pub fresh: Vec<(Socket, Flow)>,
}

impl Share {
    /// With these listeners, and nothing else.
    pub fn new(listeners: Vec<Socket>) -> Self {
        Self { listeners, sessions: Vec::new(), fresh: Vec::new() }
    }
}

/// A thread that runs.
pub struct Thread(JoinHandle<()>);

impl Thread {
    /// Starts one that takes what arrives at its listeners, and goes on with its sessions, until it hears anything else.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        n: usize,
        share: Share,
        shared: &Arc<Shared>,
        heard: &watch::Receiver<Order>,
    ) -> io::Result<Self> {
        let (shared, heard) = (Arc::clone(shared), heard.clone());
        thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || work(n, shared, share, heard))
            .map(Self)
    }

    /// Waits for its end.
    pub fn end(self) {
        // It can only panic, and then the process is gone.
        let _ = self.0.join();
    }
}

fn work(n: usize, shared: Arc<Shared>, share: Share, mut heard: watch::Receiver<Order>) {
    let mut builder = Builder::new_current_thread();
    let rt = builder.enable_all().event_interval(TASKS_BETWEEN_EVENTS).build_local(LocalOptions::default());
    let rt = match rt {
        Ok(rt) => rt,
        // Without it nobody would accept at this thread's listeners: the guardian begins another worker.
        Err(err) => {
            tracing::error!("a thread of the worker cannot start: {err}");
            std::process::abort();
        }
    };
    let own = shared.table.header().thread(n);
    let worker = Rc::new(Worker { shared, pool: Pool::with_a_pipe(), own });
    begin(&rt, &worker, share);
    let order = rt.block_on(async {
        let gone = heard.wait_for(|order| *order != Order::GoOn).await;
        gone.map_or(Order::Stop, |order| *order)
    });
    match order {
        // What is in hand stays as it is, for the next worker.
        Order::Rest => std::mem::forget(rt),
        // Dropping the runtime ends every session with a reset and its close record.
        Order::Stop | Order::GoOn => drop(rt),
    }
}

fn begin(rt: &LocalRuntime, worker: &Rc<Worker>, share: Share) {
    let own = worker.own;
    rt.spawn_local(async move {
        loop {
            own.beat();
            tokio::time::sleep(TICK).await;
        }
    });
    let Share { listeners, sessions, fresh } = share;
    let one = Rc::clone(worker);
    rt.spawn_local(async move {
        // Each has a task of its own: one that waits for memory holds up no other.
        for session in sessions {
            let (worker, seat) = (Rc::clone(&one), Seat::take(&one.shared));
            tokio::task::spawn_local(async move { worker.go_on(session, seat).await });
        }
        for (socket, flow) in fresh {
            let (worker, seat) = (Rc::clone(&one), Seat::take(&one.shared));
            tokio::task::spawn_local(async move { worker.adopt(socket, flow, seat).await });
        }
    });
    for listener in listeners {
        let worker = Rc::clone(worker);
        rt.spawn_local(async move {
            let kernel = &worker.shared.kernel;
            let Err(err) = listener::accept(listener, kernel, |arrival| worker.take(arrival)).await;
            tracing::error!("a listener has failed, new connections are routed past it: {err}");
        });
    }
}

struct Worker {
    shared: Arc<Shared>,
    pool: Pool,
    own: header::Thread,
}

impl Worker {
    fn take(self: &Rc<Self>, arrival: Arrival) {
        let counters = &self.shared.counters;
        match arrival {
            Arrival::Connection(conn) => self.begin(conn, Seat::take(&self.shared)),
            Arrival::ToListener(client) => warn_seldom(&counters.to_listener, || {
                format!(
                    "refused a connection from {client} to the listener itself: it takes only intercepted connections"
                )
            }),
            Arrival::Aborted(err) => warn_seldom(&counters.aborted, || {
                format!("a connection was over before it could be accepted: {err}")
            }),
            Arrival::Exhausted(err) => self.shared.lacking(&err),
            Arrival::Shed(count) => (0..count).for_each(|_| {
                warn_seldom(&counters.shed, || {
                    "reset a connection that had waited for a place; its next try is routed".to_owned()
                });
            }),
        }
    }

    fn begin(self: &Rc<Self>, Accepted { flow, client }: Accepted, seat: Seat) {
        crash::at(Point::Accepted);
        let number = client.socket().as_raw_fd();
        let (Some(slot), Ok(cookie)) = (self.shared.table.slot(number), socket_cookie(client.socket()))
        else {
            // The limit of descriptors was raised from outside: nobody could go on with it.
            return self.take(Arrival::Shed(1));
        };
        slot.accepted(cookie, &flow, now());
        self.shared.counters.accepted.count();
        crash::at(Point::Enlisted);
        self.drive(Session { flow, client, slot, left: Cell::new(None) }, seat);
    }

    /// Begins with a connection that another worker has accepted and not written down.
    async fn adopt(self: Rc<Self>, socket: Socket, flow: Flow, seat: Seat) {
        let kernel = &self.shared.kernel;
        let lacking = |err: &io::Error| self.shared.lacking(err);
        let client = match kernel.complete_client(&socket) {
            Ok(()) => Leg::register(socket, Side::Client, &kernel.client, lacking).await,
            Err(err) => Err(err),
        };
        match client {
            Ok(client) => self.begin(Accepted { flow, client }, seat),
            Err(err) if lacks(&err) => self.take(Arrival::Shed(1)),
            Err(err) => self.take(Arrival::Aborted(err)),
        }
    }

    /// Goes on with a session of another worker.
    async fn go_on(self: Rc<Self>, session: Abandoned, seat: Seat) {
        match session.revive(&self.shared.kernel, &|err| self.shared.lacking(err)).await {
            Ok((Accepted { flow, client }, slot, server, way)) => {
                let left = Cell::new(Some(Box::new(Left { server, way })));
                self.drive(Session { flow, client, slot, left }, seat);
            }
            Err(err) => warn_seldom(&self.shared.counters.not_taken_up, || {
                format!("a session could not be gone on with: {err}")
            }),
        }
    }

    fn drive(self: &Rc<Self>, session: Session, seat: Seat) {
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let number = session.client.socket().as_raw_fd() as usize;
            let port = session.flow.orig_dst.0.port();
            {
                let env = Env { shared: &worker.shared, pool: &worker.pool };
                let mut run = pin!(session::run(&session, &env));
                // Whoever dies says so of what it died.
                poll_fn(|cx| {
                    worker.own.drives(Some(number));
                    crash::driving(port);
                    let polled = run.as_mut().poll(cx);
                    worker.own.drives(None);
                    polled
                })
                .await;
            }
            drop((session, seat));
        });
    }
}

/// One session's place among those that the limit allows; free again when it is dropped.
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.heed(shared.occupancy.enter());
        Self(Arc::clone(shared))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.heed(self.0.occupancy.leave());
    }
}
