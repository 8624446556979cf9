//! The guardian's reactions to events: signals, commands, timers, and the progress of an upgrade. WIRING.
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;
use sys::Registered;

use super::control_socket::{Caller, Command};
use super::handover::{Handover, Previous, own_arguments, replace};
use super::resources::{Resources, in_child};
use super::upgrade::{self, Trial};
use super::{Guardian, State, Step, TO_QUIESCE, TO_STOP, fallback};
use crate::config::Sigterm;
use crate::exit::Fatal;
use crate::process::daemon::{interception, os};
use crate::process::worker::{Message, StartReason};

impl Guardian {
    /// Waits until an event arrives or a timer is due.
    pub(super) fn wait(&self) {
        let next = self.next.as_ref().map(|(at, ..)| *at);
        let state = match &self.state {
            State::Quiescing { until, .. } | State::Stopping { until } => Some(*until),
            // The end of a trial arrives as SIGCHLD.
            State::Watching | State::Trying(_) => None,
        };
        let until = [next, state].into_iter().flatten().fold(self.tick, Instant::min);
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let control_socket =
            (self.ready && self.control_socket.accepts()).then_some(self.resources.lock.as_fd());
        let awaited =
            [self.resources.signals.as_fd(), self.resources.own.channel.guardian().as_fd()].into_iter();
        let awaited = awaited.chain(control_socket).chain(self.control_socket.waiting());
        let mut fds: Vec<_> = awaited.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // The result does not matter: `step` checks every source.
        let _ = poll(&mut fds, Some(&left));
    }

    pub(super) fn signal(&mut self, signal: i32) {
        match signal {
            super::INT => self.stop("SIGINT"),
            // While the daemon drains, a second SIGTERM stops it.
            super::TERM if self.setup.config.stop.sigterm == Sigterm::Drain && self.draining.is_none() => {
                self.drain("SIGTERM");
            }
            super::TERM => self.stop("SIGTERM"),
            super::USR2 => self.upgrade(None, None),
            // Without a log file to reopen and without a service manager, SIGHUP means that the terminal was closed.
            super::HUP if !self.setup.reopens_log && std::env::var_os("NOTIFY_SOCKET").is_none() => {
                self.stop("SIGHUP");
            }
            super::HUP => {
                self.service_manager.reloading();
                self.resources.log.log().reopen();
                self.service_manager.ready();
            }
            _ => {}
        }
    }

    pub(super) fn command(&mut self, command: Command, mut caller: Caller) {
        let left = self.resources.table.header().sessions();
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
        self.resources.own.channel.tell(&Message::Stop(why.to_owned()));
    }

