//! The guardian: a small process that outlives crashes and upgrades. It opens the resources that outlive a worker,
//! starts a worker and watches it, and starts another one when it has died. WIRING.
//!
//! It has one thread, no runtime and no connection, and waits for no other program while a worker runs. Changes to the
//! host are made by processes that it starts for them.
pub mod control_socket;
mod crashes;
mod events;
pub mod fallback;
pub mod handover;
mod resources;
mod service_manager;
mod upgrade;
mod workers;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};

use self::control_socket::{Caller, ControlSocket};
use self::crashes::{Backoff, Crashes, Pulse};
use self::handover::Inherited;
use self::resources::{Resources, Upgraded};
use self::service_manager::ServiceManager;
use self::upgrade::Trial;
use crate::exit::Fatal;
use crate::process::daemon::{Setup, os};
use crate::process::worker::{Report, StartReason};

const CHILD: i32 = Signal::CHILD.as_raw();
const HUP: i32 = Signal::HUP.as_raw();
const INT: i32 = Signal::INT.as_raw();
const TERM: i32 = Signal::TERM.as_raw();
const USR2: i32 = Signal::USR2.as_raw();

/// The interval at which the guardian checks the worker.
const TICK: Duration = Duration::from_secs(1);
/// The time that a worker has to come to rest. The next worker does what it leaves unfinished.
const TO_QUIESCE: Duration = Duration::from_secs(1);
/// The time that a worker has to end: for the handshakes under way, and for nine thousand close records.
const TO_STOP: Duration = Duration::from_secs(15);

/// Returns the handover of a running daemon to this program; `None` if there is none. Must be called before anything
/// else.
///
/// # Errors
/// Those of [`Inherited::find`].
pub fn inherited() -> Result<Option<Inherited>, Fatal> {
    let mut inherited = Inherited::find()?;
    if let Some(inherited) = &mut inherited
        && !inherited.handover.trial
    {
        fallback::arm(inherited);
    }
    Ok(inherited)
}

/// Runs the daemon until it is told to end. With `inherited` it succeeds the daemon that handed over. Calls `started`
/// when it accepts connections. Returns the text for standard output.
///
/// # Errors
/// Fails if the daemon cannot start, or if `started` fails; then nothing is left behind. Fails later if its workers die
/// too often.
pub fn run(
    setup: Setup,
    inherited: Option<Inherited>,
    started: impl FnOnce() -> Result<(), Fatal>,
) -> Result<String, Fatal> {
    let (resources, upgraded) = match inherited {
        Some(inherited) if inherited.handover.trial => return upgrade::rehearse(&setup, inherited),
        Some(inherited) => {
            let taken = Resources::from(&setup, inherited);
            let (resources, handed) = taken.inspect_err(|fatal| fallback::go_back(&fatal.message))?;
            (resources, Some(handed))
        }
        None => (Resources::new(&setup)?, None),
    };
    let mut guardian = Guardian::new(setup, resources, upgraded);
    let mut started = Some(started);
    let ended = loop {
        match guardian.step(&mut started) {
            Ok(Step::Continue) => {}
            Ok(Step::End) => break Ok(()),
            Err(fatal) => {
                if fallback::is_armed() {
                    guardian.end_worker();
                    fallback::go_back(&fatal.message);
                }
                break Err(fatal);
            }
        }
    };
    guardian.end(ended).map(|()| String::new())
}

/// Whether the main loop continues after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Continue,
    End,
}

struct Guardian {
    setup: Setup,
    resources: Resources,
    control_socket: ControlSocket,
    service_manager: ServiceManager,
    worker: Option<Pid>,
    /// The worker accepts connections.
    ready: bool,
    pulse: Pulse,
    hung: bool,
    /// A worker was killed from outside before this program's first one was ready.
    killed_before_ready: bool,
    crashes: Crashes,
    /// The pause before the next start of a worker, if workers fail to start.
    backoff: Backoff,
    /// When the guardian saw a worker end, if none has been ready since.
    without_worker: Option<Instant>,
    /// When to start the next worker, why, and since when there has been none.
    next: Option<(Instant, StartReason, Instant)>,
    state: State,
    draining: Option<Instant>,
    /// The operators who wait for the daemon to drain or to stop.
    callers: Vec<Caller>,
    /// The upgrade that started this program, until its outcome has been reported.
    upgraded: Option<Upgraded>,
    tick: Instant,
    last_status: String,
}

