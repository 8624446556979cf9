//! A relay thread with its own listeners, pipes and sessions. Threads share counters, and nothing else that is hot.
//! WIRING.
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::net::sockopt::socket_cookie;
use socket2::Socket;
use sys::Registered;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::watch;

use super::{Order, TICK};
use crate::process::takeover::OrphanedSession;
use crate::session::leg::{Leg, is_out_of_resources};
use crate::session::listener::{self, Accepted, Arrival, Listener};
use crate::session::relay::pool::Pool;
use crate::session::shared::{Shared, warn_seldom};
use crate::session::{self, Env, ResumedState, Session};
use crate::state::crash::{self, Point};
use crate::state::flow::{Flow, Side};
use crate::state::table::{header, now};

/// The number of tasks after which a runtime polls for events. It is low, so that bulk flows do not delay interactive
/// ones.
const TASKS_BETWEEN_EVENTS: u32 = 16;

/// The sessions that a thread starts with.
#[derive(Default)]
pub struct ThreadAssignment {
    /// Sessions of the previous worker.
    pub sessions: Vec<OrphanedSession>,
    /// Connections that the previous worker had just accepted.
    pub unregistered: Vec<(Socket, Flow)>,
}

/// A running relay thread.
pub struct Thread {
    handle: JoinHandle<()>,
    start: Option<Sender<ThreadAssignment>>,
}

/// What a thread prepares before it gets its sessions.
struct Ready {
    rt: LocalRuntime,
    listeners: Vec<Listener>,
    pool: Pool,
}

impl Thread {
    /// Starts a thread, which makes its runtime, registers copies of `listeners`, and waits for [`Self::start`].
    ///
    /// # Errors
    /// Fails if the kernel refuses a thread, a descriptor or memory.
    pub fn prepare(
        n: usize,
        listeners: &[Registered<Socket>],
        shared: &Arc<Shared>,
        ordered: &watch::Receiver<Order>,
    ) -> io::Result<Self> {
        // The thread closes its listeners when it ends, so it gets copies.
        let listeners = listeners.iter().map(|own| own.try_clone()).collect::<io::Result<Vec<_>>>()?;
        let (shared, ordered) = (Arc::clone(shared), ordered.clone());
        let (start, assignment) = channel();
        let (report, prepared) = channel();
        let work = move || match Ready::new(listeners) {
            Ok(ready) => {
                // Ignore the error: if the worker could not start, the receiver is gone, and there is nothing to do.
                let _ = report.send(Ok(()));
                if let Ok(assignment) = assignment.recv() {
                    ready.work(n, shared, assignment, ordered);
                }
            }
            Err(err) => drop(report.send(Err(err))),
        };
        let handle =
            crash::or_fail(Point::Thread, || thread::Builder::new().name(format!("worker-{n}")).spawn(work))?;
        prepared.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(Self { handle, start: Some(start) })
    }

    /// Hands the thread its sessions. It runs them, and accepts connections, until it gets another order.
    pub fn start(&mut self, assignment: ThreadAssignment) {
        let handed = self.start.take().map(|start| start.send(assignment));
        if !matches!(handed, Some(Ok(()))) {
            // Returning would drop the sessions and reset them. After the abort the guardian starts another worker.
            std::process::abort();
        }
    }

    /// Waits for the end of the thread.
    pub fn end(self) {
        // Ignore the error: the thread can only have panicked, and a panic ends the process.
        let _ = self.handle.join();
    }
}

impl Ready {
    fn new(listeners: Vec<Socket>) -> io::Result<Self> {
        // If there was no worker for long, the guardian has shut the listeners down. Those that still listen stay as
        // they are.
        listeners.iter().try_for_each(listener::listen)?;
        let mut builder = Builder::new_current_thread();
        builder.enable_all().event_interval(TASKS_BETWEEN_EVENTS);
        let rt = crash::or_fail(Point::ThreadRuntime, || builder.build_local(LocalOptions::default()))?;
        let entered = rt.enter();
        let register = |socket| crash::or_fail(Point::Listener, || Listener::register(socket));
        let listeners = listeners.into_iter().map(register).collect::<io::Result<_>>()?;
        drop(entered);
        let pool = crash::or_fail(Point::Pool, Pool::with_a_pipe)?;
        Ok(Self { rt, listeners, pool })
    }

    fn work(
        self,
        n: usize,
        shared: Arc<Shared>,
        assignment: ThreadAssignment,
        mut ordered: watch::Receiver<Order>,
    ) {
        let Self { rt, listeners, pool } = self;
        let own = shared.table.header().thread(n);
        let worker = Rc::new(Worker { shared, pool, own });
        begin(&rt, &worker, listeners, assignment);
        let order = rt.block_on(async {
            let changed = ordered.wait_for(|order| *order != Order::Continue).await;
            // If the sender is gone, the sessions stay as they are: only an order to stop ends them.
            changed.map_or(Order::Quiesce, |order| *order)
        });
        match order {
            // The sessions stay as they are for the next worker.
            Order::Quiesce | Order::Continue => std::mem::forget(rt),
            // Dropping the runtime ends every session with a reset and its close record.
            Order::Stop => drop(rt),
        }
    }
}

