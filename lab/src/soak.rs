//! `make soak`: mixed load, resets and churn for as long as asked, and nothing may leak.
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::peers::{Server, echo, reset};
use lab::stream::{Pace, Random, exchange};
use lab::{BOTH, Ip, Lab, Proc, becomes};

use crate::report::Report;

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Memory grows to its working size at first; what it has after so many samples is what it should keep.
const WARM: usize = 6;
const GROWTH_KIB: u64 = 4 << 10;
/// What the idle pipes of the workers may hold.
const PIPES: u64 = 16;
const ENDS: Duration = Duration::from_secs(30);

/// What the daemon has at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    descriptors: u64,
    memory_kib: u64,
    rules: u64,
}

/// How many of each kind of session have been carried.
#[derive(Default)]
struct Done {
    bulk: AtomicU64,
    chats: AtomicU64,
    short: AtomicU64,
    resets: AtomicU64,
    stuck: AtomicU64,
}

struct Soak {
    lab: Lab,
    bulk: Mutex<TcpListener>,
    echo: Vec<SocketAddr>,
    done: Done,
    until: Instant,
}

/// Runs for MINUTES (an hour), and fails when anything was lost or has leaked.
pub fn run() -> ExitCode {
    let mut report = Report::new();
    let minutes = std::env::var("MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(60.0);
    let Some(binary) = crate::demo::binary() else {
        eprintln!("tcp-intercept is not built beside this program: cargo build --release");
        return ExitCode::FAILURE;
    };
    let lab = Lab::new();
    let servers: Vec<_> = BOTH.map(|ip| Server::start(&lab.server, lab.server_at(ip, 7), undaunted)).into();
    let bulk = Mutex::new(lab.server.listen(lab.server_at(Ip::V4, 9)));
    let echo: Vec<_> = servers.iter().map(|server| server.address).collect();
    let mut daemon = lab.gateway.spawn(&binary.display().to_string(), &["run", "--set", "log.level=warn"]);
    let rules = || lab.gateway.run("nft list tables").contains("tcp_intercept");
    report.check(becomes(ENDS, rules), "the daemon intercepts");
    let works = || lab.client().connect(echo[0]).and_then(|stream| ask(&stream, 1)).is_ok();
    report.check(becomes(ENDS, || works() && relayed(&lab)), "a connection is relayed");
    becomes(ENDS, || !relayed(&lab));
    let idle = sample(&lab, &daemon);
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let soak = Soak { lab, bulk, echo, done: Done::default(), until };
    report.section(&format!("Mixed load for {minutes} minutes"));
    let samples = soak.carry(&report, &daemon);
    report.section("Afterwards");
    soak.judge(&mut report, &mut daemon, idle, &samples);
    report.end()
}

impl Soak {
    fn carry(&self, report: &Report, daemon: &Proc) -> Vec<Sample> {
        std::thread::scope(|scope| {
            for n in 0..2 {
                scope.spawn(move || self.repeat(n, Self::bulk));
            }
            for n in 0..8 {
                scope.spawn(move || self.repeat(100 + n, Self::chat));
            }
            for n in 0..4 {
                scope.spawn(move || self.repeat(200 + n, Self::short));
                scope.spawn(move || self.repeat(300 + n, Self::broken));
                scope.spawn(move || self.repeat(400 + n, Self::stuck));
            }
            let mut samples = Vec::new();
            while Instant::now() < self.until {
                std::thread::sleep(SAMPLE_EVERY.min(self.until - Instant::now()));
                let now = sample(&self.lab, daemon);
                samples.push(now);
                report.say(&self.line(now));
            }
            samples
        })
    }

    fn line(&self, now: Sample) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Done { bulk, chats, short, resets, stuck } = &self.done;
        format!(
            "{:>6} bulk {:>7} chats {:>8} short {:>8} reset {:>6} stuck   {:>5} descriptors {:>7} KiB {:>3} rules",
            of(bulk),
            of(chats),
            of(short),
            of(resets),
            of(stuck),
            now.descriptors,
            now.memory_kib,
            now.rules
        )
    }

    fn repeat(&self, seed: u64, session: fn(&Self, &mut Random) -> io::Result<()>) {
        let mut random = Random::new(seed);
        while Instant::now() < self.until {
            session(self, &mut random).unwrap_or_else(|err| panic!("a session that should pass: {err}"));
        }
    }

    fn connect(&self, random: &mut Random) -> io::Result<TcpStream> {
        let stream = self.lab.client().connect(self.echo[random.below(2)])?;
        stream.set_read_timeout(Some(ENDS))?;
        Ok(stream)
    }

    fn bulk(&self, random: &mut Random) -> io::Result<()> {
        let (near, far) = {
            let listener = self.bulk.lock().unwrap_or_else(|err| panic!("{err}"));
            let near = self.lab.client().connect(listener.local_addr()?)?;
            (near, listener.accept()?.0)
        };
        let pace = if random.below(2) == 0 { Pace::FULL } else { Pace::UNEVEN };
        exchange(&near, &far, 1 + random.below(64 << 20) as u64, pace);
        self.done.bulk.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn chat(&self, random: &mut Random) -> io::Result<()> {
        let stream = self.connect(random)?;
        for _ in 0..random.below(200) {
            ask(&stream, 1 + random.below(2000))?;
            std::thread::sleep(Duration::from_millis(random.below(20) as u64));
        }
        self.done.chats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn short(&self, random: &mut Random) -> io::Result<()> {
        let stream = self.connect(random)?;
        ask(&stream, 64)?;
        stream.shutdown(Shutdown::Write)?;
        self.done.short.fetch_add(1, Ordering::Relaxed);
        let rest = (&stream).read(&mut [0; 1])?;
        if rest == 0 { Ok(()) } else { Err(io::Error::other("a byte too many")) }
    }

    /// Reset at any moment, on one connection in four to a port where nobody listens.
    fn broken(&self, random: &mut Random) -> io::Result<()> {
        if random.below(4) == 0 {
            let refused = self.lab.client().connect(self.lab.server_at(Ip::V4, 1));
            drop(refused);
        } else {
            let mut stream = self.connect(random)?;
            if random.below(2) == 0 {
                stream.write_all(&vec![1; random.below(300_000)])?;
            }
            std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
            reset(stream);
        }
        self.done.resets.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends more than the way back takes, and reads nothing for a while.
    fn stuck(&self, random: &mut Random) -> io::Result<()> {
        let mut stream = self.connect(random)?;
        stream.set_nonblocking(true)?;
        let wait = Instant::now() + Duration::from_millis(500 + random.below(3000) as u64);
        while Instant::now() < wait {
            let _ = stream.write(&[2; 1 << 16]);
            std::thread::sleep(Duration::from_millis(20));
        }
        self.done.stuck.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn judge(&self, report: &mut Report, daemon: &mut Proc, idle: Sample, samples: &[Sample]) {
        let calm = becomes(ENDS, || sample(&self.lab, daemon).descriptors <= idle.descriptors + PIPES);
        let end = sample(&self.lab, daemon);
        report.check(calm, &format!("descriptors: {} before, {} after", idle.descriptors, end.descriptors));
        report.check(
            end.rules == idle.rules,
            &format!("nft rules: {} before, {} after", idle.rules, end.rules),
        );
        if let [_, .., last] = samples
            && let Some(warm) = samples.iter().take(WARM.max(samples.len() / 4)).map(|s| s.memory_kib).max()
        {
            let steady = samples.len() <= WARM || last.memory_kib <= warm + warm / 10 + GROWTH_KIB;
            report
                .check(steady, &format!("memory: {warm} KiB when warm, {} KiB in the end", last.memory_kib));
        }
        let left = self.lab.gateway.ss("-tn state connected exclude time-wait");
        report.check(left.is_empty(), &format!("sockets: {} left", left.lines().count()));
        daemon.signal(rustix::process::Signal::TERM);
        report.check(daemon.wait(ENDS).success(), "SIGTERM: exit status 0");
        report.check(self.lab.gateway.run("nft list tables").is_empty(), "the rules are gone");
        report.check(!daemon.stderr().contains("cannot"), "nothing in the log that could not be done");
    }
}

/// An echo server to which a reset is nothing to speak of.
fn undaunted(stream: TcpStream) -> io::Result<()> {
    let _ = echo(stream);
    Ok(())
}

fn relayed(lab: &Lab) -> bool {
    !lab.gateway.ss("-tn state connected").is_empty()
}

fn ask(mut stream: &TcpStream, len: usize) -> io::Result<()> {
    let question = vec![b'?'; len];
    let mut answer = vec![0; len];
    stream.write_all(&question)?;
    stream.read_exact(&mut answer)?;
    if answer == question { Ok(()) } else { Err(io::Error::other("another answer than was sent")) }
}

fn sample(lab: &Lab, daemon: &Proc) -> Sample {
    let proc = format!("/proc/{}", daemon.pid());
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory_kib = memory.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    let descriptors = std::fs::read_dir(format!("{proc}/fd")).map_or(0, |all| all.count() as u64);
    let rules = lab.gateway.run("nft -a list table inet tcp_intercept").matches("# handle").count() as u64;
    Sample { descriptors, memory_kib, rules }
}
