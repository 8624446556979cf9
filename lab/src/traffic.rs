//! Concurrent connections of every kind, with every byte checked at both ends, while a test disturbs the box between
//! them.
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::peers::{self, Server};
use crate::stream::{self, Pace, Random, Sum};

/// Stack size of a thread. Two thousand threads of the default size would take 16 GiB of address space.
const STACK: usize = 256 << 10;
/// A peer that has received nothing for this time counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// The amount of each kind of traffic.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Sessions that carry bytes in both directions all the time.
    pub bulk: usize,
    /// Sessions that send a question from time to time.
    pub interactive: usize,
    /// Threads that repeatedly connect, ask once and close.
    pub connecting: usize,
    /// Sessions that ask every few milliseconds, which detects the shortest pause.
    pub pulses: usize,
}

/// The mode of the threads that connect repeatedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connecting {
    /// They connect, and each connection must be answered.
    Strict,
    /// They connect, and a connection may be reset, because the box has no descriptor for it.
    Lenient,
    /// They wait.
    Paused,
}

/// The state that the connecting threads share.
#[derive(Debug, Default)]
struct Connectors {
    mode: AtomicU8,
    busy: AtomicUsize,
    connected: AtomicU64,
    turned_away: AtomicU64,
}

/// Running traffic.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
    connectors: Arc<Connectors>,
    pauses: Arc<Vec<AtomicU64>>,
    threads: Vec<Running>,
    _servers: Vec<Server>,
}

/// A thread of the load, with the name of what it does.
struct Running {
    what: String,
    thread: JoinHandle<()>,
}

/// The result of the traffic.
#[derive(Debug)]
pub struct Outcome {
    /// One sentence for each session that failed.
    pub failures: Vec<String>,
    /// Connections that were opened and closed in the meantime.
    pub connected: u64,
}

impl Traffic {
    /// Starts traffic between `client` and `server`, to the server's addresses `at`, on ports 9001 to 9003.
    pub fn start(client: &Host, server: &Host, at: &[SocketAddr], amount: Amount) -> Self {
        let to = |port| at.iter().map(move |addr| SocketAddr::new(addr.ip(), port)).collect::<Vec<_>>();
        let echoes = to(9001).into_iter().map(|at| Server::start(server, at, peers::echo));
        let mut traffic = Self::idle(amount.pulses, echoes.collect());
        let (bulk, echo) = (to(9002), to(9001));
        let listeners: Vec<Arc<TcpListener>> = bulk.iter().map(|at| Arc::new(server.listen(*at))).collect();
        for n in 0..amount.bulk {
            let which = n % bulk.len();
            let near = connect(client, bulk[which]);
            let (far, _) = listeners[which].accept().unwrap_or_else(|err| panic!("{server}: {err}"));
            traffic.carry(n, near, far);
        }
        for n in 0..amount.interactive {
            let stream = connect(client, echo[n % echo.len()]);
            traffic.ask(format!("interactive {n}"), n as u64, stream, Duration::from_secs(1), None);
        }
        for n in 0..amount.pulses {
            let stream = connect(client, echo[n % echo.len()]);
            traffic.ask(format!("pulse {n}"), n as u64, stream, Duration::from_millis(4), Some(n));
        }
        for n in 0..amount.connecting {
            traffic.connect_all_the_time(n, client, echo[n % echo.len()]);
        }
        traffic
    }

    /// Returns an instance without traffic.
    fn idle(pulses: usize, servers: Vec<Server>) -> Self {
        Self {
            stop: Arc::default(),
            failures: Arc::default(),
            connectors: Arc::default(),
            pauses: Arc::new((0..pulses).map(|_| AtomicU64::new(0)).collect()),
            threads: Vec::new(),
            _servers: servers,
        }
    }

    /// Returns the longest wait for an answer of each pulse since the previous call.
    pub fn pauses(&self) -> Vec<Duration> {
        self.pauses.iter().map(|pause| Duration::from_micros(pause.swap(0, Ordering::Relaxed))).collect()
    }

    /// Returns how many connections have been opened and closed so far.
    pub fn connected(&self) -> u64 {
        self.connectors.connected.load(Ordering::Relaxed)
    }

    /// Returns how many connections were reset while that was allowed.
    pub fn turned_away(&self) -> u64 {
        self.connectors.turned_away.load(Ordering::Relaxed)
    }

