//! One socket of a session, as the relay uses it. EFFECT.
mod multipath;
mod register;

use std::cell::Cell;
use std::io;
use std::num::NonZeroI32;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_cork;
use socket2::Socket;
use sys::Unregistered;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::host::kernel::LegOptions;
use crate::state::flow::Side;
use crate::state::record::{LegFacts, Opening};

use self::multipath::Multipath;
pub use self::register::{PATIENCE, PAUSE};

/// Room in bytes that is assumed when the kernel reports no exact room, or when the write side is closed. In that
/// case the write returns the reason.
const ONE_PAGE: usize = 4096;
/// Room in bytes above which the kernel is not asked again.
const ENOUGH_ROOM: u32 = 16 << 10;
/// Bytes of send buffer charged to each call besides the payload. The kernel adds less: sizeof(struct sk_buff) and a
/// small header.
const OVERHEAD: u32 = 2048;

/// A connected socket that resets its peer when it is dropped. Even if this process dies, the peer cannot mistake a
/// cut connection for a complete one. Only [`Leg::end_in_order`] changes that.
#[derive(Debug)]
pub struct Leg {
    io: AsyncFd<Socket>,
    side: Side,
    multipath: Multipath,
    /// The first error of the leg: the kernel reports an error once, and afterwards the socket reads as EOF.
    error: Cell<Option<NonZeroI32>>,
    urgent: Cell<bool>,
    /// Fast Open accepted the connection at its SYN, and the handshake has not ended yet.
    half_open: Cell<bool>,
    notsent_lowat: u32,
    /// Bytes that certainly fit into the send buffer: the room that the kernel last reported, less the bytes sent
    /// since.
    room: Cell<u32>,
}

impl Leg {
    /// Takes ownership of a non-blocking socket on which `options` are set.
    ///
    /// # Errors
    /// ENOMEM, ENOSPC (`fs.epoll.max_user_watches`): the socket cannot be registered with this thread's runtime. The
    /// error returns the socket.
    pub fn new(socket: Socket, side: Side, options: &LegOptions) -> Result<Self, Unregistered> {
        let multipath = match Multipath::of(&socket, options) {
            Ok(multipath) => multipath,
            Err(err) => return Err(Unregistered { socket, err }),
        };
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let io = sys::async_socket(socket, interest)?;
        Ok(Self {
            io,
            side,
            multipath,
            notsent_lowat: options.notsent_lowat,
            error: Cell::new(None),
            urgent: Cell::new(false),
            half_open: Cell::new(false),
            room: Cell::new(0),
        })
    }

    /// Returns which of the session's two legs it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Returns the socket.
    pub fn socket(&self) -> &Socket {
        self.io.get_ref()
    }

    /// Waits until a pending connect() has succeeded or failed.
    pub async fn connected(&self) -> io::Result<()> {
        // The guard is dropped and the readiness stays set: the socket is writable now, or has failed.
        drop(self.io.ready(Interest::WRITABLE).await?);
        self.take_error().map_or(Ok(()), Err)
    }

