//! The way of one connection, from accept to its close record. WIRING.
use std::cell::OnceCell;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use crate::config::Config;
use crate::dial::{self, DialError};
use crate::flow::{Flow, Side};
use crate::kernel::Kernel;
use crate::leg::Leg;
use crate::listener::Accepted;
use crate::log;
use crate::metrics::Counters;
use crate::record::{By, Cause, Dialled, End, Phase, Record, Timeout};
use crate::relay::pool::Pool;
use crate::relay::silence::Silence;
use crate::relay::{self, Directions};

/// What the sessions of one worker share.
pub struct Env<'a> {
    /// What the operator asked for.
    pub config: &'a Config,
    /// What the kernel can do.
    pub kernel: &'a Kernel,
    /// What is counted.
    pub counters: &'a Counters,
    /// The worker's pipes.
    pub pool: &'a Pool,
    /// Told when there is no descriptor or memory for one more connection.
    pub lacking: &'a dyn Fn(&io::Error),
}

/// Carries one connection from accept to its end.
pub async fn run(conn: Accepted, env: &Env<'_>) {
    let Accepted { flow, client } = conn;
    let server = OnceCell::new();
    let mut record = Recorder::open(flow, &client, &server, env.counters);
    // Boxed, as it is larger than all that a session keeps while it relays.
    let server = match Box::pin(dial(&flow, &client, env)).await {
        Ok((leg, how)) => {
            record.dialled(how);
            server.get_or_init(|| leg)
        }
        Err(end) => return record.close(end),
    };
    let silence = Silence::new(&env.config.timeouts);
    let end = relay::run(&client, server, &record.way, silence, env.pool).await;
    record.close(end);
    if end.cause == Cause::Eof {
        client.end_in_order();
        server.end_in_order();
    }
    // Whatever else ended it: the legs are dropped here, and that resets both ends.
}

/// Dials the server, unless the client gives up first.
async fn dial(flow: &Flow, client: &Leg, env: &Env<'_>) -> Result<(Leg, Dialled), End> {
    let mark = env.config.rules.own_mark.server();
    let dialled = pin!(dial::connect(flow, &env.config.server, mark, env.kernel, env.lacking));
    match select(dialled, pin!(client.failure())).await {
        Either::Left((dialled, _)) => dialled.map_err(|err| not_dialled(&err)),
        Either::Right((err, _)) => Err(End::failed(Side::Client, Phase::Connect, &err)),
    }
}

fn not_dialled(err: &DialError) -> End {
    match err.io() {
        Some(err) => End::failed(Side::Server, Phase::Connect, err),
        None => End::timeout(Phase::Connect, Timeout::Connect),
    }
}

/// Says exactly once how a session ended, also when its task is dropped.
struct Recorder<'a> {
    flow: Flow,
    client: &'a Leg,
    server: &'a OnceCell<Leg>,
    accepted: Instant,
    dialled: Option<(Dialled, Duration)>,
    way: Directions,
    counters: &'a Counters,
    open: bool,
}

impl<'a> Recorder<'a> {
    fn open(flow: Flow, client: &'a Leg, server: &'a OnceCell<Leg>, counters: &'a Counters) -> Self {
        counters.accepted.count();
        let way = Directions::default();
        Self { flow, client, server, accepted: Instant::now(), dialled: None, way, counters, open: true }
    }

    fn dialled(&mut self, how: Dialled) {
        self.dialled = Some((how, self.accepted.elapsed()));
        match how {
            Dialled::First => {}
            Dialled::Again => self.counters.dialled_again.count(),
            Dialled::OtherPort => self.counters.dialled_other_port.count(),
        }
    }

    fn close(&mut self, end: End) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        match (end.phase, end.cause) {
            (_, Cause::Eof) => self.counters.ended_in_order.count(),
            (_, Cause::Timeout(_)) => self.counters.timed_out.count(),
            (Phase::Connect, Cause::Errno(_)) if end.by == By::Server => self.counters.dial_failed.count(),
            _ => {}
        }
        // Some of it is the kernel's to say, which nobody needs who does not hear it.
        log::record(|| Record {
            flow: self.flow,
            source: self.server.get().and_then(|leg| leg.socket().local_addr().ok()?.as_socket()),
            dialled: self.dialled.map(|(how, _)| how),
            end,
            to_server: self.way.up.passed_on(),
            to_client: self.way.down.passed_on(),
            connect: self.dialled.map(|(_, after)| after),
            duration: self.accepted.elapsed(),
            client: self.client.facts(),
            server: self.server.get().map(Leg::facts),
        });
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        let phase = if self.dialled.is_some() { Phase::Relay } else { Phase::Connect };
        self.close(End::stopped(phase));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F: Future>(_: impl FnOnce(Accepted, &'a Env<'a>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_future(run);
        assert!(size <= 1280, "a session's future has {size} bytes");
    }
}
