//! One socket of a session, as the relay sees it. EFFECT.
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

/// What is asked of a sink whose write side is closed: the write will say why.
const ONE_PAGE: usize = 4096;
/// With so much room left the kernel need not be asked again.
const ENOUGH_ROOM: u32 = 16 << 10;
/// More than the kernel adds to what one call sends: sizeof(struct sk_buff) and a small head.
const OVERHEAD: u32 = 2048;

/// A connected socket that resets its peer when it is dropped: whatever happens to this process, a cut connection does not
/// look like a complete one. Only [`Leg::end_in_order`] changes that.
#[derive(Debug)]
pub struct Leg {
    io: AsyncFd<Socket>,
    side: Side,
    multipath: Multipath,
    /// The kernel reports an error once and reads as EOF ever after: what was reported is kept here.
    error: Cell<Option<NonZeroI32>>,
    urgent: Cell<bool>,
    /// It was accepted at its SYN, and the handshake has not ended yet.
    half_open: Cell<bool>,
    notsent_lowat: u32,
    /// What surely fits into the send buffer still: what did when the kernel was last asked, less what was sent since.
    room: Cell<u32>,
}

impl Leg {
    /// Takes over a non-blocking socket that was given `options`.
    ///
    /// # Errors
    /// When it cannot be registered with this thread's runtime (ENOMEM, ENOSPC: `fs.epoll.max_user_watches`); gives the socket back.
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

