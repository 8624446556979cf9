//! The slot of one session in the table, word by word. PURE.
//!
//! The writer may be killed between any two stores. So each step becomes valid with its last store, and the reader
//! checks everything. A state is a word that cannot arise by chance. Words that are written once have a checksum. A
//! descriptor is stored with a proof.
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::state::flow::{Flow, OrigDst};
use crate::state::record::{Dialled, Opening};

pub use super::journal::{Journal, ObservedDirection, Urgent};
use super::word::{YES, seal, store};

/// Number of words of a slot: three cache lines.
pub const WORDS: usize = 24;

const STATE: usize = 0;
const COOKIE: usize = 1;
/// Both addresses of two words each, then both ports, then both scopes.
const FLOW: usize = 2;
const ACCEPTED: usize = 8;
const SEAL: usize = 9;
const SERVER: usize = 10;
const SERVER_COOKIE: usize = 11;
const DIALLED: usize = 12;
const CONNECT: usize = 13;
const SUSPECT_GENERATION: usize = 14;
const UP: usize = 16;
const DOWN: usize = 20;

/// The slot was never used, or is about to be filled.
const VACANT: u64 = 0;
const DIALLING: u64 = 0x6469_616c_5bd1_e995;
const RELAYING: u64 = 0x7265_6c61_85eb_ca6b;
const ENDED: u64 = 0x656e_6465_c2b2_ae35;

/// The slot of one session.
#[derive(Debug, Clone, Copy)]
pub struct Slot(&'static [AtomicU64; WORDS]);

/// The content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what is in no slot is closed"]
pub enum Content {
    /// No session uses the slot.
    Vacant,
    /// The session has ended; its legs may still be open.
    Ended {
        /// The client leg's SO_COOKIE.
        cookie: u64,
    },
    /// A live session.
    Session(ObservedSession),
    /// Words that this program has not written.
    Garbage,
}

/// The state of a session as read from its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedSession {
    /// The client leg's SO_COOKIE.
    pub cookie: u64,
    /// Client and original destination.
    pub flow: Flow,
    /// Time of accept, on the clock of [`now`](super::now).
    pub accepted: Duration,
    /// The server leg and its SO_COOKIE.
    pub server: Option<(RawFd, u64)>,
    /// How and how fast the server leg was dialled. Once this is set, the session is relayed.
    pub dialled: Option<(Dialled, Opening, Duration)>,
    /// Number of the last worker that died while it drove this session; 0 if none did.
    pub suspect_generation: u64,
    /// From the client to the server.
    pub up: ObservedDirection,
    /// From the server to the client.
    pub down: ObservedDirection,
}

impl Slot {
    /// Returns the slot in these words.
    pub fn new(words: &'static [AtomicU64; WORDS]) -> Self {
        Self(words)
    }

    /// Creates a slot of its own, for a session that no worker resumes. Its memory is never freed.
    pub fn unkept() -> Self {
        Self(Box::leak(Box::new([const { AtomicU64::new(0) }; WORDS])))
    }

    /// Records an accepted connection.
    pub fn accepted(&self, cookie: u64, flow: &Flow, at: Duration) {
        self.set(STATE, VACANT);
        let fixed = fixed(cookie, flow, at);
        (COOKIE..).zip(fixed).for_each(|(word, value)| self.set(word, value));
        self.set(SEAL, seal(&fixed));
        (SERVER..WORDS).for_each(|word| self.set(word, 0));
        self.set(STATE, DIALLING);
    }

    /// Records the socket that dials the server. Call it before the socket sends anything.
    pub fn dialling(&self, server: RawFd, cookie: u64) {
        self.set(SERVER, 0);
        self.set(SERVER_COOKIE, cookie);
        self.set(SERVER, with_proof(server, cookie));
    }

    /// Records that the server leg is connected.
    pub fn relaying(&self, dialled: Dialled, opening: Opening, connect: Duration) {
        self.set(CONNECT, nanos(connect));
        self.set(DIALLED, YES << 32 | u64::from(dialled as u8) << 8 | u64::from(opening as u8));
        self.set(STATE, RELAYING);
    }

    /// Records the end of the session. The legs are closed next.
    pub fn ended(&self) {
        self.set(STATE, ENDED);
    }

    /// Records that the worker `generation` died while it drove this session.
    pub fn suspect_generation(&self, generation: u64) {
        self.set(SUSPECT_GENERATION, generation);
    }

    /// Returns the journal of the direction from the client to the server.
    pub fn up(self) -> Journal {
        self.way(UP)
    }

    /// Returns the journal of the direction from the server to the client.
    pub fn down(self) -> Journal {
        self.way(DOWN)
    }

    /// Returns the time of accept.
    pub fn accepted_at(&self) -> Duration {
        Duration::from_nanos(self.get(ACCEPTED))
    }

