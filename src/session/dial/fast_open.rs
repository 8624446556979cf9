//! TCP Fast Open towards the server (RFC 7413): the SYN waits for the client's first bytes, and what became of it is remembered. EFFECT.
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

/// The second SYN goes out after a second (TCP_TIMEOUT_INIT in include/net/tcp.h), and may take as long to be answered.
const BEFORE_AN_ORDINARY_SYN: Duration = Duration::from_secs(2);

/// How one session's server leg is opened: holds what becomes of its SYN while the ladder is climbed.
pub struct SynPlan<'a> {
    server: SocketAddr,
    mode: FastOpen,
    may_be_empty: bool,
    may_have_data: bool,
    sent: Cell<Opening>,
    first: FirstBytes<'a>,
    memory: &'a Memory,
}

/// Where a SYN is after connect().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syn {
    /// On its way.
    Sent,
    /// Put off until [`SynPlan::send`].
    Due,
}

impl<'a> SynPlan<'a> {
    /// Towards `server` as `mode` says, as far as that is not known to fail there.
    pub fn new(server: SocketAddr, mode: FastOpen, first: FirstBytes<'a>, memory: &'a Memory) -> Self {
        let may = |kind| mode != FastOpen::Off && !memory.known().avoids(server.ip(), kind, Instant::now());
        let (may_be_empty, may_have_data) = (may(Kind::Empty), may(Kind::Data));
        Self { server, mode, may_be_empty, may_have_data, sent: Cell::new(Opening::Ordinary), first, memory }
    }

    /// Remembers what a SYN that was sent as `sent` has come to.
    fn learn(&self, sent: Opening, became: Opening) {
        let kind = if sent == Opening::Data { Kind::Data } else { Kind::Empty };
        let (server, mut known) = (self.server.ip(), self.memory.known());
        match became {
            Opening::Asked | Opening::Empty | Opening::Data => known.worked(server, kind),
            Opening::Lost => known.failed(server, kind, Instant::now()),
            // Behind a cookie it means that the cookie was outdated, and that a new one has come.
            Opening::Ignored if self.mode == FastOpen::NoCookie => known.failed(server, kind, Instant::now()),
            Opening::Ignored | Opening::Ordinary | Opening::Avoided => {}
        }
    }

    /// connect(). Where the SYN can carry the client's first bytes, it is put off and they are waited for.
    pub(super) async fn connect(&self, socket: &Socket) -> Result<Syn, DialError> {
        match self.mode {
            FastOpen::Off => self.ordinary(socket, Opening::Ordinary),
            FastOpen::NoCookie if self.take().await? => self.fast(socket, true),
            // With neither cookie nor data it would be an ordinary SYN. So it asks for a cookie, which makes a far end that wants
            // none accept at once: tcp_try_fastopen() in net/ipv4/tcp_fastopen.c.
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

    /// Sends a SYN that was put off.
    pub(super) fn send(&self, leg: &Leg) -> Result<(), DialError> {
        let with_data = self.first.give(leg).map_err(DialError::Connect)?;
        self.sent.set(if with_data { Opening::Data } else { Opening::Empty });
        Ok(())
    }

    /// A SYN was sent by somebody else.
    pub(super) fn resumed(&self) {
        if self.first.gone() {
            self.sent.set(Opening::Data);
        }
    }

    /// Whether another connection can still take this one's place: not when a SYN has taken bytes along.
    pub(super) fn may_try_again(&self) -> bool {
        !self.first.gone()
    }

    /// What became of it, remembered for the next dial.
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

/// Whether it returned at once: the SYN is put off, or the server is this host and has answered.
fn connect(socket: &Socket, server: SocketAddr) -> Result<bool, DialError> {
    match socket.connect(&server.into()) {
        Ok(()) => Ok(true),
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INPROGRESS) => Ok(false),
        Err(err) => Err(DialError::Connect(err)),
    }
}

/// Whether an ordinary SYN might have fared better: not when the kernel has sent some in vain, as it does from the second on.
fn blames_fast_open(err: &DialError) -> bool {
    match err {
        DialError::TimedOut { after } => *after < BEFORE_AN_ORDINARY_SYN,
        err => err.errno() == Some(Errno::CONNREFUSED),
    }
}

fn prepare(socket: &Socket, without_cookie: bool) -> io::Result<()> {
    match sys::set_fast_open_connect(socket.as_fd()) {
        Ok(()) if without_cookie => sys::set_fast_open_no_cookie(socket.as_fd()),
        // Somebody has switched it off since we started: the SYN is an ordinary one.
        Err(err) if Errno::from_io_error(&err) == Some(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn judge(sent: Opening, how: Handshake) -> Opening {
    match (sent, how.data) {
        (_, DataInSyn::Taken) => Opening::Data,
        (_, DataInSyn::Ignored) => Opening::Ignored,
        (_, DataInSyn::Lost) => Opening::Lost,
        // Nothing else has been sent by now that could have been sent again.
        (Opening::Asked | Opening::Empty, DataInSyn::None) if how.retransmits > 0 => Opening::Lost,
        (sent, DataInSyn::None) => sent,
    }
}
