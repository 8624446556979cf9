//! The timers that end a session: they run beside the relay. EFFECT.
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;

use super::silence::Silence;
use super::stall::Stall;
use super::{Direction, Directions};
use crate::session::leg::Leg;
use crate::state::record::{End, Phase, Timeout};

/// The timers of one session.
#[derive(Debug)]
pub struct Watch {
    silence: Option<Silence>,
    client: Option<Stall>,
    server: Option<Stall>,
}

impl Watch {
    /// Creates the timers; `None` if there are none. `client` and `server` limit how long data may stay
    /// unacknowledged on that leg.
    pub fn new(
        silence: Option<Silence>,
        client: Option<Duration>,
        server: Option<Duration>,
    ) -> Option<Box<Self>> {
        let any = silence.is_some() || client.is_some() || server.is_some();
        let [client, server] = [client, server].map(|limit| limit.map(Stall::new));
        any.then(|| Box::new(Self { silence, client, server }))
    }

    /// Waits until a timer expires, and returns the end of the session.
    pub(super) async fn strikes(self: Box<Self>, client: &Leg, server: &Leg, directions: &Directions) -> End {
        let Self { silence, client: on_client, server: on_server } = *self;
        let on_client = pin!(stalled(on_client, client, &directions.down));
        let on_server = pin!(stalled(on_server, server, &directions.up));
        let stalled = select(on_client, on_server);
        match select(pin!(too_silent(silence, directions)), stalled).await {
            Either::Left((which, _)) => End::timeout(Phase::Relay, which),
            Either::Right((Either::Left((end, _)) | Either::Right((end, _)), _)) => end,
        }
    }
}

async fn too_silent(silence: Option<Silence>, directions: &Directions) -> Timeout {
    let Some(mut silence) = silence else { return pending().await };
    loop {
        tokio::time::sleep(silence.tick()).await;
        if let Some(struck) = silence.at_tick(directions.moved(), directions.half_closed()) {
            return struck;
        }
    }
}

/// Waits until `leg` stalls, and returns the same end as TCP_USER_TIMEOUT would cause.
async fn stalled(stall: Option<Stall>, leg: &Leg, to: &Direction) -> End {
    let Some(mut stall) = stall else { return pending().await };
    loop {
        tokio::time::sleep(stall.tick()).await;
        // If the query fails, so has the leg, and the relay reports that.
        let waiting = sys::unconfirmed(leg.as_fd()).unwrap_or(0);
        if stall.at_tick(to.passed_on(), waiting.into()) {
            return End::failed(leg.side(), Phase::Relay, &io::Error::from(Errno::TIMEDOUT));
        }
    }
}
