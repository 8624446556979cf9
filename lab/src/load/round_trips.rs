//! A message and its answer, again and again, on many connections at once.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::epoll::EventFlags;

use super::MESSAGE;
use super::poll::{Poll, Table, key};
use super::worker::{Stop, Worker};
use crate::host::Host;

/// Connections that have not asked yet.
#[derive(Debug)]
pub struct Silent {
    client: Host,
    streams: Vec<TcpStream>,
}

/// The clients; their connections end with it.
#[derive(Debug)]
pub struct RoundTrips {
    counts: Arc<Counts>,
    _worker: Worker<()>,
}

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    lost: AtomicU64,
}

/// A connection, and how much of the answer has come.
struct Asking {
    stream: TcpStream,
    answered: usize,
}

impl Silent {
    /// Opens `connections` from `client` to an [`super::Echo`].
    pub fn open(client: &Host, to: SocketAddr, connections: usize) -> Self {
        let connect = |_| {
            let stream = client.connect(to);
            stream.unwrap_or_else(|err| panic!("a connection from {client} to {to}: {err}"))
        };
        Self { client: client.clone(), streams: (0..connections).map(connect).collect() }
    }

    /// Asks on all of them from now on.
    pub fn ask(self) -> RoundTrips {
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        RoundTrips {
            counts,
            _worker: Worker::start(&self.client, move |stop| ask(self.streams, &shared, &stop)),
        }
    }
}

impl RoundTrips {
    /// How many answers have come so far.
    pub fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    /// How many connections have broken, which none should.
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
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
                Some(Err(_)) => {
                    asking.take(socket);
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            }
        }
    }
}

impl Asking {
    /// Reads what has come, and asks again when the answer is whole: how many have become so, none or one.
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
