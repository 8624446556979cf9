//! The behaviours of clients and servers in a soak.
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use lab::BOTH;
use lab::peers;
use lab::stream::{Pace, Random, try_exchange};

use super::load::Load;

pub const ECHO: u16 = 7;
pub const SPEAKS_FIRST: u16 = 8;
pub const BULK: u16 = 9;
pub const RESETS: u16 = 10;
const REFUSES: u16 = 11;
pub const SILENT: u16 = 12;
/// Ports that clients bind, in rotation. They are outside the kernel's ephemeral range.
const OWN_PORTS: std::ops::Range<u16> = 20_000..20_200;
/// The pace of a client that reads so slowly that every buffer in the path fills.
const SLOW: Pace = Pace { chunk: 32 << 10, pause_every: 4, pause: Duration::from_millis(60) };

/// One behaviour. Every session is one connection.
pub struct Kind {
    pub name: &'static str,
    /// The number of clients with this behaviour.
    pub threads: usize,
    /// Whether the connection ends with a FIN in both directions.
    pub in_order: bool,
    pub session: fn(&Load, &mut Random) -> io::Result<()>,
}

const fn kind(
    name: &'static str,
    threads: usize,
    in_order: bool,
    session: fn(&Load, &mut Random) -> io::Result<()>,
) -> Kind {
    Kind { name, threads, in_order, session }
}

/// All behaviours.
pub const KINDS: [Kind; 12] = [
    kind("bulk", 2, true, Load::bulk),
    kind("slow", 4, true, Load::slow),
    kind("chat", 8, true, Load::chat),
    kind("short", 4, true, Load::short),
    kind("half-closed", 2, true, Load::half_closed),
    kind("server first", 2, true, Load::server_first),
    kind("same port", 4, true, Load::same_port),
    kind("reset by client", 2, false, Load::reset_by_client),
    kind("reset by server", 2, false, Load::reset_by_server),
    kind("refused", 1, false, Load::refused),
    kind("reset while dialling", 2, false, Load::reset_while_dialling),
    kind("stuck", 4, false, Load::stuck),
];

impl Load {
    fn to(&self, random: &mut Random, port: u16) -> SocketAddr {
        self.lab.server_at(BOTH[random.below(2)], port)
    }

    pub fn connect(&self, random: &mut Random, port: u16) -> io::Result<TcpStream> {
        let stream = self.lab.client().connect(self.to(random, port))?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        Ok(stream)
    }

    fn pair(&self, random: &mut Random) -> io::Result<(TcpStream, TcpStream)> {
        let listeners = self.bulk.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = &listeners[random.below(2)];
        let near = self.lab.client().connect(listener.local_addr()?)?;
        Ok((near, listener.accept()?.0))
    }

    fn bulk(&self, random: &mut Random) -> io::Result<()> {
        let (near, far) = self.pair(random)?;
        let pace = if random.below(2) == 0 { Pace::FULL } else { Pace::UNEVEN };
        try_exchange(&near, &far, 1 + random.below(64 << 20) as u64, pace)
    }

    fn slow(&self, random: &mut Random) -> io::Result<()> {
        let (near, far) = self.pair(random)?;
        try_exchange(&near, &far, 1 + random.below(8 << 20) as u64, SLOW)
    }

    fn chat(&self, random: &mut Random) -> io::Result<()> {
        let stream = self.connect(random, ECHO)?;
        for _ in 0..1 + random.below(200) {
            ask(&stream, 1 + random.below(2000))?;
            std::thread::sleep(Duration::from_millis(random.below(20) as u64));
        }
        ends(&stream)
    }

    fn short(&self, random: &mut Random) -> io::Result<()> {
        let stream = self.connect(random, ECHO)?;
        ask(&stream, 64)?;
        ends(&stream)
    }

    /// The client ends its question with a FIN before the answer arrives.
    fn half_closed(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random, ECHO)?;
        let question = vec![b'?'; 1 + random.below(100_000)];
        stream.write_all(&question)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer == question {
            Ok(())
        } else {
            Err(io::Error::other("the answer differs from the question"))
        }
    }

    fn server_first(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random, SPEAKS_FIRST)?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        if said == SAID { Ok(()) } else { Err(io::Error::other("the server's message is incomplete")) }
    }

    /// The client reuses a port as soon as its own kernel allows it.
    fn same_port(&self, random: &mut Random) -> io::Result<()> {
        let ip = BOTH[random.below(2)];
        let stream = loop {
            let port = OWN_PORTS.start + random.below(OWN_PORTS.len()) as u16;
            match self
                .lab
                .client()
                .connect_from(self.lab.client_at(0, ip, port), self.lab.server_at(ip, ECHO))
            {
                Err(err)
                    if matches!(err.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
                connected => break connected?,
            }
        };
        stream.set_read_timeout(Some(self.patience))?;
        ask(&stream, 64)?;
        ends(&stream)
    }

    /// The client resets at a random moment: before the first byte, with bytes in flight, or after the end of the
    /// question.
    fn reset_by_client(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random, ECHO)?;
        if random.below(3) > 0 {
            // At least one byte, which the echo returns after the reset has arrived: this is no orderly end.
            stream.write_all(&vec![1; 1 + random.below(300_000)])?;
            std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
        }
        peers::try_reset(stream)
    }

    fn reset_by_server(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random, RESETS)?;
        // The reset may arrive before all bytes are sent. The kernel reports it once, to the first call that asks.
        let wrote = stream.write_all(&vec![1; 1 + random.below(100_000)]);
        if random.below(2) == 0 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let ended = wrote.and_then(|()| io::copy(&mut stream, &mut io::sink()));
        if ended.is_err() {
            Ok(())
        } else {
            Err(io::Error::other("an orderly end instead of the server's reset"))
        }
    }

    fn refused(&self, random: &mut Random) -> io::Result<()> {
        // The box has accepted; the server's refusal may arrive before the client has noticed that.
        let refused = self.connect(random, REFUSES).and_then(|mut stream| stream.read(&mut [0]));
        if refused.is_err() {
            Ok(())
        } else {
            Err(io::Error::other("an orderly end although the server refused"))
        }
    }

    fn reset_while_dialling(&self, random: &mut Random) -> io::Result<()> {
        let stream = self.connect(random, SILENT)?;
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        peers::try_reset(stream)
    }

    /// Sends more than the return path can buffer, and reads nothing for a while.
    fn stuck(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random, ECHO)?;
        stream.set_nonblocking(true)?;
        let wait = Instant::now() + Duration::from_millis(500 + random.below(3000) as u64);
        while Instant::now() < wait {
            let _ = stream.write(&[2; 1 << 16]);
            std::thread::sleep(Duration::from_millis(20));
        }
        peers::try_reset(stream)
    }
}

static SAID: [u8; 50_000] = [b'!'; 50_000];

pub fn speaks_and_ends(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&SAID)
}

pub fn resets(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    peers::try_reset(stream)
}

pub fn ask(mut stream: &TcpStream, len: usize) -> io::Result<()> {
    let question = vec![b'?'; len];
    let mut answer = vec![0; len];
    stream.write_all(&question)?;
    stream.read_exact(&mut answer)?;
    if answer == question { Ok(()) } else { Err(io::Error::other("the answer differs from the question")) }
}

/// Closes the client's direction, and waits for the server's FIN.
fn ends(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("a byte that was not sent")),
    }
}
