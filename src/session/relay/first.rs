//! The first bytes of a direction, sent in the SYN before the sink is connected (RFC 7413). EFFECT.
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

/// Longest time that a SYN waits for the first bytes. A client that speaks first sends them right after the ACK that
/// completes its handshake. A client that waits for the server loses no more than this time.
const PATIENCE: Duration = Duration::from_millis(3);
/// Payload bytes that fit into a SYN of 1500 bytes with all options, also over IPv6: tcp_send_syn_data() in
/// net/ipv4/tcp_output.c. More bytes would wait in the pipe for a round trip; they can wait in the source as well.
const MOST: usize = 1400;

/// The source of a session's first bytes, and the state of their direction.
#[derive(Clone, Copy)]
pub struct FirstBytes<'a> {
    /// The leg that the first bytes come from.
    pub source: &'a Leg,
    /// Its direction, which the relay continues from the state that is left here.
    pub direction: &'a Direction,
    /// The thread's pipes.
    pub pool: &'a Pool,
}

impl FirstBytes<'_> {
    /// Waits up to 3 ms for the first bytes.
    pub async fn wait(&self) {
        if !self.direction.holds_pipe() {
            let readable = poll_fn(|cx| self.source.poll_readable(cx));
            // An error of the source is reported by the next read.
            let _ = tokio::time::timeout(PATIENCE, readable).await;
        }
    }

    /// Moves available bytes into a pipe and returns whether there are any. A FIN is left for the relay to read.
    ///
    /// # Errors
    /// The source has failed.
    pub fn take(&self) -> io::Result<bool> {
        let Self { source, direction, pool } = *self;
        if direction.holds_pipe() {
            return Ok(true);
        }
        // Without a pipe the SYN carries no data.
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

    /// Sends the deferred SYN of `sink` with the bytes from the pipe, and returns whether it carried any. Bytes that
    /// did not fit stay in the pipe.
    ///
    /// # Errors
    /// The SYN was not sent; the bytes are still in the pipe.
    pub fn give(&self, sink: &Leg) -> io::Result<bool> {
        let before = self.direction.passed_on();
        self.direction.drain(sink, self.pool)?;
        if self.direction.passed_on() > before {
            crash::at(Point::SynData);
            return Ok(true);
        }
        // Before Linux 6.5 splice() does not send the SYN: do_tcp_sendpages() waits for the connection first.
        match send(sink, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::INPROGRESS | Errno::AGAIN) => Ok(false),
            Err(err) => Err(sink.keep(err.into())),
        }
    }

    /// Returns whether bytes have been sent to the server. If so, no other connection can carry them.
    pub fn gone(&self) -> bool {
        self.direction.passed_on() > 0
    }
}
