//! The server leg: dialled from the address that the server is to see. EFFECT.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket};

use crate::config::{ServerLeg, Source};
use crate::flow::{Flow, OrigDst, Side};
use crate::kernel::Kernel;
use crate::leg::{Leg, lacks, reset_on_close};
use crate::record::Dialled;

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
    /// `server.connect-timeout`
    #[error("no answer within {after:?}")]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
}

impl DialError {
    /// The kernel's answer; `None` for a timeout of ours.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Socket(err) | Self::BindSource { err, .. } | Self::Connect(err) => Some(err),
            Self::TimedOut { .. } => None,
        }
    }

    /// Somebody has this address and port already: at bind() any socket, at connect() one to the same server.
    fn address_taken(&self) -> bool {
        matches!(self.errno(), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
    }

    /// The kernel has nothing left for one more socket just now.
    fn lack(&self) -> Option<&io::Error> {
        self.io().filter(|err| lacks(err))
    }

    fn errno(&self) -> Option<Errno> {
        self.io().and_then(Errno::from_io_error)
    }
}

/// Dials the flow's original destination, as `config` says where from; tells `lacking` when there is no descriptor or memory for it.
///
/// # Errors
/// When the last step of the ladder failed; the client is then to be reset.
pub async fn connect(
    flow: &Flow,
    config: &ServerLeg,
    own_mark: u32,
    kernel: &Kernel,
    lacking: &dyn Fn(&io::Error),
) -> Result<(Leg, Dialled), DialError> {
    let dialled = ladder(flow, config, own_mark, kernel, lacking);
    match config.connect_timeout {
        None => dialled.await,
        Some(after) => {
            tokio::time::timeout(after, dialled).await.unwrap_or(Err(DialError::TimedOut { after }))
        }
    }
}

async fn ladder(
    flow: &Flow,
    config: &ServerLeg,
    own_mark: u32,
    kernel: &Kernel,
    lacking: &dyn Fn(&io::Error),
) -> Result<(Leg, Dialled), DialError> {
    let source = source(flow, config.source);
    let has_port = source.is_some_and(|addr| addr.port() != 0);
    let mut result = attempt(source, flow.orig_dst, own_mark, kernel).await.map(|leg| (leg, Dialled::First));
    for (n, wait) in WAITS.into_iter().enumerate() {
        let Err(err) = &result else { return result };
        match err.lack() {
            Some(lack) => lacking(lack),
            None if n < WAITS_FOR_AN_ADDRESS && has_port && err.address_taken() => {}
            None => break,
        }
        tokio::time::sleep(wait).await;
        result = attempt(source, flow.orig_dst, own_mark, kernel).await.map(|leg| (leg, Dialled::Again));
    }
    match (result, config.source) {
        (Err(err), Source::Client) if err.address_taken() => {
            let any_port = Some(SocketAddr::new(flow.client.ip(), 0));
            let leg = attempt(any_port, flow.orig_dst, own_mark, kernel).await?;
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

async fn attempt(
    source: Option<SocketAddr>,
    OrigDst(server): OrigDst,
    own_mark: u32,
    kernel: &Kernel,
) -> Result<Leg, DialError> {
    let socket = kernel.server_socket(Domain::for_address(server)).map_err(DialError::Socket)?;
    prepare(&socket, own_mark).map_err(DialError::Socket)?;
    if let Some(addr) = source {
        bind(&socket, addr).map_err(|err| DialError::BindSource { addr, err })?;
    }
    match socket.connect(&server.into()) {
        Err(err) if Errno::from_io_error(&err) != Some(Errno::INPROGRESS) => {
            return Err(DialError::Connect(err));
        }
        _ => {}
    }
    let leg = Leg::new(socket, Side::Server, &kernel.server).map_err(DialError::Socket)?;
    leg.connected().await.map_err(DialError::Connect)?;
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