    /// Waits until the socket may be readable: data, an urgent byte, a FIN or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.urgent.get() { Poll::Ready(Ok(())) } else { self.io.poll_read_ready(cx).map_ok(drop) }
    }

    /// Clears the readiness after a read found no data, so that the next wait is for new data. Returns `false` for an
    /// ended source, which stays readable.
    pub fn clear_readable(&self, cx: &mut Context<'_>) -> bool {
        self.urgent.set(false);
        match self.io.poll_read_ready(cx) {
            Poll::Ready(Ok(mut ready)) => {
                ready.clear_ready();
                !ready.ready().is_read_closed()
            }
            _ => true,
        }
    }

    /// Returns whether an urgent byte has arrived and has not been passed on. Reading stops at it.
    pub fn is_urgent(&self) -> bool {
        self.urgent.get()
    }

    /// Calls `write` until it returns a result, and waits for room whenever it returns `None`.
    pub fn poll_write<T>(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn() -> io::Result<Option<T>>,
    ) -> Poll<io::Result<T>> {
        loop {
            if let Some(done) = write()? {
                return Poll::Ready(Ok(done));
            }
            ready!(self.io.poll_write_ready(cx))?.clear_ready();
        }
    }

    /// Waits for room in the send buffer and returns the number of bytes that certainly fit. It reserves a quarter
    /// for what the kernel adds to each segment. Bytes read for this sink therefore need not wait in a pipe.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.room.get() >= ENOUGH_ROOM {
            return Poll::Ready(Ok(self.room.get() as usize));
        }
        loop {
            let mut ready = ready!(self.io.poll_write_ready(cx))?;
            if ready.ready().is_write_closed() {
                return Poll::Ready(Ok(ONE_PAGE));
            }
            match self.room_now()? {
                Some(room) => return Poll::Ready(Ok(room)),
                None => ready.clear_ready(),
            }
        }
    }

    /// Subtracts `len` sent bytes, and what the kernel adds to them, from the known room.
    pub fn sent(&self, len: usize) {
        let taken = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(OVERHEAD);
        self.room.set(self.room.get().saturating_sub(taken));
    }

    fn room_now(&self) -> io::Result<Option<usize>> {
        let memory = sys::mem_info(self.as_fd())?;
        let unsent = sys::unsent(self.as_fd())?;
        let free = memory.send_buffer.saturating_sub(memory.queued);
        // The kernel reports a stream as writable while a third of its buffer is free and less than half of
        // TCP_NOTSENT_LOWAT is unsent: sk_stream_is_writeable() in include/net/sock.h.
        if free > memory.queued / 2 && unsent < self.notsent_lowat / 2 {
            self.room.set((free / 4 * 3).min(self.notsent_lowat - unsent));
            return Ok(Some(self.room.get() as usize));
        }
        // Only a poll that finds no room makes the kernel report room later (SOCK_NOSPACE in tcp_poll()).
        let mut fds = [PollFd::new(&self.io, PollFlags::OUT)];
        let writable = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0;
        Ok(writable.then_some(ONE_PAGE))
    }

    /// Waits until the leg fails, and records urgent bytes meanwhile.
    pub async fn failure(&self) -> io::Error {
        let mut interest = Interest::ERROR | Interest::PRIORITY;
        loop {
            let mut ready = match self.io.ready(interest).await {
                Ok(ready) => ready,
                Err(err) => return err,
            };
            if ready.ready().is_priority() {
                self.urgent.set(true);
            }
            if ready.ready().is_read_closed() {
                // Interest in urgent bytes includes the end of the stream, which stays ready: stop watching, or this
                // loop spins.
                interest = Interest::ERROR;
            }
            if ready.ready().is_error()
                && let Some(err) = self.take_error()
            {
                return err;
            }
            ready.clear_ready_matching(Ready::ERROR | Ready::PRIORITY);
            // Yield, so that the direction that reads from this leg polls again.
            tokio::task::yield_now().await;
        }
    }

    /// Returns the error that the kernel reported before, if any. After an error an EOF does not mean a FIN.
    pub fn failed(&self) -> Option<io::Error> {
        self.error.get().map(|errno| io::Error::from_raw_os_error(errno.get()))
    }

    fn take_error(&self) -> Option<io::Error> {
        match self.socket().take_error() {
            Ok(None) => self.failed(),
            Ok(Some(err)) | Err(err) => Some(self.keep(err)),
        }
    }

    /// Remembers that the leg has failed: from then on its EOF does not mean a FIN. A temporary lack of resources is
    /// not a failure of the leg.
    pub fn keep(&self, err: io::Error) -> io::Error {
        let err = if self.lost_its_paths(&err) { Errno::TIMEDOUT.into() } else { err };
        if self.error.get().is_none() && !is_out_of_resources(&err) {
            self.error.set(err.raw_os_error().and_then(NonZeroI32::new));
        }
        err
    }

    /// Shuts the write side, which sends a FIN.
    pub fn shut_write(&self) -> io::Result<()> {
        self.remember_paths();
        match self.socket().shutdown(std::net::Shutdown::Write) {
            // ENOTCONN: both FINs went before, which is possible after a takeover. Or a reset came, and then the
            // socket has an error.
            Err(err) if err.kind() == io::ErrorKind::NotConnected => self.take_error().map_or(Ok(()), Err),
            Err(err) => Err(self.keep(err)),
            Ok(()) => Ok(()),
        }
    }

    /// Asks the kernel whether the handshake is still in progress, as it is when Fast Open has accepted at the SYN.
    /// Until it ends, written data must be [pushed](Self::push).
    pub fn look_whether_half_open(&self) {
        self.half_open.set(sys::handshake(self.as_fd()).is_ok_and(|how| how.under_way));
    }

    /// Returns the result of the last [`Self::look_whether_half_open`].
    pub fn is_half_open(&self) -> bool {
        self.half_open.get()
    }

    /// Sends data that pacing has delayed. In SYN_RECV the kernel does not: the pacing timer calls tcp_tsq_handler(),
    /// which skips that state (net/ipv4/tcp_output.c). The rest of a first flight would wait for the client's ACK.
    pub fn push(&self) {
        self.look_whether_half_open();
        // Clearing TCP_CORK pushes pending data, even if the cork was not set.
        let _ = set_tcp_cork(self, false);
    }

    /// Returns the fields of the leg for the close record.
    pub fn facts(&self) -> LegFacts {
        let name = self.socket().tcp_congestion().unwrap_or_default();
        let name: Vec<u8> = name.into_iter().take_while(|&b| b != 0).collect();
        let congestion_control = String::from_utf8_lossy(&name).into_owned();
        LegFacts { congestion_control, mptcp: self.mptcp(), paths: self.paths() }
    }

    /// Asks the kernel how the peer's SYN was accepted.
    pub fn taken(&self) -> Opening {
        match sys::handshake(self.as_fd()) {
            Ok(how) if how.data == sys::DataInSyn::Taken => Opening::Data,
            Ok(how) if how.fast_open_child => Opening::Empty,
            _ => Opening::Ordinary,
        }
    }

    /// Ends the leg in order: when it is dropped, the kernel delivers queued data and then a FIN.
    pub fn end_in_order(&self) {
        // If this fails, the peer sees a reset instead of a FIN, which is the safer error.
        let _ = self.socket().set_linger(None);
    }
}

impl AsFd for Leg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// Makes `socket` reset its peer when it is closed, also when the process dies.
///
/// # Errors
/// Those of setsockopt(2); none are known for a valid socket.
pub fn reset_on_close(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

/// Returns whether `err` means that the kernel is out of descriptors or memory (ENOSPC: `fs.epoll.max_user_watches`).
pub fn is_out_of_resources(err: &io::Error) -> bool {
    let lack = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC];
    Errno::from_io_error(err).is_some_and(|errno| lack.contains(&errno))
}
