//! Transfers one object as a client does: from connect() on, up to the time limit.
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::results::{Object, Outcome, Trace};
use super::stage::{DOWN, REQUEST, Stage, UP, content};
use super::watch::watch;

const CHUNK: usize = 64 << 10;
/// The size in bytes of the reply that is requested for its first byte.
const SHORT_REPLY: u64 = 6;

/// Transfers `object`, for at most `cut`.
///
/// # Panics
/// The object does not arrive intact.
pub(super) fn transfer(stage: &Stage, object: Object, cut: Duration) -> Outcome {
    run(stage, object, cut, &AtomicU64::new(0))
}

/// Like [`transfer`], and traces the transfer from outside.
pub(super) fn watched(stage: &Stage, object: Object, cut: Duration) -> (Outcome, Trace) {
    let came = AtomicU64::new(0);
    let before = stage.arrived.load(Ordering::Relaxed);
    let received = || match object {
        Object::Up(_) => stage.arrived.load(Ordering::Relaxed) - before,
        _ => came.load(Ordering::Relaxed),
    };
    watch(stage, object, received, || run(stage, object, cut, &came))
}

fn run(stage: &Stage, object: Object, cut: Duration, came: &AtomicU64) -> Outcome {
    let address = stage.address(object);
    let before = stage.arrived.load(Ordering::Relaxed);
    let (outcome, time) = stage.pair.client.enter(|| {
        let start = Instant::now();
        let client = TcpStream::connect_timeout(&address, cut)
            .and_then(|stream| Client { stream, until: start + cut, came }.get(object));
        (client, start.elapsed())
    });
    let passed = match object {
        Object::Up(_) => stage.arrived.load(Ordering::Relaxed) - before,
        _ => came.load(Ordering::Relaxed),
    };
    match outcome {
        Ok(()) => Outcome::Done(time),
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && time >= cut => {
            Outcome::Cut { after: time, bytes: passed }
        }
        Err(err) => panic!("{}: {object} failed after {time:?} and {passed} bytes: {err}", stage.way),
    }
}

struct Client<'a> {
    stream: TcpStream,
    until: Instant,
    came: &'a AtomicU64,
}

impl Client<'_> {
    fn get(mut self, object: Object) -> io::Result<()> {
        match object {
            Object::Banner | Object::BannerWithoutCookie => self.read(&mut [0]).map(drop),
            Object::FirstByte => {
                self.ask(DOWN, SHORT_REPLY)?;
                self.read(&mut [0]).map(drop)
            }
            Object::Down(bytes) => {
                self.ask(DOWN, bytes)?;
                self.take(bytes as usize)
            }
            Object::Up(bytes) => {
                self.ask(UP, bytes)?;
                self.give(bytes as usize)?;
                // The server confirms the bytes, or closes without a confirmation.
                self.read(&mut [0]).map(drop)
            }
        }
    }

    fn ask(&mut self, kind: u8, bytes: u64) -> io::Result<()> {
        let mut request = [kind; REQUEST];
        request[1..].copy_from_slice(&bytes.to_le_bytes());
        self.stream.write_all(&request)
    }

    fn take(&mut self, bytes: usize) -> io::Result<()> {
        let (mut at, mut chunk) = (0, vec![0; CHUNK]);
        while at < bytes {
            let read = self.read(&mut chunk)?;
            if chunk[..read] != content()[at..at + read] {
                return Err(io::Error::other(format!(
                    "the received bytes differ from the sent ones, from byte {at}"
                )));
            }
            at += read;
            self.came.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn give(&mut self, bytes: usize) -> io::Result<()> {
        let mut left = &content()[..bytes];
        while !left.is_empty() {
            self.stream.set_write_timeout(Some(self.patience()?))?;
            let written = self.stream.write(&left[..left.len().min(CHUNK)])?;
            left = &left[written..];
        }
        Ok(())
    }

    /// Reads at least one byte.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.patience()?))?;
        match self.stream.read(buffer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    fn patience(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}
