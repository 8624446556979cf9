//! A server that echoes every message, and closes when its client does.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::event::epoll::EventFlags;

use super::poll::{Poll, Table, key};
use super::worker::{Stop, Worker};
use crate::host::Host;

/// The server. Dropping it ends its connections.
#[derive(Debug)]
pub struct Echo {
    _worker: Worker<()>,
}

impl Echo {
    /// Listens on an address of `host`.
    pub fn start(host: &Host, address: SocketAddr) -> Self {
        let listener = host.listen(address);
        Self { _worker: Worker::start(host, move |stop| serve(&listener, &stop)) }
    }
}

fn serve(listener: &TcpListener, stop: &Stop) {
    listener.set_nonblocking(true).unwrap_or_else(|err| panic!("a listener that does not wait: {err}"));
    let (mut poll, mut streams) = (Poll::new(), Table::new());
    poll.add(listener, EventFlags::IN);
    while !stop.is_set() {
        let ready: Vec<_> = poll.ready().collect();
        for socket in ready {
            if socket == key(listener) {
                accept_all(listener, &poll, &mut streams);
            } else if streams.get(socket).is_some_and(|stream| answer(stream).is_none()) {
                streams.take(socket);
            }
        }
    }
}

fn accept_all(listener: &TcpListener, poll: &Poll, streams: &mut Table<TcpStream>) {
    while let Ok((stream, _)) = listener.accept() {
        // If the connection is already gone, the next read reports it.
        let _ = stream.set_nonblocking(true);
        let _ = stream.set_nodelay(true);
        poll.add(&stream, EventFlags::IN);
        streams.put(key(&stream), stream);
    }
}

/// Echoes the available bytes. Returns `None` when the connection is over.
fn answer(stream: &mut TcpStream) -> Option<()> {
    let mut message = [0; 4 << 10];
    match stream.read(&mut message) {
        Ok(0) => None,
        Ok(read) => stream.write_all(&message[..read]).ok(),
        Err(err) => (err.kind() == std::io::ErrorKind::WouldBlock).then_some(()),
    }
}
