//! Kernel capabilities: probed once, on real sockets, before the first connection. EFFECT.
mod refused;

use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::config::{self, Config, Congestion, FastOpen, Keepalive, Wan};

pub use self::refused::{Degraded, KernelError};

/// The congestion control when the operator names none: it measured best on lossy links (docs/acceleration.md).
const PREFERRED_CONGESTION_CONTROL: &str = "bbr";
/// Lists the congestion controls that this kernel has.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// Payload of a TCP segment on Ethernet, in bytes.
const SEGMENT: u32 = 1460;

/// The result of the probe.
#[derive(Debug)]
pub struct Kernel {
    /// The options of accepted sockets.
    pub client: LegOptions,
    /// The options of dialled sockets.
    pub server: LegOptions,
    /// Whether dialled sockets use Multipath TCP; cleared for good when the kernel refuses it later.
    mptcp: AtomicBool,
    /// The Fast Open mode of dialled sockets.
    pub fast_open: FastOpen,
    /// The options that the configuration asks for and the kernel refuses.
    pub degraded: Vec<Degraded>,
}

/// The socket options of one leg, for each kind of socket.
#[derive(Debug)]
pub struct LegOptions {
    leg: &'static str,
    /// Whether the leg's sockets are MPTCP sockets.
    pub mptcp: bool,
    /// TCP_NOTSENT_LOWAT in bytes; `u32::MAX` when it is not set.
    pub notsent_lowat: u32,
    refused: AtomicBool,
    /// The user timeout that the relay enforces on MPTCP sockets, because the kernel refuses TCP_USER_TIMEOUT there.
    pub stall_on_mptcp: Option<Duration>,
    on_tcp: Options,
    on_mptcp: Options,
}

/// The options that the kernel accepts on one kind of socket.
#[derive(Debug, Clone)]
struct Options {
    congestion_control: Option<String>,
    no_delay: bool,
    keepalive: Option<TcpKeepalive>,
    user_timeout: Option<Duration>,
    notsent_lowat: Option<NonZeroU32>,
    send_buffer: Option<NonZeroU32>,
    window: Option<u32>,
    urgent_in_line: bool,
}

/// The two kinds of socket that a leg can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A socket of IPPROTO_TCP.
    Tcp,
    /// A socket of IPPROTO_MPTCP.
    Mptcp,
}

impl Kernel {
    /// Tries the options that `config` asks for.
    ///
    /// # Errors
    /// The kernel refuses a congestion control that the configuration names, or makes no TCP socket at all.
    pub fn probe(config: &Config) -> Result<Self, KernelError> {
        let mut degraded = Vec::new();
        let client = probe_leg("client", &config.client.leg, &config.wan, &mut degraded)?;
        let server = probe_leg("server", &config.server.leg, &config.wan, &mut degraded)?;
        let mptcp = AtomicBool::new(server.mptcp);
        let fast_open = probe_fast_open(config.server.fast_open, &mut degraded)?;
        Ok(Self { client, server, mptcp, fast_open, degraded })
    }

    /// Returns a non-blocking socket for dialling, with the server leg's options. It is an MPTCP socket if that is
    /// `wanted` and the kernel supports it.
    pub fn server_socket(&self, domain: Domain, wanted: bool) -> io::Result<Socket> {
        let mptcp = wanted && self.mptcp.load(Ordering::Relaxed);
        let mut kind = if mptcp { Kind::Mptcp } else { Kind::Tcp };
        let socket = match kind.socket(domain) {
            Err(err) if kind == Kind::Mptcp && no_mptcp(&err) => {
                if self.mptcp.swap(false, Ordering::Relaxed) {
                    tracing::warn!(
                        "server.mptcp: the kernel no longer makes MPTCP sockets ({err}); dialling with TCP from now on"
                    );
                }
                kind = Kind::Tcp;
                kind.socket(domain)?
            }
            made => made?,
        };
        self.server.apply(&socket, kind);
        Ok(socket)
    }

    /// Returns a non-blocking socket for listening. Accepted sockets inherit its options.
    pub fn client_socket(&self, domain: Domain) -> io::Result<Socket> {
        let kind = if self.client.mptcp { Kind::Mptcp } else { Kind::Tcp };
        let socket = kind.socket(domain)?;
        self.client.apply(&socket, kind);
        Ok(socket)
    }

    /// Sets the options of an accepted TCP socket whose listener is an MPTCP socket. Such a listener refuses some
    /// options, so the accepted socket cannot inherit them.
    pub fn complete_client(&self, accepted: &Socket) -> io::Result<()> {
        let plain = self.client.mptcp && accepted.protocol()? == Some(Protocol::TCP);
        if plain {
            self.client.apply(accepted, Kind::Tcp);
        }
        Ok(())
    }
}

impl LegOptions {
    /// Sets the options. The kernel may refuse an option that it accepted at the start: the socket then works without
    /// it, and the log says so once.
    fn apply(&self, socket: &Socket, kind: Kind) {
        let options = if kind == Kind::Tcp { &self.on_tcp } else { &self.on_mptcp };
        if let Some((key, err)) = options.apply(socket)
            && !self.refused.swap(true, Ordering::Relaxed)
        {
            let key = format!("{}.{key}", self.leg);
            tracing::warn!("no longer granted: {}", Degraded { key, kind, err });
        }
    }
}