fn begin(rt: &LocalRuntime, worker: &Rc<Worker>, listeners: Vec<Listener>, assignment: ThreadAssignment) {
    let own = worker.own;
    rt.spawn_local(async move {
        loop {
            own.heartbeat();
            tokio::time::sleep(TICK).await;
        }
    });
    let ThreadAssignment { sessions, unregistered } = assignment;
    let one = Rc::clone(worker);
    rt.spawn_local(async move {
        // Each session has a task of its own, so that one that waits for memory does not hold up the others.
        for session in sessions {
            let (worker, permit) = (Rc::clone(&one), SessionPermit::take(&one.shared));
            tokio::task::spawn_local(async move { worker.resume_session(session, permit).await });
        }
        for (socket, flow) in unregistered {
            let (worker, permit) = (Rc::clone(&one), SessionPermit::take(&one.shared));
            tokio::task::spawn_local(async move { worker.adopt(socket, flow, permit).await });
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
            Arrival::Connection(conn) => self.begin(conn, SessionPermit::take(&self.shared)),
            Arrival::ToListener(client) => warn_seldom(&counters.to_listener, || {
                format!(
                    "refused a connection from {client} to the listener itself: it takes only intercepted connections"
                )
            }),
            Arrival::Aborted(err) => warn_seldom(&counters.aborted, || {
                format!("a connection was over before it could be accepted: {err}")
            }),
            Arrival::Exhausted(err) => self.shared.out_of_resources(&err),
            Arrival::Shed(count) => (0..count).for_each(|_| {
                warn_seldom(&counters.shed, || {
                    "reset a connection that had waited for a place; its next try is routed".to_owned()
                });
            }),
        }
    }

    fn begin(self: &Rc<Self>, Accepted { flow, client }: Accepted, permit: SessionPermit) {
        crash::at(Point::Accepted);
        let number = client.socket().as_raw_fd();
        let (Some(slot), Ok(cookie)) = (self.shared.table.slot(number), socket_cookie(client.socket()))
        else {
            // The descriptor limit was raised from outside, so the table has no slot for this descriptor. Another
            // worker could not resume the session.
            return self.take(Arrival::Shed(1));
        };
        slot.accepted(cookie, &flow, now());
        self.shared.counters.accepted.count();
        crash::at(Point::Enlisted);
        self.drive(Session { flow, client, slot, resumed: Cell::new(None) }, permit);
    }

    /// Starts the session of a connection that another worker accepted and did not record.
    async fn adopt(self: Rc<Self>, socket: Socket, flow: Flow, permit: SessionPermit) {
        let kernel = &self.shared.kernel;
        let out_of_resources = |err: &io::Error| self.shared.out_of_resources(err);
        let client = match kernel.complete_client(&socket) {
            Ok(()) => Leg::register(socket, Side::Client, &kernel.client, out_of_resources).await,
            Err(err) => Err(err),
        };
        match client {
            Ok(client) => self.begin(Accepted { flow, client }, permit),
            Err(err) if is_out_of_resources(&err) => self.take(Arrival::Shed(1)),
            Err(err) => self.take(Arrival::Aborted(err)),
        }
    }

    /// Resumes a session of another worker.
    async fn resume_session(self: Rc<Self>, session: OrphanedSession, permit: SessionPermit) {
        match session.revive(&self.shared.kernel, &|err| self.shared.out_of_resources(err)).await {
            Ok((Accepted { flow, client }, slot, server, directions)) => {
                let resumed = Cell::new(Some(Box::new(ResumedState { server, directions })));
                self.drive(Session { flow, client, slot, resumed }, permit);
            }
            Err(err) => warn_seldom(&self.shared.counters.not_taken_up, || {
                format!("a session could not be resumed: {err}")
            }),
        }
    }

    fn drive(self: &Rc<Self>, session: Session, permit: SessionPermit) {
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let number = session.client.socket().as_raw_fd() as usize;
            let port = session.flow.orig_dst.0.port();
            {
                let env = Env { shared: &worker.shared, pool: &worker.pool };
                let mut run = pin!(session::run(&session, &env));
                // Records the session that is being driven: if the worker crashes, the next one knows which session to
                // suspect.
                poll_fn(|cx| {
                    worker.own.set_current_session(Some(number));
                    crash::driving(port);
                    let polled = run.as_mut().poll(cx);
                    worker.own.set_current_session(None);
                    polled
                })
                .await;
            }
            drop((session, permit));
        });
    }
}

/// A session's place within the session limit. Dropping it frees the place.
struct SessionPermit(Arc<Shared>);

impl SessionPermit {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.apply(shared.occupancy.enter());
        Self(Arc::clone(shared))
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.0.apply(self.0.occupancy.leave());
    }
}