    fn drain(&mut self, why: &str) {
        if self.draining.is_some() || matches!(self.state, State::Stopping { .. }) {
            return;
        }
        self.abandon_upgrade("the daemon drains");
        let deadline = Instant::now().checked_add(self.setup.config.stop.drain_deadline);
        // A deadline that the clock cannot represent becomes one in 136 years.
        self.draining =
            Some(deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(u32::MAX.into())));
        self.resources.own.channel.tell(&Message::Drain(why.to_owned()));
    }

    fn upgrade(&mut self, binary: Option<PathBuf>, caller: Option<Caller>) {
        let refused = if self.draining.is_some() || matches!(self.state, State::Stopping { .. }) {
            Some("the daemon is about to end".to_owned())
        } else if !matches!(self.state, State::Watching) || fallback::is_armed() {
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
                return not_upgraded(&format!("cannot find the path of this program: {err}"), caller);
            }
        };
        let handover = self.handover(None);
        match self.resources.own.reserve.lend(|| Trial::start(binary, &handover, caller)) {
            Ok(trial) => self.state = State::Trying(trial),
            Err((why, caller)) => not_upgraded(&why, caller),
        }
    }

    fn abandon_upgrade(&mut self, why: &str) {
        if let State::Trying(mut trial) | State::Quiescing { mut trial, .. } =
            std::mem::replace(&mut self.state, State::Watching)
        {
            not_upgraded(why, trial.caller.take());
        }
    }

    fn handover(&self, caller: Option<RawFd>) -> Handover {
        let number = |listener: &Registered<Socket>| listener.as_raw_fd();
        let numbers = |listeners: &Vec<_>| listeners.iter().map(number).collect();
        Handover {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trial: false,
            config: self.setup.text.clone(),
            lock: self.resources.lock.as_fd().as_raw_fd(),
            table: self.resources.table_file.as_raw_fd(),
            listeners: self.resources.listeners.iter().map(numbers).collect(),
            caller,
            limit: self.resources.limit,
            ours: self.resources.ours,
            log_writers: self.resources.log.process_numbers(),
            previous: Some(Previous {
                binary: self.resources.own.binary.as_raw_fd(),
                arguments: own_arguments(),
            }),
            failed: None,
        }
    }

    /// Continues what is under way: a trial, or the rest or end of the worker.
    pub(super) fn advance(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Watching) {
            State::Watching => {}
            State::Trying(mut trial) => match trial.outcome() {
                None => self.state = State::Trying(trial),
                Some(Ok(fit)) => {
                    tracing::info!("the trial of {} succeeded: {fit}", trial.binary.display());
                    self.resources.own.channel.tell(&Message::Quiesce);
                    self.state = State::Quiescing { trial, until: Instant::now() + TO_QUIESCE };
                }
                Some(Err(why)) => not_upgraded(&why, trial.caller.take()),
            },
            State::Quiescing { trial, .. } if self.worker.is_none() => self.replace(trial),
            State::Stopping { .. } if self.worker.is_none() => return Step::End,
            waiting @ (State::Quiescing { until, .. } | State::Stopping { until }) => {
                if Instant::now() >= until {
                    tracing::error!("the worker has not stopped in time, and is killed");
                    self.kill();
                }
                self.state = waiting;
            }
        }
        Step::Continue
    }

    /// Replaces this program with the one that was tried. There is no worker at this point.
    fn replace(&mut self, mut trial: Trial) {
        let caller = trial.caller.take();
        let handover = self.handover(caller.as_ref().map(Caller::descriptor));
        // The handover itself needs a descriptor. The new program then finds room for its first steps in a full
        // descriptor table: execve() closes the descriptors that it does not inherit.
        self.resources.own.reserve.release();
        let err = replace(&trial.binary, &own_arguments(), &handover);
        not_upgraded(&format!("{} cannot be run: {err}", trial.binary.display()), caller);
        let now = Instant::now();
        self.next = Some((now, StartReason::NotUpgraded, now));
    }

    pub(super) fn tick(&mut self) {
        self.resources.log.tick();
        let header = self.resources.table.header();
        self.check_pulse();
        if self.ready {
            self.resources.own.reserve.refill();
            self.control_socket.retry();
        }
        let left = header.sessions();
        let status = if let Some(deadline) = self.draining {
            if Instant::now() >= deadline {
                self.stop("stop.drain-deadline");
            }
            format!("draining: {left} sessions are left")
        } else {
            format!("{left} of {} sessions", self.resources.limit)
        };
        if self.draining.is_some() && status != self.last_status {
            self.callers.iter_mut().for_each(|caller| caller.say(&status));
        }
        if status != self.last_status {
            self.service_manager.status(&status);
        }
        self.service_manager.tick(self.ready || self.next.is_some());
        self.last_status = status;
    }

    /// Ends the daemon: closes every descriptor, and removes from the host what belongs to the daemon.
    pub(super) fn end(mut self, result: Result<(), Fatal>) -> Result<(), Fatal> {
        // A running worker shares the descriptor table, and would lose its descriptors.
        self.end_worker();
        let Self { setup, resources, control_socket, state, callers, service_manager, .. } = self;
        let Resources { lock, table_file, listeners, signals: _signals, log, ours, own, .. } = resources;
        if let Err(fatal) = &result {
            tracing::error!("{fatal}");
        }
        drop((own, control_socket, state, table_file, listeners, service_manager));
        // Closing the sockets of the sessions resets both ends.
        let closed = sys::close_unregistered().map_err(os("closing the sockets of the sessions"));
        let undone = in_child(log.log(), || interception::undo(&setup.config, ours).map(|()| true));
        let ended = result.and(closed).and(undone.map(drop));
        // The lock is released before the callers get their answer, so that they can start another daemon at once.
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

pub(super) fn not_upgraded(why: &str, caller: Option<Caller>) {
    tracing::error!("not upgraded, and nothing has changed: {why}");
    if let Some(caller) = caller {
        caller.refuse(&format!("not upgraded, and nothing has changed: {why}"));
    }
}
