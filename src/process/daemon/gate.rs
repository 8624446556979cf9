//! Opens and closes the gate for new connections. It is closed near the limit of sessions, and while descriptors or
//! memory are lacking. WIRING.
use std::cell::Cell;
use std::io;
use std::time::Duration;

use socket2::Domain;
use tokio::time::{Instant, sleep_until};

use crate::host::kernel::Kernel;
use crate::host::reserve::Reserve;
use crate::host::rules::{self, Gate};
use crate::session::leg::Leg;
use crate::session::relay::pool::Pool;
use crate::session::shared::Shared;
use crate::state::flow::Side;
use crate::state::metrics::worth_a_line;

/// The pause before the next check after descriptors or memory have run out, or after the gate could not be moved.
const LATER: Duration = Duration::from_secs(5);
/// The number of sessions for which there must be resources before new ones are admitted. If it were one, the next
/// session would fail.
const SESSIONS_TRIED: usize = 4;

/// Moves the gate.
pub struct Guard {
    reserve: Reserve,
    failed: bool,
    /// When to check again without a notification.
    due: Cell<Option<Instant>>,
}

impl Guard {
    /// Returns a guard for a gate that is open.
    pub fn new() -> Self {
        Self { reserve: Reserve::take(), failed: false, due: Cell::default() }
    }

    /// Notes that the gate is in an unknown state; the first look moves it to where it should be.
    pub fn distrust(&mut self) {
        self.failed = true;
    }

    /// Waits until it is time to [look again](Self::look_again) without a notification; that may be never. The wait may
    /// be cancelled and started again: the time stays the same.
    pub async fn later(&self, shared: &Shared) {
        if !self.failed && !shared.occupancy.is_exhausted() {
            self.due.set(None);
            return std::future::pending().await;
        }
        let due = self.due.get().unwrap_or_else(|| Instant::now() + LATER);
        self.due.set(Some(due));
        sleep_until(due).await;
        self.due.set(None);
    }

    /// Checks whether the resources suffice again, and then the gate.
    pub fn look_again(&mut self, shared: &Shared) {
        let occupancy = &shared.occupancy;
        if occupancy.is_exhausted() && means_for_more(&shared.kernel).is_ok() {
            occupancy.recovered();
        }
        self.look(shared);
    }

    /// Moves the gate if it is not where it should be.
    pub fn look(&mut self, shared: &Shared) {
        let occupancy = &shared.occupancy;
        let close = occupancy.closes();
        if close == occupancy.is_closed() && !self.failed {
            return;
        }
        let gate = if close { Gate::Closed } else { Gate::Open };
        let moved = self.reserve.lend(|| rules::gate(gate));
        occupancy.moved(close);
        if occupancy.closes() != close {
            // The target changed meanwhile. No notification was sent, because the gate was not yet recorded as moved.
            shared.gate.notify_one();
        }
        self.say(shared, close, moved);
    }

    fn say(&mut self, shared: &Shared, closed: bool, moved: Result<(), rules::RulesError>) {
        let (sessions, limit) = (shared.occupancy.sessions(), shared.occupancy.limit());
        let what = if closed { "routed past us" } else { "intercepted again" };
        let failed = std::mem::replace(&mut self.failed, moved.is_err());
        match moved {
            Ok(()) => {
                if closed {
                    shared.counters.gate_closed.count();
                }
                if worth_a_line(shared.counters.gate_closed.get()) {
                    tracing::warn!("{sessions} of {limit} sessions: new connections are {what}");
                }
            }
            Err(err) if !failed => {
                tracing::error!("{sessions} of {limit} sessions: new connections cannot be {what}: {err}");
            }
            Err(_) => {}
        }
    }
}

/// Tries to allocate what a few more sessions need: two registered sockets and a pipe each.
fn means_for_more(kernel: &Kernel) -> io::Result<()> {
    let leg = |side| -> io::Result<Leg> {
        Ok(Leg::new(kernel.server_socket(Domain::IPV4, true)?, side, &kernel.server)?)
    };
    let session = |_| Ok((leg(Side::Client)?, leg(Side::Server)?, Pool::default().take()?));
    (0..SESSIONS_TRIED).map(session).collect::<io::Result<Vec<_>>>().map(drop)
}
