//! The way of one connection, from accept to its close record. WIRING.
use std::cell::OnceCell;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use crate::config::{Config, FastOpen};
use crate::dial::{self, Call, Memory, Multipath, Opener, Reached};
use crate::flow::{Flow, Side};
use crate::kernel::Kernel;
use crate::leg::Leg;
use crate::listener::Accepted;
use crate::log;
use crate::metrics::Counters;
use crate::record::{By, Cause, Dialled, End, Mptcp, Opening, Phase, Record};
use crate::relay::first::FirstBytes;
use crate::relay::pool::Pool;
use crate::relay::silence::Silence;
use crate::relay::watch::Watch;
use crate::relay::{self, Directions};

/// What the sessions of one worker share.
pub struct Env<'a> {
    /// What the operator asked for.
    pub config: &'a Config,
    /// What the kernel can do.
    pub kernel: &'a Kernel,
    /// What is counted.
    pub counters: &'a Counters,
    /// Where Fast Open and Multipath TCP fail.
    pub memory: &'a Memory,
    /// The worker's pipes.
    pub pool: &'a Pool,
    /// Told when there is no descriptor or memory for one more connection.
    pub lacking: &'a dyn Fn(&io::Error),
}

/// Carries one connection from accept to its end.
pub async fn run(conn: Accepted, env: &Env<'_>) {
    let Accepted { flow, client } = conn;
    let server = OnceCell::new();
    let mut record = Recorder::open(flow, &client, &server, env);
    // Boxed, as it is larger than all that a session keeps while it relays.
    let server = match Box::pin(dial(&record, env)).await {
        Ok(reached) => {
            record.dialled(reached.dialled, reached.opening);
            server.get_or_init(|| reached.leg)
        }
        Err(end) => return record.close(end),
    };
    let (on_client, on_server) = (env.kernel.client.stall(&client), env.kernel.server.stall(server));
    let watch = Watch::new(Silence::new(&env.config.timeouts), on_client, on_server);
    let end = relay::run(&client, server, &record.way, watch, env.pool).await;
    record.close(end);
    if end.cause == Cause::Eof {
        client.end_in_order();
        server.end_in_order();
    }
    // Whatever else ended it: the legs are dropped here, and that resets both ends.
}

/// Dials the server, unless the client gives up first.
async fn dial(session: &Recorder<'_>, env: &Env<'_>) -> Result<Reached, End> {
    let Recorder { flow, client, way, .. } = session;
    let first = FirstBytes { source: client, way: &way.up, pool: env.pool };
    let opener = Opener::new(flow.orig_dst.0, env.kernel.fast_open, first, env.memory);
    let own_mark = env.config.rules.own_mark.server();
    let Env { kernel, lacking, .. } = *env;
    let multipath = Multipath::new(flow.orig_dst.0.ip(), kernel.server.mptcp, env.memory);
    let call = Call { flow, config: &env.config.server, own_mark, kernel, multipath, opener, lacking };
    match select(pin!(dial::connect(&call)), pin!(client.failure())).await {
        Either::Left((dialled, _)) => dialled.map_err(|err| err.end()),
        Either::Right((err, _)) => Err(End::failed(Side::Client, Phase::Connect, &err)),
    }
}

/// Says exactly once how a session ended, also when its task is dropped.
struct Recorder<'a> {
    flow: Flow,
    client: &'a Leg,
    server: &'a OnceCell<Leg>,
    accepted: Instant,
    dialled: Option<(Dialled, Opening, Duration)>,
    way: Directions,
    env: &'a Env<'a>,
    open: bool,
}

impl<'a> Recorder<'a> {
    fn open(flow: Flow, client: &'a Leg, server: &'a OnceCell<Leg>, env: &'a Env<'a>) -> Self {
        env.counters.accepted.count();
        let way = Directions::default();
        Self { flow, client, server, accepted: Instant::now(), dialled: None, way, env, open: true }
    }

    fn dialled(&mut self, how: Dialled, opening: Opening) {
        self.dialled = Some((how, opening, self.accepted.elapsed()));
        let counters = self.env.counters;
        match how {
            Dialled::First => {}
            Dialled::Again => counters.dialled_again.count(),
            Dialled::OtherPort => counters.dialled_other_port.count(),
        }
        match opening {
            Opening::Ordinary | Opening::Asked | Opening::Empty => {}
            Opening::Data => counters.fast_open_data.count(),
            Opening::Ignored | Opening::Lost => counters.fast_open_failed.count(),
            Opening::Avoided => counters.fast_open_avoided.count(),
        }
    }

    fn close(&mut self, end: End) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let Env { config, counters, .. } = self.env;
        match (end.phase, end.cause) {
            (_, Cause::Eof) => counters.ended_in_order.count(),
            (_, Cause::Timeout(_)) => counters.timed_out.count(),
            (Phase::Connect, Cause::Errno(_)) if end.by == By::Server => counters.dial_failed.count(),
            _ => {}
        }
        if let Some(server) = self.server.get() {
            self.multipath_ended(server);
        }
        // Some of it is the kernel's to say, which nobody needs who does not hear it.
        log::record(|| Record {
            flow: self.flow,
            source: self.server.get().and_then(|leg| leg.socket().local_addr().ok()?.as_socket()),
            dialled: self.dialled.map(|(how, ..)| how),
            end,
            to_server: self.way.up.passed_on(),
            to_client: self.way.down.passed_on(),
            connect: self.dialled.map(|(.., after)| after),
            duration: self.accepted.elapsed(),
            client: self.client.facts(),
            client_opening: match config.client.fast_open {
                FastOpen::Off => Opening::Ordinary,
                FastOpen::Cookie | FastOpen::NoCookie => self.client.taken(),
            },
            server: self.server.get().map(Leg::facts),
            server_opening: self.dialled.map(|(_, opening, _)| opening),
        });
    }

    /// Only now it is known what Multipath TCP was worth with this server.
    fn multipath_ended(&self, server: &Leg) {
        let Env { counters, memory, .. } = self.env;
        let became = server.mptcp();
        memory.ended(self.flow.orig_dst.0.ip(), became);
        match became {
            Mptcp::Off => {}
            Mptcp::Yes => counters.mptcp.count(),
            Mptcp::Avoided => counters.mptcp_avoided.count(),
            Mptcp::Refused | Mptcp::Fallback | Mptcp::Lost | Mptcp::Broken => counters.mptcp_failed.count(),
        }
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
