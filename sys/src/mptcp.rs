//! The subflows of a Multipath TCP connection, with the bytes that each has carried.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use libc::c_int;

use crate::sockopt::{Plain, exchange};

/// `SOL_MPTCP` of include/linux/socket.h, and two of its options in include/uapi/linux/mptcp.h (Linux 5.16).
const SOL_MPTCP: c_int = 284;
const MPTCP_TCPINFO: c_int = 2;
const MPTCP_SUBFLOW_ADDRS: c_int = 3;
/// More subflows than a connection can have: MPTCP_SUBFLOWS_MAX in net/mptcp/protocol.h is 8, besides the first.
const MOST: usize = 16;
/// The number of attempts: a subflow may appear or vanish between the two system calls.
const TRIES: usize = 3;

/// One TCP connection of an MPTCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subflow {
    /// The address and port of this host.
    pub local: SocketAddr,
    /// The address and port of the peer.
    pub remote: SocketAddr,
    /// Bytes of payload sent, without retransmissions.
    pub sent: u64,
    /// Bytes of payload received.
    pub received: u64,
}

/// Returns the subflows that `sock` has now. A closed subflow may remain in the list for a while.
/// `EOPNOTSUPP`: `sock` is no MPTCP socket, or has fallen back. `ENOPROTOOPT`: the kernel is older than 5.16.
/// `ResourceBusy`: the subflows changed during each attempt.
pub fn subflows(sock: BorrowedFd<'_>) -> io::Result<Vec<Subflow>> {
    for _ in 0..TRIES {
        let infos: Answer<TcpInfo> = ask(sock, MPTCP_TCPINFO)?;
        let addresses: Answer<Addresses> = ask(sock, MPTCP_SUBFLOW_ADDRS)?;
        if infos.count == addresses.count {
            let pairs = addresses.items().iter().zip(infos.items());
            return Ok(pairs.filter_map(|(addresses, info)| Subflow::read(addresses, info)).collect());
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// A `struct tcp_info` (include/uapi/linux/tcp.h) up to the end of `tcpi_bytes_retrans` (Linux 4.19).
type TcpInfo = [u8; 216];
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;
const BYTES_RETRANS: usize = 208;
/// A `struct mptcp_subflow_addrs`: two `struct sockaddr_storage`.
type Addresses = [u8; 2 * SOCKADDR_STORAGE];
const SOCKADDR_STORAGE: usize = 128;

/// The size of a `struct mptcp_subflow_data`.
const HEADER_LEN: u32 = 16;

/// A `struct mptcp_subflow_data` with the array that follows it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Answer<T> {
    header_len: u32,
    count: u32,
    item_len_kernel: u32,
    item_len: u32,
    data: [T; MOST],
}

// The header and the array of items fill an answer without padding.
const _: () = {
    assert!(size_of::<Answer<TcpInfo>>() == HEADER_LEN as usize + MOST * size_of::<TcpInfo>());
    assert!(size_of::<Answer<Addresses>>() == HEADER_LEN as usize + MOST * size_of::<Addresses>());
};
// SAFETY: all fields are integers or arrays of bytes, and the assertion above excludes padding.
unsafe impl Plain for Answer<TcpInfo> {}
// SAFETY: all fields are integers or arrays of bytes, and the assertion above excludes padding.
unsafe impl Plain for Answer<Addresses> {}

impl<T> Answer<T> {
    fn items(&self) -> &[T] {
        &self.data[..MOST.min(self.count as usize)]
    }
}

fn ask<const LEN: usize>(sock: BorrowedFd<'_>, what: c_int) -> io::Result<Answer<[u8; LEN]>>
where
    Answer<[u8; LEN]>: Plain,
{
    let (item_len, data) = (LEN as u32, [[0; LEN]; MOST]);
    let mut answer = Answer { header_len: HEADER_LEN, count: 0, item_len_kernel: 0, item_len, data };
    exchange(sock, SOL_MPTCP, what, &mut answer)?;
    Ok(answer)
}

impl Subflow {
    /// Returns `None` for a subflow that tcp_disconnect() in net/ipv4/tcp.c has cleared: address and counters are zero.
    fn read(addresses: &Addresses, info: &TcpInfo) -> Option<Self> {
        let (local, remote) = addresses.split_at(SOCKADDR_STORAGE);
        let (local, remote) = (address(local)?, address(remote)?);
        let sent = number(info, BYTES_SENT).saturating_sub(number(info, BYTES_RETRANS));
        let received = number(info, BYTES_RECEIVED);
        (!local.ip().is_unspecified()).then_some(Self { local, remote, sent, received })
    }
}

fn number(info: &TcpInfo, at: usize) -> u64 {
    info[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// Reads a `struct sockaddr_in` or `struct sockaddr_in6`.
fn address(storage: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = storage.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let ip: IpAddr = match c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Ipv4Addr::from(*rest.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*rest[4..].first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    fn mptcp(domain: Domain) -> Socket {
        Socket::new(domain, Type::STREAM, Some(Protocol::from(262))).unwrap()
    }

    #[test]
    fn the_first_subflow_has_the_connections_addresses_and_its_bytes() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = any.parse().unwrap();
            let (listener, mut near) = (mptcp(Domain::for_address(any)), mptcp(Domain::for_address(any)));
            listener.bind(&any.into()).unwrap();
            listener.listen(1).unwrap();
            let to = listener.local_addr().unwrap();
            near.connect(&to).unwrap();
            let (mut far, from) = listener.accept().unwrap();
            near.write_all(b"hello").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
            far.write_all(b"you").unwrap();
            near.read_exact(&mut [0; 3]).unwrap();
            let (local, remote) = (from.as_socket().unwrap(), to.as_socket().unwrap());
            assert_eq!(subflows(near.as_fd()).unwrap(), [Subflow { local, remote, sent: 5, received: 3 }]);
        }
    }

    #[test]
    fn a_plain_tcp_socket_has_no_subflows() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(subflows(listener.as_fd()).is_err());
    }
}
