//! Bulk streams from the server to the client, as fast as possible.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::host::Host;

/// The size of iperf3's reads and writes.
const CHUNK: usize = 128 << 10;

/// Connections on which the server sends continuously and the client reads, with one thread per end. Dropping it closes
/// them.
#[derive(Debug)]
pub struct Bulk {
    bytes: Arc<AtomicU64>,
    streams: Vec<Arc<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
}

impl Bulk {
    /// Opens `streams` connections from `client` to `address` of `server`.
    pub fn start(client: &Host, server: &Host, address: SocketAddr, streams: usize) -> Self {
        let listener = server.listen(address);
        let mut bulk = Self { bytes: Arc::default(), streams: Vec::new(), threads: Vec::new() };
        for _ in 0..streams {
            let near = client.connect(address);
            let near = near.unwrap_or_else(|err| panic!("a bulk stream from {client} to {address}: {err}"));
            let (far, _) = listener.accept().unwrap_or_else(|err| panic!("{server}: {err}"));
            bulk.carry(far, near);
        }
        bulk
    }

    fn carry(&mut self, from: TcpStream, to: TcpStream) {
        let (from, to, bytes) = (Arc::new(from), Arc::new(to), Arc::clone(&self.bytes));
        self.streams.extend([Arc::clone(&from), Arc::clone(&to)]);
        self.threads.push(std::thread::spawn(move || send_all(&from)));
        self.threads.push(std::thread::spawn(move || read_all(&to, &bytes)));
    }

    /// Returns how many bytes have arrived so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how many ends have finished; none should.
    pub fn ended(&self) -> usize {
        self.threads.iter().filter(|thread| thread.is_finished()).count()
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        for stream in &self.streams {
            // The shutdown fails if the connection is already gone, which is fine.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn send_all(mut stream: &TcpStream) {
    let chunk = vec![0; CHUNK];
    while stream.write_all(&chunk).is_ok() {}
}

fn read_all(mut stream: &TcpStream, bytes: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read) = stream.read(&mut chunk)
        && read > 0
    {
        bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}
