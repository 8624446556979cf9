//! TCP Fast Open towards the server (RFC 7413). EFFECT.
//!
//! The SYN waits for the client's first bytes, and its result is remembered for the next dial.
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::Socket;
use sys::{DataInSyn, Handshake};

use super::DialError;
use super::destinations::Kind;
use super::memory::Memory;
use crate::config::FastOpen;
use crate::session::leg::Leg;
use crate::session::relay::first::FirstBytes;
use crate::state::record::Opening;

/// A shorter timeout leaves no time for an ordinary SYN. The kernel sends the second SYN after 1 s (TCP_TIMEOUT_INIT
/// in include/net/tcp.h), and its answer may take another.
const BEFORE_AN_ORDINARY_SYN: Duration = Duration::from_secs(2);

/// The way to open one session's server leg, and the kind of the last SYN, kept across retries.
pub struct SynPlan<'a> {
    server: SocketAddr,
    mode: FastOpen,
    may_be_empty: bool,
    may_have_data: bool,
    sent: Cell<Opening>,
    first: FirstBytes<'a>,
    memory: &'a Memory,
}

/// The state of the SYN after connect().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syn {
    /// The kernel has sent it.
    Sent,
    /// It is deferred until [`SynPlan::send`].
    Due,
}

impl<'a> SynPlan<'a> {
    /// Plans a SYN to `server` by `mode`, without the kinds that are known to fail with that server.
    pub fn new(server: SocketAddr, mode: FastOpen, first: FirstBytes<'a>, memory: &'a Memory) -> Self {
        let may = |kind| mode != FastOpen::Off && !memory.known().avoids(server.ip(), kind, Instant::now());
        let (may_be_empty, may_have_data) = (may(Kind::Empty), may(Kind::Data));
        Self { server, mode, may_be_empty, may_have_data, sent: Cell::new(Opening::Ordinary), first, memory }
    }

    /// Remembers the result `became` of a SYN of kind `sent`.
    fn learn(&self, sent: Opening, became: Opening) {
        let kind = if sent == Opening::Data { Kind::Data } else { Kind::Empty };
        let (server, mut known) = (self.server.ip(), self.memory.known());
        match became {
            Opening::Asked | Opening::Empty | Opening::Data => known.worked(server, kind),
            Opening::Lost => known.failed(server, kind, Instant::now()),
            // With a cookie, ignored data means that the cookie was outdated; the server has sent a new one.
            Opening::Ignored if self.mode == FastOpen::NoCookie => known.failed(server, kind, Instant::now()),
            Opening::Ignored | Opening::Ordinary | Opening::Avoided => {}
        }
    }

    /// Connects the socket. If the SYN can carry the client's first bytes, it is deferred and waits for them.
    pub(super) async fn connect(&self, socket: &Socket) -> Result<Syn, DialError> {
        match self.mode {
            FastOpen::Off => self.ordinary(socket, Opening::Ordinary),
            FastOpen::NoCookie if self.take().await? => self.fast(socket, true),
            // A SYN with neither cookie nor data would be an ordinary one, so it asks for a cookie. A far box that
            // requires none then accepts at once: tcp_try_fastopen() in net/ipv4/tcp_fastopen.c.
            FastOpen::NoCookie if self.may_be_empty => self.fast(socket, false),
            FastOpen::Cookie if self.may_be_empty => {
                let syn = self.fast(socket, false)?;
                if syn == Syn::Due {
                    self.take().await?;
                }
                Ok(syn)
            }
            FastOpen::NoCookie | FastOpen::Cookie => self.ordinary(socket, Opening::Avoided),
        }
    }

    async fn take(&self) -> Result<bool, DialError> {
        if !self.may_have_data {
            return Ok(false);
        }
        self.first.wait().await;
        self.first.take().map_err(DialError::Client)
    }

    fn ordinary(&self, socket: &Socket, opening: Opening) -> Result<Syn, DialError> {
        connect(socket, self.server)?;
        self.sent.set(opening);
        Ok(Syn::Sent)
    }

    fn fast(&self, socket: &Socket, without_cookie: bool) -> Result<Syn, DialError> {
        prepare(socket, without_cookie).map_err(DialError::Socket)?;
        if connect(socket, self.server)? {
            return Ok(Syn::Due);
        }
        self.sent.set(Opening::Asked);
        Ok(Syn::Sent)
    }

    /// Sends a deferred SYN.
    pub(super) fn send(&self, leg: &Leg) -> Result<(), DialError> {
        let with_data = self.first.give(leg).map_err(DialError::Connect)?;
        self.sent.set(if with_data { Opening::Data } else { Opening::Empty });
        Ok(())
    }

    /// Records that a previous worker has sent the SYN.
    pub(super) fn resumed(&self) {
        if self.first.gone() {
            self.sent.set(Opening::Data);
        }
    }

    /// Returns whether another connection can still replace this one. It cannot once a SYN has carried data.
    pub(super) fn may_try_again(&self) -> bool {
        !self.first.gone()
    }

    /// Returns the result of the SYN, and remembers it for the next dial.
    pub(super) fn conclude(&self, dialled: Result<&Leg, &DialError>) -> Opening {
        let sent = self.sent.get();
        if !matches!(sent, Opening::Asked | Opening::Empty | Opening::Data) {
            return sent;
        }
        let opening = match dialled {
            Ok(leg) => sys::handshake(leg.as_fd()).map_or(sent, |how| judge(sent, how)),
            Err(err) if blames_fast_open(err) => Opening::Lost,
            Err(_) => return sent,
        };
        self.learn(sent, opening);
        opening
    }
}

/// Connects the socket and returns whether that completed at once: the SYN is deferred, or the server is this host
/// and has answered.
fn connect(socket: &Socket, server: SocketAddr) -> Result<bool, DialError> {
    match socket.connect(&server.into()) {
        Ok(()) => Ok(true),
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INPROGRESS) => Ok(false),
        Err(err) => Err(DialError::Connect(err)),
    }
}

/// Returns whether an ordinary SYN might have succeeded. From the second SYN on the kernel sends ordinary ones. If
/// those had time and no answer, Fast Open is not the cause.
fn blames_fast_open(err: &DialError) -> bool {
    match err {
        DialError::TimedOut { after } => *after < BEFORE_AN_ORDINARY_SYN,
        err => err.errno() == Some(Errno::CONNREFUSED),
    }
}

fn prepare(socket: &Socket, without_cookie: bool) -> io::Result<()> {
    match sys::set_fast_open_connect(socket.as_fd()) {
        Ok(()) if without_cookie => sys::set_fast_open_no_cookie(socket.as_fd()),
        // Fast Open was switched off in the kernel after the start: the SYN is an ordinary one.
        Err(err) if Errno::from_io_error(&err) == Some(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn judge(sent: Opening, how: Handshake) -> Opening {
    match (sent, how.data) {
        (_, DataInSyn::Taken) => Opening::Data,
        (_, DataInSyn::Ignored) => Opening::Ignored,
        (_, DataInSyn::Lost) => Opening::Lost,
        // Only the SYN can have been retransmitted: nothing else has been sent yet.
        (Opening::Asked | Opening::Empty, DataInSyn::None) if how.retransmits > 0 => Opening::Lost,
        (sent, DataInSyn::None) => sent,
    }
}
