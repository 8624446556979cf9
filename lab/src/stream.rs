//! Byte streams with known content. SHA-256 compares the sent bytes with the received ones.
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A small pseudo-random generator (splitmix64): the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which must not be 0.
    pub const fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.next().to_le_bytes()[..eight.len()]);
        }
    }
}

/// The pattern in which a stream is written or read.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The largest size of a chunk in bytes; sizes are random.
    pub chunk: usize,
    /// One chunk in this many is followed by a pause; 0 means no pauses.
    pub pause_every: usize,
    /// The longest pause; lengths are random.
    pub pause: Duration,
}

impl Pace {
    /// As fast as possible.
    pub const FULL: Self = Self { chunk: 256 << 10, pause_every: 0, pause: Duration::ZERO };
    /// Chunks of random size, with an occasional pause.
    pub const UNEVEN: Self = Self { chunk: 96 << 10, pause_every: 64, pause: Duration::from_millis(3) };

    fn rest(self, random: &mut Random) {
        if self.pause_every > 0 && random.below(self.pause_every) == 0 {
            let longest = usize::try_from(self.pause.as_micros()).unwrap_or(usize::MAX).max(1);
            std::thread::sleep(Duration::from_micros(random.below(longest) as u64));
        }
    }
}

/// The bytes that one end of one direction has sent or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The number of bytes.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Sends `bytes` bytes generated from `seed`. Does not shut the stream down.
pub fn send(stream: &TcpStream, seed: u64, bytes: u64, pace: Pace) -> io::Result<Sum> {
    send_some(stream, seed, bytes, pace, || true)
}

/// Sends bytes generated from `seed` while `go_on` returns true. Does not shut the stream down.
pub fn send_while(stream: &TcpStream, seed: u64, pace: Pace, go_on: impl FnMut() -> bool) -> io::Result<Sum> {
    send_some(stream, seed, u64::MAX, pace, go_on)
}

fn send_some(
    mut stream: &TcpStream,
    seed: u64,
    most: u64,
    pace: Pace,
    mut go_on: impl FnMut() -> bool,
) -> io::Result<Sum> {
    let (mut content, mut whim) = (Random::new(seed), Random::new(!seed));
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; pace.chunk]);
    let mut sent = 0;
    while sent < most && go_on() {
        let size = (1 + whim.below(pace.chunk) as u64).min(most - sent);
        let chunk = &mut chunk[..usize::try_from(size).unwrap_or(usize::MAX)];
        content.fill(chunk);
        hash.update(&*chunk);
        stream.write_all(chunk)?;
        sent += size;
        pace.rest(&mut whim);
    }
    Ok(sum(sent, hash))
}

/// Reads to the end of the stream and returns the sum of the received bytes.
pub fn receive(mut stream: &TcpStream, pace: Pace) -> io::Result<Sum> {
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; pace.chunk]);
    let mut whim = Random::new(pace.chunk as u64);
    let mut bytes = 0;
    loop {
        let size = 1 + whim.below(pace.chunk);
        let read = stream.read(&mut chunk[..size])?;
        if read == 0 {
            return Ok(sum(bytes, hash));
        }
        hash.update(&chunk[..read]);
        bytes += read as u64;
        pace.rest(&mut whim);
    }
}

/// Sends `bytes` bytes in each direction at the same time. Each side closes its direction when it is done. Panics
/// unless both arrive intact.
pub fn exchange(client: &TcpStream, server: &TcpStream, bytes: u64, pace: Pace) {
    try_exchange(client, server, bytes, pace).unwrap_or_else(|err| panic!("{err}"));
}

/// Sends `bytes` bytes in each direction at the same time. Each side closes its direction when it is done.
///
/// # Errors
/// The first failure of a direction, or the sent and the received sum if they differ.
pub fn try_exchange(client: &TcpStream, server: &TcpStream, bytes: u64, pace: Pace) -> io::Result<()> {
    std::thread::scope(|scope| {
        let give = |stream, seed| {
            move || {
                let sent = send(stream, seed, bytes, pace)?;
                stream.shutdown(Shutdown::Write)?;
                Ok::<_, io::Error>(sent)
            }
        };
        let up = (scope.spawn(give(client, 1)), scope.spawn(move || receive(server, pace)));
        let down = (scope.spawn(give(server, 2)), scope.spawn(move || receive(client, pace)));
        for (direction, (sent, received)) in [("to the server", up), ("to the client", down)] {
            let sent = ended(sent, &format!("{direction}: sending"))?;
            let received = ended(received, &format!("{direction}: receiving"))?;
            if received != sent {
                return Err(io::Error::other(format!(
                    "{direction}: {sent:?} was sent, {received:?} arrived"
                )));
            }
        }
        Ok(())
    })
}

/// Waits for the thread of one end of a direction.
fn ended(thread: ScopedJoinHandle<'_, io::Result<Sum>>, what: &str) -> io::Result<Sum> {
    let result = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    result.map_err(|err| io::Error::new(err.kind(), format!("{what}: {err}")))
}

fn sum(bytes: u64, hash: Sha256) -> Sum {
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Sum { bytes, sha256 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ip, Lab, netns, peers};

    #[test]
    fn an_exchange_that_breaks_is_an_error() {
        netns(|| {
            let lab = Lab::new();
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 80));
            let (other, _) = (near.try_clone().unwrap(), near.set_nodelay(true));
            // The router resets the connection in the middle of the transfer.
            lab.gateway.nft(
                "table inet cut { chain forward { type filter hook forward priority 0; meta l4proto tcp quota over 1 mbytes reject with tcp reset; }; }",
            );
            let failure = try_exchange(&other, &far, 64 << 20, Pace::FULL).unwrap_err();
            assert!(failure.to_string().contains("ing: "), "{failure}");
        });
    }

    #[test]
    fn the_content_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 64];
        Random::new(5).fill(&mut whole);
        let mut cut = vec![0; 64];
        let mut random = Random::new(5);
        cut.chunks_mut(16).for_each(|part| random.fill(part));
        assert_eq!(whole, cut);
    }
}
