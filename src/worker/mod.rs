//! The process that does the work: it is begun by the guardian, whose descriptors it has in common with it, goes on with what the worker
//! before it has left, and may die at any time. WIRING.
mod orders;
mod thread;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::set_name;
use socket2::Socket;
use tokio::runtime::Builder;
use tokio::sync::{Notify, watch};

use crate::crash::{self, Point};
use crate::daemon::{Interception, Setup, interception, os};
use crate::dial::Memory;
use crate::exit::{Exit, Fatal};
use crate::kernel::Kernel;
use crate::limits::Occupancy;
use crate::listener;
use crate::log::Log;
use crate::metrics::Counters;
use crate::paths::keep::Paths;
use crate::shared::Shared;
use crate::table::Table;
use crate::takeover::{self, Death, Found};
use crate::wan::keep::Mirror;

use orders::Keeper;
pub use orders::{Channel, Order, Report, Word};
use thread::{Share, Thread};

/// What a worker is given. It is the guardian's, of which this process has a copy: nothing of it may be dropped here while there is a
/// guardian.
pub struct Birth<'a> {
    /// What the daemon is to do.
    pub setup: &'a Setup,
    /// What the kernel can do.
    pub kernel: &'a Arc<Kernel>,
    /// One list of listeners for each thread.
    pub listeners: &'a [Vec<Socket>],
    /// The sessions.
    pub table: Table,
    /// The most of them.
    pub limit: u32,
    /// Where the guardian is heard and told.
    pub channel: &'a Channel,
    /// Every descriptor that the guardian owns.
    pub kept: Vec<RawFd>,
    /// The guardian.
    pub guardian: Pid,
    /// Where lines go.
    pub log: &'a Log,
    /// Whether the rules go with the daemon.
    pub ours: bool,
    /// New connections are routed already.
    pub draining: bool,
    /// Why there is another worker.
    pub why: Why,
    /// When the end of the one before was seen.
    pub since: Instant,
}

/// Why a worker begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It is the first.
    Start,
    /// The one before has died like this.
    Died(Death, String),
    /// The program was replaced: by this version, from that one.
    Upgraded(String),
    /// It was not, as the other could not be started.
    NotUpgraded,
}

impl Why {
    fn death(&self) -> Death {
        match self {
            Self::Start | Self::Upgraded(_) | Self::NotUpgraded => Death::None,
            Self::Died(death, _) => *death,
        }
    }
}

/// Lives until it is told to end, or until it dies. Nothing that it owns is dropped at its end: sessions are ended on purpose, or not
/// at all.
pub fn live(birth: &Birth<'_>) -> ! {
    let exit = work(birth).unwrap_or_else(|fatal| {
        tracing::error!("a worker cannot begin: {fatal}");
        fatal.exit
    });
    birth.log.drain();
    sys::exit_now(exit as u8)
}

fn work(birth: &Birth<'_>) -> Result<Exit, Fatal> {
    let Birth { setup, table, .. } = *birth;
    // For ps(1) and pgrep(1); a name that cannot be had harms nobody.
    let _ = set_name(NAME);
    let strays = sys::inherited(&birth.kept).map_err(os("taking over the descriptors"))?;
    crash::arm(table.header().crash_points());
    let own: Vec<SocketAddr> =
        birth.listeners.iter().flatten().filter_map(|listener| listener::address(listener).ok()).collect();
    let found = takeover::take_over(table, strays, birth.why.death(), setup.config.rules.own_mark, &own);
    if birth.why != Why::Start {
        crash::at(Point::TakenOver);
    }
    let begun = Begun::of(&found, birth);
    begun.count(&table.header().counters());
    let shares = share_out(birth.listeners, found).map_err(os("taking the listeners"))?;
    let shared = Arc::new(Shared {
        config: setup.config.clone(),
        kernel: Arc::clone(birth.kernel),
        counters: table.header().counters(),
        memory: Memory::default(),
        occupancy: Occupancy::new(birth.limit),
        table,
        gate: Notify::new(),
    });
    serve(&shared, shares, birth, &begun)
}

/// What the worker says when it is there.
struct Begun {
    why: Why,
    since: Instant,
    sessions: u64,
    fresh: u64,
    lost: u64,
    given_up: u64,
}

