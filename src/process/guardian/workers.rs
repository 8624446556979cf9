//! How the guardian starts its workers, watches them, and what it does when one ends. WIRING.
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus, kill_process};

use super::crashes::{Patience, Pulse};
use super::{Guardian, State, fallback};
use crate::exit::{Exit, Fatal};
use crate::process::daemon::raise_descriptor_limit;
use crate::process::takeover::Death;
use crate::process::worker::{self, StartReason, WorkerConfig};
use crate::state::table::now;

/// While a worker fails to start for longer than this, new connections are routed.
const WITHOUT_WORKER: Duration = Duration::from_secs(1);

impl Guardian {
    /// Starts another worker, if it is time.
    pub(super) fn begin_worker(&mut self) -> Result<(), Fatal> {
        let ending = matches!(self.state, State::Stopping { .. } | State::Quiescing { .. });
        let due = self.next.take_if(|(at, ..)| !ending && Instant::now() >= *at);
        let Some((_, reason, since)) = due else { return Ok(()) };
        // In a full descriptor table the worker finds room for its first steps.
        self.resources.own.reserve.release();
        self.resources.own.channel.clear();
        self.resources.table.header().begin_generation();
        let config = WorkerConfig {
            setup: &self.setup,
            kernel: &self.resources.kernel,
            listeners: &self.resources.listeners,
            table: self.resources.table,
            limit: self.resources.limit,
            channel: &self.resources.own.channel,
            guardian: &self.resources.own.process,
            log: self.resources.log.log(),
            ours: self.resources.ours,
            draining: self.draining.is_some(),
            reason,
            since,
        };
        match sys::spawn_sharing_descriptors(&config, worker::run) {
            Ok(pid) => {
                self.worker = Pid::from_raw(pid.get());
                (self.ready, self.hung) = (false, false);
                self.pulse = Pulse::default();
                Ok(())
            }
            // The sessions stay as they are; there may be room for a process in a moment.
            Err(err) => {
                let reason = config.reason;
                tracing::error!("another worker cannot be started: {err}; it is tried again");
                self.start_later(reason, Instant::now(), since)
            }
        }
    }

    /// A worker has failed to start: another one is tried after a pause.
    fn start_later(&mut self, reason: StartReason, now: Instant, since: Instant) -> Result<(), Fatal> {
        let pause = self.backoff.next();
        // Somebody may have lowered the limit below the descriptors in use: then even to close some gives no room.
        raise_descriptor_limit();
        if since.elapsed() + pause > WITHOUT_WORKER {
            // Nobody would accept what comes. A listener that is shut no longer listens, so that new connections are routed; the next
            // worker has it listen again.
            self.resources
                .listeners
                .iter()
                .flatten()
                .for_each(|listener| drop(listener.shutdown(Shutdown::Read)));
        }
        self.next = Some((now + pause, reason, since));
        self.died_too_often()
    }

    /// Kills a worker in which a thread hangs.
    pub(super) fn check_pulse(&mut self) {
        let header = self.resources.table.header();
        let threads =
            (0..self.resources.listeners.len()).map(|n| (header.thread(n).heartbeats(), Patience::Prompt));
        let others =
            [(header.control_heartbeats(), Patience::Prompt), (header.host_heartbeats(), Patience::Host)];
        let heartbeats = threads.chain(others);
        if self.worker.is_some() && self.pulse.is_lost(heartbeats) && !self.hung {
            self.hung = true;
            self.kill();
        }
    }

    /// Ends the worker, if there is one.
    pub(super) fn end_worker(&mut self) {
        self.kill();
        self.worker.take().map(super::reap);
    }

    pub(super) fn kill(&self) {
        if let Some(worker) = self.worker {
            // It may be gone by now, and is seen to be.
            let _ = kill_process(worker, Signal::KILL);
        }
    }

    /// If the worker has ended, what comes behind it.
    pub(super) fn reap_worker(&mut self) -> Result<(), Fatal> {
        let Some(status) = self.worker.and_then(super::reap_if_ended) else { return Ok(()) };
        let seen = Instant::now();
        let since = *self.without_worker.get_or_insert(seen);
        self.worker = None;
        let was_ready = std::mem::replace(&mut self.ready, false);
        if matches!(self.state, State::Stopping { .. } | State::Quiescing { .. }) {
            return Ok(());
        }
        let (death, how) = judge(status, self.hung);
        if !was_ready && (self.resources.table.header().generation() == 1 || fallback::is_armed()) {
            let exit = status.exit_status().and_then(Exit::from_status).unwrap_or(Exit::Software);
            return Err(Fatal::new(exit, format!("the first worker {how} before it was ready")));
        }
        let killed = status.terminating_signal().is_some() && death == Death::Blameless;
        let reason = StartReason::Died(death, how);
        if was_ready || killed {
            self.next = Some((seen, reason, since));
            return self.died_too_often();
        }
        tracing::error!("a worker has failed to start; it is tried again");
        self.start_later(reason, seen, since)
    }

    fn died_too_often(&mut self) -> Result<(), Fatal> {
        if !self.crashes.too_many(now()) {
            return Ok(());
        }
        let at_most = self.setup.config.limits.crashes;
        Err(Fatal::new(
            Exit::Software,
            format!(
                "more than {at_most} workers have died within a minute (limits.crashes): it lets go, and connections are routed \
                 past it from now on; the log says how they died"
            ),
        ))
    }
}

/// What a worker died of, and how to say it.
fn judge(status: WaitStatus, hung: bool) -> (Death, String) {
    if hung {
        return (Death::Crashed, "hung, and was killed".to_owned());
    }
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => {
            let own = [
                Signal::ABORT,
                Signal::BUS,
                Signal::FPE,
                Signal::ILL,
                Signal::SEGV,
                Signal::SYS,
                Signal::TRAP,
            ];
            let own = own.iter().any(|own| own.as_raw() == signal);
            let death = if own { Death::Crashed } else { Death::Blameless };
            (death, format!("died of signal {signal}"))
        }
        // It has said why in the log. That is no session's fault.
        (None, code) => (Death::Blameless, format!("ended with status {}", code.unwrap_or(-1))),
    }
}
