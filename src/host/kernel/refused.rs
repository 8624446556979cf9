//! Options that the kernel refuses, and their messages. EFFECT.
use std::fmt;
use std::io;

use super::Kind;
use crate::exit::{Exit, Fatal};

/// An option that is not set because the kernel refuses it.
#[derive(Debug)]
pub struct Degraded {
    /// The configuration key, as in `server.user-timeout`.
    pub key: String,
    /// The kind of socket that refuses it.
    pub kind: Kind,
    /// The kernel's error.
    pub err: io::Error,
}

/// A failed probe for which there is no fallback: the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel does not know the congestion control.
    #[error(
        "{key} = {name:?}: this kernel has no such congestion control ({err}); it has: {has}. Load the module (modprobe tcp_{name}) or choose another"
    )]
    CongestionControl {
        /// The configuration key.
        key: String,
        /// Its value.
        name: String,
        /// The names that the kernel lists.
        has: String,
        /// The kernel's error: ENOENT.
        err: io::Error,
    },
    /// The process may not use the congestion control.
    #[error(
        "{key} = {name:?}: not allowed here ({err}); the kernel has: {has}. Add it to net.ipv4.tcp_allowed_congestion_control, or start with CAP_NET_ADMIN"
    )]
    CongestionControlNotAllowed {
        /// The configuration key.
        key: String,
        /// Its value.
        name: String,
        /// The names that the kernel lists.
        has: String,
        /// The kernel's error: EPERM.
        err: io::Error,
    },
    /// The kernel makes no TCP socket to probe with.
    #[error("cannot make a TCP socket to probe the kernel: {0}")]
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