impl Kind {
    fn socket(self, domain: Domain) -> io::Result<Socket> {
        let protocol = match self {
            Self::Tcp => Protocol::TCP,
            Self::Mptcp => Protocol::MPTCP,
        };
        Socket::new(domain, Type::STREAM.nonblocking(), Some(protocol))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Mptcp => "MPTCP",
        })
    }
}

impl Options {
    /// Sets every option; returns the key and the error of the first one that the kernel refuses.
    fn apply(&self, socket: &Socket) -> Option<(&'static str, io::Error)> {
        let congestion_control = self.congestion_control.as_deref();
        let notsent_lowat = self.notsent_lowat.map(NonZeroU32::get);
        let tried = [
            ("congestion-control", congestion_control.map(|name| socket.set_tcp_congestion(name.as_bytes()))),
            ("no-delay", self.no_delay.then(|| socket.set_tcp_nodelay(true))),
            ("keepalive", self.keepalive.as_ref().map(|keepalive| socket.set_tcp_keepalive(keepalive))),
            ("user-timeout", self.user_timeout.map(|after| socket.set_tcp_user_timeout(Some(after)))),
            ("notsent-lowat", notsent_lowat.map(|bytes| sys::set_notsent_lowat(socket.as_fd(), bytes))),
            ("send-buffer", self.send_buffer.map(|bytes| set_send_buffer(socket, bytes))),
            ("first window", self.window.map(|bytes| sys::set_first_window(socket.as_fd(), bytes))),
            ("urgent data", self.urgent_in_line.then(|| socket.set_out_of_band_inline(true))),
        ];
        tried.into_iter().find_map(|(key, set)| Some((key, set?.err()?)))
    }
}

/// Tries every option of a leg on a socket of each kind that the leg can use. Omits the options that the kernel
/// refuses.
fn probe_leg(
    leg: &'static str,
    config: &config::Leg,
    wan: &Wan,
    degraded: &mut Vec<Degraded>,
) -> Result<LegOptions, KernelError> {
    let tcp = Kind::Tcp.socket(Domain::IPV4).map_err(KernelError::Socket)?;
    let on_tcp = probe_options(leg, config, wan, Kind::Tcp, &tcp, degraded)?;
    let refused = AtomicBool::new(false);
    let notsent_lowat = on_tcp.notsent_lowat.map_or(u32::MAX, NonZeroU32::get);
    let on_mptcp = on_tcp.clone();
    let mut options =
        LegOptions { leg, mptcp: false, notsent_lowat, refused, stall_on_mptcp: None, on_mptcp, on_tcp };
    if config.mptcp {
        match Kind::Mptcp.socket(Domain::IPV4).and_then(can_splice) {
            Ok(mptcp) => {
                options.on_mptcp = probe_options(leg, config, wan, Kind::Mptcp, &mptcp, degraded)?;
                // An MPTCP socket accepts any name; only a TCP socket checks it.
                options.on_mptcp.congestion_control = options.on_tcp.congestion_control.clone();
                options.stall_on_mptcp = config.user_timeout.xor(options.on_mptcp.user_timeout);
                options.mptcp = true;
            }
            Err(err) => degraded.push(Degraded { key: format!("{leg}.mptcp"), kind: Kind::Mptcp, err }),
        }
    }
    Ok(options)
}

fn probe_options(
    leg: &str,
    config: &config::Leg,
    wan: &Wan,
    kind: Kind,
    socket: &Socket,
    degraded: &mut Vec<Degraded>,
) -> Result<Options, KernelError> {
    let mut takes = |key: &str, tried: io::Result<()>| match tried {
        Ok(()) => true,
        Err(err) => {
            degraded.push(Degraded { key: format!("{leg}.{key}"), kind, err });
            false
        }
    };
    let keepalive = keepalive(config.keepalive).filter(|on| takes("keepalive", socket.set_tcp_keepalive(on)));
    let user_timeout = config.user_timeout.filter(|&after| match socket.set_tcp_user_timeout(Some(after)) {
        // The relay enforces the timeout itself there: relay/stall.rs.
        Err(_) if kind == Kind::Mptcp => false,
        set => takes("user-timeout", set),
    });
    let notsent_lowat = config
        .notsent_lowat
        .filter(|bytes| takes("notsent-lowat", sys::set_notsent_lowat(socket.as_fd(), bytes.get())));
    // Only notsent-lowat bounds the unsent data; without it, unsent data would fill a larger buffer.
    let send_buffer = config.send_buffer.bytes(wan).filter(|_| notsent_lowat.is_some());
    let send_buffer = send_buffer.filter(|bytes| takes("send-buffer", set_send_buffer(socket, *bytes)));
    let window = first_window(wan, kind)
        .filter(|bytes| takes("first window", sys::set_first_window(socket.as_fd(), *bytes)));
    let no_delay = config.no_delay && takes("no-delay", socket.set_tcp_nodelay(true));
    // MPTCP does not carry urgent data (RFC 8684, section 3.3.7), so a refusal there costs nothing.
    let urgent_in_line = socket.set_out_of_band_inline(true).is_ok();
    let congestion_control = congestion_control(leg, config, socket)?;
    Ok(Options {
        congestion_control,
        no_delay,
        keepalive,
        user_timeout,
        notsent_lowat,
        send_buffer,
        window,
        urgent_in_line,
    })
}

