//! Follows the addresses of the paths while the daemon runs. WIRING.
//!
//! A failure here must not harm a connection: it is logged, and connections use the existing paths.
use socket2::Socket;

use crate::config::{Config, Mptcp};
use crate::host::follow::{Next, Pause, follow};
use crate::host::rules::{Caller, RulesError};
use crate::host::wan::events;

use super::record::Raised;
use super::standing::Standing;
use super::{Look, Ours, SWITCHED_OFF, host, look, remove};

/// The paths, kept up to date while the daemon runs.
pub struct Paths {
    socket: Socket,
    synced: Synced,
    next: Next,
}

struct Synced {
    mptcp: Mptcp,
    /// The daemon's own part; `None` before the first look.
    ours: Option<Ours>,
    /// The lines that the last look logged, so that unchanged ones are not repeated.
    told: Vec<String>,
    pause: Pause,
}

impl Paths {
    /// Removes the remains of an earlier daemon, and creates the endpoints of `config`. Failures are logged and
    /// retried.
    pub fn start(config: &Config) -> Option<Self> {
        clear(config);
        Self::sync(&config.mptcp)
    }

    /// Takes over the endpoints of the previous process of the same daemon. Those that are still needed stay, because
    /// connections use them; [`clear`] removes the endpoints of both. A missing address counts as just vanished.
    pub fn resume(config: &Config) -> Option<Self> {
        if config.mptcp.paths.is_empty() {
            clear(config);
        }
        Self::sync(&config.mptcp)
    }

    fn sync(mptcp: &Mptcp) -> Option<Self> {
        if mptcp.paths.is_empty() {
            return None;
        }
        let socket = match events::listen(events::ADDRESSES) {
            Ok(socket) => socket,
            Err(err) => {
                tracing::error!("paths: left unchanged: cannot listen for changed addresses: {err}");
                return None;
            }
        };
        let mut synced =
            Synced { mptcp: mptcp.clone(), ours: None, told: Vec::new(), pause: Pause::default() };
        let next = synced.look(&socket);
        Some(Self { socket, synced, next })
    }

    /// Follows the addresses until the kernel no longer reports changes.
    pub async fn follow(self) {
        let Self { socket, mut synced, next } = self;
        let failed = follow(socket, next, |socket| synced.look(socket)).await;
        tracing::error!("paths: left unchanged: cannot follow changes any more: {failed}");
    }
}

/// Removes the daemon's own endpoints and restores the limits, when a daemon starts or ends.
pub fn clear(config: &Config) {
    match remove(config.rules.own_mark, Caller::Daemon) {
        Ok(removed) => {
            removed.changes.iter().chain(&removed.remarks).for_each(|line| tracing::info!("paths: {line}"));
        }
        // On a host without paths, nft may be missing as well.
        Err(errors) if config.mptcp.paths.is_empty() => tracing::debug!("paths: {errors}"),
        Err(errors) => errors.iter().for_each(|err| tracing::error!("paths: {err}")),
    }
}

impl Synced {
    fn look(&mut self, socket: &Socket) -> Next {
        let mut waited = None;
        let (mut lines, failures) = match look(&self.mptcp, &mut self.ours, socket) {
            Ok(Look { standing, refused, raised, again }) => {
                waited = again;
                let raised = raised.iter().map(Raised::to_string);
                (standing.iter().map(Standing::to_string).chain(raised).collect(), refused)
            }
            Err(err) => (Vec::new(), vec![failure(&err)]),
        };
        if host::switched_off() {
            lines.push(SWITCHED_OFF.to_owned());
        }
        for line in lines.iter().filter(|line| !self.told.contains(line)) {
            tracing::info!("paths: {line}");
        }
        for line in failures.iter().filter(|line| !self.told.contains(line)) {
            tracing::error!("paths: {line}; it will be retried");
        }
        let pause = if failures.is_empty() {
            self.pause.over();
            None
        } else {
            Some(self.pause.longer())
        };
        self.told = lines.into_iter().chain(failures).collect();
        Next::changed_or(pause.into_iter().chain(waited))
    }
}

fn failure(err: &RulesError) -> String {
    format!("left unchanged until this is fixed: {err}")
}
