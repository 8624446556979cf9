//! The first bytes of a direction, moved into a SYN before the sink is connected (RFC 7413). EFFECT.
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::half::Moved;
use super::pool::Pool;
use super::{Direction, splice};
use crate::session::leg::Leg;
use crate::state::crash::{self, Point};

/// How long a SYN waits for them. A client that speaks first has its bytes right behind the ACK that let us accept it; one that
/// waits for the server's is to lose no more than this.
const PATIENCE: Duration = Duration::from_millis(3);
/// What surely fits beside the options into a SYN of 1500 bytes, be it IPv6; tcp_send_syn_data() in net/ipv4/tcp_output.c.
/// More would wait in the pipe for a round trip, and is as well off in the source.
const MOST: usize = 1400;

/// Where a session's first bytes come from, and where the direction stands that they belong to.
#[derive(Clone, Copy)]
pub struct FirstBytes<'a> {
    /// The leg that may have said something.
    pub source: &'a Leg,
    /// Its direction; whatever is taken here, the relay goes on from there.
    pub direction: &'a Direction,
    /// The worker's pipes.
    pub pool: &'a Pool,
}

impl FirstBytes<'_> {
    /// Waits for them, but not for long.
    pub async fn wait(&self) {
        if !self.direction.holds_pipe() {
            let readable = poll_fn(|cx| self.source.poll_readable(cx));
            // A failure of the source shows itself when it is read.
            let _ = tokio::time::timeout(PATIENCE, readable).await;
        }
    }

    /// Takes what there is into a pipe and says whether that is anything. Its end is left for the relay to find.
    ///
    /// # Errors
    /// The source has failed.
    pub fn take(&self) -> io::Result<bool> {
        let Self { source, direction, pool } = *self;
        if direction.holds_pipe() {
            return Ok(true);
        }
        // Without a pipe the SYN goes out empty.
        let Ok(pipe) = direction.take_pipe(pool) else { return Ok(false) };
        match splice::fill(source, &pipe, MOST) {
            Ok((_, moved @ Moved::Bytes(_))) => {
                direction.update(|half| half.filled(moved));
                direction.pipe.set(Some(pipe));
                Ok(true)
            }
            nothing => {
                direction.give_pipe(pool, pipe);
                nothing.map(|_| false)
            }
        }
    }

    /// Sends the SYN that `sink` has put off, with what was taken, and says whether there was any. What did not fit stays in the
    /// pipe.
    ///
    /// # Errors
    /// The SYN did not go out; what was taken is still there.
    pub fn give(&self, sink: &Leg) -> io::Result<bool> {
        let before = self.direction.passed_on();
        self.direction.drain(sink, self.pool)?;
        if self.direction.passed_on() > before {
            crash::at(Point::SynData);
            return Ok(true);
        }
        // Before Linux 6.5 splice() sends no SYN: do_tcp_sendpages() waits for the connection first.
        match send(sink, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::INPROGRESS | Errno::AGAIN) => Ok(false),
            Err(err) => Err(sink.keep(err.into())),
        }
    }

    /// Whether any has left for the server: then no other connection can carry them.
    pub fn gone(&self) -> bool {
        self.direction.passed_on() > 0
    }
}
