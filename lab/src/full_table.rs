//! A daemon whose descriptor table is full when its worker is killed.
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Rlimit, Signal, kill_process};

use crate::descriptors::{first_free, free_below, limit, open, restore};
use crate::host::Host;
use crate::process::{find_worker, runs};
use crate::traffic::{Connecting, Traffic};
use crate::wait::becomes;

/// A daemon that has not reacted after this time never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// A table that has not changed for this time has come to rest.
const REST: Duration = Duration::from_millis(50);
/// How long new connections must be served before the table is filled.
const SERVED: Duration = Duration::from_millis(100);
/// The control connections on which a guardian waits for a command at once.
const CONTROL: u64 = 8;

/// Fills the descriptor table that a daemon's guardian and worker share, with connections that it keeps.
#[derive(Debug)]
pub struct FullTable {
    guardian: u32,
    gateway: Host,
    client: Host,
    server: std::net::SocketAddr,
    held: Vec<TcpStream>,
    /// Control connections, for the numbers that are too few for a session.
    control: Vec<UnixStream>,
    before: Option<Rlimit>,
}

impl FullTable {
    /// For the daemon on `gateway` whose guardian is `guardian`, with connections of `client` to an echo server. It makes the first one.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn new(
        gateway: &Host,
        guardian: u32,
        client: &Host,
        server: std::net::SocketAddr,
    ) -> io::Result<Self> {
        let (gateway, client) = (gateway.clone(), client.clone());
        let mut table =
            Self { guardian, gateway, client, server, held: Vec::new(), control: Vec::new(), before: None };
        table.connect()?;
        Ok(table)
    }

    /// Fills the table, kills the worker, waits until another one goes on, and gives the daemon its limit back. Before that new
    /// connections must be served for a moment; from the kill on, `traffic` accepts that they are reset, until the next call or
    /// [`FullTable::recovers`].
    ///
    /// # Errors
    /// The daemon does not intercept new connections, its table does not become full, or no other worker goes on.
    pub fn kill_worker(&mut self, traffic: &Traffic) -> io::Result<()> {
        self.recovers(traffic)?;
        sleep(SERVED);
        // A connection that ended now would free two numbers.
        traffic.connecting(Connecting::Paused);
        let killed = self.fill().and_then(|()| self.kill(traffic));
        traffic.connecting(Connecting::Lenient);
        self.control.clear();
        killed.and(self.restore())
    }

    /// Waits until new connections are intercepted. From then on `traffic` must not see one that is reset.
    ///
    /// # Errors
    /// The daemon goes on to route them.
    pub fn recovers(&self, traffic: &Traffic) -> io::Result<()> {
        let mut gate = Ok(String::new());
        let opened = becomes(PATIENCE, || {
            gate = self.gateway.try_run("nft list chain inet tcp_intercept gate");
            gate.as_ref().map_or(true, |gate| !gate.contains("goto full"))
        });
        gate?;
        if !opened {
            return Err(io::Error::other(format!("new connections are still routed after {PATIENCE:?}")));
        }
        // Connections that began while the table was full may still be reset.
        traffic.connecting(Connecting::Paused);
        traffic.connecting(Connecting::Strict);
        Ok(())
    }

    /// Limits the daemon to the numbers up to the highest that is open, and connects until none is left or the kernel refuses one more.
    /// Control connections take a few numbers that are left then, as a session needs two; more than a few are forbidden too. Other
    /// connections should not come or go meanwhile.
    ///
    /// # Errors
    /// The daemon is gone, its limit cannot be set, or its table does not become full.
    fn fill(&mut self) -> io::Result<()> {
        let mut soft = 1 + open(self.guardian)?.last().copied().unwrap_or_default();
        self.limit(soft)?;
        let began = Instant::now();
        let mut left = u64::MAX;
        loop {
            let free = free_below(&open(self.guardian)?, soft);
            // A connection that takes none has been routed past the daemon.
            if free == 0 || free >= left || self.connect().is_err() || began.elapsed() > PATIENCE {
                break;
            }
            left = free;
        }
        while began.elapsed() < 2 * PATIENCE {
            let seen = open(self.guardian)?;
            sleep(REST);
            let now = open(self.guardian)?;
            if seen != now {
                continue;
            }
            match free_below(&now, soft) {
                0 => return Ok(()),
                few @ ..=CONTROL => (0..few).try_for_each(|_| self.connect_to_guardian())?,
                _ => {
                    soft = first_free(&now);
                    self.limit(soft)?;
                }
            }
        }
        Err(io::Error::other("the descriptor table did not become full"))
    }

    /// Kills the worker with SIGKILL, and waits until another one has answered on a connection that the one before it had.
    ///
    /// # Errors
    /// The guardian has ended, or no other worker goes on.
    fn kill(&self, traffic: &Traffic) -> io::Result<()> {
        let before = find_worker(self.guardian);
        let Some(pid) = before.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else {
            return Err(io::Error::other("there is no worker to kill"));
        };
        kill_process(pid, Signal::KILL)?;
        traffic.connecting(Connecting::Lenient);
        let ended = || !runs(self.guardian);
        becomes(PATIENCE, || ended() || find_worker(self.guardian).is_some_and(|now| Some(now) != before));
        if ended() {
            return Err(io::Error::other("the guardian has ended"));
        }
        answers(&self.held[0]).map_err(|err| {
            let state = if ended() { "the guardian has ended" } else { "the guardian runs" };
            io::Error::new(
                err.kind(),
                format!("no worker went on with an established session ({state}): {err}"),
            )
        })
    }

    /// Gives guardian and worker the limit back that the guardian had before.
    ///
    /// # Errors
    /// The daemon is gone.
    fn restore(&mut self) -> io::Result<()> {
        let Some(before) = self.before.take() else { return Ok(()) };
        self.processes().into_iter().try_for_each(|pid| restore(pid, before))
    }

    /// How many connections it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Asks on each connection, and returns a sentence for each that does not answer.
    pub fn failures(&self) -> Vec<String> {
        let asked = self.held.iter().enumerate().map(|(n, stream)| (n, answers(stream)));
        asked.filter_map(|(n, answer)| Some(format!("filling connection {n}: {}", answer.err()?))).collect()
    }

    fn connect(&mut self) -> io::Result<()> {
        let stream = self.client.connect(self.server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        answers(&stream)?;
        self.held.push(stream);
        Ok(())
    }

    /// Connects to the daemon's control socket and says nothing: the guardian holds the connection for two seconds.
    fn connect_to_guardian(&mut self) -> io::Result<()> {
        let name = SocketAddr::from_abstract_name("tcp-intercept")?;
        self.control.push(self.gateway.enter(|| UnixStream::connect_addr(&name))?);
        Ok(())
    }

    fn limit(&mut self, soft: u64) -> io::Result<()> {
        for pid in self.processes() {
            let before = limit(pid, soft)?;
            self.before.get_or_insert(before);
        }
        Ok(())
    }

    /// The guardian first: a worker that begins now inherits its limit.
    fn processes(&self) -> Vec<u32> {
        std::iter::once(self.guardian).chain(find_worker(self.guardian)).collect()
    }
}

fn answers(mut stream: &TcpStream) -> io::Result<()> {
    const QUESTION: &[u8] = b"full?";
    stream.write_all(QUESTION)?;
    let mut answer = [0; QUESTION.len()];
    stream.read_exact(&mut answer)?;
    if answer == *QUESTION { Ok(()) } else { Err(io::Error::other("another answer than was sent")) }
}