    /// Sets the mode of the connecting threads. Returns when those that must pause have paused.
    pub fn connecting(&self, connecting: Connecting) {
        self.connectors.mode.store(connecting as u8, Ordering::SeqCst);
        while connecting == Connecting::Paused && self.connectors.busy.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends every session in order and checks all of them.
    pub fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let panicked: Vec<_> = self.threads.into_iter().filter_map(Running::panicked).collect();
        let mut failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        failures.extend(panicked);
        Outcome { failures, connected: self.connectors.connected.load(Ordering::Relaxed) }
    }

    fn spawn(&mut self, what: String, work: impl FnOnce(&AtomicBool) -> io::Result<()> + Send + 'static) {
        let (stop, failures) = (Arc::clone(&self.stop), Arc::clone(&self.failures));
        let (began, name) = (Instant::now(), what.clone());
        let work = move || {
            if let Err(err) = work(&stop) {
                let failure = format!("{what}, {:.3} s after it began: {err}", began.elapsed().as_secs_f64());
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        };
        // Where a panic aborts, only its message remains; it contains the thread's name.
        let thread = thread::Builder::new().name(name.clone()).stack_size(STACK).spawn(work);
        let thread = thread.unwrap_or_else(|err| panic!("cannot start a thread for {name}: {err}"));
        self.threads.push(Running { what: name, thread });
    }

    /// Sends from both ends and checks the received bytes.
    fn carry(&mut self, n: usize, near: TcpStream, far: TcpStream) {
        let (near, far) = (Arc::new(near), Arc::new(far));
        for (way, from, to) in
            [("up", Arc::clone(&near), Arc::clone(&far)), ("down", Arc::clone(&far), Arc::clone(&near))]
        {
            let (tell, told) = channel();
            let seed = 2 * n as u64 + u64::from(way == "up");
            self.spawn(format!("bulk {n} {way}, sending"), move |stop| {
                let sum = give(&from, seed, stop)?;
                let _ = tell.send(sum);
                Ok(())
            });
            self.spawn(format!("bulk {n} {way}, receiving"), move |_| check(&to, &told));
        }
    }

    fn ask(&mut self, what: String, seed: u64, stream: TcpStream, rest: Duration, pulse: Option<usize>) {
        let pauses = Arc::clone(&self.pauses);
        self.spawn(what, move |stop| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            let mut random = Random::new(seed);
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                question(&stream, &mut random)?;
                if let Some(n) = pulse {
                    pauses[n].fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
                }
                let longest = rest.as_micros() as usize;
                thread::sleep(Duration::from_micros((longest / 2 + random.below(longest)) as u64));
            }
            finish(&stream)
        });
    }

    fn connect_all_the_time(&mut self, n: usize, client: &Host, to: SocketAddr) {
        let connectors = Arc::clone(&self.connectors);
        let (client, mut random) = (client.clone(), Random::new(n as u64));
        self.spawn(format!("connecting {n}"), move |stop| {
            // The thread stays in the client's namespace.
            client.enter(|| {
                while !stop.load(Ordering::Relaxed) {
                    connectors.connect(|| {
                        let stream = TcpStream::connect(to)?;
                        stream.set_read_timeout(Some(PATIENCE))?;
                        question(&stream, &mut random)?;
                        finish(&stream)
                    })?;
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        });
    }
}

impl Connectors {
    /// Opens one connection, unless the mode is paused, and counts its result.
    fn connect(&self, connection: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        let result = match self.mode() {
            Connecting::Paused => Ok(()),
            before => match connection() {
                Ok(()) => {
                    self.connected.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
                Err(err) if is_turned_away(&err) && [before, self.mode()].contains(&Connecting::Lenient) => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
                Err(err) => Err(err),
            },
        };
        self.busy.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn mode(&self) -> Connecting {
        let mode = self.mode.load(Ordering::SeqCst);
        let all = [Connecting::Strict, Connecting::Lenient, Connecting::Paused];
        all.into_iter().find(|one| *one as u8 == mode).unwrap_or(Connecting::Strict)
    }
}

/// Returns whether the connection was reset. A timeout and an orderly close do not count.
fn is_turned_away(err: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    matches!(err.kind(), BrokenPipe | ConnectionRefused | ConnectionReset)
}

impl Running {
    /// Waits for the thread to end, and returns a sentence about its panic if it panicked.
    fn panicked(self) -> Option<String> {
        let panic = self.thread.join().err()?;
        let text = panic.downcast_ref::<&str>().copied();
        let message = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Some(format!("{}: its thread panicked: {}", self.what, message.unwrap_or("no message")))
    }
}

fn connect(client: &Host, to: SocketAddr) -> TcpStream {
    client.connect(to).unwrap_or_else(|err| panic!("{client} to {to}: {err}"))
}

/// Sends bytes generated from `seed` until `stop` is set, and then closes its direction.
fn give(stream: &TcpStream, seed: u64, stop: &AtomicBool) -> io::Result<Sum> {
    const PACE: Pace = Pace { chunk: 32 << 10, pause_every: 1, pause: Duration::from_millis(300) };
    stream.set_write_timeout(Some(PATIENCE))?;
    let sum = stream::send_while(stream, seed, PACE, || !stop.load(Ordering::Relaxed))?;
    stream.shutdown(Shutdown::Write)?;
    Ok(sum)
}

fn check(stream: &TcpStream, told: &Receiver<Sum>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let came = stream::receive(stream, Pace::FULL)?;
    match told.recv() {
        Ok(sent) if sent == came => Ok(()),
        Ok(sent) => Err(io::Error::other(format!("{sent:?} was sent, and {came:?} came"))),
        Err(_) => {
            Err(io::Error::other(format!("received {came:?}, but the sender ended without a checksum")))
        }
    }
}

/// Sends a question and waits for exactly the same bytes.
fn question(mut stream: &TcpStream, random: &mut Random) -> io::Result<()> {
    let mut asked = vec![0; 1 + random.below(200)];
    random.fill(&mut asked);
    stream.write_all(&asked)?;
    let mut answer = vec![0; asked.len()];
    stream.read_exact(&mut answer)?;
    if answer == asked { Ok(()) } else { Err(io::Error::other("the answer differs from the question")) }
}

fn finish(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more bytes came back than were sent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ip, Lab, netns};

    #[test]
    fn a_thread_that_panics_is_a_failure() {
        let mut traffic = Traffic::idle(0, Vec::new());
        traffic.spawn("panics with a literal".to_owned(), |_| panic!("broken"));
        traffic.spawn("panics with a value".to_owned(), |_| panic!("broken {}", 7));
        traffic.spawn("fails".to_owned(), |_| Err(io::Error::other("not well")));
        traffic.spawn("succeeds".to_owned(), |_| Ok(()));
        let failures = traffic.end().failures;
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert!(failures[0].starts_with("fails, ") && failures[0].ends_with(": not well"), "{failures:?}");
        assert_eq!(
            failures[1..],
            [
                "panics with a literal: its thread panicked: broken",
                "panics with a value: its thread panicked: broken 7"
            ]
        );
    }

    #[test]
    fn a_connection_that_is_reset_fails_unless_that_is_allowed() {
        let traffic = Traffic::idle(0, Vec::new());
        let failing = |kind: io::ErrorKind| traffic.connectors.connect(|| Err(kind.into())).is_err();
        assert!(failing(io::ErrorKind::ConnectionReset));
        traffic.connecting(Connecting::Lenient);
        assert!(!failing(io::ErrorKind::ConnectionReset));
        assert!(failing(io::ErrorKind::TimedOut) && failing(io::ErrorKind::UnexpectedEof));
        traffic.connecting(Connecting::Paused);
        traffic.connectors.connect(|| panic!("it is paused")).unwrap();
        traffic.connecting(Connecting::Strict);
        assert!(failing(io::ErrorKind::ConnectionReset));
        assert_eq!((traffic.connected(), traffic.turned_away()), (0, 1));
    }

    #[test]
    fn a_receiver_whose_sender_has_vanished_fails() {
        netns(|| {
            let lab = Lab::new();
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 80));
            (&near).write_all(b"all that was sent").unwrap();
            drop(near);
            let (tell, told) = channel();
            drop(tell);
            let failure = check(&far, &told).unwrap_err().to_string();
            assert!(failure.contains("bytes: 17") && failure.contains("without a checksum"), "{failure}");
        });
    }
}
