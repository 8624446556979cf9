//! Connections that are used once and then stay idle.
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::MESSAGE;
use crate::host::Host;

/// Attempts per connection. A proxy may lose a connection occasionally. Another measurement counts the losses; they
/// must not end this one.
const ATTEMPTS: usize = 3;

/// Open connections. Dropping it closes them.
#[derive(Debug, Default)]
pub struct Idle(Vec<TcpStream>);

impl Idle {
    /// Opens connections until there are `count`, from the addresses `from` of `client` in rotation, to an
    /// [`super::Echo`]. Each has completed one round trip.
    pub fn grow(&mut self, client: &Host, from: &[IpAddr], to: SocketAddr, count: usize) {
        let opened = client.enter(|| {
            let more = (self.0.len()..count).map(|n| open(from[n % from.len()], to));
            more.collect::<io::Result<Vec<_>>>()
        });
        let opened = opened.unwrap_or_else(|err| panic!("an idle connection from {client} to {to}: {err}"));
        self.0.extend(opened);
    }

    /// Returns the connections.
    pub(super) fn into_streams(self) -> Vec<TcpStream> {
        self.0
    }
}

fn open(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let mut opened = try_open(from, to);
    for _ in 1..ATTEMPTS {
        opened = opened.or_else(|err| {
            eprintln!("a connection from {from} to {to} is opened again: {err}");
            try_open(from, to)
        });
    }
    opened
}

fn try_open(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&[0; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])?;
    Ok(stream)
}
