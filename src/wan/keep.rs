//! Keeps the mirror in step with the main table while the daemon runs. WIRING.
//!
//! Nothing here may harm a connection: when the mirror cannot be made right, it is taken away, and connections have the
//! initial window of the kernel until it can.
use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use crate::config::{Config, Wan};
use crate::daemon::Reserve;
use crate::rules::{Caller, RulesError};
use crate::units::OwnMark;

use super::{Look, UNMANAGED, events, look, remove};

/// Changes come in bursts: so long after the first, all are dealt with at once.
const SETTLE: Duration = Duration::from_millis(50);
/// A look at a large table costs something: then nothing is done for so many times as long.
const REST: u32 = 3;
/// After a failure it is tried again so much later; each time twice as much.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// A mirror that is kept.
pub struct Mirror {
    socket: Socket,
    keeping: Keeping,
}

struct Keeping {
    wan: Wan,
    own: OwnMark,
    /// What has been said last.
    told: Vec<String>,
    failing: Option<Failing>,
    again: Option<Duration>,
}

struct Failing {
    why: String,
    pause: Duration,
}

impl Mirror {
    /// Removes what a daemon before this one left, and makes the mirror that `config` asks for, if this daemon manages its
    /// rules. What fails is said in the log, and tried again.
    pub fn start(config: &Config, managed: bool) -> Option<Self> {
        let own = config.rules.own_mark;
        clear(own);
        if config.wan.devices.is_empty() {
            return None;
        }
        if !managed {
            tracing::warn!("initial window: {UNMANAGED}");
            return None;
        }
        let socket = match events::listen(events::ROUTES) {
            Ok(socket) => socket,
            Err(err) => {
                tracing::error!(
                    "initial window: left as the kernel has it: cannot hear of changed routes: {err}"
                );
                return None;
            }
        };
        let mut keeping =
            Keeping { wan: config.wan.clone(), own, told: Vec::new(), failing: None, again: None };
        keeping.look(&socket);
        Some(Self { socket, keeping })
    }

    /// Follows the main table for ever.
    pub async fn follow(self) {
        let Self { socket, mut keeping } = self;
        let failed = match sys::async_socket(socket, Interest::READABLE) {
            Ok(socket) => keeping.follow(&socket).await,
            Err(err) => err,
        };
        tracing::error!(
            "initial window: the routes are removed, as changes are no longer heard of: {failed}"
        );
        clear(keeping.own);
    }
}

/// Takes the mirror away, for a daemon that starts or ends.
pub fn clear(own: OwnMark) {
    match remove(own, Caller::Daemon) {
        Ok(removed) => removed.changes.iter().for_each(|change| tracing::info!("initial window: {change}")),
        Err(errors) => errors.iter().for_each(|err| tracing::error!("initial window: {err}")),
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
            let began = Instant::now();
            reserve.lend(|| self.look(socket.get_ref()));
            sleep(began.elapsed() * REST).await;
        }
    }

    /// Waits until there is a reason to look: a change, a route that expires, or the time to try again.
    async fn turn(&self, socket: &AsyncFd<Socket>) -> io::Result<()> {
        if let Some(failing) = &self.failing {
            sleep(failing.pause).await;
            return Ok(());
        }
        let ready = match self.again {
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
        match look(&self.wan, self.own, socket) {
            Ok(found) => self.found(found),
            Err(err) => self.failed(&err),
        }
    }

    fn found(&mut self, Look { standing, again }: Look) {
        for line in standing.iter().filter(|line| !self.told.contains(line)) {
            tracing::info!("initial window: {line}");
        }
        self.told = standing;
        self.failing = None;
        self.again = again;
    }

    fn failed(&mut self, err: &RulesError) {
        let why = err.to_string();
        let pause = match self.failing.take() {
            Some(before) if before.why == why => (before.pause * 2).min(LONGEST_PAUSE),
            _ => {
                tracing::error!("initial window: left as the kernel has it until this is mended: {why}");
                FIRST_PAUSE
            }
        };
        clear(self.own);
        self.told.clear();
        self.failing = Some(Failing { why, pause });
    }
}
