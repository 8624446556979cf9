//! Connections that the client opens, uses for one question and closes, as fast as possible; and the failed ones.
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::MESSAGE;
use super::poll::{Poll, Table, key};
use super::worker::{Stop, Worker};
use crate::host::Host;

/// The timeout of a connection; after it the connection counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first port that the clients use.
const FIRST_PORT: u16 = 2_000;

/// Clients that connect, ask once and close.
#[derive(Debug)]
pub struct Connects {
    progress: Arc<Progress>,
    worker: Worker<Outcome>,
}

#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    turns: AtomicU64,
}

/// The results of all connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Connections that were answered.
    pub done: u64,
    /// Connections that were refused, reset, ended too early, or not answered in time.
    pub failed: u64,
    /// The first few failures, with the kernel's error text.
    pub why: Vec<String>,
}

impl Connects {
    /// Keeps `at_once` connections open from `client` to an [`super::Echo`]. They rotate through all addresses, and
    /// through the given number of ports of each.
    pub fn start(client: &Host, from: (Vec<IpAddr>, u16), to: SocketAddr, at_once: usize) -> Self {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let (addresses, ports) = from;
        let worker = Worker::start(client, move |stop| {
            let tuples = Tuples { addresses, ports: ports.into(), to, next: 0 };
            let (poll, open, outcome) = (Poll::new(), Table::new(), Outcome::default());
            Clients { tuples, progress: shared, poll, open, outcome }.run(at_once, &stop)
        });
        Self { progress, worker }
    }

    /// Returns how many have been answered so far.
    pub fn done(&self) -> u64 {
        self.progress.done.load(Ordering::Relaxed)
    }

    /// Returns how often every address and port has been used.
    pub fn turns(&self) -> u64 {
        self.progress.turns.load(Ordering::Relaxed)
    }

    /// Opens no more connections, waits for the open ones, and returns the results.
    pub fn finish(self) -> Outcome {
        self.worker.finish()
    }
}

/// The addresses and ports to connect from, in rotation.
struct Tuples {
    addresses: Vec<IpAddr>,
    ports: usize,
    to: SocketAddr,
    next: usize,
}

impl Tuples {
    /// Starts a connection from the next address and port that the client's own kernel allows.
    fn connect(&mut self) -> io::Result<TcpStream> {
        loop {
            let address = self.addresses[self.next % self.addresses.len()];
            let nth = self.next / self.addresses.len() % self.ports;
            self.next += 1;
            let port = FIRST_PORT + u16::try_from(nth).unwrap_or_else(|_| unreachable!("less than a u16"));
            match connect_from(SocketAddr::new(address, port), self.to) {
                // The port is still in use, or in TIME_WAIT for less than a second. Take the next one, as any client
                // does.
                Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => {}
                other => return other,
            }
        }
    }

    fn turns(&self) -> u64 {
        (self.next / self.addresses.len() / self.ports) as u64
    }
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    match socket.connect(&to.into()) {
        Err(err) if err.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(err),
        _ => Ok(socket.into()),
    }
}

struct Client {
    stream: TcpStream,
    since: Instant,
    asked: bool,
    answered: usize,
}

struct Clients {
    tuples: Tuples,
    progress: Arc<Progress>,
    poll: Poll,
    open: Table<Client>,
    outcome: Outcome,
}

impl Clients {
    fn run(mut self, at_once: usize, stop: &Stop) -> Outcome {
        let mut open = (0..at_once).filter(|_| self.connect()).count();
        let mut looked = Instant::now();
        while open > 0 {
            let ready: Vec<_> = self.poll.ready().collect();
            for socket in ready {
                let over = match self.open.get(socket).map(|client| client.go_on(&self.poll)) {
                    None | Some(Ok(false)) => continue,
                    Some(Ok(true)) => Ok(()),
                    Some(Err(err)) => Err(err),
                };
                self.close(socket, over);
                open -= usize::from(stop.is_set() || !self.connect());
            }
            if looked.elapsed() > PATIENCE / 10 {
                looked = Instant::now();
                open -= self.give_up(stop.is_set());
            }
        }
        self.outcome
    }

    /// Opens one more connection. Returns whether it could be started.
    fn connect(&mut self) -> bool {
        let connecting = self.tuples.connect();
        self.progress.turns.store(self.tuples.turns(), Ordering::Relaxed);
        match connecting {
            Ok(stream) => {
                self.poll.add(&stream, EventFlags::OUT);
                let client = Client { stream, since: Instant::now(), asked: false, answered: 0 };
                self.open.put(key(&client.stream), client);
                true
            }
            Err(err) => {
                self.outcome.fail(&err);
                false
            }
        }
    }

    fn close(&mut self, socket: usize, over: io::Result<()>) {
        self.open.take(socket);
        match over {
            Ok(()) => {
                self.outcome.done += 1;
                self.progress.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(err) => self.outcome.fail(&err),
        }
    }

    /// Closes connections that have timed out, and replaces them unless `stopping`. Returns by how many the number of
    /// open ones falls.
    fn give_up(&mut self, stopping: bool) -> usize {
        let late = self.open.iter().filter(|client| client.since.elapsed() > PATIENCE);
        let late: Vec<_> = late.map(|client| key(&client.stream)).collect();
        let timed_out = || Err(io::ErrorKind::TimedOut.into());
        late.iter().for_each(|socket| self.close(*socket, timed_out()));
        late.iter().filter(|_| stopping || !self.connect()).count()
    }
}

impl Client {
    /// Sends the question once connected, then reads the answer. Returns whether the answer is complete.
    fn go_on(&mut self, poll: &Poll) -> io::Result<bool> {
        if !self.asked {
            self.stream.take_error()?.map_or(Ok(()), Err)?;
            self.stream.write_all(&[0; MESSAGE])?;
            self.asked = true;
            poll.change(&self.stream, EventFlags::IN);
            return Ok(false);
        }
        match self.stream.read(&mut [0; MESSAGE]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.answered += read,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
        Ok(self.answered >= MESSAGE)
    }
}

impl Outcome {
    const EXAMPLES: usize = 3;

    fn fail(&mut self, err: &io::Error) {
        self.failed += 1;
        if self.why.len() < Self::EXAMPLES {
            self.why.push(err.to_string());
        }
    }
}
