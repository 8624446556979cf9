//! Both directions of a session, from any state to their end. EFFECT.
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
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::Sleep;

use self::half::{Half, Moved, Step};
use self::pool::{Pipe, Pool};
use self::watch::Watch;
use crate::flow::Side;
use crate::leg::{Leg, lacks};
use crate::record::{End, Phase};

/// After so many bytes or steps a direction lets the other sessions of its worker have a turn.
const TURN_BYTES: usize = 1 << 20;
const TURN_STEPS: u32 = 64;
/// A source is readable and gives nothing: when to try again.
const PAUSE: Duration = Duration::from_millis(10);
/// What was written to a sink whose handshake has not ended is pushed after this time: more than pacing puts a first flight off.
const HALF_OPEN: Duration = Duration::from_millis(1);
/// No pipe or no memory is to be had, perhaps for thousands of sessions at once: when to try again.
const SHORTAGE: Duration = Duration::from_millis(100);

/// One direction: where it stands, and the pipe with what its sink has not yet taken.
#[derive(Default)]
pub struct Direction {
    half: Cell<Half>,
    pipe: Cell<Option<Pipe>>,
    urgent: Cell<Option<u8>>,
    pause: Cell<Option<Pin<Box<Sleep>>>>,
}

/// The two directions of a session.
#[derive(Default)]
pub struct Directions {
    /// From the client to the server.
    pub up: Direction,
    /// From the server to the client.
    pub down: Direction,
    first_eof: Cell<Option<Side>>,
}

struct Failed {
    side: Side,
    err: io::Error,
}

impl Direction {
    /// A direction that goes on where it was left: `pipe` with the bytes that are in it, behind `passed_on` others.
    pub fn resume(pipe: Option<(Pipe, usize)>, passed_on: u64) -> Self {
        let (pipe, len) = pipe.unzip();
        let half = Half::resume(len.unwrap_or(0), passed_on);
        Self { half: Cell::new(half), pipe: Cell::new(pipe), ..Self::default() }
    }

    /// Moves what the sink takes; `None`: it takes nothing now. The pipe goes back as soon as it is empty.
    fn drain(&self, sink: &Leg, pool: &Pool) -> io::Result<Option<()>> {
        let (Step::Drain(len), Some(pipe)) = (self.half.get().step(), self.pipe.take()) else {
            return Ok(Some(()));
        };
        let drained = splice::drain(&pipe, sink, len);
        if let Ok(Some(n)) = drained {
            self.update(|half| half.drained(n));
        }
        match self.half.get().in_pipe() {
            0 => pool.give(pipe),
            _ => self.pipe.set(Some(pipe)),
        }
        drained.map(|n| n.map(drop))
    }

    /// Payload bytes that were passed on.
    pub fn passed_on(&self) -> u64 {
        self.half.get().passed_on()
    }

    /// Whether it holds a pipe: only while its sink has not yet taken all that it had room for when it was asked.
    pub fn holds_pipe(&self) -> bool {
        self.half.get().in_pipe() > 0
    }

    fn poll_pause(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut pause) = self.pause.take() else { return Poll::Ready(()) };
        let over = pause.as_mut().poll(cx);
        if over.is_pending() {
            self.pause.set(Some(pause));
        }
        over
    }

    fn pause(&self, time: Duration) {
        self.pause.set(Some(Box::pin(tokio::time::sleep(time))));
    }

    fn update<T>(&self, change: impl FnOnce(&mut Half) -> T) -> T {
        let mut half = self.half.get();
        let result = change(&mut half);
        self.half.set(half);
        result
    }
}

impl Directions {
    /// A session that goes on where it was left.
    pub fn resume(up: Direction, down: Direction) -> Self {
        Self { up, down, first_eof: Cell::new(None) }
    }

    fn moved(&self) -> u64 {
        self.up.passed_on() + self.down.passed_on()
    }

    fn half_closed(&self) -> bool {
        self.up.half.get().source_ended() || self.down.half.get().source_ended()
    }
}

/// Relays until both directions have ended, a leg fails, or one of the session's clocks strikes. Whatever `way` says has
/// happened before is taken up from there. It leaves closing the legs to its caller, as the returned end demands.
pub fn run<'a>(
    client: &'a Leg,
    server: &'a Leg,
    way: &'a Directions,
    watch: Option<Box<Watch>>,
    pool: &'a Pool,
) -> impl Future<Output = End> {
    let session = Session { client, server, way, pool };
    // Most sessions have none, and need no room for it.
    let struck = watch.map(|watch| Box::pin(watch.strikes(client, server, way)));
    async move {
        let relayed = match struck {
            None => both(&session).await,
            Some(struck) => match select(pin!(both(&session)), struck).await {
                Either::Left((relayed, _)) => relayed,
                Either::Right((struck, _)) => return struck,
            },
        };
        match relayed {
            Ok(()) => End::in_order(way.first_eof.get().unwrap_or(Side::Client)),
            Err(failed) => End::failed(failed.side, Phase::Relay, &failed.err),
        }
    }
}

