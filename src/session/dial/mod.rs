//! The server leg: dialled from the source address that the configuration requires. EFFECT.
mod destinations;
mod fast_open;
mod memory;
mod multipath;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Socket};
use sys::Stage;

use crate::config::{ServerLeg, Source};
use crate::host::kernel::Kernel;
use crate::session::leg::{Leg, is_out_of_resources, reset_on_close};
use crate::state::crash::{self, Point};
use crate::state::flow::{Flow, OrigDst, Side};
use crate::state::record::{Dialled, End, Opening, Phase, Timeout};
use crate::state::table::now;
use crate::state::table::slot::Slot;

use self::fast_open::Syn;
pub use self::fast_open::SynPlan;
pub use self::memory::Memory;
pub use self::multipath::Multipath;

/// Waits before each retry from the same address and port: 1 s in all when descriptors or memory have run out.
const WAITS: [Duration; 9] = [
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
    Duration::from_millis(64),
    Duration::from_millis(128),
    Duration::from_millis(256),
    Duration::from_millis(512),
];
/// Number of these waits for an address in use: 62 ms in all. A session that is ending frees it within milliseconds;
/// one in TIME_WAIT keeps it for a minute.
const WAITS_FOR_AN_ADDRESS: usize = 5;

/// The step of dialling that failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No socket could be created, or the kernel refused an option that every socket accepts.
    #[error("making the socket: {0}")]
    Socket(io::Error),
    /// For a second, the kernel had no memory to register the socket.
    #[error("registering the socket: {0}")]
    Register(io::Error),
    /// The kernel refused to bind the source address.
    #[error("binding to {addr}: {err}")]
    BindSource {
        /// The address.
        addr: SocketAddr,
        /// The error of bind(2).
        err: io::Error,
    },
    /// The server refused the connection, or cannot be reached.
    #[error("connecting: {0}")]
    Connect(io::Error),
    /// The client leg failed while the dial waited for its first bytes.
    #[error("reading the client's first bytes: {0}")]
    Client(io::Error),
    /// `server.connect-timeout` has expired.
    #[error("no answer within {after:?}")]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
}

impl DialError {
    /// Returns the session's end that this error causes.
    pub fn end(&self) -> End {
        match self {
            Self::Socket(err) | Self::Register(err) | Self::BindSource { err, .. } | Self::Connect(err) => {
                End::failed(Side::Server, Phase::Connect, err)
            }
            Self::Client(err) => End::failed(Side::Client, Phase::Connect, err),
            Self::TimedOut { .. } => End::timeout(Phase::Connect, Timeout::Connect),
        }
    }

    /// Returns whether the address and port are in use: by any socket at bind(), by a connection to the same server
    /// at connect().
    fn address_taken(&self) -> bool {
        matches!(self.errno(), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
    }

    /// Returns the error if the kernel was out of descriptors or memory; another attempt may then succeed.
    fn lack(&self) -> Option<&io::Error> {
        self.io().filter(|err| is_out_of_resources(err))
    }

    /// Returns the kernel's error in a step that another attempt would repeat.
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Socket(err) | Self::BindSource { err, .. } | Self::Connect(err) => Some(err),
            Self::Register(_) | Self::Client(_) | Self::TimedOut { .. } => None,
        }
    }

    fn errno(&self) -> Option<Errno> {
        self.io().and_then(Errno::from_io_error)
    }
}

/// The parameters of the dial for one session.
pub struct DialRequest<'a> {
    /// Client and original destination.
    pub flow: &'a Flow,
    /// The session's table entry, which records the socket.
    pub slot: &'a Slot,
    /// The configuration of server legs.
    pub config: &'a ServerLeg,
    /// The mark of server legs.
    pub own_mark: u32,
    /// The features of this kernel.
    pub kernel: &'a Kernel,
    /// Whether to ask for Multipath TCP.
    pub multipath: Multipath<'a>,
    /// How to use Fast Open.
    pub syn_plan: SynPlan<'a>,
    /// Called when the kernel has no descriptor or memory for the socket.
    pub out_of_resources: &'a dyn Fn(&io::Error),
}

/// A server leg, and how it was dialled.
pub struct Dialed {
    /// The connected leg.
    pub leg: Leg,
    /// The attempt that succeeded.
    pub dialled: Dialled,
    /// The result of Fast Open.
    pub opening: Opening,
}

/// Dials the flow's original destination from the configured source. If a leg is already `dialling`, waits for that
/// one first.
///
/// # Errors
/// The last attempt failed; the caller then resets the client.
pub async fn connect(request: &DialRequest<'_>, dialling: Option<Box<Leg>>) -> Result<Dialed, DialError> {
    let timeout =
        request.config.connect_timeout.map(|after| (after, time_left(request, dialling.as_deref(), after)));
    let dial = async {
        match dialling {
            None => dial_with_retries(request).await,
            Some(leg) => resumed(request, *leg).await,
        }
    };
    let result = match timeout {
        None => dial.await,
        Some((after, resumed)) => {
            tokio::time::timeout(resumed, dial).await.unwrap_or(Err(DialError::TimedOut { after }))
        }
    };
    if let Err(err) = &result {
        request.multipath.conclude_without(err);
    }
    let opening = request.syn_plan.conclude(result.as_ref().map(|(leg, _)| leg));
    result.map(|(leg, dialled)| Dialed { leg, dialled, opening })
}

