//! Measures the cost of requesting Multipath TCP when the server or the far box does not support it.
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::wan::{Link, Loss, Profile, Rate};
use lab::{Daemon, Ip, Pair, peers, words};

use super::{NEAR, Plan};
use crate::report::Report;

const PORT: u16 = 8000;
/// The number of servers. Each is dialled twice; the second time the box knows that the server lacks Multipath TCP.
const SERVERS: u8 = 20;

/// A near box and a server that speaks first. The far box only routes.
struct Side {
    pair: Pair,
    near: Daemon,
    _server: peers::Server,
}

impl Side {
    fn new(plan: &Plan, mptcp: bool) -> Self {
        let link = Link::even(Duration::from_millis(20), Rate::mbit(100), Loss::None);
        let pair = plan.pair(&Profile::one("one", link));
        let own = NEAR.into_iter().take(1).filter(|_| mptcp);
        let settings: Vec<&str> = own.chain(plan.settings.iter().map(String::as_str)).collect();
        let near = Daemon::start(&pair.near, &plan.binary, &settings);
        for n in 0..=SERVERS {
            let (ip, rest) = match address(plan.ip, n) {
                ip @ IpAddr::V4(_) => (ip, "/24"),
                ip @ IpAddr::V6(_) => (ip, "/64 nodad"),
            };
            pair.server.ip(&format!("address add {ip}{rest} dev eth0"));
        }
        let any: IpAddr =
            if plan.ip == Ip::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let server = peers::Server::start(&pair.server, SocketAddr::new(any, PORT), |mut stream| {
            stream.write_all(b"!")
        });
        let side = Self { pair, near, _server: server };
        // Resolve the neighbours' addresses before the measurement.
        side.first_byte(plan.ip, SERVERS);
        side.near.wait_for_records(1);
        side
    }

    /// Returns the milliseconds from the client's SYN to the server's first byte.
    fn first_byte(&self, ip: Ip, n: u8) -> f64 {
        self.pair.client.enter(|| {
            let begin = Instant::now();
            let mut came = f64::NAN;
            if let Ok(mut stream) = TcpStream::connect(SocketAddr::new(address(ip, n), PORT)) {
                if stream.read_exact(&mut [0; 1]).is_ok() {
                    came = begin.elapsed().as_secs_f64() * 1e3;
                }
                // Read to the end, so that nothing is reset.
                let _ = stream.read(&mut [0; 1]);
            }
            came
        })
    }
}

fn address(ip: Ip, n: u8) -> IpAddr {
    match ip {
        Ip::V4 => Ipv4Addr::new(10, 2, 0, 100 + n).into(),
        Ip::V6 => Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(n)).into(),
    }
}

/// Compares plain TCP and requested Multipath TCP, alternating, for the first and the second dial.
pub fn fallback(plan: &Plan, report: &Report) {
    let [tcp, mptcp] = [false, true].map(|mptcp| Side::new(plan, mptcp));
    let rounds = [("never dialled before", "fallback"), ("dialled before", "avoided")];
    for ((what, became), round) in rounds.into_iter().zip(1..) {
        let before = records(&mptcp.near, became);
        let both = (0..SERVERS).map(|n| (tcp.first_byte(plan.ip, n), mptcp.first_byte(plan.ip, n)));
        let (plain, asked): (Vec<f64>, Vec<f64>) = both.unzip();
        mptcp.near.wait_for_records(1 + round * usize::from(SERVERS));
        let said = records(&mptcp.near, became) - before;
        let (plain, asked) = (told(plain), told(asked));
        report.say(&format!(
            "first byte of {SERVERS} servers without Multipath TCP, {what}: plain TCP {plain}; server.mptcp=true {asked} ({became}: {said})"
        ));
    }
}

/// Returns how many sessions have the value `became` of `server_mptcp` in their close records.
fn records(near: &Daemon, became: &str) -> usize {
    near.close_records().iter().filter(|record| words(record, "server_mptcp") == became).count()
}

/// Formats the median with the least and the greatest.
fn told(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let (least, greatest) = (times[0], times[times.len() - 1]);
    format!("{:.2} ms ({least:.2}–{greatest:.2})", times[times.len() / 2])
}
