//! Streams that carry as much as they can, from the server to the client.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::host::Host;
use crate::peers::Server;

/// What iperf3 reads and writes at once.
const CHUNK: usize = 128 << 10;

/// A server that sends without end on every connection, a thread each.
#[derive(Debug)]
pub struct Flood {
    _server: Server,
}

impl Flood {
    /// Listens on an address of `host`.
    pub fn start(host: &Host, address: SocketAddr) -> Self {
        Self { _server: Server::start(host, address, flood) }
    }
}

fn flood(mut stream: TcpStream) -> std::io::Result<()> {
    let chunk = vec![0; CHUNK];
    // The client ends it, whichever way.
    while stream.write_all(&chunk).is_ok() {}
    Ok(())
}

/// Connections of a client that read all they get, a thread each; closed when dropped.
#[derive(Debug)]
pub struct Bulk {
    bytes: Arc<AtomicU64>,
    streams: Vec<Arc<TcpStream>>,
    readers: Vec<JoinHandle<()>>,
}

impl Bulk {
    /// Opens `streams` connections from `client` to a [`Flood`].
    pub fn start(client: &Host, to: SocketAddr, streams: usize) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let connect = |_| {
            let stream = client.connect(to);
            Arc::new(stream.unwrap_or_else(|err| panic!("a bulk stream from {client} to {to}: {err}")))
        };
        let streams: Vec<_> = (0..streams).map(connect).collect();
        let read = |stream: &Arc<TcpStream>| {
            let (stream, bytes) = (Arc::clone(stream), Arc::clone(&bytes));
            std::thread::spawn(move || read_all(&stream, &bytes))
        };
        let readers = streams.iter().map(read).collect();
        Self { bytes, streams, readers }
    }

    /// How many bytes have arrived so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many streams have ended, which none should.
    pub fn ended(&self) -> usize {
        self.readers.iter().filter(|reader| reader.is_finished()).count()
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        for stream in &self.streams {
            // One that is gone already needs none.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

fn read_all(mut stream: &TcpStream, bytes: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read) = stream.read(&mut chunk)
        && read > 0
    {
        bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}
