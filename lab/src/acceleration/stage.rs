//! The hosts of one WAN, with one of the ways on its boxes, and the servers of the objects.
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::results::{Object, Way};
use crate::daemon::Daemon;
use crate::host::Host;
use crate::pair::Pair;
use crate::peers::Server;
use crate::stream::Random;
use crate::topology::{BOTH, Ip};
use crate::wan::Profile;

/// A request is one of these letters and a number of bytes.
pub(super) const DOWN: u8 = b'D';
pub(super) const UP: u8 = b'U';
pub(super) const REQUEST: usize = 9;

/// The payload of a segment with timestamps, in bytes.
const SEGMENT: usize = 1448;
const ASKED: u16 = 7000;
const SPEAKS: u16 = 7001;

/// Client, near box, WAN, far box, server.
#[derive(Debug)]
pub(super) struct Stage {
    pub pair: Pair,
    pub way: Way,
    /// Payload bytes of all uploads so far that have arrived at the server.
    pub arrived: Arc<AtomicU64>,
    strangers: Arc<AtomicU64>,
    boxes: Vec<(Host, String, Daemon)>,
    _servers: [Server; 2],
}

impl Stage {
    /// Sets up `way` over the WAN of `profile`. `with_cookies` tells whether the far box issues Fast Open cookies.
    pub fn set(profile: &Profile, way: Way, with_cookies: bool, binary: &Path) -> Self {
        let pair = Pair::new(profile);
        let client = pair.client_at(Ip::V4, 0).ip();
        let (arrived, strangers) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let servers = [
            known(&pair, ASKED, client, &strangers, {
                let arrived = Arc::clone(&arrived);
                move |stream| answer(stream, &arrived)
            }),
            known(&pair, SPEAKS, client, &strangers, |mut stream| {
                stream.write_all(b"220 speak\r\n")?;
                io::copy(&mut stream, &mut io::sink()).map(drop)
            }),
        ];
        let boxes = settings(&pair, way, initial_window(profile), with_cookies).into_iter().map(
            |(host, settings)| {
                let before = netfilter(&host);
                let settings: Vec<_> = settings.iter().map(String::as_str).collect();
                let daemon = Daemon::start(&host, binary, &settings);
                (host, before, daemon)
            },
        );
        let boxes = boxes.collect();
        Self { pair, way, arrived, strangers, boxes, _servers: servers }
    }

    /// Returns the address of the server of `object`.
    pub fn address(&self, object: Object) -> SocketAddr {
        let speaks = matches!(object, Object::Banner | Object::BannerWithoutCookie);
        self.pair.server_at(Ip::V4, if speaks { SPEAKS } else { ASKED })
    }

    /// Returns the host that sends `object` over the WAN, and the `ss` filter for its socket.
    pub fn sender(&self, object: Object) -> (&Host, String) {
        let Pair { client, near, far, server, .. } = &self.pair;
        let port = self.address(object).port();
        let up = matches!(object, Object::Up(_));
        let host = match (self.way, up) {
            (Way::EndToEnd, true) => client,
            (Way::OneBox | Way::Pair, true) => near,
            (Way::EndToEnd | Way::OneBox, false) => server,
            (Way::Pair, false) => far,
        };
        // On a box with two legs, this selects the leg towards the WAN.
        (host, format!("{} = :{port}", if up { "dport" } else { "sport" }))
    }

    /// Returns the bytes of the frames that each path has delivered so far in the direction of `object`.
    pub fn delivered(&self, object: Object) -> impl Iterator<Item = u64> {
        let up = matches!(object, Object::Up(_));
        self.pair.paths.iter().map(move |path| if up { path.to_server() } else { path.to_client() }.bytes)
    }

    /// Stops the daemons on the boxes, and returns a sentence for each fault found.
    pub fn strike(self) -> Vec<String> {
        let mut wrong = Vec::new();
        let strangers = self.strangers.load(Ordering::Relaxed);
        if strangers > 0 {
            wrong.push(format!(
                "{}: the server saw an address other than the client's, {strangers} times",
                self.way
            ));
        }
        for (host, before, daemon) in self.boxes {
            let (status, log) = daemon.stop();
            if !status.success() {
                wrong.push(format!("{host}: tcp-intercept ended with {status}:\n{log}"));
            }
            if netfilter(&host) != before {
                wrong.push(format!("{host}: nftables, rules, routes or sysctls are not as before"));
            }
        }
        wrong
    }
}

