//! The kernel's notifications of changed devices, addresses, routes and policy rules. EFFECT.
//!
//! A notification only triggers a new look; its content is ignored. So an overflow of the socket's queue loses nothing.
use std::io;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use socket2::Socket;

/// Multicast groups as bits (include/uapi/linux/rtnetlink.h): links, and addresses of both families.
pub const ADDRESSES: u32 = group(1) | group(5) | group(9);
/// [`ADDRESSES`], and routes and rules of both families, and nexthop objects.
pub const ROUTES: u32 = ADDRESSES | group(7) | group(8) | group(11) | group(19) | group(32);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Returns a socket that receives the notifications of `groups` from now on, in the network namespace of the calling
/// thread.
pub fn listen(groups: u32) -> io::Result<Socket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket.into())
}

/// Reads all pending notifications; returns whether there were any.
pub fn drain(socket: &Socket) -> io::Result<bool> {
    let mut anything = false;
    loop {
        // The kernel discards the rest of each message.
        match recv(socket, &mut [0; 4][..], RecvFlags::empty()) {
            // ENOBUFS: the queue overflowed.
            Ok(_) | Err(Errno::NOBUFS) => anything = true,
            Err(Errno::AGAIN) => return Ok(anything),
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}
