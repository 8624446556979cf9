//! The server leg: dialled from the address that the server is to see. EFFECT.
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
use crate::session::leg::{Leg, lacks, reset_on_close};
use crate::state::crash::{self, Point};
use crate::state::flow::{Flow, OrigDst, Side};
use crate::state::record::{Dialled, End, Opening, Phase, Timeout};
use crate::state::table::now;
use crate::state::table::slot::Slot;

pub use self::fast_open::Opener;
use self::fast_open::Syn;
pub use self::memory::Memory;
pub use self::multipath::Multipath;

/// The waits before the same address and port are tried again, a second in all when descriptors or memory have run out.
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
/// So many of them for an address that is taken: a session that just ends frees it within milliseconds, one in TIME_WAIT does
/// not for a minute.
const WAITS_FOR_AN_ADDRESS: usize = 5;

/// Which step of dialling failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No socket, or an option that every socket takes was refused.
    #[error("making the socket: {0}")]
    Socket(io::Error),
    /// The kernel had no memory to watch the socket, for a second.
    #[error("registering the socket: {0}")]
    Register(io::Error),
    /// The source address could not be had.
    #[error("binding to {addr}: {err}")]
    BindSource {
        /// The address.
        addr: SocketAddr,
        /// The kernel's answer.
        err: io::Error,
    },
    /// The server refused, or cannot be reached.
    #[error("connecting: {0}")]
    Connect(io::Error),
    /// The client failed while its first bytes were waited for.
    #[error("reading what the client said first: {0}")]
    Client(io::Error),
    /// `server.connect-timeout`
    #[error("no answer within {after:?}")]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
}

impl DialError {
    /// What it means for the session.
    pub fn end(&self) -> End {
        match self {
            Self::Socket(err) | Self::Register(err) | Self::BindSource { err, .. } | Self::Connect(err) => {
                End::failed(Side::Server, Phase::Connect, err)
            }
            Self::Client(err) => End::failed(Side::Client, Phase::Connect, err),
            Self::TimedOut { .. } => End::timeout(Phase::Connect, Timeout::Connect),
        }
    }

