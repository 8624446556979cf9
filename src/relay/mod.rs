//! Both directions of a session, from any state to their end. EFFECT.
pub mod half;
pub mod pool;
pub mod silence;
mod splice;

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};

use self::half::{Half, Moved, Step};
use self::pool::{Pipe, Pool};
use self::silence::Silence;
use crate::flow::Side;
use crate::leg::Leg;
use crate::record::{End, Phase, Timeout};

/// After so many bytes or fills a direction lets the other sessions of its worker have a turn.
const TURN_BYTES: usize = 1 << 20;
const TURN_FILLS: u32 = 32;
/// No pipe to be had (EMFILE, ENFILE), or a source that is readable and gives nothing: when to try again.
const PAUSE: Duration = Duration::from_millis(10);

/// One direction: where it stands, and the pipe with what its sink has not yet taken.
#[derive(Default)]
pub struct Direction {
    half: Cell<Half>,
    pipe: Cell<Option<Pipe>>,
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
        Self { half: Cell::new(Half::resume(len.unwrap_or(0), passed_on)), pipe: Cell::new(pipe) }
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

/// Relays until both directions have ended, a leg fails, or the session has been silent for too long. Whatever `way` says has
/// happened before is taken up from there. It leaves closing the legs to its caller, as the returned end demands.
pub async fn run(client: &Leg, server: &Leg, way: &Directions, silence: Option<Silence>, pool: &Pool) -> End {
    let relayed = pin!(both(client, server, way, pool));
    let silent = pin!(too_silent(silence, way));
    match select(relayed, silent).await {
        Either::Left((Ok(()), _)) => End::in_order(way.first_eof.get().unwrap_or(Side::Client)),
        Either::Left((Err(failed), _)) => End::failed(failed.side, Phase::Relay, &failed.err),
        Either::Right((which, _)) => End::timeout(Phase::Relay, which),
    }
}

async fn both(client: &Leg, server: &Leg, way: &Directions, pool: &Pool) -> Result<(), Failed> {
    let mut up = pin!(pump(&way.up, client, server, &way.first_eof, pool));
    let mut down = pin!(pump(&way.down, server, client, &way.first_eof, pool));
    let mut failure = pin!(first_failure(client, server));
    let (mut up_done, mut down_done) = (false, false);
    poll_fn(|cx| {
        let mut failed = None;
        if !up_done && let Poll::Ready(result) = up.as_mut().poll(cx) {
            (up_done, failed) = (true, result.err());
        }
        if !down_done && let Poll::Ready(result) = down.as_mut().poll(cx) {
            down_done = true;
            failed = failed.or(result.err());
        }
        if failed.is_none()
            && let Poll::Ready(failure) = failure.as_mut().poll(cx)
        {
            failed = Some(failure);
        }
        match failed {
            None if up_done && down_done => Poll::Ready(Ok(())),
            None => Poll::Pending,
            // A last turn for both: what came before the reset and has a place to go is still passed on.
            Some(failed) => {
                let _ = !up_done && up.as_mut().poll(cx).is_ready();
                let _ = !down_done && down.as_mut().poll(cx).is_ready();
                Poll::Ready(Err(failed))
            }
        }
    })
    .await
}

async fn first_failure(client: &Leg, server: &Leg) -> Failed {
    match select(pin!(client.failure()), pin!(server.failure())).await {
        Either::Left((err, _)) => Failed { side: Side::Client, err },
        Either::Right((err, _)) => Failed { side: Side::Server, err },
    }
}

async fn pump(
    way: &Direction,
    source: &Leg,
    sink: &Leg,
    first_eof: &Cell<Option<Side>>,
    pool: &Pool,
) -> Result<(), Failed> {
    let to_sink = |err| Failed { side: sink.side(), err };
    let (mut fills, mut bytes) = (0, 0);
    loop {
        match way.half.get().step() {
            Step::Fill => {
                bytes += fill(way, source, sink, pool).await?;
                fills += 1;
                if way.half.get().source_ended() && first_eof.get().is_none() {
                    first_eof.set(Some(source.side()));
                }
            }
            Step::Drain(_) => sink.write(|| way.drain(sink, pool)).await.map_err(to_sink)?,
            Step::Shut => {
                sink.shut_write().map_err(to_sink)?;
                way.update(Half::shut);
            }
            Step::Done => return Ok(()),
        }
        if fills >= TURN_FILLS || bytes >= TURN_BYTES {
            (fills, bytes) = (0, 0);
            tokio::task::yield_now().await;
        }
    }
}

/// Waits for something to read and for a place where it can go, holding no pipe meanwhile, and moves it into one.
async fn fill(way: &Direction, source: &Leg, sink: &Leg, pool: &Pool) -> Result<usize, Failed> {
    let from_source = |err| Failed { side: source.side(), err };
    let to_sink = |err| Failed { side: sink.side(), err };
    let mut ready = source.readable().await.map_err(from_source)?;
    let room = sink.room().await.map_err(to_sink)?;
    let Ok(pipe) = pool.take() else {
        tokio::time::sleep(PAUSE).await;
        return Ok(0);
    };
    let asked = splice::ask(source, room.min(pipe.capacity())).map_err(from_source)?;
    let moved = splice::fill(source, &pipe, asked).map_err(from_source)?;
    way.update(|half| half.filled(moved));
    match moved {
        Moved::Bytes(n) => {
            // A short answer that no lack of pipe buffers and no urgent byte explains has emptied the source.
            if n.get() < asked.min(pipe.slots()) && !ready.ready().is_priority() {
                ready.clear_ready();
            }
            way.pipe.set(Some(pipe));
            Ok(n.get())
        }
        Moved::Eof => {
            pool.give(pipe);
            Ok(0)
        }
        Moved::NotReady => {
            pool.give(pipe);
            let odd = ready.ready().is_priority() || ready.ready().is_read_closed();
            ready.clear_ready();
            if odd { pass_urgent(way, source, sink).await } else { Ok(0) }
        }
    }
}

/// Carries the urgent byte at which splice() stops past the pipe; what else can make a readable source give nothing is waited out.
async fn pass_urgent(way: &Direction, source: &Leg, sink: &Leg) -> Result<usize, Failed> {
    let byte = splice::take_urgent(source).map_err(|err| Failed { side: source.side(), err })?;
    let Some(byte) = byte else {
        tokio::time::sleep(PAUSE).await;
        return Ok(0);
    };
    let given = sink.write(|| splice::give_urgent(sink, byte)).await;
    given.map_err(|err| Failed { side: sink.side(), err })?;
    way.update(Half::passed_urgent);
    Ok(1)
}

async fn too_silent(silence: Option<Silence>, way: &Directions) -> Timeout {
    let Some(mut silence) = silence else { return pending().await };
    loop {
        tokio::time::sleep(silence.tick()).await;
        if let Some(struck) = silence.at_tick(way.moved(), way.half_closed()) {
            return struck;
        }
    }
}