/// Returns the receive window that a new connection offers, in bytes; `None` leaves it to the kernel.
///
/// Over the WAN it is three times the initial window: the peer may begin with as many segments as this side, and send
/// three times as many a round trip later. The acknowledgement of its first flight takes that round trip. With a
/// window of one flight, a sender in its start-up phase would wait for it.
///
/// An MPTCP socket gets none, because there the value is a permanent limit. With 1 MiB, 2 x 100 Mbit/s carried
/// 30 Mbit/s instead of 184 (docs/decisions/0006).
fn first_window(wan: &Wan, kind: Kind) -> Option<u32> {
    (!wan.devices.is_empty() && kind == Kind::Tcp).then(|| 3 * wan.initial_window * SEGMENT)
}

/// Sets the send buffer to `bytes`, also beyond `net.core.wmem_max`. This needs CAP_NET_ADMIN, as TPROXY does.
fn set_send_buffer(socket: &Socket, bytes: NonZeroU32) -> io::Result<()> {
    // The kernel doubles the value: socket(7), SO_SNDBUF.
    set_socket_send_buffer_size_force(socket, bytes.get() as usize / 2).map_err(Into::into)
}

/// Returns the Fast Open mode of dialled sockets: `wanted`, or off where `net.ipv4.tcp_fastopen` disables it on the
/// host.
fn probe_fast_open(wanted: FastOpen, degraded: &mut Vec<Degraded>) -> Result<FastOpen, KernelError> {
    if wanted == FastOpen::Off {
        return Ok(wanted);
    }
    let socket = Kind::Tcp.socket(Domain::IPV4).map_err(KernelError::Socket)?;
    let Err(err) = sys::set_fast_open_connect(socket.as_fd()) else { return Ok(wanted) };
    let why = format!(
        "bit 1 of net.ipv4.tcp_fastopen is not set, so this host sends no data in SYNs; set it ({err})"
    );
    let err = io::Error::new(err.kind(), why);
    degraded.push(Degraded { key: "server.fast-open".to_owned(), kind: Kind::Tcp, err });
    Ok(FastOpen::Off)
}

fn keepalive(config: Keepalive) -> Option<TcpKeepalive> {
    let Keepalive::On { idle, interval, probes } = config else { return None };
    let mut keepalive = TcpKeepalive::new();
    if let Some(idle) = idle {
        keepalive = keepalive.with_time(idle);
    }
    if let Some(interval) = interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = probes {
        keepalive = keepalive.with_retries(probes);
    }
    Some(keepalive)
}

/// Returns the congestion control to set; `None` keeps the host's own.
fn congestion_control(
    leg: &str,
    config: &config::Leg,
    socket: &Socket,
) -> Result<Option<String>, KernelError> {
    let name = match &config.congestion_control {
        Congestion::Host => return Ok(None),
        Congestion::Preferred => {
            let preferred = PREFERRED_CONGESTION_CONTROL;
            let taken = socket.set_tcp_congestion(preferred.as_bytes()).is_ok();
            return Ok(taken.then(|| preferred.to_owned()));
        }
        Congestion::Named(name) => name.as_str().to_owned(),
    };
    let Err(err) = socket.set_tcp_congestion(name.as_bytes()) else { return Ok(Some(name)) };
    let key = format!("{leg}.congestion-control");
    let has = fs::read_to_string(AVAILABLE).unwrap_or_default().trim().to_owned();
    match Errno::from_io_error(&err) {
        Some(Errno::PERM) => Err(KernelError::CongestionControlNotAllowed { key, name, has, err }),
        _ => Err(KernelError::CongestionControl { key, name, has, err }),
    }
}

/// Checks that the kernel can splice from MPTCP sockets. Older kernels cannot, and return EINVAL; newer ones return
/// another error, because the socket is not connected.
fn can_splice(socket: Socket) -> io::Result<Socket> {
    use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
    let (_read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    match splice(&socket, None, &write, None, 1, SpliceFlags::NONBLOCK) {
        Err(Errno::INVAL) => Err(Errno::INVAL.into()),
        _ => Ok(socket),
    }
}

/// Tells whether `err` is socket(2)'s answer when MPTCP is not built in, or disabled by `net.mptcp.enabled`.
fn no_mptcp(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::PROTONOSUPPORT | Errno::NOPROTOOPT | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tcp_sockets_over_the_wan_get_a_first_window() {
        let wan = Wan { devices: vec![config::Interface::new("wan0").unwrap()], ..Wan::default() };
        assert_eq!(first_window(&wan, Kind::Tcp), Some(438_000));
        assert_eq!(first_window(&wan, Kind::Mptcp), None);
        assert_eq!(first_window(&Wan::default(), Kind::Tcp), None);
    }
}
