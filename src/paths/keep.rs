//! Follows the addresses of the paths while the daemon runs. WIRING.
//!
//! Nothing here may harm a connection: what cannot be made right is said, and connections use the paths that there are.
use std::io;
use std::time::Duration;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::config::{Config, Mptcp};
use crate::daemon::Reserve;
use crate::rules::{Caller, RulesError};
use crate::wan::events;

use super::record::Raised;
use super::standing::Standing;
use super::{Look, Ours, SWITCHED_OFF, host, look, remove};

/// Changes come in bursts: so long after the first, all are dealt with at once.
const SETTLE: Duration = Duration::from_millis(50);
/// What was refused is tried again so much later; each time twice as much.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Paths that are kept.
pub struct Paths {
    socket: Socket,
    keeping: Keeping,
}

struct Keeping {
    mptcp: Mptcp,
    ours: Ours,
    /// What has been said last.
    told: Vec<String>,
    /// What was refused is tried again then.
    pause: Option<Duration>,
    /// An address has been waited for long enough then.
    again: Option<Duration>,
}

impl Paths {
    /// Removes what a daemon before this one left, and makes the endpoints that `config` asks for. What fails is said in the log, and
    /// tried again.
    pub fn start(config: &Config) -> Option<Self> {
        clear(config);
        let mptcp = config.mptcp.clone();
        if mptcp.paths.is_empty() {
            return None;
        }
        let socket = match events::listen(events::ADDRESSES) {
            Ok(socket) => socket,
            Err(err) => {
                tracing::error!("paths: none is used: cannot hear of changed addresses: {err}");
                return None;
            }
        };
        let mut keeping =
            Keeping { mptcp, ours: Ours::default(), told: Vec::new(), pause: None, again: None };
        keeping.look(&socket);
        Some(Self { socket, keeping })
    }

    /// Follows the addresses for ever.
    pub async fn follow(self) {
        let Self { socket, mut keeping } = self;
        let failed = match sys::async_socket(socket, Interest::READABLE) {
            Ok(socket) => keeping.follow(&socket).await,
            Err(err) => err,
        };
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

impl Keeping {
    async fn follow(&mut self, socket: &AsyncFd<Socket>) -> io::Error {
        let mut reserve = Reserve::take();
        loop {
            if let Err(err) = self.turn(socket).await {
                return err;
            }
            sleep(SETTLE).await;
            reserve.lend(|| self.look(socket.get_ref()));
        }
    }

    /// Waits until there is a reason to look: a change, or the time to try again.
    async fn turn(&self, socket: &AsyncFd<Socket>) -> io::Result<()> {
        let ready = match self.pause.into_iter().chain(self.again).min() {
            Some(longest) => match timeout(longest, socket.readable()).await {
                Ok(ready) => ready,
                Err(_) => return Ok(()),
            },
            None => socket.readable().await,
        };
        ready?.clear_ready();
        Ok(())
    }

    fn look(&mut self, socket: &Socket) {
        let (mut lines, failures) = match look(&self.mptcp, &mut self.ours, socket) {
            Ok(Look { standing, refused, raised, again }) => {
                self.again = again;
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
        self.pause = match (failures.is_empty(), self.pause) {
            (true, _) => None,
            (false, None) => Some(FIRST_PAUSE),
            (false, Some(pause)) => Some((pause * 2).min(LONGEST_PAUSE)),
        };
        self.told = lines.into_iter().chain(failures).collect();
    }
}

fn failure(err: &RulesError) -> String {
    format!("left as they are until this is mended: {err}")
}
