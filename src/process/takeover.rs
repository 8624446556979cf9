//! Takes over what the previous worker has left: intact sessions continue, everything else is closed. EFFECT.
//!
//! Everything is verified. A socket belongs to a session if its cookie is the recorded one. A pipe is valid if both
//! descriptors are ends of the same pipe.
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::socket_cookie;
use socket2::{Protocol, SockRef, Socket};
use sys::{Stage, Unowned};

use crate::host::kernel::Kernel;
use crate::session::leg::Leg;
use crate::session::listener::{self, Accepted};
use crate::session::relay::pool::Pipe;
use crate::session::relay::{Direction, Directions};
use crate::state::flow::{Flow, Side};
use crate::state::table::Table;
use crate::state::table::slot::{Content, Journal, ObservedDirection, ObservedSession, Slot, Urgent};
use crate::units::OwnMark;

/// The result of a takeover.
#[derive(Default)]
pub struct Found {
    /// The sessions to resume.
    pub sessions: Vec<OrphanedSession>,
    /// Connections that had just been accepted, and whose sessions begin now.
    pub unregistered: Vec<(Socket, Flow)>,
    /// The number of damaged sessions; both ends have been reset.
    pub lost: u64,
    /// The number of sessions in which two workers in a row have crashed; both ends have been reset.
    pub given_up: u64,
}

/// A session inherited from the previous worker.
pub struct OrphanedSession {
    flow: Flow,
    slot: Slot,
    client: FoundLeg,
    server: Option<FoundLeg>,
    up: FoundDirection,
    down: FoundDirection,
}

/// A socket of an inherited session.
struct FoundLeg {
    socket: Socket,
    /// The connection was reset, and the kernel has reported that to the previous worker.
    failed: bool,
}

struct FoundDirection {
    pipe: Option<(Pipe, usize)>,
    passed_on: u64,
    urgent: Option<u8>,
}

/// How the previous worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// There was no previous worker, or it came to rest.
    None,
    /// It was killed from outside, or it ended by itself because it could not start. No session is to blame.
    Blameless,
    /// It crashed or hung. A session that it was driving may be the cause.
    Crashed,
}

/// The descriptors that the previous worker has left open. Nothing owns them yet.
pub struct Inventory {
    table: Table,
    own: OwnMark,
    open: Unowned,
    /// The client legs of sessions, each with its slot and the slot's content.
    sessions: Vec<(RawFd, Slot, ObservedSession)>,
}

impl Inventory {
    /// Lists the open descriptors, and closes those that belong to no session: the dead worker's epoll instances, spare
    /// pipes and the like. A worker does this before it opens anything, so that it finds room in a full descriptor
    /// table.
    pub fn take(table: Table, mut open: Unowned, own: OwnMark) -> Self {
        let session = |fd| session_of(table, &open, fd).map(|(slot, observed)| (fd, slot, observed));
        let sessions: Vec<_> = open.numbers().filter_map(session).collect();
        let mut needed = BTreeSet::new();
        for (client, _, observed) in &sessions {
            let pipes = [observed.up.pipe, observed.down.pipe].into_iter().flatten();
            needed.extend(pipes.flat_map(|(read, write)| [read, write]));
            needed.extend(observed.server.map(|(server, _)| server));
            needed.insert(*client);
        }
        let others = open.numbers().filter(|fd| !needed.contains(fd));
        let unregistered: Vec<_> =
            others.filter(|&fd| open.get(fd).is_some_and(|fd| is_client_leg(fd, own))).collect();
        needed.extend(unregistered);
        open.keep(&needed);
        Self { table, own, open, sessions }
    }

    /// Sorts the descriptors into intact sessions, connections that had just been accepted, and the rest, which is
    /// closed. `at` are the addresses of the listeners.
    pub fn take_over(self, death: Death, at: &[SocketAddr]) -> Found {
        let Self { table, own, mut open, sessions } = self;
        let suspects = suspects(table, death);
        let mut found = Found::default();
        for (fd, slot, observed) in sessions {
            if suspects.contains(&fd) && suspect_again(table, slot, &observed) {
                found.given_up += 1;
                slot.ended();
                open.take(fd);
                continue;
            }
            match orphaned_session(slot, &observed, fd, &mut open) {
                Some(session) => found.sessions.push(session),
                None => {
                    found.lost += 1;
                    slot.ended();
                }
            }
        }
        for fd in open.numbers().collect::<Vec<_>>() {
            let slot = table.slot(fd).map_or(Content::Garbage, |slot| slot.read());
            let stray = open.take(fd).filter(|stray| is_client_leg(stray.as_fd(), own));
            let Some(socket) = stray.map(Socket::from) else { continue };
            let over = matches!(slot, Content::Ended { cookie } if Ok(cookie) == socket_cookie(&socket));
            if over {
                continue;
            }
            match listener::flow_of(&socket, at) {
                Ok(Some(flow)) if slot != Content::Garbage && is_unused(&socket) => {
                    found.unregistered.push((socket, flow))
                }
                Ok(Some(_)) => found.lost += 1,
                Ok(None) | Err(_) => {}
            }
        }
        found
    }
}

