//! The relay of both directions of a session, from any state to the end. EFFECT.
mod direction;
pub mod first;
pub mod half;
pub mod pool;
pub mod silence;
mod splice;
mod stall;
pub mod watch;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

pub use self::direction::{Direction, Directions};
use self::half::{DirectionState, Moved, Step};
use self::pool::Pool;
use self::watch::Watch;
use crate::session::leg::{Leg, is_out_of_resources};
use crate::state::crash::{self, Point};
use crate::state::flow::Side;
use crate::state::record::{End, Phase};
use crate::state::table::slot::Urgent;
use futures_util::future::{Either, select};

/// Bytes or steps after which a direction yields to the other sessions of its thread.
const TURN_BYTES: usize = 1 << 20;
const TURN_STEPS: u32 = 64;
/// Pause before the next attempt when a source polls as readable but returns no data.
const PAUSE: Duration = Duration::from_millis(10);
/// Time after which data is pushed to a sink whose handshake has not ended: longer than pacing delays a first flight.
const HALF_OPEN: Duration = Duration::from_millis(1);
/// Pause before the next attempt when no pipe or no memory is available, possibly for thousands of sessions at once.
const SHORTAGE: Duration = Duration::from_millis(100);

struct Failed {
    side: Side,
    err: io::Error,
}

/// Relays until both directions have ended, a leg fails, or a timer of the session expires. The relay continues from
/// the state in `directions`. The caller closes the legs as the returned end requires.
pub fn run<'a>(
    client: &'a Leg,
    server: &'a Leg,
    directions: &'a Directions,
    watch: Option<Box<Watch>>,
    pool: &'a Pool,
) -> impl Future<Output = End> {
    let session = Session { client, server, directions, pool };
    // Most sessions have no timers, so their future reserves no room for one.
    let struck = watch.map(|watch| Box::pin(watch.strikes(client, server, directions)));
    async move {
        let relayed = match struck {
            None => both(&session).await,
            Some(struck) => match select(pin!(both(&session)), struck).await {
                Either::Left((relayed, _)) => relayed,
                Either::Right((struck, _)) => return struck,
            },
        };
        match relayed {
            Ok(()) => End::in_order(directions.first_eof.get().unwrap_or(Side::Client)),
            Err(failed) => End::failed(failed.side, Phase::Relay, &failed.err),
        }
    }
}

/// The data that both directions need. Each session keeps it for its whole life. It must stay small, as 9,000 sessions
/// must be cheap.
struct Session<'a> {
    client: &'a Leg,
    server: &'a Leg,
    directions: &'a Directions,
    pool: &'a Pool,
}

async fn both(session: &Session<'_>) -> Result<(), Failed> {
    let mut client_failure = pin!(session.client.failure());
    let mut server_failure = pin!(session.server.failure());
    poll_fn(move |cx| {
        let Session { client, server, directions, pool } = *session;
        let first_eof = &directions.first_eof;
        let up = DirectionRelay { direction: &directions.up, source: client, sink: server, first_eof, pool };
        let down =
            DirectionRelay { direction: &directions.down, source: server, sink: client, first_eof, pool };
        let (up_polled, down_polled) = (up.poll(cx), down.poll(cx));
        let first = match (up_polled, down_polled) {
            (Poll::Ready(Err(failed)), _) | (_, Poll::Ready(Err(failed))) => failed,
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => match client_failure.as_mut().poll(cx) {
                Poll::Ready(err) => failed(client, err),
                Poll::Pending => failed(server, ready!(server_failure.as_mut().poll(cx))),
            },
        };
        crash::at(Point::Failed);
        // Poll both directions once more: data that arrived before the reset is passed on if the other side has room.
        let _ = (up.poll(cx), down.poll(cx));
        Poll::Ready(Err(first))
    })
    .await
}

/// Drives one direction. All state that must survive between two polls is in `direction`.
struct DirectionRelay<'a> {
    direction: &'a Direction,
    source: &'a Leg,
    sink: &'a Leg,
    first_eof: &'a Cell<Option<Side>>,
    pool: &'a Pool,
}

