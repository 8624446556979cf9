//! The start, the supervision and the end of the guardian's workers. WIRING.
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

/// The time without a worker after which new connections are routed.
const WITHOUT_WORKER: Duration = Duration::from_secs(1);

impl Guardian {
    /// Starts the next worker if it is due.
    pub(super) fn begin_worker(&mut self) -> Result<(), Fatal> {
        let ending = matches!(self.state, State::Stopping { .. } | State::Quiescing { .. });
        let due = self.next.take_if(|(at, ..)| !ending && Instant::now() >= *at);
        let Some((_, reason, since)) = due else { return Ok(()) };
        // The worker needs free descriptors for its first steps, even in a full descriptor table.
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
            // The sessions stay as they are. The kernel may be able to make a process in a moment.
            Err(err) => {
                let reason = config.reason;
                tracing::error!("another worker cannot be started: {err}; retrying");
                self.start_later(reason, Instant::now(), since)
            }
        }
    }

    /// Schedules another start after a pause, because a worker has failed to start.
    fn start_later(&mut self, reason: StartReason, now: Instant, since: Instant) -> Result<(), Fatal> {
        let pause = self.backoff.next();
        // The limit may have been lowered below the number of open descriptors. Then closing some of them frees no
        // room.
        raise_descriptor_limit();
        if since.elapsed() + pause > WITHOUT_WORKER {
            // No worker accepts connections. A listener that is shut down no longer listens, so new connections are
            // routed. The next worker listens again.
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

    /// Kills the worker, if there is one, and waits for its end.
    pub(super) fn end_worker(&mut self) {
        self.kill();
        self.worker.take().map(super::reap);
    }

    pub(super) fn kill(&self) {
        if let Some(worker) = self.worker {
            // Ignore the error: the worker may have ended, and `reap_worker` notices that.
            let _ = kill_process(worker, Signal::KILL);
        }
    }

    /// Handles the end of the worker, if it has ended.
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
        let killed = status.terminating_signal().is_some() && death == Death::Blameless;
        // A new program is not to blame for a first worker that is killed from outside, unless that happens again.
        let retry = killed && !std::mem::replace(&mut self.killed_before_ready, true);
        if !was_ready && (self.resources.table.header().generation() == 1 || fallback::is_armed() && !retry) {
            let exit = status.exit_status().and_then(Exit::from_status).unwrap_or(Exit::Software);
            return Err(Fatal::new(exit, format!("the first worker {how} before it was ready")));
        }
        let reason = StartReason::Died(death, how);
        if was_ready || killed {
            self.next = Some((seen, reason, since));
            return self.died_too_often();
        }
        tracing::error!("a worker has failed to start; retrying");
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
                "more than {at_most} workers have died within a minute (limits.crashes): the daemon ends, and \
                 connections are routed past it from now on; the log says how the workers died"
            ),
        ))
    }
}

/// Returns how a worker died, and the text for the log.
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
        // The worker has logged the reason. No session is to blame.
        (None, code) => (Death::Blameless, format!("ended with status {}", code.unwrap_or(-1))),
    }
}
