//! The endpoints of a connection. PURE.
use std::fmt;
use std::net::SocketAddr;

/// Where the client wanted to go: the destination of its SYN, not the listener's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrigDst(pub SocketAddr);

/// The two endpoints of an intercepted connection, as known at accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The server's address and port, which the client wanted to reach.
    pub orig_dst: OrigDst,
}

/// One of the two sockets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client leg, accepted.
    Client,
    /// The server leg, dialled.
    Server,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.client, self.orig_dst.0)
    }
}
