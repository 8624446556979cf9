//! Connections that are opened, asked once and closed by the client, as fast as they can be, and those that fail.
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

/// What has not succeeded after this time has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client address uses these ports by turns. At 10,000 connections a second from 16 addresses each port's turn comes
/// again after three seconds; one is enough for the client's own kernel (`tcp_tw_reuse`).
const PORTS: std::ops::Range<u16> = 2_000..4_000;

/// Clients that connect, ask and close.
#[derive(Debug)]
pub struct Connects {
    done: Arc<AtomicU64>,
    worker: Worker<Outcome>,
}

/// What became of all connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answered.
    pub done: u64,
    /// Refused, reset, ended too early, or not answered in time.
    pub failed: u64,
    /// The first few failures, as the kernel told them.
    pub why: Vec<String>,
}

impl Connects {
    /// Keeps `at_once` connections open from the addresses `from` of `client`, which take turns, to an [`super::Echo`].
    pub fn start(client: &Host, from: Vec<IpAddr>, to: SocketAddr, at_once: usize) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        let worker = Worker::start(client, move |stop| {
            let tuples = Tuples { from, to, next: 0 };
            Clients { tuples, count, poll: Poll::new(), open: Table::new(), outcome: Outcome::default() }
                .run(at_once, &stop)
        });
        Self { done, worker }
    }

    /// How many have been answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Opens no more, waits for those that are open, and tells what became of all.
    pub fn finish(self) -> Outcome {
        self.worker.finish()
    }
}

/// The addresses and ports to connect from, by turns.
struct Tuples {
    from: Vec<IpAddr>,
    to: SocketAddr,
    next: usize,
}

impl Tuples {
    /// Starts a connection from the next address and port that the client's own kernel lets be used.
    fn connect(&mut self) -> io::Result<TcpStream> {
        loop {
            let address = self.from[self.next % self.from.len()];
            let turn = self.next / self.from.len() % PORTS.len();
            self.next += 1;
            let port = PORTS.start + u16::try_from(turn).unwrap_or_default();
            match connect_from(SocketAddr::new(address, port), self.to) {
                // Still open, or in TIME_WAIT for less than a second: any client takes another port then.
                Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(err) if err.kind() == io::ErrorKind::AddrInUse => {}
                other => return other,
            }
        }
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
    count: Arc<AtomicU64>,
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

    /// Opens one more; whether it could be begun.
    fn connect(&mut self) -> bool {
        match self.tuples.connect() {
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
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Err(err) => self.outcome.fail(&err),
        }
    }

    /// Closes those that have waited too long, and opens others unless it is time to stop: how many fewer are open.
    fn give_up(&mut self, stopping: bool) -> usize {
        let late = self.open.iter().filter(|client| client.since.elapsed() > PATIENCE);
        let late: Vec<_> = late.map(|client| key(&client.stream)).collect();
        let timed_out = || Err(io::ErrorKind::TimedOut.into());
        late.iter().for_each(|socket| self.close(*socket, timed_out()));
        late.iter().filter(|_| stopping || !self.connect()).count()
    }
}

impl Client {
    /// Asks when connected, reads when asked; whether the answer is whole.
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