/// The current activity of the guardian.
enum State {
    Watching,
    Trying(Trial),
    /// The worker comes to rest, so that another program can take over.
    Quiescing {
        trial: Trial,
        until: Instant,
    },
    /// The worker ends, and then the daemon.
    Stopping {
        until: Instant,
    },
}

impl Guardian {
    fn new(setup: Setup, resources: Resources, upgraded: Option<Upgraded>) -> Self {
        let crashes = Crashes::new(setup.config.limits.crashes);
        let reason = match &upgraded {
            None => StartReason::Start,
            Some(Upgraded { failed: None, version, .. }) => StartReason::Upgraded(version.clone()),
            Some(Upgraded { failed: Some(_), .. }) => StartReason::NotUpgraded,
        };
        let now = Instant::now();
        Self {
            setup,
            resources,
            control_socket: ControlSocket::default(),
            service_manager: ServiceManager::from_environment(),
            worker: None,
            ready: false,
            pulse: Pulse::default(),
            hung: false,
            killed_before_ready: false,
            crashes,
            backoff: Backoff::default(),
            without_worker: None,
            next: Some((now, reason, now)),
            state: State::Watching,
            draining: None,
            callers: Vec::new(),
            upgraded,
            tick: now + TICK,
            last_status: String::new(),
        }
    }

    /// Waits for events and handles them.
    fn step(&mut self, started: &mut Option<impl FnOnce() -> Result<(), Fatal>>) -> Result<Step, Fatal> {
        self.begin_worker()?;
        self.wait();
        while let Some(signal) = self.resources.signals.next().map_err(os("reading a signal"))? {
            self.signal(signal);
        }
        while let Some(report) = self.resources.own.channel.reported() {
            match report {
                Report::Ready => self.worker_is_ready(started)?,
                Report::Drained => self.stop("drained"),
            }
        }
        self.reap_worker()?;
        if self.ready {
            for (command, caller) in
                self.control_socket.answer(self.resources.lock.as_fd(), &mut self.resources.own.reserve)
            {
                self.command(command, caller);
            }
        }
        if Instant::now() >= self.tick {
            self.tick = Instant::now() + TICK;
            self.tick();
        }
        Ok(self.advance())
    }

    fn worker_is_ready(
        &mut self,
        started: &mut Option<impl FnOnce() -> Result<(), Fatal>>,
    ) -> Result<(), Fatal> {
        self.ready = true;
        self.backoff = Backoff::default();
        self.without_worker = None;
        self.resources.own.reserve.refill();
        fallback::disarm();
        let upgraded = self.upgraded.take();
        if let Some(started) = started.take() {
            if self.setup.background {
                self.resources.log.log().leave_terminal();
            }
            started()?;
            if upgraded.is_none() {
                let Resources { limit, listeners, .. } = &self.resources;
                let listen: Vec<_> = self.setup.listen.iter().map(ToString::to_string).collect();
                let (threads, listen) = (listeners.len(), listen.join(" and "));
                tracing::info!("ready: {threads} workers, at most {limit} sessions, listening on {listen}");
            }
            self.service_manager.ready();
        }
        match upgraded {
            Some(Upgraded { failed: Some(why), caller, .. }) => events::not_upgraded(&why, caller),
            Some(Upgraded { version, caller: Some(caller), .. }) => {
                caller.done(&format!("upgraded from {version} to {}", env!("CARGO_PKG_VERSION")));
            }
            Some(Upgraded { caller: None, .. }) | None => {}
        }
        Ok(())
    }
}

/// Waits until `child` has ended, and returns its status.
fn reap(child: Pid) -> Option<WaitStatus> {
    let status = retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    status.ok().flatten().map(|(_, status)| status)
}

/// Returns the status of `child` if it has ended.
fn reap_if_ended(child: Pid) -> Option<WaitStatus> {
    waitpid(Some(child), WaitOptions::NOHANG).ok().flatten().map(|(_, status)| status)
}
