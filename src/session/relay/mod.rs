//! Both directions of a session, from any state to their end. EFFECT.
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

/// After so many bytes or steps a direction lets the other sessions of its worker have a turn.
const TURN_BYTES: usize = 1 << 20;
const TURN_STEPS: u32 = 64;
/// A source is readable and gives nothing: when to try again.
const PAUSE: Duration = Duration::from_millis(10);
/// What was written to a sink whose handshake has not ended is pushed after this time: more than pacing puts a first flight off.
const HALF_OPEN: Duration = Duration::from_millis(1);
/// No pipe or no memory is to be had, perhaps for thousands of sessions at once: when to try again.
const SHORTAGE: Duration = Duration::from_millis(100);

struct Failed {
    side: Side,
    err: io::Error,
}

/// Relays until both directions have ended, a leg fails, or one of the session's clocks strikes. Whatever `way` says has
/// happened before is taken up from there. It leaves closing the legs to its caller, as the returned end demands.
pub fn run<'a>(
    client: &'a Leg,
    server: &'a Leg,
    directions: &'a Directions,
    watch: Option<Box<Watch>>,
    pool: &'a Pool,
) -> impl Future<Output = End> {
    let session = Session { client, server, directions, pool };
    // Most sessions have none, and need no room for it.
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

/// What both directions need. Each session keeps what is here as long as it lives: 9,000 of them are to be cheap.
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
        // A last turn for both: what came before the reset and has a place to go is still passed on.
        let _ = (up.poll(cx), down.poll(cx));
        Poll::Ready(Err(first))
    })
    .await
}

/// Drives one direction. All that is to be remembered between two polls is in `way`.
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

    /// Waits for something to read and for a place where it can go, holding no pipe meanwhile, and moves it into one.
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
                // A short answer that no lack of pipe buffers and no urgent byte explains has emptied the source.
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

    /// What the kernel lacks for a moment is waited for (`None`); everything else is the failure of `leg`.
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

    /// Nothing could be read: splice() stops at an urgent byte, which is taken another way; else it is time to wait for news.
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
            // In this order: whoever takes over asks the sink how much it was given, but could not tell this byte from the next.
            direction.urgent(None);
            direction.update(DirectionState::passed_urgent);
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(leg: &Leg, err: io::Error) -> Failed {
    Failed { side: leg.side(), err }
}
