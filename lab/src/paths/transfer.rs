//! One connection between the client and the server, and its progress over time.
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::stream::Random;
use lab::{Ip, Pair, peers};
use sha2::{Digest, Sha256};

const CHUNK: usize = 64 << 10;
/// The interval over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// The direction of the transfer, by its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The server sends.
    Down,
    /// The client sends.
    Up,
}

/// The amount to send.
#[derive(Debug, Clone, Copy)]
pub enum Amount<'a> {
    /// A number of bytes.
    Bytes(u64),
    /// Until the flag is set.
    Until(&'a AtomicBool),
}

/// The progress: how many bytes had arrived at each time.
#[derive(Debug)]
pub struct Course {
    start: Instant,
    came: Vec<(Instant, u64)>,
    /// Whether the received bytes equal the sent ones.
    pub whole: bool,
}

/// Transfers in one direction. The receiver closes its direction last, because the kernel adds no path to a connection
/// of which one direction has ended.
pub fn transfer(pair: &Pair, ip: Ip, way: Way, amount: Amount<'_>, during: impl FnOnce()) -> Course {
    let start = Instant::now();
    let (client, server, _) = peers::pair(&pair.client, &pair.server, pair.server_at(ip, 8000));
    let (from, to) = if way == Way::Up { (client, server) } else { (server, client) };
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || send(&from, amount));
        let came = scope.spawn(move || receive(&to));
        during();
        let sent = sent.join().ok().and_then(Result::ok);
        let (came, hash) = came.join().ok().and_then(Result::ok).unwrap_or_default();
        Course { start, whole: sent.is_some_and(|sent| sent == hash), came }
    })
}

fn send(mut stream: &TcpStream, amount: Amount<'_>) -> io::Result<Vec<u8>> {
    let (mut hash, mut chunk, mut random) = (Sha256::new(), vec![0; CHUNK], Random::new(1));
    let mut sent = 0_u64;
    random.fill(&mut chunk);
    loop {
        let left = match amount {
            Amount::Bytes(bytes) => bytes - sent,
            Amount::Until(over) if over.load(Ordering::Relaxed) => 0,
            Amount::Until(_) => CHUNK as u64,
        };
        if left == 0 {
            stream.shutdown(Shutdown::Write)?;
            // Keep the connection open until the other end has received everything.
            stream.read_exact(&mut [0; 1]).or(Ok::<_, io::Error>(()))?;
            return Ok(hash.finalize().to_vec());
        }
        chunk[..8].copy_from_slice(&random.next().to_le_bytes());
        let part = &chunk[..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        hash.update(part);
        stream.write_all(part)?;
        sent += part.len() as u64;
    }
}

type Came = (Vec<(Instant, u64)>, Vec<u8>);

fn receive(mut stream: &TcpStream) -> io::Result<Came> {
    let (mut hash, mut chunk, mut came, mut bytes) = (Sha256::new(), vec![0; CHUNK], Vec::new(), 0);
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok((came, hash.finalize().to_vec()));
        }
        hash.update(&chunk[..read]);
        bytes += read as u64;
        came.push((Instant::now(), bytes));
    }
}

impl Course {
    /// Returns the rate in Mbit/s, from the client's SYN to the last byte.
    pub fn rate(&self) -> f64 {
        let Some((end, bytes)) = self.came.last() else { return 0.0 };
        mbit(*bytes, *end - self.start)
    }

    /// Returns the longest time without an arriving byte.
    pub fn longest_stall(&self) -> Duration {
        self.came.windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or_default()
    }

    /// Returns how long after `moment` the first second begins in which the rate is at least `mbit_s` Mbit/s.
    pub fn back_to(&self, mbit_s: f64, moment: Instant) -> Option<Duration> {
        let from = self.came.partition_point(|(at, _)| *at < moment);
        let fast = |(at, bytes): &&(Instant, u64)| {
            let after = self.came.partition_point(|(later, _)| *later < *at + WINDOW);
            self.came.get(after).is_some_and(|(_, then)| mbit(then - bytes, WINDOW) >= mbit_s)
        };
        self.came[from..].iter().find(fast).map(|(at, _)| *at - moment)
    }
}

fn mbit(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / time.as_secs_f64()
}
