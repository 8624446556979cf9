//! Follows the addresses of the paths while the daemon runs. WIRING.
//!
//! Nothing here may harm a connection: what cannot be made right is said, and connections use the paths that there are.
use socket2::Socket;

use crate::config::{Config, Mptcp};
use crate::host::follow::{Next, Pause, follow};
use crate::host::rules::{Caller, RulesError};
use crate::host::wan::events;

use super::record::Raised;
use super::standing::Standing;
use super::{Look, Ours, SWITCHED_OFF, host, look, remove};

/// Paths that are kept.
pub struct Paths {
    socket: Socket,
    synced: Synced,
    next: Next,
}

struct Synced {
    mptcp: Mptcp,
    /// `None`: not yet known.
    ours: Option<Ours>,
    /// What has been said last.
    told: Vec<String>,
    pause: Pause,
}

impl Paths {
    /// Removes what a daemon before this one left, and makes the endpoints that `config` asks for. What fails is said in the log, and
    /// tried again.
    pub fn start(config: &Config) -> Option<Self> {
        clear(config);
        Self::sync(&config.mptcp)
    }

    /// Goes on with what a process before this one, in the same daemon, has made: what is still wanted stays as it is, as connections use
    /// it, and [`clear`] will take away what both have made. An address that is missing now is waited for as if it had just gone.
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
                tracing::error!("paths: left as they are: cannot hear of changed addresses: {err}");
                return None;
            }
        };
        let mut synced =
            Synced { mptcp: mptcp.clone(), ours: None, told: Vec::new(), pause: Pause::default() };
        let next = synced.look(&socket);
        Some(Self { socket, synced, next })
    }

    /// Follows the addresses for ever.
    pub async fn follow(self) {
        let Self { socket, mut synced, next } = self;
        let failed = follow(socket, next, |socket| synced.look(socket)).await;
        tracing::error!("paths: left as they are, as changes are no longer heard of: {failed}");
    }
}

/// Takes away what is ours, for a daemon that starts or ends.
pub fn clear(config: &Config) {
    match remove(config.rules.own_mark, Caller::Daemon) {
        Ok(removed) => {
            removed.changes.iter().chain(&removed.remarks).for_each(|line| tracing::info!("paths: {line}"));
        }
        // A host without paths may have no nft either.
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
            tracing::error!("paths: {line}; it is tried again");
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
    format!("left as they are until this is mended: {err}")
}