impl Begun {
    fn of(found: &Found, birth: &Birth<'_>) -> Self {
        Self {
            why: birth.why.clone(),
            since: birth.since,
            sessions: found.sessions.len() as u64,
            fresh: found.fresh.len() as u64,
            lost: found.lost,
            given_up: found.given_up,
        }
    }

    fn count(&self, counters: &Counters) {
        counters.taken_up.add(self.sessions);
        counters.not_taken_up.add(self.lost);
        counters.given_up.add(self.given_up);
        match &self.why {
            Why::Died(..) => counters.crashes.count(),
            Why::Upgraded(_) => counters.upgrades.count(),
            Why::Start | Why::NotUpgraded => {}
        }
    }

    fn say(&self) {
        let Self { why, since, sessions, fresh, lost, given_up } = self;
        let took = since.elapsed();
        let mut came = format!("{sessions} sessions go on after {took:?}");
        for (count, what) in [
            (fresh, "had just been accepted and begin"),
            (lost, "were not intact and have been reset"),
            (given_up, "have been reset, as two workers in a row have died of them"),
        ] {
            if *count > 0 {
                came.push_str(&format!("; {count} {what}"));
            }
        }
        match why {
            Why::Start => {}
            Why::Died(_, how) => tracing::error!("a worker {how}: {came}"),
            Why::Upgraded(before) => {
                tracing::info!("upgraded from {before} to {}: {came}", env!("CARGO_PKG_VERSION"));
            }
            Why::NotUpgraded => tracing::info!("not upgraded: {came}"),
        }
    }
}

/// Sessions and listeners by thread. The listeners are copies, which the threads may close.
fn share_out(listeners: &[Vec<Socket>], found: Found) -> io::Result<Vec<Share>> {
    let copy = |own: &Vec<Socket>| own.iter().map(Socket::try_clone).collect::<io::Result<_>>();
    let mut shares = listeners.iter().map(|own| copy(own).map(Share::new)).collect::<io::Result<Vec<_>>>()?;
    let threads = shares.len();
    for (n, session) in found.sessions.into_iter().enumerate() {
        shares[n % threads].sessions.push(session);
    }
    for (n, fresh) in found.fresh.into_iter().enumerate() {
        shares[n % threads].fresh.push(fresh);
    }
    Ok(shares)
}

fn serve(shared: &Arc<Shared>, shares: Vec<Share>, birth: &Birth<'_>, begun: &Begun) -> Result<Exit, Fatal> {
    let rt = Builder::new_current_thread().enable_all().build().map_err(os("making the runtime"))?;
    let (orders, heard) = watch::channel(Order::GoOn);
    let start = |(n, share)| Thread::start(n, share, shared, &heard);
    let threads: io::Result<Vec<_>> = shares.into_iter().enumerate().map(start).collect();
    let threads = threads.map_err(os("starting a worker thread"))?;
    let interception = birth.setup.interception;
    rt.block_on(async {
        begun.say();
        // What looks at the host blocks. The sessions go on meanwhile, on their own threads.
        let managed = interception == Interception::Managed;
        let (mirror, paths) = match begun.why {
            Why::Start => (Mirror::start(&shared.config, managed), Paths::start(&shared.config)),
            _ => (Mirror::resume(&shared.config, managed), Paths::resume(&shared.config)),
        };
        mirror.map(|mirror| tokio::spawn(mirror.follow()));
        paths.map(|paths| tokio::spawn(paths.follow()));
        let listeners: Vec<_> = birth.listeners.iter().flatten().map(Socket::try_clone).collect();
        // A listener that is shut listens no more, however many descriptors of it there are.
        let close_listeners = move || {
            listeners.iter().flatten().for_each(|listener| drop(listener.shutdown(Shutdown::Read)));
        };
        let mut keeper = Keeper::new(interception, begun.why != Why::Start, Box::new(close_listeners));
        if birth.draining {
            keeper.drain(shared, "as before");
        }
        let end = orders::until_the_end(shared, birth.channel, birth.guardian, birth.log, keeper).await;
        let _ = orders.send(end.order);
        threads.into_iter().for_each(Thread::end);
        if end.order == Order::Stop {
            tracing::info!("stopped: {}", shared.counters);
        }
        if end.orphan {
            interception::undo(&shared.config, birth.ours)?;
        }
        Ok(Exit::Ok)
    })
}

/// What the process is called beside its guardian.
const NAME: &std::ffi::CStr = c"tcp-int-worker";
/// A tick of what a worker says of itself.
const TICK: Duration = Duration::from_secs(1);
