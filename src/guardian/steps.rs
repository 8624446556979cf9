//! What the guardian does when something has happened. WIRING.
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitStatus, getpid, kill_process};
use sys::Fork;

use super::crashes::Pulse;
use super::door::{Caller, Command};
use super::handover::Handover;
use super::held::{Held, in_child};
use super::upgrade::{self, Trial};
use super::{Guardian, PAUSE, State, Step, TO_REST, TO_STOP};
use crate::config::Sigterm;
use crate::daemon::{interception, os};
use crate::exit::{Exit, Fatal};
use crate::table::now;
use crate::takeover::Death;
use crate::worker::{self, Birth, Channel, Why, Word};

impl Guardian {
    /// Begins another worker, if it is time.
    pub(super) fn begin_worker(&mut self) -> Result<(), Fatal> {
        let ending = matches!(self.state, State::Stopping { .. } | State::Resting { .. });
        let due = self.next.take_if(|(at, ..)| !ending && Instant::now() >= *at);
        let Some((_, why, since)) = due else { return Ok(()) };
        self.channel = Channel::new().map_err(os("making the worker's channel"))?;
        self.held.table.header().begin_life();
        let (kept, guardian) = (self.descriptors(), getpid());
        match sys::clone_sharing_descriptors() {
            Ok(Fork::Child) => worker::live(&Birth {
                setup: &self.setup,
                kernel: &self.held.kernel,
                listeners: &self.held.listeners,
                table: self.held.table,
                limit: self.held.limit,
                channel: &self.channel,
                kept,
                guardian,
                log: self.held.log.log(),
                ours: self.held.ours,
                draining: self.draining.is_some(),
                why,
                since,
            }),
            Ok(Fork::Parent(pid)) => {
                self.worker = Pid::from_raw(pid.get());
                (self.ready, self.hung) = (false, false);
                self.pulse = Pulse::default();
                Ok(())
            }
            // Nobody touches the sessions meanwhile; there may be room for a process in a moment.
            Err(err) => {
                tracing::error!("another worker cannot be begun: {err}");
                self.next = Some((Instant::now() + PAUSE, why, since));
                self.died_too_often()
            }
        }
    }