/// Returns the session whose client leg is `fd`, with its slot.
fn session_of(table: Table, open: &Unowned, fd: RawFd) -> Option<(Slot, ObservedSession)> {
    let slot = table.slot(fd)?;
    match slot.read() {
        Content::Session(observed) if cookie(open.get(fd)?) == Some(observed.cookie) => {
            Some((slot, observed))
        }
        _ => None,
    }
}

/// Returns the client legs of the sessions that the worker was driving when it crashed. Clears that record.
fn suspects(table: Table, death: Death) -> Vec<RawFd> {
    let threads = (0..crate::state::table::header::THREADS).map(|n| table.header().thread(n));
    let current_session: Vec<_> = threads
        .filter_map(|thread| {
            let current_session = thread.current_session();
            thread.set_current_session(None);
            RawFd::try_from(current_session?).ok()
        })
        .collect();
    if death == Death::Crashed { current_session } else { Vec::new() }
}

/// Records that a worker crashed while it drove the session. Returns whether the worker before that did, too.
fn suspect_again(table: Table, slot: Slot, observed: &ObservedSession) -> bool {
    let died = table.header().generation() - 1;
    slot.suspect_generation(died);
    observed.suspect_generation != 0 && observed.suspect_generation + 1 == died
}

fn orphaned_session(
    slot: Slot,
    observed: &ObservedSession,
    client: RawFd,
    open: &mut Unowned,
) -> Option<OrphanedSession> {
    let client = Socket::from(open.take(client)?);
    let server = observed.server.and_then(|(fd, wanted)| {
        let is_its = open.get(fd).and_then(cookie) == Some(wanted);
        is_its.then(|| open.take(fd)).flatten().map(Socket::from)
    });
    let relaying = observed.dialled.is_some();
    // While the session dials, the server leg may have failed, or may not exist yet.
    let server = if relaying { Some(server?) } else { server.filter(has_sent_its_syn) };
    let up = found_direction(&observed.up, slot.up(), open)?;
    let down = found_direction(&observed.down, slot.down(), open)?;
    let up = up.corrected(observed.up, Some(&client), server.as_ref(), Side::Server);
    let down = down.corrected(observed.down, server.as_ref(), Some(&client), Side::Client);
    if server.is_none() && up.passed_on > 0 {
        return None;
    }
    let client = FoundLeg { failed: was_reset(&client, observed.down.shut), socket: client };
    let server =
        server.map(|socket| FoundLeg { failed: relaying && was_reset(&socket, observed.up.shut), socket });
    Some(OrphanedSession { flow: observed.flow, slot, client, server, up, down })
}

fn found_direction(
    observed: &ObservedDirection,
    journal: Journal,
    open: &mut Unowned,
) -> Option<FoundDirection> {
    let pipe = match observed.pipe {
        None => None,
        Some((read, write)) => {
            let (read, write) = (open.take(read)?, open.take(write)?);
            let pipe = Pipe::found(read, write).ok()?;
            let len = usize::try_from(ioctl_fionread(&pipe.read).ok()?).ok()?;
            if len == 0 {
                // The pipe is closed here. If this worker dies too, the next one must not look for it.
                journal.no_pipe();
            }
            (len > 0).then_some((pipe, len))
        }
    };
    Some(FoundDirection { pipe, passed_on: observed.passed_on, urgent: None })
}

impl FoundDirection {
    /// Corrects what was recorded. The previous worker may have died between a system call and its record of it, but
    /// the sink knows how many bytes it was given.
    fn corrected(
        self,
        observed: ObservedDirection,
        source: Option<&Socket>,
        sink: Option<&Socket>,
        side: Side,
    ) -> Self {
        // If neither a pipe nor an urgent byte was in use, everything had been recorded.
        let in_doubt = !observed.shut && (observed.pipe.is_some() || observed.urgent.is_some());
        let given = sink.filter(|_| in_doubt).and_then(|sink| given(sink, side));
        let passed_on = given.map_or(observed.passed_on, |given| given.max(observed.passed_on));
        let still_there =
            || source.is_some_and(|source| sys::at_urgent_mark(source.as_fd()).unwrap_or(false));
        let urgent = match observed.urgent {
            Some(Urgent::Taken(byte)) if passed_on == observed.passed_on => Some(byte),
            Some(Urgent::Seen(byte)) if !still_there() => Some(byte),
            _ => None,
        };
        Self { passed_on, urgent, ..self }
    }
}