    /// Which of the session's two it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        self.io.get_ref()
    }

    /// Waits until a connect() that is under way has come to its end.
    pub async fn connected(&self) -> io::Result<()> {
        // The guard is dropped and nothing cleared: the socket is writable now, or has failed.
        drop(self.io.ready(Interest::WRITABLE).await?);
        self.take_error().map_or(Ok(()), Err)
    }

    /// Waits until there may be something to read: data, an urgent byte, FIN, or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.urgent.get() { Poll::Ready(Ok(())) } else { self.io.poll_read_ready(cx).map_ok(drop) }
    }

    /// Nothing was there to read: the next wait is for news. Says whether more will come: an ended source stays readable.
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

    /// Whether an urgent byte has come that has not been passed on: reading stops there.
    pub fn is_urgent(&self) -> bool {
        self.urgent.get()
    }

    /// Waits until `write` does not say that there is no room.
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

    /// Waits for room in the send buffer and says how many bytes surely fit. It keeps a quarter back for what the kernel adds
    /// to each segment, so that what was taken for this sink need not wait in a pipe.
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

    /// So many bytes were sent: they and what the kernel adds to them have taken of the room.
    pub fn sent(&self, len: usize) {
        let taken = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(OVERHEAD);
        self.room.set(self.room.get().saturating_sub(taken));
    }

    fn room_now(&self) -> io::Result<Option<usize>> {
        let memory = sys::mem_info(self.as_fd())?;
        let unsent = sys::unsent(self.as_fd())?;
        let free = memory.send_buffer.saturating_sub(memory.queued);
        // The kernel calls a stream writable while a third of its buffer is free and less than half of TCP_NOTSENT_LOWAT is
        // unsent: sk_stream_is_writeable() in include/net/sock.h.
        if free > memory.queued / 2 && unsent < self.notsent_lowat / 2 {
            self.room.set((free / 4 * 3).min(self.notsent_lowat - unsent));
            return Ok(Some(self.room.get() as usize));
        }
        // Only a poll that finds no room makes the kernel report room later (SOCK_NOSPACE in tcp_poll()).
        let mut fds = [PollFd::new(&self.io, PollFlags::OUT)];
        let writable = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0;
        Ok(writable.then_some(ONE_PAGE))
    }

    /// Waits until the leg fails, and notices urgent bytes meanwhile.
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
                // To be ready for urgent bytes is to be ready for an end, too, and that stays.
                interest = Interest::ERROR;
            }
            if ready.ready().is_error()
                && let Some(err) = self.take_error()
            {
                return err;
            }
            ready.clear_ready_matching(Ready::ERROR | Ready::PRIORITY);
            // Whoever reads from this leg is to have another look.
            tokio::task::yield_now().await;
        }
    }

    /// The error that the kernel reported before, if any: behind it an EOF is none.
    pub fn failed(&self) -> Option<io::Error> {
        self.error.get().map(|errno| io::Error::from_raw_os_error(errno.get()))
    }

    fn take_error(&self) -> Option<io::Error> {
        match self.socket().take_error() {
            Ok(None) => self.failed(),
            Ok(Some(err)) | Err(err) => Some(self.keep(err)),
        }
    }

    /// Remembers that the leg has failed: from now on its EOF is none. What the kernel lacks for a moment is no failure of it.
    pub fn keep(&self, err: io::Error) -> io::Error {
        let err = if self.lost_its_paths(&err) { Errno::TIMEDOUT.into() } else { err };
        if self.error.get().is_none() && !is_out_of_resources(&err) {
            self.error.set(err.raw_os_error().and_then(NonZeroI32::new));
        }
        err
    }

    /// Passes a FIN on.
    pub fn shut_write(&self) -> io::Result<()> {
        self.remember_paths();
        match self.socket().shutdown(std::net::Shutdown::Write) {
            // Both FINs went before, as a session that is taken over can find it; or a reset came, and then there is an error.
            Err(err) if err.kind() == io::ErrorKind::NotConnected => self.take_error().map_or(Ok(()), Err),
            Err(err) => Err(self.keep(err)),
            Ok(()) => Ok(()),
        }
    }

    /// Asks the kernel whether the handshake is still under way, as it is when Fast Open has accepted at the SYN. Until it has
    /// ended, what is written has to be [pushed](Self::push).
    pub fn look_whether_half_open(&self) {
        self.half_open.set(sys::handshake(self.as_fd()).is_ok_and(|how| how.under_way));
    }

    /// What [`Self::look_whether_half_open`] found.
    pub fn is_half_open(&self) -> bool {
        self.half_open.get()
    }

    /// Sends what pacing has put off. In SYN_RECV the kernel forgets to: the timer of pacing leads to tcp_tsq_handler(), which
    /// passes over that state (net/ipv4/tcp_output.c), and the rest of a first flight would wait for the client's ACK.
    pub fn push(&self) {
        self.look_whether_half_open();
        // To take the cork out pushes, whether it was in or not.
        let _ = set_tcp_cork(self, false);
    }

    /// What the close record says of it.
    pub fn facts(&self) -> LegFacts {
        let name = self.socket().tcp_congestion().unwrap_or_default();
        let name: Vec<u8> = name.into_iter().take_while(|&b| b != 0).collect();
        let congestion_control = String::from_utf8_lossy(&name).into_owned();
        LegFacts { congestion_control, mptcp: self.mptcp(), paths: self.paths() }
    }

    /// How the peer's SYN was taken; asks the kernel.
    pub fn taken(&self) -> Opening {
        match sys::handshake(self.as_fd()) {
            Ok(how) if how.data == sys::DataInSyn::Taken => Opening::Data,
            Ok(how) if how.fast_open_child => Opening::Empty,
            _ => Opening::Ordinary,
        }
    }

    /// Both directions have ended: when it is dropped now, what is still queued is delivered, then the FIN.
    pub fn end_in_order(&self) {
        // Should this fail, the peer sees a reset instead of an end, which is the safe side to err on.
        let _ = self.socket().set_linger(None);
    }
}

impl AsFd for Leg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// Makes `socket` reset its peer when it is closed, also by the end of the process.
///
/// # Errors
/// Those of setsockopt(2); none are known for a valid socket.
pub fn reset_on_close(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

/// Whether `err` says that the kernel has no descriptor or memory left just now (ENOSPC: `fs.epoll.max_user_watches`).
pub fn is_out_of_resources(err: &io::Error) -> bool {
    let lack = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC];
    Errno::from_io_error(err).is_some_and(|errno| lack.contains(&errno))
}