    /// Somebody has this address and port already: at bind() any socket, at connect() one to the same server.
    fn address_taken(&self) -> bool {
        matches!(self.errno(), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
    }

    /// The kernel has nothing left for one more socket just now, and another try may find something.
    fn lack(&self) -> Option<&io::Error> {
        self.io().filter(|err| lacks(err))
    }

    /// The kernel's answer to a step that another attempt would repeat.
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

/// What it takes to dial for one session.
pub struct Call<'a> {
    /// From whom, to whom.
    pub flow: &'a Flow,
    /// Where it is written down with which socket.
    pub slot: &'a Slot,
    /// How.
    pub config: &'a ServerLeg,
    /// The mark of server legs.
    pub own_mark: u32,
    /// What the kernel can do.
    pub kernel: &'a Kernel,
    /// Multipath TCP.
    pub multipath: Multipath<'a>,
    /// Fast Open.
    pub opener: Opener<'a>,
    /// Told when there is no descriptor or memory for it.
    pub lacking: &'a dyn Fn(&io::Error),
}

/// A server leg, and how it came about.
pub struct Reached {
    /// The leg.
    pub leg: Leg,
    /// The step of the ladder.
    pub dialled: Dialled,
    /// Fast Open.
    pub opening: Opening,
}

/// Dials the flow's original destination, as the configuration says where from; first of all waits for a leg that is `dialling`
/// already.
///
/// # Errors
/// When the last step of the ladder failed; the client is then to be reset.
pub async fn connect(call: &Call<'_>, dialling: Option<Box<Leg>>) -> Result<Reached, DialError> {
    let timeout =
        call.config.connect_timeout.map(|after| (after, time_left(call, dialling.as_deref(), after)));
    let dial = async {
        match dialling {
            None => ladder(call).await,
            Some(leg) => resumed(call, *leg).await,
        }
    };
    let result = match timeout {
        None => dial.await,
        Some((after, left)) => {
            tokio::time::timeout(left, dial).await.unwrap_or(Err(DialError::TimedOut { after }))
        }
    };
    if let Err(err) = &result {
        call.multipath.conclude_without(err);
    }
    let opening = call.opener.conclude(result.as_ref().map(|(leg, _)| leg));
    result.map(|(leg, dialled)| Reached { leg, dialled, opening })
}

/// What is left of the connect timeout `after`, which runs from accept and goes on when another worker takes the session over.
fn time_left(call: &Call<'_>, dialling: Option<&Leg>, after: Duration) -> Duration {
    let unanswered = dialling.is_none_or(|leg| {
        // A server that answered while there was no worker is not late.
        sys::connection(leg.as_fd()).is_ok_and(|leg| leg.stage == Stage::SynSent)
    });
    if unanswered { after.saturating_sub(now().saturating_sub(call.slot.accepted_at())) } else { after }
}

/// Somebody else has sent this leg's SYN. Only where that has taken bytes along, another connection cannot take its place.
async fn resumed(call: &Call<'_>, leg: Leg) -> Result<(Leg, Dialled), DialError> {
    call.opener.resumed();
    match finish(call, leg).await {
        Err(_) if call.opener.may_try_again() => ladder(call).await,
        result => result.map(|leg| (leg, Dialled::First)),
    }
}

async fn ladder(call: &Call<'_>) -> Result<(Leg, Dialled), DialError> {
    let source = source(call.flow, call.config.source);
    let has_port = source.is_some_and(|addr| addr.port() != 0);
    let mut result = attempt(call, source).await.map(|leg| (leg, Dialled::First));
    for (n, wait) in WAITS.into_iter().enumerate() {
        let Err(err) = &result else { return result };
        match err.lack() {
            _ if !call.opener.may_try_again() => return result,
            Some(lack) => (call.lacking)(lack),
            None if n < WAITS_FOR_AN_ADDRESS && has_port && err.address_taken() => {}
            None => break,
        }
        tokio::time::sleep(wait).await;
        result = attempt(call, source).await.map(|leg| (leg, Dialled::Again));
    }
    match (result, call.config.source) {
        (Err(err), Source::Client) if err.address_taken() && call.opener.may_try_again() => {
            let any_port = Some(SocketAddr::new(call.flow.client.ip(), 0));
            let leg = attempt(call, any_port).await?;
            Ok((leg, Dialled::OtherPort))
        }
        (result, _) => result,
    }
}

/// The address to dial from; `None`: the kernel's choice.
fn source(flow: &Flow, source: Source) -> Option<SocketAddr> {
    match source {
        Source::Client => Some(flow.client),
        Source::ClientAddress => Some(SocketAddr::new(flow.client.ip(), 0)),
        Source::Fixed(addr) if addr.is_ipv4() == flow.orig_dst.0.is_ipv4() => Some(addr),
        Source::Fixed(_) | Source::Gateway => None,
    }
}

async fn attempt(call: &Call<'_>, source: Option<SocketAddr>) -> Result<Leg, DialError> {
    let OrigDst(server) = call.flow.orig_dst;
    let domain = Domain::for_address(server);
    let socket = call.kernel.server_socket(domain, call.multipath.asks()).map_err(DialError::Socket)?;
    prepare(&socket, call.own_mark).map_err(DialError::Socket)?;
    if let Some(addr) = source {
        bind(&socket, addr).map_err(|err| DialError::BindSource { addr, err })?;
    }
    let cookie = socket_cookie(&socket).map_err(|err| DialError::Socket(err.into()))?;
    call.slot.dialling(socket.as_raw_fd(), cookie);
    crash::at(Point::Socket);
    let syn = call.opener.connect(&socket).await?;
    // From here to send() nothing waits: a socket whose SYN is due reads as writable, and connected() would believe it.
    let leg = Leg::register(socket, Side::Server, &call.kernel.server, call.lacking);
    let leg = leg.await.map_err(DialError::Register)?;
    if syn == Syn::Due {
        call.opener.send(&leg)?;
    }
    crash::at(Point::Syn);
    finish(call, leg).await
}

async fn finish(call: &Call<'_>, leg: Leg) -> Result<Leg, DialError> {
    leg.connected().await.map_err(DialError::Connect)?;
    crash::at(Point::Connected);
    call.multipath.conclude(&leg);
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
        // One client port to several servers: each of the sockets must have this set.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())
}
