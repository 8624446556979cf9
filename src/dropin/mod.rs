//! The drop-in replacement for 1.1.0: does what 1.1.0 did when it was called with its options. WIRING.
//!
//! All errors in the options are found, and names are looked up, before the process goes into the background and before
//! it starts a thread. After that, the daemon is the one of `run` with another [`Setup`].
pub mod address;
pub mod bind_spec;
pub mod detach;
pub mod flags;
pub mod pid_file;

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{Config, Congestion, Keepalive, Leg, LogTarget, Source};
use crate::exit::{Exit, Fatal};
use crate::process::daemon::{Interception, Setup};
use crate::process::guardian::{self, handover::Inherited};

use detach::{Process, Starting};
pub use flags::Flags;
use pid_file::PidFile;

/// The notice that a daemon in the background has no log.
const UNSEEN: &str =
    "tcp-intercept: the daemon runs in the background; it logs nothing, because there is no -l FILE\n";

/// Runs until SIGINT or SIGTERM. In the process that was called, returns when the daemon in the background has started.
/// Returns the text for standard output.
///
/// # Errors
/// Fails on anything that keeps the daemon from starting.
pub fn run(flags: &Flags) -> Result<(String, Exit), Fatal> {
    let listen = address::listen(&flags.bind_listen)?;
    let source = address::outgoing(&flags.bind_outgoing)?;
    flags.pid_file.as_deref().map(pid_file::check).transpose()?;
    // A daemon works in /, but a relative path refers to the directory that it was called in.
    let log = flags.log.as_deref().map(std::path::absolute).transpose();
    let log =
        log.map_err(|err| Fatal::new(Exit::OsErr, format!("-l: the current directory is gone: {err}")))?;
    let inherited = guardian::inherited()?;
    let setup = setup(flags, listen, source, log);
    // A program that replaces a running daemon is in the background already.
    if flags.foreground || inherited.is_some() {
        return serve(flags, setup, inherited, None);
    }
    match detach::detach()? {
        Process::Daemon(starting) => serve(flags, setup, None, Some(starting)),
        Process::Called(Exit::Ok) if flags.log.is_none() => Ok((UNSEEN.to_owned(), Exit::Ok)),
        Process::Called(exit) => Ok((String::new(), exit)),
    }
}

fn serve(
    flags: &Flags,
    setup: Setup,
    inherited: Option<Inherited>,
    starting: Option<Starting>,
) -> Result<(String, Exit), Fatal> {
    let rehearsal = inherited.as_ref().is_some_and(|inherited| inherited.handover.trial);
    let pid_file = flags.pid_file.as_deref().filter(|_| !rehearsal);
    let _pid_file = pid_file.map(PidFile::create).transpose()?;
    let setup = Setup { background: starting.is_some(), ..setup };
    let text = guardian::run(setup, inherited, || starting.map_or(Ok(()), Starting::finish))?;
    Ok((text, Exit::Ok))
}

/// Returns the setup of 1.1.0: one listener, no rules, the congestion control of the host.
fn setup(flags: &Flags, listen: SocketAddr, source: Source, log: Option<PathBuf>) -> Setup {
    let leg = Leg {
        congestion_control: Congestion::Host,
        no_delay: flags.tcp_nodelay,
        keepalive: match flags.keepalive {
            true => Keepalive::On { idle: None, interval: None, probes: None },
            false => Keepalive::Off,
        },
        ..Leg::default()
    };
    let mut config = Config::default();
    config.client.leg = leg.clone();
    config.server.leg = leg;
    config.server.source = source;
    config.log.target = log.map_or(LogTarget::Stderr, LogTarget::File);
    Setup {
        listen: vec![listen],
        interception: Interception::Foreign,
        reopens_log: true,
        ..Setup::from(config)
    }
}
