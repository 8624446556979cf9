//! The life of one connection, from accept to its close record. WIRING.
pub mod dial;
pub mod leg;
pub mod listener;
pub mod relay;
pub mod shared;

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::pin;

use futures_util::future::{Either, select};

use self::dial::{DialRequest, Dialed, Multipath, SynPlan};
use self::leg::Leg;
use self::relay::Directions;
use self::relay::first::FirstBytes;
use self::relay::pool::Pool;
use self::relay::silence::Silence;
use self::relay::watch::Watch;
use self::shared::Shared;
use crate::config::FastOpen;
use crate::log;
use crate::state::crash::{self, Point};
use crate::state::flow::{Flow, Side};
use crate::state::record::{By, Cause, Dialled, End, Mptcp, Opening, Phase, Record};
use crate::state::table::now;
use crate::state::table::slot::Slot;

/// The state that the sessions of one thread share.
pub struct Env<'a> {
    /// The state that all threads share.
    pub shared: &'a Shared,
    /// The thread's pipes.
    pub pool: &'a Pool,
}

/// An intercepted connection: a new one, or one that a previous worker left.
pub struct Session {
    /// Client and original destination.
    pub flow: Flow,
    /// The client leg.
    pub client: Leg,
    /// The session's entry in the session table.
    pub slot: Slot,
    /// Further state of a resumed session; `None` for a new one.
    pub resumed: Cell<Option<Box<ResumedState>>>,
}

/// The state of a session that a previous worker left.
pub struct ResumedState {
    /// The server leg: connected, or being dialled.
    pub server: Option<Leg>,
    /// The state of both directions.
    pub directions: Directions,
}

/// Carries one connection to its end, from accept or from the point where a previous worker left it.
///
/// It borrows the client leg: owning it would reserve its room in the future twice. The caller drops the leg right
/// after.
pub async fn run(session: &Session, env: &Env<'_>) {
    let Session { client, slot, .. } = session;
    let server = OnceCell::new();
    let (directions, resumed) = match session.resumed.take() {
        None => (Directions::new(*slot), None),
        Some(resumed) => (resumed.directions, resumed.server.map(Box::new)),
    };
    let mut record = Recorder::open(session, &server, directions, env);
    let server = match resumed {
        Some(leg) if slot.how_dialled().is_some() => server.get_or_init(|| *leg),
        // Boxed, because dialling needs more room than all the state that a session keeps while it relays.
        dialling => match Box::pin(dial(&record, dialling, env)).await {
            Ok(reached) => {
                record.dialled(reached.dialled, reached.opening);
                crash::at(Point::Relaying);
                server.get_or_init(|| reached.leg)
            }
            Err(end) => return record.close(end),
        },
    };
    let Shared { config, kernel, .. } = env.shared;
    if config.client.fast_open != FastOpen::Off {
        client.look_whether_half_open();
    }
    let (on_client, on_server) = (client.stall_limit(&kernel.client), server.stall_limit(&kernel.server));
    let watch = Watch::new(Silence::new(&config.timeouts), on_client, on_server);
    let end = relay::run(client, server, &record.directions, watch, env.pool).await;
    record.close(end);
    // The legs are dropped now. That resets both peers, unless the session ended in order.
}

/// Dials the server, or waits for the leg that is already `dialling`. Stops if the client leg fails first.
async fn dial(record: &Recorder<'_>, dialling: Option<Box<Leg>>, env: &Env<'_>) -> Result<Dialed, End> {
    let Recorder { session: Session { flow, client, slot, .. }, directions, .. } = record;
    let Shared { config, kernel, memory, .. } = env.shared;
    let first = FirstBytes { source: client, direction: &directions.up, pool: env.pool };
    let syn_plan = SynPlan::new(flow.orig_dst.0, kernel.fast_open, first, memory);
    let own_mark = config.rules.own_mark.server();
    let out_of_resources = &|err: &io::Error| env.shared.out_of_resources(err);
    let multipath = Multipath::new(flow.orig_dst.0.ip(), kernel.server.mptcp, memory);
    let request = DialRequest {
        flow,
        slot,
        config: &config.server,
        own_mark,
        kernel,
        multipath,
        syn_plan,
        out_of_resources,
    };
    match select(pin!(dial::connect(&request, dialling)), pin!(client.failure())).await {
        Either::Left((dialled, _)) => dialled.map_err(|err| err.end()),
        Either::Right((err, _)) => Err(End::failed(Side::Client, Phase::Connect, &err)),
    }
}

/// Writes the close record of a session exactly once, also when the session's task is dropped.
struct Recorder<'a> {
    session: &'a Session,
    server: &'a OnceCell<Leg>,
    directions: Directions,
    env: &'a Env<'a>,
    open: bool,
}

impl<'a> Recorder<'a> {
    fn open(
        session: &'a Session,
        server: &'a OnceCell<Leg>,
        directions: Directions,
        env: &'a Env<'a>,
    ) -> Self {
        Self { session, server, directions, env, open: true }
    }

    fn dialled(&mut self, how: Dialled, opening: Opening) {
        let slot = &self.session.slot;
        slot.relaying(how, opening, now().saturating_sub(slot.accepted_at()));
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
        let Session { flow, client, slot, .. } = self.session;
        match (end.phase, end.cause) {
            (_, Cause::Eof) => counters.ended_in_order.count(),
            (_, Cause::Timeout(_)) => counters.timed_out.count(),
            (Phase::Connect, Cause::Errno(_)) if end.by == By::Server => counters.dial_failed.count(),
            _ => {}
        }
        let server = self.server.get();
        if let Some(server) = server {
            self.multipath_ended(server);
        }
        let dialled = slot.how_dialled();
        // Some fields need system calls, so the record is built only if it is written.
        log::record(|| Record {
            flow: *flow,
            source: server.and_then(|leg| leg.socket().local_addr().ok()?.as_socket()),
            dialled: dialled.map(|(how, ..)| how),
            end,
            to_server: self.directions.up.passed_on(),
            to_client: self.directions.down.passed_on(),
            connect: dialled.map(|(.., after)| after),
            duration: now().saturating_sub(slot.accepted_at()),
            client: client.facts(),
            client_opening: match config.client.fast_open {
                FastOpen::Off => Opening::Ordinary,
                FastOpen::Cookie | FastOpen::NoCookie => client.taken(),
            },
            server: server.map(Leg::facts),
            server_opening: dialled.map(|(_, opening, _)| opening),
        });
        if end.cause == Cause::Eof {
            client.end_in_order();
            server.into_iter().for_each(Leg::end_in_order);
        }
        crash::at(Point::Recorded);
        // From here on no worker resumes the session; open descriptors are only closed.
        slot.ended();
        crash::at(Point::Ended);
    }

    /// Counts and remembers the result of Multipath TCP with this server, which is known only at the end.
    fn multipath_ended(&self, server: &Leg) {
        let Shared { counters, memory, .. } = self.env.shared;
        let became = server.mptcp();
        memory.ended(self.session.flow.orig_dst.0.ip(), became);
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
        let phase = if self.session.slot.how_dialled().is_some() { Phase::Relay } else { Phase::Connect };
        self.close(End::stopped(phase));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F: Future>(_: impl FnOnce(&'a Session, &'a Env<'a>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_future(run);
        // With what the worker and the runtime add, a session takes 1 KiB: the runtime aligns tasks to 128 bytes.
        assert!(size <= 760, "a session's future has {size} bytes");
    }
}