/// Returns the number of payload bytes that were given to a TCP socket; `None` if it cannot be determined. Reads the
/// acknowledged bytes twice, because acknowledgements may arrive in between.
fn given(sink: &Socket, side: Side) -> Option<u64> {
    const TRIES: usize = 8;
    if is_mptcp(sink) {
        return None;
    }
    let sink = sink.as_fd();
    let mut now = sys::connection(sink).ok()?;
    for _ in 0..TRIES {
        let waiting = u64::from(sys::unconfirmed(sink).ok()?);
        let before = std::mem::replace(&mut now, sys::connection(sink).ok()?);
        match now.stage {
            Stage::None => return None,
            Stage::SynSent => return Some(now.sent),
            Stage::Stands if now.confirmed != before.confirmed => {}
            // The SYN of a dialled leg counts as one byte.
            Stage::Stands if side == Side::Server => return (now.confirmed + waiting).checked_sub(1),
            Stage::Stands => return Some(now.confirmed + waiting),
        }
    }
    None
}

fn has_sent_its_syn(server: &Socket) -> bool {
    sys::connection(server.as_fd()).is_ok_and(|now| now.stage != Stage::None)
}

/// Returns whether nothing has been read from the socket and nothing written to it.
fn is_unused(socket: &Socket) -> bool {
    let unread = ioctl_fionread(socket);
    sys::connection(socket.as_fd()).is_ok_and(|now| {
        // A FIN counts as one byte, and cannot be read.
        let read = unread.is_ok_and(|unread| now.received.saturating_sub(unread) <= 1);
        now.stage == Stage::Stands && now.sent == 0 && read
    })
}

/// Returns whether the connection was reset and the previous worker has read the error: both directions are closed
/// although we have shut none. If the error has not been read yet, the result is `false`, because the relay will read
/// it.
fn was_reset(socket: &Socket, we_shut: bool) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let now = fds[0].revents();
    polled.is_ok() && !we_shut && now.contains(PollFlags::HUP) && !now.contains(PollFlags::ERR)
}

/// Returns whether the descriptor is a connected socket that one of our listeners has accepted.
fn is_client_leg(stray: BorrowedFd<'_>, own: OwnMark) -> bool {
    let socket = SockRef::from(&stray);
    let marked = || socket.mark().is_ok_and(|mark| mark == own.client());
    cookie(stray).is_some() && marked() && !socket.is_listener().unwrap_or(true)
}

fn is_mptcp(socket: &Socket) -> bool {
    socket.protocol().is_ok_and(|protocol| protocol == Some(Protocol::MPTCP))
}

fn cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    socket_cookie(fd).ok()
}

impl OrphanedSession {
    /// Registers the legs. Must be called in the runtime that will run the session. Returns the client leg with its
    /// flow, the slot, the server leg, and both directions. While the kernel has no memory to watch a leg, it waits up
    /// to a second for each, and calls `out_of_resources`. The slot stays as it is meanwhile, so that another worker
    /// can take the session over.
    ///
    /// # Errors
    /// Those of [`Leg::register`]; both ends have then been reset.
    pub async fn revive(
        self,
        kernel: &Kernel,
        out_of_resources: &impl Fn(&io::Error),
    ) -> io::Result<(Accepted, Slot, Option<Leg>, Directions)> {
        let Self { flow, slot, client, server, up, down } = self;
        let leg = async |FoundLeg { socket, failed }, side, options| {
            let leg =
                Leg::register(socket, side, options, out_of_resources).await.inspect_err(|_| slot.ended())?;
            if failed {
                leg.keep(Errno::CONNRESET.into());
            }
            Ok::<_, io::Error>(leg)
        };
        let client = leg(client, Side::Client, &kernel.client).await?;
        let server = match server {
            None => None,
            Some(found) => Some(leg(found, Side::Server, &kernel.server).await?),
        };
        let directions = Directions::resume(up.direction(slot.up()), down.direction(slot.down()));
        Ok((Accepted { flow, client }, slot, server, directions))
    }
}

impl FoundDirection {
    fn direction(self, journal: Journal) -> Direction {
        let Self { pipe, passed_on, urgent } = self;
        Direction::resume(journal, pipe, passed_on, urgent)
    }
}
