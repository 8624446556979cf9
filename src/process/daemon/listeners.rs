//! The listeners of all relay threads, and the errors if they cannot be bound. WIRING.
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::thread;

use rustix::io::Errno;
use socket2::Socket;
use sys::Registered;

use super::{Setup, os};
use crate::exit::{Exit, Fatal};
use crate::host::kernel::Kernel;
use crate::session::listener;
use crate::state::table::header;

/// The listeners of the daemon: a list for each thread of a worker.
pub type Listeners = Vec<Vec<Registered<Socket>>>;

/// Binds a list of listeners for each thread of a worker.
pub fn bind_all(setup: &Setup, kernel: &Kernel) -> Result<Listeners, Fatal> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(header::THREADS);
    let several = setup.listen.len() > 1;
    let bind = |addr: SocketAddr| match listener::bind(addr, &setup.config, kernel) {
        Ok(listener) => Ok(Some(Registered::new(listener))),
        Err(err) if several && addr.is_ipv6() && no_ipv6(&err) => Ok(None),
        Err(err) => Err(cannot_bind(addr, &err)),
    };
    let bind_some = |_| setup.listen.iter().filter_map(|&addr| bind(addr).transpose()).collect();
    let all: Listeners = (0..workers).map(bind_some).collect::<Result<_, _>>()?;
    all.iter().flatten().try_for_each(|listener| listener::listen(listener)).map_err(os("listening"))?;
    Ok(all)
}

fn no_ipv6(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn cannot_bind(addr: SocketAddr, err: &io::Error) -> Fatal {
    match Errno::from_io_error(err) {
        Some(Errno::ADDRINUSE) => Fatal::new(
            Exit::Unavailable,
            format!(
                "{addr} is taken by another program ({err}): \
                 stop it (ss -tlnp shows it) or choose another port (listen.port, -b)"
            ),
        ),
        Some(Errno::PERM | Errno::ACCESS) => Fatal::new(
            Exit::NoPerm,
            format!(
                "cannot make a transparent listener on {addr} ({err}): CAP_NET_ADMIN is missing; \
                 start as root or with that capability"
            ),
        ),
        _ => Fatal::new(Exit::OsErr, format!("cannot listen on {addr}: {err}")),
    }
}
