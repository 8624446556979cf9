//! Socket options, and the state of sockets that the kernel reports.
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void, socklen_t};

/// `TCP_IS_MPTCP` of include/uapi/linux/tcp.h (Linux 5.16).
const TCP_IS_MPTCP: c_int = 43;
/// `TCP_FASTOPEN_NO_COOKIE` of include/uapi/linux/tcp.h (Linux 4.15).
const TCP_FASTOPEN_NO_COOKIE: c_int = 34;
/// `TCP_FASTOPEN_CONNECT` of include/uapi/linux/tcp.h (Linux 4.11).
const TCP_FASTOPEN_CONNECT: c_int = 30;
/// `SO_MEMINFO` of include/uapi/asm-generic/socket.h (Linux 4.12).
const SO_MEMINFO: c_int = 55;
/// `SIOCATMARK` of include/uapi/asm-generic/sockios.h.
const SIOCATMARK: libc::Ioctl = 0x8905;
/// `SIOCOUTQNSD` of include/uapi/linux/sockios.h.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;
/// Indices into the array that SO_MEMINFO fills: the `SK_MEMINFO_*` of include/uapi/linux/sock_diag.h.
const SK_MEMINFO_SNDBUF: usize = 3;
const SK_MEMINFO_WMEM_QUEUED: usize = 5;
const SK_MEMINFO_DROPS: usize = 8;
const SK_MEMINFO_VARS: usize = 9;
/// The length of the beginning of `struct tcp_info` (include/uapi/linux/tcp.h) in words: eight bytes, then `u32`s. The
/// seventh word is `tcpi_unacked`: for a listener, the length of its accept queue (tcp_get_info() in net/ipv4/tcp.c).
const TCP_INFO_WORDS: usize = 7;

/// The length of a `struct ucred` in words.
pub(crate) const UCRED_WORDS: usize = 3;

/// The fill level of a socket's send buffer, in bytes of kernel memory (payload and overhead), and its lost packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// The limit of the send buffer: the current SO_SNDBUF, which the kernel may raise by itself.
    pub send_buffer: u32,
    /// Queued memory: unsent, or sent and not yet acknowledged.
    pub queued: u32,
    /// The number of packets that did not fit into the receive buffer. TCP sockets count differently.
    pub drops: u32,
}

/// Reads the fill level of `sock`'s send buffer, and the number of packets that its receive buffer has lost.
pub fn mem_info(sock: BorrowedFd<'_>) -> io::Result<MemInfo> {
    let vars: [u32; SK_MEMINFO_VARS] = get(sock, libc::SOL_SOCKET, SO_MEMINFO)?;
    Ok(MemInfo {
        send_buffer: vars[SK_MEMINFO_SNDBUF],
        queued: vars[SK_MEMINFO_WMEM_QUEUED],
        drops: vars[SK_MEMINFO_DROPS],
    })
}

/// Returns whether `sock` uses MPTCP now: false for a TCP socket and after a fallback.
/// `ENOPROTOOPT`: the kernel is older than 5.16.
pub fn is_mptcp(sock: BorrowedFd<'_>) -> io::Result<bool> {
    get::<c_int>(sock, libc::IPPROTO_TCP, TCP_IS_MPTCP).map(|flag| flag != 0)
}

