//! Keeps the mirror in step with the main table while the daemon runs. WIRING.
//!
//! Nothing here may harm a connection: when the mirror cannot be made right, it is taken away, and connections have the
//! initial window of the kernel until it can.
use socket2::Socket;

use crate::config::{Config, Wan};
use crate::host::follow::{Next, Pause, follow};
use crate::host::rules::{Caller, RulesError};
use crate::units::OwnMark;

use super::{Look, UNMANAGED, events, look, remove};

/// A mirror that is kept.
pub struct Mirror {
    socket: Socket,
    synced: Synced,
    next: Next,
}

struct Synced {
    wan: Wan,
    own: OwnMark,
    /// What has been said last.
    told: Vec<String>,
    /// Why there is none.
    failing: Option<String>,
    pause: Pause,
}

impl Mirror {
    /// Removes what a daemon before this one left, and makes the mirror that `config` asks for, if this daemon manages its
    /// rules. What fails is said in the log, and tried again.
    pub fn start(config: &Config, managed: bool) -> Option<Self> {
        clear(config.rules.own_mark);
        Self::sync(config, managed)
    }

    /// Goes on with what a process before this one, in the same daemon, has made: no route or policy rule that is still wanted goes, not
    /// for a moment.
    pub fn resume(config: &Config, managed: bool) -> Option<Self> {
        let kept = Self::sync(config, managed);
        if kept.is_none() {
            clear(config.rules.own_mark);
        }
        kept
    }

    fn sync(config: &Config, managed: bool) -> Option<Self> {
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
        let (wan, own) = (config.wan.clone(), config.rules.own_mark);
        let mut synced = Synced { wan, own, told: Vec::new(), failing: None, pause: Pause::default() };
        let next = synced.look(&socket);
        Some(Self { socket, synced, next })
    }

    /// Follows the main table for ever.
    pub async fn follow(self) {
        let Self { socket, mut synced, next } = self;
        let failed = follow(socket, next, |socket| synced.look(socket)).await;
        tracing::error!(
            "initial window: the routes are removed, as changes are no longer heard of: {failed}"
        );
        clear(synced.own);
    }
}

/// Takes the mirror away, for a daemon that starts or ends.
pub fn clear(own: OwnMark) {
    match remove(own, Caller::Daemon) {
        Ok(removed) => removed.changes.iter().for_each(|change| tracing::info!("initial window: {change}")),
        Err(errors) => errors.iter().for_each(|err| tracing::error!("initial window: {err}")),
    }
}

impl Synced {
    fn look(&mut self, socket: &Socket) -> Next {
        match look(&self.wan, self.own, socket) {
            Ok(found) => self.found(found),
            Err(err) => self.failed(&err),
        }
    }

    fn found(&mut self, Look { standing, again }: Look) -> Next {
        for line in standing.iter().filter(|line| !self.told.contains(line)) {
            tracing::info!("initial window: {line}");
        }
        self.told = standing;
        self.failing = None;
        self.pause.over();
        Next::changed_or(again)
    }

    fn failed(&mut self, err: &RulesError) -> Next {
        let why = err.to_string();
        if self.failing.as_ref() != Some(&why) {
            tracing::error!("initial window: left as the kernel has it until this is mended: {why}");
            self.pause.over();
        }
        clear(self.own);
        self.told.clear();
        self.failing = Some(why);
        Next::After(self.pause.longer())
    }
}