    /// Everything that this process owns.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.held.descriptors();
        all.extend(self.owned);
        all.extend(self.service_manager.descriptor());
        all.extend(self.upgraded.iter().filter_map(|before| Some(before.caller.as_ref()?.descriptor())));
        all.extend(self.channel.descriptors());
        all.extend(self.door.descriptors());
        all.extend(self.callers.iter().map(Caller::descriptor));
        if let State::Trying(trial) | State::Resting { trial, .. } = &self.state {
            all.extend(trial.descriptors());
        }
        all
    }

    /// Waits until something happens, or something is due.
    pub(super) fn wait(&self) {
        let next = self.next.as_ref().map(|(at, ..)| *at);
        let state = match &self.state {
            State::Resting { until, .. } | State::Stopping { until } => Some(*until),
            // The end of a trial comes as a signal.
            State::Watching | State::Trying(_) => None,
        };
        let until = [next, state].into_iter().flatten().fold(self.tick, Instant::min);
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let door = self.ready.then_some(self.held.lock.as_fd());
        let awaited = [self.held.signals.as_fd(), self.channel.guardian().as_fd()].into_iter();
        let awaited = awaited.chain(door).chain(self.door.waiting());
        let mut fds: Vec<_> = awaited.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // Whatever it says, everything is looked at.
        let _ = poll(&mut fds, Some(&left));
    }

    pub(super) fn signal(&mut self, signal: i32) {
        match signal {
            super::INT => self.stop("SIGINT"),
            // Whoever asks again wants it now.
            super::TERM if self.setup.config.stop.sigterm == Sigterm::Drain && self.draining.is_none() => {
                self.drain("SIGTERM");
            }
            super::TERM => self.stop("SIGTERM"),
            super::USR2 => self.upgrade(None, None),
            // The terminal is gone, and with it whoever looked.
            super::HUP if !self.setup.reopens_log && std::env::var_os("NOTIFY_SOCKET").is_none() => {
                self.stop("SIGHUP");
            }
            super::HUP => {
                self.service_manager.reloading();
                self.held.log.log().reopen();
                self.service_manager.ready();
            }
            _ => {}
        }
    }

    pub(super) fn command(&mut self, command: Command, mut caller: Caller) {
        let left = self.held.table.header().sessions();
        caller.say(&match &command {
            Command::Upgrade(_) => format!("trying the new program, with {left} sessions"),
            Command::Drain => format!("draining: {left} sessions are left"),
            Command::Stop => format!("stopping, with {left} sessions"),
        });
        match command {
            Command::Upgrade(binary) => self.upgrade(binary, Some(caller)),
            Command::Drain => {
                self.callers.push(caller);
                self.drain("drain");
            }
            Command::Stop => {
                self.callers.push(caller);
                self.stop("stop");
            }
        }
    }

    pub(super) fn stop(&mut self, why: &str) {
        if matches!(self.state, State::Stopping { .. }) {
            return;
        }
        self.abandon_upgrade("the daemon stops");
        self.service_manager.stopping();
        self.state = State::Stopping { until: Instant::now() + TO_STOP };
        self.channel.tell(&Word::Stop(why.to_owned()));
    }

    fn drain(&mut self, why: &str) {
        if self.draining.is_some() || matches!(self.state, State::Stopping { .. }) {
            return;
        }
        self.abandon_upgrade("the daemon drains");
        let deadline = Instant::now().checked_add(self.setup.config.stop.drain_deadline);
        // What ends beyond what a clock can say never does.
        self.draining =
            Some(deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(u32::MAX.into())));
        self.channel.tell(&Word::Drain(why.to_owned()));
    }

    fn upgrade(&mut self, binary: Option<PathBuf>, caller: Option<Caller>) {
        let refused = if self.draining.is_some() || matches!(self.state, State::Stopping { .. }) {
            Some("the daemon is about to end".to_owned())
        } else if !matches!(self.state, State::Watching) {
            Some("another upgrade is under way".to_owned())
        } else {
            None
        };
        if let Some(why) = refused {
            return not_upgraded(&why, caller);
        }
        let binary = match binary.map_or_else(upgrade::own_path, Ok) {
            Ok(binary) => binary,
            Err(err) => {
                return not_upgraded(&format!("it is not known where this program is: {err}"), caller);
            }
        };
        match Trial::start(binary, &self.handover(None), caller) {
            Ok(trial) => self.state = State::Trying(trial),
            Err((why, caller)) => not_upgraded(&why, caller),
        }
    }

    fn abandon_upgrade(&mut self, why: &str) {
        if let State::Trying(mut trial) | State::Resting { mut trial, .. } =
            std::mem::replace(&mut self.state, State::Watching)
        {
            not_upgraded(why, trial.caller.take());
        }
    }

    fn handover(&self, caller: Option<RawFd>) -> Handover {
        let numbers = |listeners: &Vec<socket2::Socket>| listeners.iter().map(AsRawFd::as_raw_fd).collect();
        Handover {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trial: false,
            config: self.setup.text.clone(),
            lock: self.held.lock.as_fd().as_raw_fd(),
            table: self.held.table_file.as_raw_fd(),
            listeners: self.held.listeners.iter().map(numbers).collect(),
            caller,
            limit: self.held.limit,
            ours: self.held.ours,
            log_writers: self.held.log.processes().map(|process| process.as_raw_nonzero().get()).collect(),
        }
    }

    /// What goes on by itself.
    pub(super) fn go_on(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Watching) {
            State::Watching => {}
            State::Trying(mut trial) => match trial.outcome() {
                None => self.state = State::Trying(trial),
                Some(Ok(fit)) => {
                    tracing::info!("{} is fit to go on: {fit}", trial.binary.display());
                    self.channel.tell(&Word::Rest);
                    self.state = State::Resting { trial, until: Instant::now() + TO_REST };
                }
                Some(Err(why)) => not_upgraded(&why, trial.caller.take()),
            },
            State::Resting { trial, .. } if self.worker.is_none() => self.replace(trial),
            State::Stopping { .. } if self.worker.is_none() => return Step::End,
            waiting @ (State::Resting { until, .. } | State::Stopping { until }) => {
                if Instant::now() >= until {
                    tracing::error!("the worker has not done as it was told, and is killed");
                    self.kill();
                }
                self.state = waiting;
            }
        }
        Step::GoOn
    }

    /// There is no worker: another program takes this one's place.
    fn replace(&mut self, mut trial: Trial) {
        let caller = trial.caller.take();
        let handover = self.handover(caller.as_ref().map(Caller::descriptor));
        let err = upgrade::replace(&trial.binary, &handover);
        not_upgraded(&format!("{} cannot be run: {err}", trial.binary.display()), caller);
        let now = Instant::now();
        self.next = Some((now, Why::NotUpgraded, now));
    }

    fn kill(&self) {
        if let Some(worker) = self.worker {
            // It may be gone by now, and is seen to be.
            let _ = kill_process(worker, Signal::KILL);
        }
    }

    /// If the worker has ended, what comes behind it.
    pub(super) fn reap_worker(&mut self) -> Result<(), Fatal> {
        let Some(status) = self.worker.and_then(super::reap_if_ended) else { return Ok(()) };
        let seen = Instant::now();
        self.worker = None;
        let was_ready = std::mem::replace(&mut self.ready, false);
        if matches!(self.state, State::Stopping { .. } | State::Resting { .. }) {
            return Ok(());
        }
        let (death, how) = judge(status, self.hung);
        if !was_ready && self.held.table.header().life() == 1 {
            let exit = status.exit_status().and_then(Exit::from_status).unwrap_or(Exit::Software);
            return Err(Fatal::new(exit, format!("the first worker {how} before it was ready")));
        }
        // Whoever could not even begin may be able to in a moment; who was killed from outside need not wait.
        let pause = if was_ready || death == Death::Killed { Duration::ZERO } else { PAUSE };
        self.next = Some((seen + pause, Why::Died(death, how), seen));
        self.died_too_often()
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

    pub(super) fn tick(&mut self) {
        self.held.log.tick();
        let header = self.held.table.header();
        let beats = (0..self.held.listeners.len()).map(|n| header.thread(n).beats());
        if self.worker.is_some() && self.pulse.is_lost(beats) && !self.hung {
            self.hung = true;
            self.kill();
        }
        let left = header.sessions();
        let status = if let Some(deadline) = self.draining {
            if Instant::now() >= deadline {
                self.stop("stop.drain-deadline");
            }
            format!("draining: {left} sessions are left")
        } else {
            format!("{left} of {} sessions", self.held.limit)
        };
        if self.draining.is_some() && status != self.said {
            self.callers.iter_mut().for_each(|caller| caller.say(&status));
        }
        if status != self.said {
            self.service_manager.status(&status);
        }
        self.service_manager.tick(self.ready || self.next.is_some());
        self.said = status;
    }

    /// Ends it all: nothing stays open, and nothing of ours stays on the host.
    pub(super) fn end(self, result: Result<(), Fatal>) -> Result<(), Fatal> {
        // Whoever still runs would have its descriptors closed below it.
        self.kill();
        self.worker.map(super::reap);
        let Self { setup, held, channel, door, state, callers, owned, service_manager, .. } = self;
        let Held { lock, table_file, listeners, signals, log, ours, .. } = held;
        if let Err(fatal) = &result {
            tracing::error!("{fatal}");
        }
        drop((channel, door, state, table_file, listeners, service_manager));
        let own =
            [lock.as_fd().as_raw_fd(), signals.as_fd().as_raw_fd()].into_iter().chain(log.descriptors());
        let kept: Vec<RawFd> = own.chain(owned).chain(callers.iter().map(Caller::descriptor)).collect();
        // What sessions have left is closed here, and that resets both ends.
        let closed = sys::close_others(&kept).map_err(os("closing what is left"));
        let undone = in_child(log.log(), || interception::undo(&setup.config, ours).map(|()| true));
        let ended = result.and(closed).and(undone.map(drop));
        // Another daemon may start when the callers have their answer.
        drop((lock, log));
        for caller in callers {
            match &ended {
                Ok(()) => caller.done("stopped"),
                Err(fatal) => caller.refuse(&fatal.message),
            }
        }
        ended
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
            let death = if own { Death::Crashed } else { Death::Killed };
            (death, format!("died of signal {signal}"))
        }
        (None, code) => (Death::Crashed, format!("ended with status {}", code.unwrap_or(-1))),
    }
}

fn not_upgraded(why: &str, caller: Option<Caller>) {
    tracing::error!("not upgraded, and nothing has changed: {why}");
    if let Some(caller) = caller {
        caller.refuse(&format!("not upgraded, and nothing has changed: {why}"));
    }
}