/// Returns the boxes that run tcp-intercept, and their settings.
fn settings(pair: &Pair, way: Way, initial_window: usize, with_cookies: bool) -> Vec<(Host, Vec<String>)> {
    let wan: Vec<_> = (0..pair.paths.len()).map(|n| format!("\"wan{n}\"")).collect();
    let wan = format!("[{}]", wan.join(","));
    let both = [format!("wan.devices={wan}"), format!("wan.initial-window={initial_window}")];
    let with = |interfaces: &str, more: &[&str]| {
        let more = more.iter().map(|setting| (*setting).to_owned());
        std::iter::once(format!("rules.interfaces={interfaces}")).chain(both.clone()).chain(more).collect()
    };
    match way {
        Way::EndToEnd => Vec::new(),
        Way::OneBox => vec![(pair.near.clone(), with("[\"lan0\"]", &[]))],
        Way::Pair if pair.paths.len() > 1 => vec![
            (pair.near.clone(), with("[\"lan0\"]", &["server.mptcp=true", &beside(pair, "")])),
            (pair.far.clone(), with(&wan, &["client.mptcp=true", &beside(pair, ", announce=true")])),
        ],
        Way::Pair => vec![
            (pair.near.clone(), with("[\"lan0\"]", &["server.fast-open=true"])),
            (pair.far.clone(), with(&wan, &[&format!("client.fast-open={with_cookies}")])),
        ],
    }
}

/// Returns the setting for the paths other than the one that the routes select.
fn beside(pair: &Pair, more: &str) -> String {
    let paths: Vec<_> = (1..pair.paths.len()).map(|n| format!("{{device='wan{n}'{more}}}")).collect();
    format!("mptcp.path=[{}]", paths.join(","))
}

/// Returns half of the first path's bandwidth-delay product in segments, as docs/acceleration.md recommends, and at
/// least the default.
fn initial_window(profile: &Profile) -> usize {
    let held = profile.paths.first().map_or(0, |path| {
        let round_trip = path.to_server.delay + path.to_client.delay;
        path.to_server.rate.map_or(0, |rate| rate.bytes(round_trip))
    });
    (held / 2 / SEGMENT).max(100)
}

/// Starts a server that counts peers other than the client. A cut connection is no failure.
fn known(
    pair: &Pair,
    port: u16,
    client: IpAddr,
    strangers: &Arc<AtomicU64>,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Server {
    let strangers = Arc::clone(strangers);
    Server::start(&pair.server, pair.server_at(Ip::V4, port), move |stream| {
        if stream.peer_addr()?.ip() != client {
            strangers.fetch_add(1, Ordering::Relaxed);
        }
        serve(stream).or(Ok(()))
    })
}

fn answer(mut stream: TcpStream, arrived: &AtomicU64) -> io::Result<()> {
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request)?;
    let (kind, bytes) = request.split_at(1);
    let bytes = usize::from_le_bytes(bytes.try_into().unwrap_or_default());
    if kind == [DOWN] {
        stream.write_all(&content()[..bytes])?;
        stream.shutdown(Shutdown::Write)?;
        return io::copy(&mut stream, &mut io::sink()).map(drop);
    }
    let (mut came, mut chunk) = (0, vec![0; 64 << 10]);
    while came < bytes {
        let read = stream.read(&mut chunk)?;
        if read == 0 || chunk[..read] != content()[came..came + read] {
            return Ok(());
        }
        came += read;
        arrived.fetch_add(read as u64, Ordering::Relaxed);
    }
    stream.write_all(b"!")
}

/// Returns the content of all objects, with which the receiver verifies what arrives.
pub(super) fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let largest = Object::ALL.iter().map(|object| object.bytes()).max().unwrap_or_default();
        let mut content = vec![0; largest as usize];
        Random::new(1).fill(&mut content);
        content
    })
}

/// Returns the state that the daemon may change on a host: nftables ruleset, routing rules, all routing tables, two
/// sysctls.
fn netfilter(host: &Host) -> String {
    let addresses = BOTH.map(Ip::option).join(" ");
    host.run(&format!(
        "nft list ruleset
         for ip in {addresses}; do ip $ip rule; ip $ip route show table all | grep -v '^fe80\\|^multicast\\|^ff00'; done
         cd /proc/sys/net/ipv4; cat tcp_early_demux tcp_fastopen",
    ))
}