    /// Returns how and how fast the server leg was dialled; `None` while it is not connected.
    pub fn how_dialled(&self) -> Option<(Dialled, Opening, Duration)> {
        let packed = self.get(DIALLED);
        let [dialled, opening] = [packed >> 8 & 0xff, packed & 0xff];
        let dialled = Dialled::ALL.iter().copied().find(|known| *known as u64 == dialled)?;
        let opening = Opening::ALL.iter().copied().find(|known| *known as u64 == opening)?;
        (packed >> 32 == YES).then(|| (dialled, opening, Duration::from_nanos(self.get(CONNECT))))
    }

    /// Reads and checks the slot.
    pub fn read(&self) -> Content {
        let cookie = self.get(COOKIE);
        match self.get(STATE) {
            VACANT => Content::Vacant,
            ENDED => Content::Ended { cookie },
            DIALLING => self.session(None).map_or(Content::Garbage, Content::Session),
            RELAYING => {
                let how = self.how_dialled().filter(|_| self.get(SERVER) != 0);
                how.and_then(|how| self.session(Some(how))).map_or(Content::Garbage, Content::Session)
            }
            _ => Content::Garbage,
        }
    }

    fn session(&self, dialled: Option<(Dialled, Opening, Duration)>) -> Option<ObservedSession> {
        let cookie = self.get(COOKIE);
        let [a, b, c, d, ports, scopes] = [0, 1, 2, 3, 4, 5].map(|n| self.get(FLOW + n));
        let flow = Flow {
            client: address([a, b], ports >> 16, scopes >> 32)?,
            orig_dst: OrigDst(address([c, d], ports & 0xffff, scopes & 0xffff_ffff)?),
        };
        let accepted = self.accepted_at();
        let server = match self.get(SERVER) {
            0 => None,
            packed => Some(proved(packed, self.get(SERVER_COOKIE))?),
        };
        let [up, down] = [self.up(), self.down()].map(|journal| journal.read());
        let fixed: [u64; SEAL - COOKIE] = std::array::from_fn(|n| self.get(COOKIE + n));
        let sealed = self.get(SEAL) == seal(&fixed);
        let (up, down, suspect_generation) = (up?, down?, self.get(SUSPECT_GENERATION));
        sealed.then_some(ObservedSession {
            cookie,
            flow,
            accepted,
            server,
            dialled,
            suspect_generation,
            up,
            down,
        })
    }

    #[cfg(test)]
    pub(super) fn write(&self, word: usize, value: u64) {
        self.set(word, value);
    }

    #[cfg(test)]
    pub(super) fn flip(&self, word: usize, bit: u32) {
        self.set(word, self.get(word) ^ 1 << bit);
    }

    fn get(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn set(&self, word: usize, value: u64) {
        store(&self.0[word], value);
    }

    fn way(self, first: usize) -> Journal {
        let words = self.0[first..].first_chunk();
        Journal::new(words.expect("a slot has words for both directions"))
    }
}

/// Returns the words that are written once, in order.
fn fixed(cookie: u64, flow: &Flow, at: Duration) -> [u64; SEAL - COOKIE] {
    let Flow { client, orig_dst: OrigDst(server) } = flow;
    let ([a, b], [c, d]) = (halves(client.ip()), halves(server.ip()));
    let ports = u64::from(client.port()) << 16 | u64::from(server.port());
    let scopes = scope(client) << 32 | scope(server);
    [cookie, a, b, c, d, ports, scopes, nanos(at)]
}

fn halves(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
    .to_bits();
    [(bits >> 64) as u64, bits as u64]
}

fn scope(addr: &SocketAddr) -> u64 {
    match addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(addr) => addr.scope_id().into(),
    }
}

fn address([high, low]: [u64; 2], port: u64, scope: u64) -> Option<SocketAddr> {
    let bits = u128::from(high) << 64 | u128::from(low);
    let mut addr = SocketAddr::new(Ipv6Addr::from_bits(bits).to_canonical(), u16::try_from(port).ok()?);
    if let SocketAddr::V6(addr) = &mut addr {
        addr.set_scope_id(u32::try_from(scope).ok()?);
    }
    Some(addr)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Packs a descriptor in the low half, and a proof in the high half that only this descriptor with this cookie has.
fn with_proof(fd: RawFd, cookie: u64) -> u64 {
    let fd = u64::from(fd.cast_unsigned());
    (seal(&[fd, cookie]) | 1) << 32 | fd
}

fn proved(packed: u64, cookie: u64) -> Option<(RawFd, u64)> {
    let fd = RawFd::try_from(packed & 0xffff_ffff).ok()?;
    (with_proof(fd, cookie) == packed).then_some((fd, cookie))
}
