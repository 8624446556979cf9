//! Keeps the mirror in step with the main table while the daemon runs. WIRING.
//!
//! No failure here may harm a connection: while the mirror cannot be corrected, it is removed, and connections have the
//! kernel's initial window.
use socket2::Socket;

use crate::config::{Config, Wan};
use crate::host::follow::{Next, Pause, follow};
use crate::host::rules::{Caller, RulesError};
use crate::units::OwnMark;

use super::{Look, UNMANAGED, events, look, remove};

/// A mirror that is kept in step with the main table.
pub struct Mirror {
    socket: Socket,
    synced: Synced,
    next: Next,
}

struct Synced {
    wan: Wan,
    own: OwnMark,
    /// The sentences about the devices that were logged last.
    told: Vec<String>,
    /// The reason why there is no mirror; `None` while there is one.
    failing: Option<String>,
    pause: Pause,
}

impl Mirror {
    /// Removes the mirror that a previous daemon left, and makes the one that `config` asks for, if this daemon manages
    /// its rules. Failures are logged and retried.
    pub fn start(config: &Config, managed: bool) -> Option<Self> {
        clear(config.rules.own_mark);
        Self::sync(config, managed)
    }

    /// Takes over the mirror of the previous worker of the same daemon. A route or policy rule that is still wanted is
    /// never removed, not even for a moment.
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
                    "initial window: the kernel's own stays: cannot listen for route changes: {err}"
                );
                return None;
            }
        };
        let (wan, own) = (config.wan.clone(), config.rules.own_mark);
        let mut synced = Synced { wan, own, told: Vec::new(), failing: None, pause: Pause::default() };
        let next = synced.look(&socket);
        Some(Self { socket, synced, next })
    }

    /// Follows the main table; returns only when route changes cannot be received any more.
    pub async fn follow(self) {
        let Self { socket, mut synced, next } = self;
        let failed = follow(socket, next, |socket| synced.look(socket)).await;
        tracing::error!(
            "initial window: removing the routes: cannot listen for route changes any more: {failed}"
        );
        clear(synced.own);
    }
}

/// Removes the mirror when a daemon starts or ends; logs the changes and the errors.
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
            tracing::error!("initial window: the kernel's own applies until this is fixed: {why}");
            self.pause.over();
        }
        clear(self.own);
        self.told.clear();
        self.failing = Some(why);
        Next::After(self.pause.longer())
    }
}
