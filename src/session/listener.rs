//! The listeners for intercepted connections: one for each thread and address, behind TPROXY. EFFECT.
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

/// Length of the accept queue: connections whose handshake has ended. `net.core.somaxconn` is the upper limit.
const BACKLOG: i32 = 4096;
/// Highest number of Fast Open connections whose handshake has not ended.
const FAST_OPEN_PENDING: u16 = 4096;
/// Connections that one turn accepts before it yields to the sessions of its thread.
const ACCEPTS_A_TURN: u32 = 64;

/// An accepted connection.
pub struct Accepted {
    /// Client and original destination.
    pub flow: Flow,
    /// The client leg.
    pub client: Leg,
}

/// The outcome of one attempt to accept.
pub enum Arrival {
    /// An intercepted connection.
    Connection(Accepted),
    /// A connection to the listener itself, from this address; it is refused.
    ToListener(SocketAddr),
    /// A connection that ended before it could be accepted.
    Aborted(io::Error),
    /// The kernel is out of descriptors or memory; accepting continues after a pause.
    Exhausted(io::Error),
    /// The number of connections that were reset because they had waited too long.
    Shed(u32),
}

/// Returns the addresses that `run` listens on. They are loopback addresses: a listener on the wildcard address would
/// prevent server legs from binding a client's address with the same port.
pub fn addresses(config: &Config) -> [SocketAddr; 2] {
    let port = config.listen.port.get();
    [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

/// Binds one listener. The client legs inherit its socket options.
///
/// # Errors
/// EADDRINUSE: another socket has the port. EPERM: CAP_NET_ADMIN is missing. EADDRNOTAVAIL, EAFNOSUPPORT: the host
/// has no IPv6.
pub fn bind(addr: SocketAddr, config: &Config, kernel: &Kernel) -> io::Result<Socket> {
    let socket = kernel.client_socket(Domain::for_address(addr))?;
    if addr.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        // `[::]` accepts both families, as it does in 1.1.0.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
        socket.set_ip_transparent_v6(true)?;
    }
    reset_on_close(&socket)?;
    // With a mark on the listener, `net.ipv4.tcp_fwmark_accept` does not copy the divert mark to the client legs.
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

/// Starts to listen. From then on the `tproxy` statement finds the socket.
pub fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}

/// Returns the address that `socket` is bound to.
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
    /// ENOMEM, ENOSPC: the kernel has no memory for the registration.
    pub fn register(socket: Socket) -> io::Result<Self> {
        let own = address(&socket)?;
        Ok(Self { socket: sys::async_socket(socket, Interest::READABLE)?, own })
    }
}

/// Accepts connections until the listener fails, and passes each arrival to `take`. A connection waits while the
/// kernel has no descriptor or memory for it. After a second it is reset, so that the client's next attempt is
/// routed.
///
/// # Errors
/// EBADF, EINVAL, ENOTSOCK: the listener itself has failed.
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

/// Opens a spare descriptor, which is closed before connections are shed. An eventfd is a separate open file, so
/// closing it also helps against ENFILE.
fn spare_descriptor() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

enum Turn {
    Empty,
    More,
    Rest,
}

/// An accepted connection that the kernel had no memory to register.
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

/// Returns whether accept(2) reports `err` for the connection that it dequeues, not for the listener.
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

/// Resets connections that wait to be accepted, and returns their number.
fn shed(listener: &Socket) -> io::Result<u32> {
    let accepted = (0..ACCEPTS_A_TURN).map_while(|_| {
        // Dropping the socket resets it: it inherits SO_LINGER 0 from the listener.
        accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok().map(drop)
    });
    match accepted.count() {
        0 => forget_the_queue(listener),
        count => Ok(u32::try_from(count).unwrap_or(u32::MAX)),
    }
}

/// Resets the whole accept queue when accept() fails even with a spare descriptor. The kernel resets all queued
/// connections when a listener is shut down; listening again needs no descriptor. No task waits for events of the
/// listener meanwhile, and epoll polls it anew at the next wait.
fn forget_the_queue(listener: &Socket) -> io::Result<u32> {
    let waiting = sys::accept_queue(listener.as_fd())?;
    if waiting > 0 {
        listener.shutdown(Shutdown::Read)?;
        listen(listener)?;
    }
    Ok(waiting)
}

/// Turns an accepted socket into an arrival.
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

/// Returns the flow of an accepted socket, whichever process accepted it; `None` if it is a connection to a listener
/// at `own`.
///
/// # Errors
/// The socket is not connected any more.
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

/// Returns the original destination: behind TPROXY this is the socket's own address, and SO_ORIGINAL_DST would return
/// another one. `None` if it is the address of the listener at `own`.
fn orig_dst(socket: &Socket, own: SocketAddr) -> io::Result<Option<OrigDst>> {
    let orig_dst = socket.local_addr().and_then(inet)?;
    Ok((!is_listener(own, orig_dst)?).then_some(OrigDst(orig_dst)))
}

fn inet(addr: SockAddr) -> io::Result<SocketAddr> {
    Ok(canonical(addr.as_socket().ok_or(io::ErrorKind::InvalidData)?))
}

/// Returns the address in its own family: an IPv4-mapped address of an IPv6 listener becomes an IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// Returns whether a connection to `orig_dst` was not intercepted, but addressed to the listener at `own`.
fn is_listener(own: SocketAddr, orig_dst: SocketAddr) -> io::Result<bool> {
    if orig_dst.port() != own.port() || !own.ip().is_unspecified() {
        return Ok(orig_dst == own);
    }
    is_local(orig_dst.ip())
}

/// Returns whether `ip` is an address of this host. A successful bind() would prove nothing:
/// `net.ipv4.ip_nonlocal_bind` may be set.
fn is_local(ip: IpAddr) -> io::Result<bool> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // connect() on a UDP socket sends nothing. For a local destination the kernel chooses that same address as the
    // source.
    let reached_from = socket.connect((ip, 9)).and_then(|()| socket.local_addr());
    Ok(ip.is_loopback() || reached_from.is_ok_and(|from| from.ip() == ip))
}
