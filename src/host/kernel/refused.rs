//! What was asked of the kernel and cannot be had, in words. EFFECT.
use std::fmt;
use std::io;

use super::Kind;
use crate::exit::{Exit, Fatal};

/// An option that is left out, and why.
#[derive(Debug)]
pub struct Degraded {
    /// The config key, as in `server.user-timeout`.
    pub key: String,
    /// On which kind of socket.
    pub kind: Kind,
    /// The kernel's answer.
    pub err: io::Error,
}

/// A value that this kernel cannot do and that has no lesser form.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// An unknown congestion control.
    #[error(
        "{key} = {name:?}: this kernel does not know it ({err}); it has: {has}. Load the module (modprobe tcp_{name}) or choose another"
    )]
    CongestionControl {
        /// The config key.
        key: String,
        /// Its value.
        name: String,
        /// The names that the kernel lists.
        has: String,
        /// ENOENT.
        err: io::Error,
    },
    /// A congestion control that is not allowed here.
    #[error(
        "{key} = {name:?}: not allowed here ({err}); the kernel has: {has}. Add it to net.ipv4.tcp_allowed_congestion_control, or start with CAP_NET_ADMIN"
    )]
    CongestionControlNotAllowed {
        /// The config key.
        key: String,
        /// Its value.
        name: String,
        /// The names that the kernel lists.
        has: String,
        /// EPERM.
        err: io::Error,
    },
    /// Not even a socket.
    #[error("cannot make a TCP socket to ask what this kernel can do: {0}")]
    Socket(io::Error),
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: left out on {} sockets: {}", self.key, self.kind, self.err)
    }
}

impl From<KernelError> for Fatal {
    fn from(err: KernelError) -> Self {
        let exit = match err {
            KernelError::CongestionControl { .. } => Exit::Unavailable,
            KernelError::CongestionControlNotAllowed { .. } => Exit::NoPerm,
            KernelError::Socket(_) => Exit::OsErr,
        };
        Self::new(exit, err.to_string())
    }
}