/// Returns the rest of the connect timeout `after`. It runs from accept, and a takeover does not restart it.
fn time_left(request: &DialRequest<'_>, dialling: Option<&Leg>, after: Duration) -> Duration {
    let unanswered = dialling.is_none_or(|leg| {
        // A server that answered while no worker ran is not late.
        sys::connection(leg.as_fd()).is_ok_and(|leg| leg.stage == Stage::SynSent)
    });
    if unanswered { after.saturating_sub(now().saturating_sub(request.slot.accepted_at())) } else { after }
}

/// Waits for a leg whose SYN a previous worker has sent. If it fails, dials again, unless that SYN carried data: no
/// other connection can carry those bytes.
async fn resumed(request: &DialRequest<'_>, leg: Leg) -> Result<(Leg, Dialled), DialError> {
    request.syn_plan.resumed();
    match finish(request, leg).await {
        Err(_) if request.syn_plan.may_try_again() => dial_with_retries(request).await,
        result => result.map(|leg| (leg, Dialled::First)),
    }
}

async fn dial_with_retries(request: &DialRequest<'_>) -> Result<(Leg, Dialled), DialError> {
    let source = source(request.flow, request.config.source);
    let has_port = source.is_some_and(|addr| addr.port() != 0);
    let mut result = attempt(request, source).await.map(|leg| (leg, Dialled::First));
    for (n, wait) in WAITS.into_iter().enumerate() {
        let Err(err) = &result else { return result };
        match err.lack() {
            _ if !request.syn_plan.may_try_again() => return result,
            Some(lack) => (request.out_of_resources)(lack),
            None if n < WAITS_FOR_AN_ADDRESS && has_port && err.address_taken() => {}
            None => break,
        }
        tokio::time::sleep(wait).await;
        result = attempt(request, source).await.map(|leg| (leg, Dialled::Again));
    }
    match (result, request.config.source) {
        (Err(err), Source::Client) if err.address_taken() && request.syn_plan.may_try_again() => {
            let any_port = Some(SocketAddr::new(request.flow.client.ip(), 0));
            let leg = attempt(request, any_port).await?;
            Ok((leg, Dialled::OtherPort))
        }
        (result, _) => result,
    }
}

/// Returns the address to dial from; `None` lets the kernel choose.
fn source(flow: &Flow, source: Source) -> Option<SocketAddr> {
    match source {
        Source::Client => Some(flow.client),
        Source::ClientAddress => Some(SocketAddr::new(flow.client.ip(), 0)),
        Source::Fixed(addr) if addr.is_ipv4() == flow.orig_dst.0.is_ipv4() => Some(addr),
        Source::Fixed(_) | Source::Gateway => None,
    }
}

async fn attempt(request: &DialRequest<'_>, source: Option<SocketAddr>) -> Result<Leg, DialError> {
    let OrigDst(server) = request.flow.orig_dst;
    let domain = Domain::for_address(server);
    let socket = request.kernel.server_socket(domain, request.multipath.asks()).map_err(DialError::Socket)?;
    prepare(&socket, request.own_mark).map_err(DialError::Socket)?;
    if let Some(addr) = source {
        bind(&socket, addr).map_err(|err| DialError::BindSource { addr, err })?;
    }
    let cookie = socket_cookie(&socket).map_err(|err| DialError::Socket(err.into()))?;
    request.slot.dialling(socket.as_raw_fd(), cookie);
    crash::at(Point::Socket);
    let syn = request.syn_plan.connect(&socket).await?;
    // connected() must not be called before send(): a socket with a deferred SYN polls as writable, so it would count
    // as connected.
    let leg = Leg::register(socket, Side::Server, &request.kernel.server, request.out_of_resources);
    let leg = leg.await.map_err(DialError::Register)?;
    if syn == Syn::Due {
        request.syn_plan.send(&leg)?;
    }
    crash::at(Point::Syn);
    finish(request, leg).await
}

async fn finish(request: &DialRequest<'_>, leg: Leg) -> Result<Leg, DialError> {
    leg.connected().await.map_err(DialError::Connect)?;
    crash::at(Point::Connected);
    request.multipath.conclude(&leg);
    Ok(leg)
}

fn prepare(socket: &Socket, own_mark: u32) -> io::Result<()> {
    reset_on_close(socket)?;
    socket.set_mark(own_mark)
}

fn bind(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    match addr.ip() {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    if addr.port() == 0 {
        sys::set_bind_address_no_port(socket.as_fd())?;
    } else {
        // One client port may serve connections to several servers, and then each of the sockets must have this
        // option.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())
}
