//! Finding and destroying the kernel's sockets by their mark (sock_diag(7)). EFFECT.
//!
//! The messages are written by hand: the crate netlink-packet-sock-diag cannot send a filter, and without one the
//! kernel would return every socket of a busy box. The structures are in include/uapi/linux/inet_diag.h.
use std::io;

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rtnetlink::sys::{Socket, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const INET_DIAG_BC_MARK_COND: u8 = 10;
const INET_DIAG_ULP_INFO: u16 = 19;
/// The size of `struct inet_diag_sockid` in bytes: ports, addresses, interface, cookie. Requests return it unchanged.
const ID: usize = 48;
/// The size of `struct inet_diag_msg` in bytes.
const MESSAGE: usize = 72;

/// A set of TCP states: bits of the enum in include/net/tcp_states.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// All states that can receive packets: up to TCP_NEW_SYN_RECV (12), without TCP_CLOSE (7). Bound but unconnected
    /// sockets (13) receive none.
    pub const ALL: Self = Self(((1 << 13) - 1) & !(1 << 7));
    /// Handshakes whose SYN has been answered: TCP_SYN_RECV, TCP_NEW_SYN_RECV.
    pub const ANSWERED: Self = Self(1 << 3 | 1 << 12);
    /// Sockets whose FIN, and possibly data before it, is not yet acknowledged: TCP_FIN_WAIT1, TCP_LAST_ACK,
    /// TCP_CLOSING.
    pub const DELIVERING: Self = Self(1 << 4 | 1 << 9 | 1 << 11);
}

/// The address family IPv4: `AF_INET`.
pub const INET: u8 = 2;
/// The address family IPv6: `AF_INET6`.
pub const INET6: u8 = 10;
/// The protocol TCP: `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// The protocol Multipath TCP: `IPPROTO_MPTCP`.
pub const MPTCP: u32 = 262;

/// A socket that can receive packets: open, in a handshake, or in TIME_WAIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    family: u8,
    id: [u8; ID],
    /// The inode; 0 if no process has the socket open.
    pub inode: u32,
    /// Whether an upper-layer protocol (ULP) uses the socket: it is a subflow of Multipath TCP.
    pub subflow: bool,
}

/// A connection to sock_diag.
pub struct Diag(Socket);

impl Diag {
    /// Connects to sock_diag.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Returns the sockets of `family` and `protocol` in one of `states` whose mark is `mark` under `mask`.
    pub fn find(
        &self,
        family: u8,
        protocol: u32,
        states: States,
        mark: u32,
        mask: u32,
    ) -> io::Result<Vec<Found>> {
        let mut attributes = attribute(INET_DIAG_REQ_BYTECODE, &mark_is(mark, mask));
        attributes.extend(attribute(INET_DIAG_REQ_PROTOCOL, &protocol.to_ne_bytes()));
        let request = request(family, states, &[0; ID], &attributes);
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &request)?;
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            for (kind, payload) in messages(&datagram) {
                match kind {
                    // Without the module tcp_diag, the first message is an error.
                    NLMSG_DONE | NLMSG_ERROR => return answer(payload).map(|()| found),
                    _ => found.extend(parse(payload)),
                }
            }
        }
    }

    /// Destroys `socket` as if the peer had reset it. A socket that no longer exists is no error.
    pub fn destroy(&self, socket: &Found) -> io::Result<()> {
        self.send(
            SOCK_DESTROY,
            NLM_F_REQUEST | NLM_F_ACK,
            &request(socket.family, States::ALL, &socket.id, &[]),
        )?;
        let (datagram, _) = self.0.recv_from_full()?;
        let (_, payload) = messages(&datagram).next().ok_or_else(truncated)?;
        match answer(payload) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(NLMSG_HEADER + payload.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        self.0.send(&message, 0).map(drop)
    }
}

/// Returns a `struct inet_diag_req_v2` with its attributes; a protocol above 255 is one of the attributes.
fn request(family: u8, States(states): States, id: &[u8; ID], attributes: &[u8]) -> Vec<u8> {
    let mut request = vec![family, TCP as u8, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request.extend(attributes);
    request
}

/// Returns a filter program of one instruction. On a match it jumps to the end (12 bytes on), which accepts the socket;
/// otherwise it jumps beyond the end, which rejects it.
fn mark_is(mark: u32, mask: u32) -> [u8; 12] {
    let mut code = [0; 12];
    code[0] = INET_DIAG_BC_MARK_COND;
    code[1] = 12;
    code[2..4].copy_from_slice(&16u16.to_ne_bytes());
    code[4..8].copy_from_slice(&mark.to_ne_bytes());
    code[8..12].copy_from_slice(&mask.to_ne_bytes());
    code
}

/// Returns a `struct nlattr` with its value, without padding: all attributes here are multiples of 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

/// Returns the type and payload of each netlink message in `datagram`.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let message = rest.get(..length)?;
        let payload = message.get(NLMSG_HEADER..)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16_at(message, 4)?, payload))
    })
}

fn parse(payload: &[u8]) -> Option<Found> {
    let id = payload.get(4..4 + ID)?.try_into().ok()?;
    let inode = u32_at(payload, MESSAGE - 4)?;
    let subflow = attributes(payload.get(MESSAGE..)?).any(|kind| kind == INET_DIAG_ULP_INFO);
    Some(Found { family: payload[0], id, inode, subflow })
}

/// Returns the types of the attributes in `bytes`, without the flag bits (NLA_TYPE_MASK).
fn attributes(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?).max(4);
        let kind = u16_at(rest, 2)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(kind & 0x3fff)
    })
}

/// Returns the result in NLMSG_ERROR and NLMSG_DONE: the payload begins with a negative errno, or 0.
fn answer(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).ok_or_else(truncated)?.cast_signed() {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "sock_diag sent a truncated answer")
}