impl DirectionRelay<'_> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let mut bytes = 0;
        for _ in 0..TURN_STEPS {
            ready!(self.direction.poll_pause(cx));
            if self.sink.is_half_open() {
                self.sink.push();
            }
            match self.direction.state.get().step() {
                Step::Fill => bytes += ready!(self.poll_fill(cx))?,
                Step::Drain(_) => {
                    let drained = self.sink.poll_write(cx, || self.direction.drain(self.sink, self.pool));
                    self.settle(self.sink, ready!(drained))?;
                    if self.sink.is_half_open() {
                        self.direction.pause(HALF_OPEN);
                    }
                }
                Step::Shut => {
                    self.direction.journal.shut();
                    self.sink.shut_write().map_err(|err| failed(self.sink, err))?;
                    crash::at(Point::Shut);
                    self.direction.update(DirectionState::shut);
                }
                Step::Done => return Poll::Ready(Ok(())),
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits for data in the source and room in the sink, without a pipe, and then moves the data into a pipe.
    fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Failed>> {
        let Self { direction, source, sink, pool, .. } = *self;
        ready!(self.poll_give_urgent(cx))?;
        ready!(source.poll_readable(cx)).map_err(|err| failed(source, err))?;
        let room = ready!(sink.poll_room(cx)).map_err(|err| failed(sink, err))?;
        let Ok(pipe) = direction.take_pipe(pool) else {
            direction.pause(SHORTAGE);
            return Poll::Ready(Ok(0));
        };
        let filled = splice::fill(source, &pipe, room.min(pipe.capacity()));
        let (asked, moved) = match self.settle(source, filled) {
            Ok(Some(filled)) => filled,
            nothing => {
                direction.give_pipe(pool, pipe);
                return Poll::Ready(nothing.map(|_| 0));
            }
        };
        direction.update(|state| state.filled(moved));
        match moved {
            Moved::Bytes(n) => {
                crash::at(Point::Filled);
                // The source is empty if it returned less than requested, and neither the pipe's buffers nor an
                // urgent byte is the reason.
                if n.get() < asked.min(pipe.slots()) && !source.is_urgent() {
                    source.clear_readable(cx);
                }
                direction.pipe.set(Some(pipe));
                return Poll::Ready(Ok(n.get()));
            }
            Moved::Eof => {
                crash::at(Point::Eof);
                self.first_eof.set(self.first_eof.get().or(Some(source.side())));
                direction.give_pipe(pool, pipe);
            }
            Moved::NotReady => {
                direction.give_pipe(pool, pipe);
                self.look_for_urgent(cx)?;
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Returns `None` and pauses if the kernel is out of resources. Any other error is a failure of `leg`.
    fn settle<T>(&self, leg: &Leg, result: io::Result<T>) -> Result<Option<T>, Failed> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(err) if is_out_of_resources(&err) => {
                self.direction.pause(SHORTAGE);
                Ok(None)
            }
            Err(err) => Err(failed(leg, err)),
        }
    }

    /// Handles a read that returned no data: takes the urgent byte at which splice() stops, or else waits for new
    /// readiness.
    fn look_for_urgent(&self, cx: &mut Context<'_>) -> Result<(), Failed> {
        let Self { direction, source, .. } = *self;
        let seen = |byte| {
            direction.journal.urgent(Some(Urgent::Seen(byte)));
            crash::at(Point::UrgentSeen);
        };
        let taken = splice::take_urgent(source, seen).map_err(|err| failed(source, err))?;
        direction.urgent(taken);
        if taken.is_some() {
            crash::at(Point::UrgentTaken);
        }
        if direction.urgent.get().is_none() && !source.clear_readable(cx) {
            direction.pause(PAUSE);
        }
        Ok(())
    }

    fn poll_give_urgent(&self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let Self { direction, sink, .. } = *self;
        if let Some(byte) = direction.urgent.get() {
            let given = ready!(sink.poll_write(cx, || splice::give_urgent(sink, byte)));
            if self.settle(sink, given)?.is_none() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            crash::at(Point::UrgentGiven);
            // Keep this order. A worker that takes over asks the sink how many bytes it was given. It cannot tell
            // this byte from the next.
            direction.urgent(None);
            direction.update(DirectionState::passed_urgent);
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(leg: &Leg, err: io::Error) -> Failed {
    Failed { side: leg.side(), err }
}