/// Returns the number of connections in `listener`'s accept queue.
pub fn accept_queue(listener: BorrowedFd<'_>) -> io::Result<u32> {
    let info: [u32; TCP_INFO_WORDS] = get(listener, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(info[TCP_INFO_WORDS - 1])
}

/// Returns whether the next byte to read from `sock` is urgent data. `EOPNOTSUPP`: an MPTCP socket, which has none.
pub fn at_urgent_mark(sock: BorrowedFd<'_>) -> io::Result<bool> {
    let mut at_mark: c_int = 0;
    // SAFETY: SIOCATMARK writes one c_int to its argument, which is writable for a c_int.
    cvt(unsafe { libc::ioctl(sock.as_raw_fd(), SIOCATMARK, &raw mut at_mark) })?;
    Ok(at_mark != 0)
}

/// Returns the number of bytes of payload in `sock` that the kernel has not yet sent for the first time.
pub fn unsent(sock: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one c_int to its argument, which is writable for a c_int.
    cvt(unsafe { libc::ioctl(sock.as_raw_fd(), SIOCOUTQNSD, &raw mut bytes) })?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Returns the number of bytes of payload in `sock`, sent or not, that the peer has not acknowledged; a FIN counts as
/// one.
pub fn unconfirmed(sock: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: SIOCOUTQ (which is TIOCOUTQ) writes one c_int to its argument, which is writable for a c_int.
    cvt(unsafe { libc::ioctl(sock.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Lets `sock` accept data only while fewer than `bytes` of payload are unsent. The socket is writable below half of
/// that (`__sk_stream_memory_free()` in include/net/sock.h).
pub fn set_notsent_lowat(sock: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    // The kernel interprets the value as unsigned.
    set(sock, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes.cast_signed())
}

/// Makes `sock` offer a receive window of `bytes` as early as the protocol allows, at most half of the third number of
/// `net.ipv4.tcp_rmem`. By default the window starts smaller and grows. Unlike SO_RCVBUF, this does not end the growth:
/// SO_RCVLOWAT enlarges the buffer, which stays enlarged (`tcp_set_rcvlowat()` in net/ipv4/tcp.c).
pub fn set_first_window(sock: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set(sock, libc::SOL_SOCKET, libc::SO_RCVLOWAT, i32::try_from(bytes).unwrap_or(i32::MAX))?;
    set(sock, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)
}

/// Defers the choice of a port from bind() to connect(), so that a port is in use per destination, not for all of them.
pub fn set_bind_address_no_port(sock: BorrowedFd<'_>) -> io::Result<()> {
    set(sock, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Lets `listener` accept data in SYNs (RFC 7413). At most `pending` such connections may have an unfinished handshake.
pub fn set_fast_open(listener: BorrowedFd<'_>, pending: u16) -> io::Result<()> {
    set(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, c_int::from(pending))
}

/// Enables Fast Open without a cookie. A listener accepts data in any SYN; a connecting socket sends data in its first
/// SYN, without the option. `EINVAL`: connect() or listen() has been called.
pub fn set_fast_open_no_cookie(sock: BorrowedFd<'_>) -> io::Result<()> {
    set(sock, libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
}

/// Makes connect() return 0 immediately and defer the SYN until the first write, if the kernel has the server's cookie
/// or needs none. Else the kernel sends the SYN and requests a cookie. `EOPNOTSUPP`: bit 1 of `net.ipv4.tcp_fastopen`
/// is not set.
pub fn set_fast_open_connect(sock: BorrowedFd<'_>) -> io::Result<()> {
    set(sock, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
}

/// The progress and result of a connection's handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The fate of the data in the SYN.
    pub data: DataInSyn,
    /// Whether the listener accepted the connection at its SYN. Older kernels do not report it for a SYN without data.
    pub fast_open_child: bool,
    /// Whether the handshake is unfinished: the peer has not acknowledged this host's SYN or SYN-ACK.
    pub under_way: bool,
    /// The number of retransmitted segments, including the SYN.
    pub retransmits: u32,
}

/// The fate of the data in a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataInSyn {
    /// The SYN carried no data, or its fate is not known yet.
    None,
    /// The receiver, this host or the peer, accepted the data.
    Taken,
    /// The peer acknowledged the SYN without its data.
    Ignored,
    /// The kernel retransmitted the SYN, without its data.
    Lost,
}

/// Returns the state of `sock`'s handshake (TCP_INFO).
pub fn handshake(sock: BorrowedFd<'_>) -> io::Result<Handshake> {
    get(sock, libc::IPPROTO_TCP, libc::TCP_INFO).map(Handshake::read)
}

impl Handshake {
    /// Reads the beginning of a `struct tcp_info` (include/uapi/linux/tcp.h).
    fn read(info: [u8; TCP_INFO_LEN]) -> Self {
        // tcpi_state; the states are in include/net/tcp_states.h.
        const STATE: usize = 0;
        const SYN_SENT: u8 = 2;
        const SYN_RECV: u8 = 3;
        const OPTIONS: usize = 5;
        const SYN_DATA: u8 = 32;
        const TFO_CHILD: u8 = 128;
        // Two bits after a one-bit field: tcpi_fastopen_client_fail (Linux 5.6), an `enum tcp_fastopen_client_fail`.
        const FAILURE: usize = 7;
        let failure = if cfg!(target_endian = "big") { info[FAILURE] >> 5 } else { info[FAILURE] >> 1 } & 3;
        let data = match failure {
            _ if info[OPTIONS] & SYN_DATA != 0 => DataInSyn::Taken,
            2 => DataInSyn::Ignored,
            3 => DataInSyn::Lost,
            _ => DataInSyn::None,
        };
        let [.., a, b, c, d] = info;
        let retransmits = u32::from_ne_bytes([a, b, c, d]);
        let under_way = matches!(info[STATE], SYN_SENT | SYN_RECV);
        Self { data, fast_open_child: info[OPTIONS] & TFO_CHILD != 0, under_way, retransmits }
    }
}

/// The state and the byte counts of a connection, for a worker that takes it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The stage of the connection.
    pub stage: Stage,
    /// Bytes of payload received, read or not; a FIN counts as one.
    pub received: u64,
    /// Bytes of payload sent, including retransmissions.
    pub sent: u64,
    /// Bytes that the peer has acknowledged; this host's SYN and FIN count as one each.
    pub confirmed: u64,
}

/// The stage of a connection: the states of include/net/tcp_states.h, as far as they differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There is no connection yet, or not any more: TCP_CLOSE.
    None,
    /// The peer has not answered the SYN.
    SynSent,
    /// Any other state: the connection is established, listening, or closing in order.
    Stands,
}

/// Returns the state of `sock`'s connection (TCP_INFO).
pub fn connection(sock: BorrowedFd<'_>) -> io::Result<Connection> {
    get(sock, libc::IPPROTO_TCP, libc::TCP_INFO).map(Connection::read)
}

impl Connection {
    /// Reads a `struct tcp_info` (include/uapi/linux/tcp.h) up to `tcpi_bytes_sent` (Linux 4.19).
    fn read(info: [u8; TCP_INFO_TO_BYTES_SENT]) -> Self {
        const CONFIRMED: usize = 120;
        const RECEIVED: usize = 128;
        const SENT: usize = 200;
        let word = |at: usize| {
            let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| info[at + n]);
            u64::from_ne_bytes([a, b, c, d, e, f, g, h])
        };
        let stage = match info[0] {
            7 => Stage::None,
            2 => Stage::SynSent,
            _ => Stage::Stands,
        };
        Self { stage, received: word(RECEIVED), sent: word(SENT), confirmed: word(CONFIRMED) }
    }
}

/// The length of a `struct tcp_info` up to the end of `tcpi_bytes_sent`.
const TCP_INFO_TO_BYTES_SENT: usize = 208;

/// The length of a `struct tcp_info` up to the end of `tcpi_total_retrans`: eight bytes, then 24 numbers of four bytes.
const TCP_INFO_LEN: usize = 8 + 24 * 4;

/// A type that getsockopt(2) can fill.
///
/// # Safety
/// Every pattern of initialised bytes must be a valid value of the type, and the type must have no padding: the kernel
/// reads and writes all of its bytes.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: every pattern of bytes is a valid integer, and an integer has no padding.
unsafe impl Plain for c_int {}
// SAFETY: as for the integer; an array adds no padding.
unsafe impl Plain for [u32; SK_MEMINFO_VARS] {}
// SAFETY: as for the integer; an array adds no padding.
unsafe impl Plain for [u32; TCP_INFO_WORDS] {}
// SAFETY: as for the integer; an array adds no padding.
unsafe impl Plain for [u32; UCRED_WORDS] {}
// SAFETY: as for the integer; an array adds no padding.
unsafe impl Plain for [u8; TCP_INFO_LEN] {}
// SAFETY: as for the integer; an array adds no padding.
unsafe impl Plain for [u8; TCP_INFO_TO_BYTES_SENT] {}

pub(crate) fn get<T: Plain>(sock: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    // SAFETY: all bytes, including zeros, are a valid `Plain`.
    let mut value: T = unsafe { zeroed() };
    exchange(sock, level, name, &mut value)?;
    Ok(value)
}

/// Calls getsockopt(2) with `value`: the kernel may read it, and overwrites it with the answer.
pub(crate) fn exchange<T: Plain>(
    sock: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut len = size_of::<T>() as socklen_t;
    let ptr = (&raw mut *value).cast::<c_void>();
    // SAFETY: `ptr` is readable and writable for `len` bytes, because a `Plain` has no padding. The kernel writes at
    // most `len` bytes, and any bytes are a valid `Plain`.
    cvt(unsafe { libc::getsockopt(sock.as_raw_fd(), level, name, ptr, &mut len) })
}

pub(crate) fn set(sock: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let ptr = (&raw const value).cast::<c_void>();
    let len = size_of::<c_int>() as socklen_t;
    // SAFETY: `ptr` is readable for `len` bytes; the kernel copies them before it returns.
    cvt(unsafe { libc::setsockopt(sock.as_raw_fd(), level, name, ptr, len) })
}

pub(crate) fn cvt(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn bytes_that_the_peer_does_not_read_fill_the_send_buffer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let empty = mem_info(sender.as_fd()).unwrap();
        assert!(empty.send_buffer > 0);
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 65536]).is_ok() {}
        let full = mem_info(sender.as_fd()).unwrap();
        assert!(full.queued > empty.queued && full.queued >= full.send_buffer / 2, "{full:?}");
    }

    #[test]
    fn notsent_lowat_limits_the_unsent_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_stuck, _) = listener.accept().unwrap();
        set_notsent_lowat(sender.as_fd(), 65_536).unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 16_384]).is_ok() {}
        let (unsent, unconfirmed) = (unsent(sender.as_fd()).unwrap(), unconfirmed(sender.as_fd()).unwrap());
        assert!((65_536..131_072).contains(&unsent), "{unsent}");
        assert!(unconfirmed >= unsent, "{unconfirmed}");
    }

    #[test]
    fn connections_that_wait_to_be_accepted_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(accept_queue(listener.as_fd()).unwrap(), 0);
        let _waiting = [connect(), connect()];
        assert_eq!(accept_queue(listener.as_fd()).unwrap(), 2);
    }

    #[test]
    fn an_ordinary_handshake_has_no_data_in_its_syn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let ordinary =
            Handshake { data: DataInSyn::None, fast_open_child: false, under_way: false, retransmits: 0 };
        assert_eq!([&near, &far].map(|end| handshake(end.as_fd()).unwrap()), [ordinary; 2]);
    }

    #[test]
    fn byte_counts_of_a_connection_can_be_read_afterwards() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let fresh = Connection { stage: Stage::Stands, received: 0, sent: 0, confirmed: 0 };
        // The side that sent the SYN has received an acknowledgement for it.
        let dialled = Connection { confirmed: 1, ..fresh };
        assert_eq!(connection(near.as_fd()).unwrap(), dialled);
        assert_eq!(connection(far.as_fd()).unwrap(), fresh);
        near.write_all(b"five!").unwrap();
        let now = connection(near.as_fd()).unwrap();
        assert_eq!(now, Connection { sent: 5, confirmed: 6, ..dialled });
        assert_eq!(connection(far.as_fd()).unwrap(), Connection { received: 5, ..fresh });
    }

    #[test]
    fn a_socket_without_a_connection_has_no_stage() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_eq!(connection(socket.as_fd()).unwrap().stage, Stage::None);
    }

    #[test]
    fn a_tcp_socket_is_no_mptcp_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_mptcp(listener.as_fd()).unwrap());
    }
}
