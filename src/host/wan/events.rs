//! The kernel's word that something about devices, addresses, routes or policy rules has changed. EFFECT.
//!
//! Only that it has, not what: what there is, is read anew. So nothing is lost when more happens than the socket holds.
use std::io;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use socket2::Socket;

/// The groups as bits (include/uapi/linux/rtnetlink.h): links and addresses of both families.
pub const ADDRESSES: u32 = group(1) | group(5) | group(9);
/// Also routes and rules of both families, and nexthop objects.
pub const ROUTES: u32 = ADDRESSES | group(7) | group(8) | group(11) | group(19) | group(32);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// A socket on which the word of these groups arrives from now on, in the network namespace of the calling thread.
pub fn listen(groups: u32) -> io::Result<Socket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket.into())
}

/// Takes what has come, and says whether anything has.
pub fn drain(socket: &Socket) -> io::Result<bool> {
    let mut anything = false;
    loop {
        // The rest of each message is dropped.
        match recv(socket, &mut [0; 4][..], RecvFlags::empty()) {
            // ENOBUFS: more came than there was room for.
            Ok(_) | Err(Errno::NOBUFS) => anything = true,
            Err(Errno::AGAIN) => return Ok(anything),
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}