/// What both directions need. Each session keeps what is here as long as it lives: 9,000 of them are to be cheap.
struct Session<'a> {
    client: &'a Leg,
    server: &'a Leg,
    way: &'a Directions,
    pool: &'a Pool,
}

async fn both(session: &Session<'_>) -> Result<(), Failed> {
    let mut client_failure = pin!(session.client.failure());
    let mut server_failure = pin!(session.server.failure());
    poll_fn(move |cx| {
        let Session { client, server, way, pool } = *session;
        let first_eof = &way.first_eof;
        let up = Pump { way: &way.up, source: client, sink: server, first_eof, pool };
        let down = Pump { way: &way.down, source: server, sink: client, first_eof, pool };
        let (up_polled, down_polled) = (up.poll(cx), down.poll(cx));
        let first = match (up_polled, down_polled) {
            (Poll::Ready(Err(failed)), _) | (_, Poll::Ready(Err(failed))) => failed,
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => match client_failure.as_mut().poll(cx) {
                Poll::Ready(err) => failed(client, err),
                Poll::Pending => failed(server, ready!(server_failure.as_mut().poll(cx))),
            },
        };
        // A last turn for both: what came before the reset and has a place to go is still passed on.
        let _ = (up.poll(cx), down.poll(cx));
        Poll::Ready(Err(first))
    })
    .await
}

/// Drives one direction. All that is to be remembered between two polls is in `way`.
struct Pump<'a> {
    way: &'a Direction,
    source: &'a Leg,
    sink: &'a Leg,
    first_eof: &'a Cell<Option<Side>>,
    pool: &'a Pool,
}

impl Pump<'_> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let mut bytes = 0;
        for _ in 0..TURN_STEPS {
            ready!(self.way.poll_pause(cx));
            if self.sink.is_half_open() {
                self.sink.push();
            }
            match self.way.half.get().step() {
                Step::Fill => bytes += ready!(self.poll_fill(cx))?,
                Step::Drain(_) => {
                    let drained = self.sink.poll_write(cx, || self.way.drain(self.sink, self.pool));
                    self.settle(self.sink, ready!(drained))?;
                    if self.sink.is_half_open() {
                        self.way.pause(HALF_OPEN);
                    }
                }
                Step::Shut => {
                    self.sink.shut_write().map_err(|err| failed(self.sink, err))?;
                    self.way.update(Half::shut);
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
        let Self { way, source, sink, pool, .. } = *self;
        ready!(self.poll_give_urgent(cx))?;
        ready!(source.poll_readable(cx)).map_err(|err| failed(source, err))?;
        let room = ready!(sink.poll_room(cx)).map_err(|err| failed(sink, err))?;
        let Ok(pipe) = pool.take() else {
            way.pause(SHORTAGE);
            return Poll::Ready(Ok(0));
        };
        let filled = splice::fill(source, &pipe, room.min(pipe.capacity()));
        let Some((asked, moved)) = self.settle(source, filled)? else {
            pool.give(pipe);
            return Poll::Ready(Ok(0));
        };
        way.update(|half| half.filled(moved));
        match moved {
            Moved::Bytes(n) => {
                // A short answer that no lack of pipe buffers and no urgent byte explains has emptied the source.
                if n.get() < asked.min(pipe.slots()) && !source.is_urgent() {
                    source.clear_readable(cx);
                }
                way.pipe.set(Some(pipe));
                return Poll::Ready(Ok(n.get()));
            }
            Moved::Eof => {
                self.first_eof.set(self.first_eof.get().or(Some(source.side())));
                pool.give(pipe);
            }
            Moved::NotReady => {
                pool.give(pipe);
                self.look_for_urgent(cx)?;
            }
        }
        Poll::Ready(Ok(0))
    }

    /// What the kernel lacks for a moment is waited for (`None`); everything else is the failure of `leg`.
    fn settle<T>(&self, leg: &Leg, result: io::Result<T>) -> Result<Option<T>, Failed> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(err) if lacks(&err) => {
                self.way.pause(SHORTAGE);
                Ok(None)
            }
            Err(err) => Err(failed(leg, err)),
        }
    }

    /// Nothing could be read: splice() stops at an urgent byte, which is taken another way; else it is time to wait for news.
    fn look_for_urgent(&self, cx: &mut Context<'_>) -> Result<(), Failed> {
        let Self { way, source, .. } = *self;
        way.urgent.set(splice::take_urgent(source).map_err(|err| failed(source, err))?);
        if way.urgent.get().is_none() && !source.clear_readable(cx) {
            way.pause(PAUSE);
        }
        Ok(())
    }

    fn poll_give_urgent(&self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let Self { way, sink, .. } = *self;
        if let Some(byte) = way.urgent.get() {
            let given = ready!(sink.poll_write(cx, || splice::give_urgent(sink, byte)));
            if self.settle(sink, given)?.is_none() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            way.urgent.set(None);
            way.update(Half::passed_urgent);
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(leg: &Leg, err: io::Error) -> Failed {
    Failed { side: leg.side(), err }
}
