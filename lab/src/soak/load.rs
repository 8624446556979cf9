//! The clients of a soak: all the behaviours that occur in production, concurrently and for a long time.
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::peers::{self, Server};
use lab::stream::Random;
use lab::{BOTH, Lab};

use super::kinds::{BULK, ECHO, KINDS, RESETS, SILENT, SPEAKS_FIRST, ask, resets, speaks_and_ends};
use crate::report::{Failures, Report};

/// The number of connections.
pub struct Count {
    /// All connections that the box has accepted.
    pub all: u64,
    /// The connections that ended with a FIN in both directions.
    pub in_order: u64,
}

/// The clients and the servers.
pub struct Load {
    /// The hosts on which they run.
    pub lab: Lab,
    /// The timeout of a client.
    pub patience: Duration,
    /// The server's listeners whose connections the clients' threads accept themselves.
    pub bulk: Mutex<[TcpListener; 2]>,
    _servers: Vec<Server>,
    done: [AtomicU64; KINDS.len()],
    failed: AtomicBool,
    failures: Failures,
}

impl Load {
    /// Starts the servers, without clients. Each failure of a client is added to `failures` immediately.
    pub fn new(lab: Lab, patience: Duration, failures: Failures) -> Self {
        let serve = |port, serve: fn(TcpStream) -> io::Result<()>| {
            // The reset is intended here and is no failure.
            let undaunted = move |stream| serve(stream).or(Ok(()));
            BOTH.map(|ip| Server::start(&lab.server, lab.server_at(ip, port), undaunted))
        };
        let servers = [serve(ECHO, peers::echo), serve(SPEAKS_FIRST, speaks_and_ends), serve(RESETS, resets)];
        lab.server.nft(&format!(
            "table inet silent {{ chain in {{ type filter hook input priority 0; tcp dport {SILENT} drop; }}; }}"
        ));
        let bulk = Mutex::new(BOTH.map(|ip| lab.server.listen(lab.server_at(ip, BULK))));
        let servers = servers.into_iter().flatten().collect();
        let (done, failed) = Default::default();
        Self { lab, patience, bulk, _servers: servers, done, failed, failures }
    }

    /// Runs the clients until `until` or the first failure. Calls `beside` repeatedly in the meantime.
    pub fn carry(&self, until: Instant, mut beside: impl FnMut() -> io::Result<()>) {
        std::thread::scope(|scope| {
            for (number, kind) in KINDS.iter().enumerate() {
                for thread in 0..kind.threads {
                    let random = Random::new((number * 100 + thread) as u64);
                    scope.spawn(move || self.repeat(number, random, until));
                }
            }
            while Instant::now() < until && !self.has_failed() {
                beside().unwrap_or_else(|err| self.fail(&format!("watching the daemon: {err}")));
            }
        });
    }

    fn repeat(&self, number: usize, mut random: Random, until: Instant) {
        let kind = &KINDS[number];
        while Instant::now() < until && !self.has_failed() {
            match (kind.session)(self, &mut random) {
                Ok(()) => {
                    self.done[number].fetch_add(1, Ordering::Relaxed);
                }
                Err(err) => self.fail(&format!("{}: {err}", kind.name)),
            }
        }
    }

    fn fail(&self, what: &str) {
        self.failed.store(true, Ordering::Relaxed);
        self.failures.add(what);
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn judge(&self, report: &mut Report) {
        for (kind, done) in KINDS.iter().zip(&self.done) {
            let done = done.load(Ordering::Relaxed);
            report.check(done > 0, &format!("{done:>9} {}", kind.name));
        }
        report.check(!self.has_failed(), "every connection behaved as expected");
    }

    /// Returns the number of connections so far.
    pub fn count(&self) -> Count {
        let done = self.done.iter().map(|done| done.load(Ordering::Relaxed));
        let in_order = KINDS.iter().zip(done.clone()).filter(|(kind, _)| kind.in_order).map(|(_, done)| done);
        Count { all: done.sum(), in_order: in_order.sum() }
    }

    pub fn line(&self) -> String {
        format!("{:>8} connections", self.count().all)
    }

    /// Opens `count` connections at the same time and keeps each until its thread has opened its share. Returns how
    /// many answered a question.
    pub fn rush(&self, count: usize) -> usize {
        let threads = 10;
        let some = |thread: usize| {
            let mut random = Random::new(thread as u64);
            let held: Vec<_> =
                (0..count / threads).filter_map(|_| self.connect(&mut random, ECHO).ok()).collect();
            held.iter().filter(|stream| ask(stream, 1000).is_ok()).count()
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || some(thread))).collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).sum()
        })
    }
}
