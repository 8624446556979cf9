//! Where intercepted connections arrive: one listener a worker and address, behind TPROXY. EFFECT.
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, accept_with, acceptfrom_with};
use socket2::{Domain, SockAddr, Socket};
use sys::Unregistered;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::{Config, FastOpen};
use crate::host::kernel::Kernel;
use crate::session::leg::{Leg, PATIENCE, PAUSE, is_out_of_resources, reset_on_close};
use crate::state::flow::{Flow, OrigDst, Side};

/// Connections whose handshake has ended and that wait for accept(); `net.core.somaxconn` sets the ceiling.
const BACKLOG: i32 = 4096;
/// Fast Open connections whose handshake has not ended.
const FAST_OPEN_PENDING: u16 = 4096;
/// After this many connections in a row the worker's sessions have their turn.
const ACCEPTS_A_TURN: u32 = 64;

/// An accepted connection.
pub struct Accepted {
    /// Who wants to talk to whom.
    pub flow: Flow,
    /// The client leg.
    pub client: Leg,
}

/// What accepting came to.
pub enum Arrival {
    /// A connection that was intercepted.
    Connection(Accepted),
    /// Somebody connected to the listener itself; it is refused.
    ToListener(SocketAddr),
    /// A connection was over before it could be taken.
    Aborted(io::Error),
    /// Descriptors or memory have run out; accepting goes on after a pause.
    Exhausted(io::Error),
    /// So many connections had waited for too long and were reset.
    Shed(u32),
}

