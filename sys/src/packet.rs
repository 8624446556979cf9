//! Packet sockets.
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, sockaddr_ll, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sockopt::{cvt, set};

/// Opens a non-blocking socket that receives every frame that arrives on the device with index `device`, and no
/// outgoing frame. Frames that are written to it leave by that device unchanged. It requires Linux 4.20.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW; `ENODEV` if no device of this network namespace has the index.
pub fn packet_socket(device: c_int) -> io::Result<Socket> {
    // With protocol 0 the socket receives no frames before bind() has set the device.
    let socket = Socket::new_raw(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    set(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    let address = sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: device,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is readable for the given length; the kernel copies it before it returns.
    cvt(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<sockaddr_ll>() as socklen_t)
    })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_socket_needs_an_existing_device_and_permission() {
        let kind = packet_socket(c_int::MAX).unwrap_err().raw_os_error();
        assert!(matches!(kind, Some(libc::ENODEV | libc::EPERM)), "{kind:?}");
    }
}
