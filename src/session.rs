//! The way of one connection, from accept to its close record. WIRING.
use std::cell::OnceCell;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use crate::config::FastOpen;
use crate::dial::{self, Call, Multipath, Opener, Reached};
use crate::flow::Side;
use crate::leg::Leg;
use crate::listener::Accepted;
use crate::log;
use crate::record::{By, Cause, Dialled, End, Mptcp, Opening, Phase, Record};
use crate::relay::first::FirstBytes;
use crate::relay::pool::Pool;
use crate::relay::silence::Silence;
use crate::relay::watch::Watch;
use crate::relay::{self, Directions};
use crate::shared::Shared;

/// What the sessions of one worker share.
pub struct Env<'a> {
    /// What those of all workers share.
    pub shared: &'a Shared,
    /// The worker's pipes.
    pub pool: &'a Pool,
}

/// Carries one connection from accept to its end.
///
/// It does not own the client leg, which would take its room in the future twice: the caller drops it right behind.
pub async fn run(conn: &Accepted, env: &Env<'_>) {
    let Accepted { client, .. } = conn;
    let server = OnceCell::new();
    let mut record = Recorder::open(conn, &server, env);
    // Boxed, as it is larger than all that a session keeps while it relays.
    let server = match Box::pin(dial(&record, env)).await {
        Ok(reached) => {
            record.dialled(reached.dialled, reached.opening);
            server.get_or_init(|| reached.leg)
        }
        Err(end) => return record.close(end),
    };
    let Shared { config, kernel, .. } = env.shared;
    if config.client.fast_open != FastOpen::Off {
        client.look_whether_half_open();
    }
    let (on_client, on_server) = (kernel.client.stall(client), kernel.server.stall(server));
    let watch = Watch::new(Silence::new(&config.timeouts), on_client, on_server);
    let end = relay::run(client, server, &record.way, watch, env.pool).await;
    record.close(end);
    if end.cause == Cause::Eof {
        client.end_in_order();
        server.end_in_order();
    }
    // Whatever else ended it: the legs are dropped now, and that resets both ends.
}

/// Dials the server, unless the client gives up first.
async fn dial(session: &Recorder<'_>, env: &Env<'_>) -> Result<Reached, End> {
    let Recorder { conn: Accepted { flow, client }, way, .. } = session;
    let Shared { config, kernel, memory, .. } = env.shared;
    let first = FirstBytes { source: client, way: &way.up, pool: env.pool };
    let opener = Opener::new(flow.orig_dst.0, kernel.fast_open, first, memory);
    let own_mark = config.rules.own_mark.server();
    let lacking = &|err: &io::Error| env.shared.lacking(err);
    let multipath = Multipath::new(flow.orig_dst.0.ip(), kernel.server.mptcp, memory);
    let call = Call { flow, config: &config.server, own_mark, kernel, multipath, opener, lacking };
    match select(pin!(dial::connect(&call)), pin!(client.failure())).await {
        Either::Left((dialled, _)) => dialled.map_err(|err| err.end()),
        Either::Right((err, _)) => Err(End::failed(Side::Client, Phase::Connect, &err)),
    }
}

/// Says exactly once how a session ended, also when its task is dropped.
struct Recorder<'a> {
    conn: &'a Accepted,
    server: &'a OnceCell<Leg>,
    accepted: Instant,
    dialled: Option<(Dialled, Opening, Duration)>,
    way: Directions,
    env: &'a Env<'a>,
    open: bool,
}

impl<'a> Recorder<'a> {
    fn open(conn: &'a Accepted, server: &'a OnceCell<Leg>, env: &'a Env<'a>) -> Self {
        env.shared.counters.accepted.count();
        let way = Directions::default();
        Self { conn, server, accepted: Instant::now(), dialled: None, way, env, open: true }
    }

    fn dialled(&mut self, how: Dialled, opening: Opening) {
        self.dialled = Some((how, opening, self.accepted.elapsed()));
        let counters = &self.env.shared.counters;
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
        let Shared { config, counters, .. } = self.env.shared;
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
            flow: self.conn.flow,
            source: self.server.get().and_then(|leg| leg.socket().local_addr().ok()?.as_socket()),
            dialled: self.dialled.map(|(how, ..)| how),
            end,
            to_server: self.way.up.passed_on(),
            to_client: self.way.down.passed_on(),
            connect: self.dialled.map(|(.., after)| after),
            duration: self.accepted.elapsed(),
            client: self.conn.client.facts(),
            client_opening: match config.client.fast_open {
                FastOpen::Off => Opening::Ordinary,
                FastOpen::Cookie | FastOpen::NoCookie => self.conn.client.taken(),
            },
            server: self.server.get().map(Leg::facts),
            server_opening: self.dialled.map(|(_, opening, _)| opening),
        });
    }

    /// Only now it is known what Multipath TCP was worth with this server.
    fn multipath_ended(&self, server: &Leg) {
        let Shared { counters, memory, .. } = self.env.shared;
        let became = server.mptcp();
        memory.ended(self.conn.flow.orig_dst.0.ip(), became);
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

    fn size_of_future<'a, F: Future>(_: impl FnOnce(&'a Accepted, &'a Env<'a>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_future(run);
        // With what the worker and the runtime add it is a KiB: the runtime aligns to 128 bytes.
        assert!(size <= 760, "a session's future has {size} bytes");
    }
}