/// The addresses that `run` listens on. Loopback, not the wildcard: that would keep a client with the same port number
/// from being dialled for.
pub fn addresses(config: &Config) -> [SocketAddr; 2] {
    let port = config.listen.port.get();
    [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

/// Binds one listener; what is set on it, the client legs inherit.
///
/// # Errors
/// EADDRINUSE: somebody else has the port. EPERM: CAP_NET_ADMIN is missing. EADDRNOTAVAIL, EAFNOSUPPORT: no IPv6 here.
pub fn bind(addr: SocketAddr, config: &Config, kernel: &Kernel) -> io::Result<Socket> {
    let socket = kernel.client_socket(Domain::for_address(addr))?;
    if addr.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        // `[::]` takes both families, as 1.1.0's did.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
        socket.set_ip_transparent_v6(true)?;
    }
    reset_on_close(&socket)?;
    // With the mark set, `net.ipv4.tcp_fwmark_accept` does not give the divert mark to what the client legs send.
    socket.set_mark(config.rules.own_mark.client())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    match config.client.fast_open {
        FastOpen::Off => {}
        FastOpen::Cookie => sys::set_fast_open(socket.as_fd(), FAST_OPEN_PENDING)?,
        FastOpen::NoCookie => {
            sys::set_fast_open(socket.as_fd(), FAST_OPEN_PENDING)?;
            sys::set_fast_open_no_cookie(socket.as_fd())?;
        }
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Starts to listen; from here on `tproxy` finds it.
pub fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}

/// Where `socket` listens.
///
/// # Errors
/// None are known for a listener.
pub fn address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr().and_then(inet)
}

/// A listener that is registered with a thread's runtime.
pub struct Listener {
    socket: AsyncFd<Socket>,
    own: SocketAddr,
}

impl Listener {
    /// Registers `socket` with this thread's runtime.
    ///
    /// # Errors
    /// When the kernel has no memory for it (ENOMEM, ENOSPC).
    pub fn register(socket: Socket) -> io::Result<Self> {
        let own = address(&socket)?;
        Ok(Self { socket: sys::async_socket(socket, Interest::READABLE)?, own })
    }
}

/// Accepts for ever and hands each arrival to `take`. A connection that the kernel has no descriptor or memory for waits; after a
/// second it is reset, so that its next try is routed.
///
/// # Errors
/// Only when the listener itself has failed.
pub async fn accept(
    listener: Listener,
    kernel: &Kernel,
    mut take: impl FnMut(Arrival),
) -> io::Result<Infallible> {
    let Listener { socket: listener, own } = listener;
    let mut spare = spare_descriptor();
    let (mut rests, mut held) = (0, None);
    loop {
        let mut ready = listener.readable().await?;
        let mut served = false;
        let mut serve = |arrival| {
            served |= matches!(arrival, Arrival::Connection(_));
            take(arrival);
        };
        let turn = accept_some(&listener, kernel, own, &mut held, &mut serve)?;
        if served {
            rests = 0;
        }
        match turn {
            Turn::Empty => {
                ready.clear_ready();
                rests = 0;
            }
            Turn::More => {
                tokio::task::yield_now().await;
                rests = 0;
            }
            Turn::Rest => {
                if rests < PATIENCE {
                    rests += 1;
                } else {
                    drop(spare.take());
                    let waited = u32::from(held.take().is_some());
                    take(Arrival::Shed(waited + shed(listener.get_ref())?));
                    spare = spare_descriptor();
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Kept for the last resort: a file of its own, so that giving it up helps against ENFILE too.
fn spare_descriptor() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

enum Turn {
    Empty,
    More,
    Rest,
}

/// A connection that was accepted and for which there was no memory then.
type Held = (Socket, Option<SocketAddrAny>);

fn accept_some(
    listener: &AsyncFd<Socket>,
    kernel: &Kernel,
    own: SocketAddr,
    held: &mut Option<Held>,
    take: &mut impl FnMut(Arrival),
) -> io::Result<Turn> {
    let mut turn = Turn::Rest;
    for _ in 0..ACCEPTS_A_TURN {
        if let Some((socket, client)) = held.take() {
            match identify(socket, client.clone(), kernel, own) {
                Ok(arrival) => take(arrival),
                Err(Unregistered { socket, err }) if is_out_of_resources(&err) => {
                    *held = Some((socket, client));
                    take(Arrival::Exhausted(err));
                    return Ok(Turn::Rest);
                }
                Err(Unregistered { err, .. }) => take(Arrival::Aborted(err)),
            }
        }
        *held = match acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((fd, client)) => Some((Socket::from(fd), client)),
            Err(Errno::AGAIN) => return Ok(Turn::Empty),
            Err(err @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK)) => return Err(err.into()),
            Err(err) if is_the_connections(err) => {
                take(Arrival::Aborted(err.into()));
                continue;
            }
            Err(err) => {
                take(Arrival::Exhausted(err.into()));
                return Ok(Turn::Rest);
            }
        };
        turn = Turn::More;
    }
    Ok(turn)
}

/// What accept(2) reports of the connection that it takes from the queue, not of the listener.
fn is_the_connections(err: Errno) -> bool {
    matches!(
        err,
        Errno::INTR
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
    )
}

/// Resets what waits to be accepted, and says how many that were.
fn shed(listener: &Socket) -> io::Result<u32> {
    let accepted = (0..ACCEPTS_A_TURN).map_while(|_| {
        // Closing it resets it, as it does every socket of ours.
        accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok().map(drop)
    });
    match accepted.count() {
        0 => forget_the_queue(listener),
        count => Ok(u32::try_from(count).unwrap_or(u32::MAX)),
    }
}

/// Where accept() fails even so: a listener that is shut resets all that wait, and needs no descriptor to listen again.
/// Nothing waits for events of it meanwhile: epoll asks it again when it is next looked at.
fn forget_the_queue(listener: &Socket) -> io::Result<u32> {
    let waiting = sys::accept_queue(listener.as_fd())?;
    if waiting > 0 {
        listener.shutdown(Shutdown::Read)?;
        listen(listener)?;
    }
    Ok(waiting)
}

/// Makes an arrival of a socket that was accepted.
fn identify(
    socket: Socket,
    client: Option<SocketAddrAny>,
    kernel: &Kernel,
    own: SocketAddr,
) -> Result<Arrival, Unregistered> {
    let looked = || {
        let client = client.and_then(|addr| SocketAddr::try_from(addr).ok()).map(canonical);
        let client = client.ok_or(io::ErrorKind::NotConnected)?;
        let orig_dst = orig_dst(&socket, own)?;
        if orig_dst.is_some() {
            kernel.complete_client(&socket)?;
        }
        Ok((client, orig_dst))
    };
    match looked() {
        Err(err) => Err(Unregistered { socket, err }),
        Ok((client, None)) => Ok(Arrival::ToListener(client)),
        Ok((client, Some(orig_dst))) => {
            let leg = Leg::new(socket, Side::Client, &kernel.client)?;
            Ok(Arrival::Connection(Accepted { flow: Flow { client, orig_dst }, client: leg }))
        }
    }
}

/// Who talks to whom on a socket that was accepted, by whomever; `None`: it is to one of the listeners at `own` itself.
///
/// # Errors
/// When it is no connection any more.
pub fn flow_of(socket: &Socket, own: &[SocketAddr]) -> io::Result<Option<Flow>> {
    let client = socket.peer_addr().and_then(inet)?;
    for &own in own {
        if orig_dst(socket, own)?.is_none() {
            return Ok(None);
        }
    }
    let orig_dst = socket.local_addr().and_then(inet)?;
    Ok(Some(Flow { client, orig_dst: OrigDst(orig_dst) }))
}

/// Behind TPROXY the socket's own address is the one that the client wanted (SO_ORIGINAL_DST would say something else); `None`: that
/// is the listener's at `own`.
fn orig_dst(socket: &Socket, own: SocketAddr) -> io::Result<Option<OrigDst>> {
    let orig_dst = socket.local_addr().and_then(inet)?;
    Ok((!is_listener(own, orig_dst)?).then_some(OrigDst(orig_dst)))
}

fn inet(addr: SockAddr) -> io::Result<SocketAddr> {
    Ok(canonical(addr.as_socket().ok_or(io::ErrorKind::InvalidData)?))
}

/// The address as its family has it: an IPv4 address that came through an IPv6 listener is one again.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// Whether what went to `orig_dst` was not intercepted, but sent to the listener at `own`.
fn is_listener(own: SocketAddr, orig_dst: SocketAddr) -> io::Result<bool> {
    if orig_dst.port() != own.port() || !own.ip().is_unspecified() {
        return Ok(orig_dst == own);
    }
    is_local(orig_dst.ip())
}

/// Whether `ip` is this host's. (To bind to it proves nothing where `net.ipv4.ip_nonlocal_bind` is set.)
fn is_local(ip: IpAddr) -> io::Result<bool> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Nothing is sent. The kernel talks to an address of its own from that address.
    let reached_from = socket.connect((ip, 9)).and_then(|()| socket.local_addr());
    Ok(ip.is_loopback() || reached_from.is_ok_and(|from| from.ip() == ip))
}
