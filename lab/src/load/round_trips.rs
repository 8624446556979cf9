//! Repeated round trips of a message and its answer, on many concurrent connections.
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll::EventFlags;

use super::poll::{Poll, Table, key};
use super::worker::{Stop, Worker};
use super::{Idle, MESSAGE};
use crate::host::Host;

/// The clients. Dropping it ends their connections.
#[derive(Debug)]
pub struct RoundTrips {
    counts: Arc<Counts>,
    _worker: Worker<()>,
}

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    lost: Mutex<Vec<String>>,
}

/// A connection, and how much of the answer has arrived.
struct Asking {
    stream: TcpStream,
    answered: usize,
}

impl RoundTrips {
    /// Starts round trips on all of the connections.
    pub fn start(client: &Host, connections: Idle) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let streams = connections.into_streams();
        Self { counts, _worker: Worker::start(client, move |stop| ask(streams, &shared, &stop)) }
    }

    /// Returns how many answers have arrived so far.
    pub fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    /// Returns the errors of the connections that have failed; there should be none.
    pub fn lost(&self) -> Vec<String> {
        self.counts.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ask(streams: Vec<TcpStream>, counts: &Counts, stop: &Stop) {
    let (mut poll, mut asking) = (Poll::new(), Table::new());
    for mut stream in streams {
        let prepared = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        let asked = prepared.and_then(|()| stream.write_all(&[0; MESSAGE]));
        asked.unwrap_or_else(|err| panic!("the first message: {err}"));
        poll.add(&stream, EventFlags::IN);
        asking.put(key(&stream), Asking { stream, answered: 0 });
    }
    while !stop.is_set() {
        for socket in poll.ready() {
            match asking.get(socket).map(Asking::go_on) {
                Some(Ok(answers)) => drop(counts.done.fetch_add(answers, Ordering::Relaxed)),
                Some(Err(err)) => {
                    let ends = asking.take(socket).map(|asking| asking.stream.local_addr());
                    let mut lost = counts.lost.lock().unwrap_or_else(PoisonError::into_inner);
                    lost.push(format!("{ends:?}: {err}"));
                }
                None => {}
            }
        }
    }
}

impl Asking {
    /// Reads the available bytes, and asks again once the answer is complete. Returns the number of completed answers,
    /// 0 or 1.
    fn go_on(&mut self) -> io::Result<u64> {
        let mut answer = [0; MESSAGE];
        match self.stream.read(&mut answer[self.answered..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.answered += read,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
        if self.answered < MESSAGE {
            return Ok(0);
        }
        self.answered = 0;
        self.stream.write_all(&answer)?;
        Ok(1)
    }
}
