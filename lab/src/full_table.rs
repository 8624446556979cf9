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

/// A daemon that has not reacted within this time counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// A table that has not changed for this time counts as stable.
const REST: Duration = Duration::from_millis(50);
/// How long new connections must be served before the table is filled.
const SERVED: Duration = Duration::from_millis(100);
/// The number of control connections that a guardian serves at the same time.
const CONTROL: u64 = 8;

/// Fills the descriptor table that guardian and worker share, with connections that it keeps open.
#[derive(Debug)]
pub struct FullTable {
    guardian: u32,
    gateway: Host,
    client: Host,
    server: std::net::SocketAddr,
    held: Vec<TcpStream>,
    /// Control connections, which use up the descriptors that are too few for a session.
    control: Vec<UnixStream>,
    before: Option<Rlimit>,
}

impl FullTable {
    /// Prepares for the daemon on `gateway` whose guardian is `guardian`, with connections from `client` to an echo
    /// server. Opens the first connection.
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

    /// Fills the table, kills the worker, waits until another worker has taken over, and restores the daemon's limit.
    /// New connections must be served for a moment before that. From the kill on, `traffic` accepts resets, until the
    /// next call or [`FullTable::recovers`].
    ///
    /// # Errors
    /// The daemon does not intercept new connections, its table does not fill, or no other worker takes over.
    pub fn kill_worker(&mut self, traffic: &Traffic) -> io::Result<()> {
        self.recovers(traffic)?;
        sleep(SERVED);
        // A connection that ended now would free two descriptors.
        traffic.connecting(Connecting::Paused);
        let killed = self.fill().and_then(|()| self.kill(traffic));
        traffic.connecting(Connecting::Lenient);
        self.control.clear();
        killed.and(self.restore())
    }

    /// Waits until new connections are intercepted. From then on, `traffic` treats a reset as a failure.
    ///
    /// # Errors
    /// The daemon still routes new connections.
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

    /// Limits the daemon to descriptors up to the highest open one. Then connects until none is free or the kernel
    /// refuses another connection. A session needs two descriptors: control connections use the last few, and the limit
    /// excludes the rest. Other connections should not open or close during this time.
    ///
    /// # Errors
    /// The daemon is gone, its limit cannot be set, or its table does not fill.
    fn fill(&mut self) -> io::Result<()> {
        let mut soft = 1 + open(self.guardian)?.last().copied().unwrap_or_default();
        self.limit(soft)?;
        let began = Instant::now();
        let mut left = u64::MAX;
        loop {
            let free = free_below(&open(self.guardian)?, soft);
            // A connection that used no descriptor was routed past the daemon.
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

    /// Kills the worker with SIGKILL and waits until a new worker answers on a connection of the previous one.
    ///
    /// # Errors
    /// The guardian has ended, or no other worker takes over.
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
            io::Error::new(err.kind(), format!("no worker resumed an established session ({state}): {err}"))
        })
    }

    /// Restores the limit of guardian and worker that the guardian had before.
    ///
    /// # Errors
    /// The daemon is gone.
    fn restore(&mut self) -> io::Result<()> {
        let Some(before) = self.before.take() else { return Ok(()) };
        self.processes().into_iter().try_for_each(|pid| restore(pid, before))
    }

    /// Returns how many connections it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Sends a question on each connection, and returns a sentence for each that does not answer.
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

    /// Connects to the daemon's control socket and sends nothing. The guardian keeps the connection for two seconds.
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

    /// Returns the guardian first, because a worker that starts now inherits the guardian's limit.
    fn processes(&self) -> Vec<u32> {
        std::iter::once(self.guardian).chain(find_worker(self.guardian)).collect()
    }
}

fn answers(mut stream: &TcpStream) -> io::Result<()> {
    const QUESTION: &[u8] = b"full?";
    stream.write_all(QUESTION)?;
    let mut answer = [0; QUESTION.len()];
    stream.read_exact(&mut answer)?;
    if answer == *QUESTION { Ok(()) } else { Err(io::Error::other("the answer differs from the question")) }
}
