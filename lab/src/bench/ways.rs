//! The ways through the box that are compared. Each is started and stopped for every single measurement.
use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::haproxy::{self, Splice};
use super::measure::Measurement;
use super::scene::Scene;
use crate::daemon::reachable;
use crate::host::Host;
use crate::load::Echo;
use crate::process::{Proc, working};
use crate::servers::scratch;
use crate::wait::wait_until;

const SOON: Duration = Duration::from_secs(20);

/// A way to measure.
#[derive(Debug)]
pub(super) struct Way {
    pub name: String,
    pub kind: Kind,
    /// The index of this way.
    pub nth: u16,
}

/// The software on the box.
#[derive(Debug)]
pub(super) enum Kind {
    /// None: the kernel forwards.
    Routing,
    /// tcp-intercept.
    Intercept { binary: PathBuf },
    /// HAProxy.
    Haproxy { splice: Splice },
}

/// A running way.
#[derive(Debug)]
pub(super) struct Started<'a> {
    way: &'a Way,
    scene: &'a Scene,
    process: Option<Proc>,
}

impl Way {
    /// Starts the way, and waits until it verifiably works.
    pub fn start<'a>(&'a self, scene: &'a Scene) -> Started<'a> {
        let process = match &self.kind {
            Kind::Routing => None,
            Kind::Intercept { binary } => Some(intercept(scene, binary)),
            Kind::Haproxy { splice } => Some(haproxy(scene, *splice)),
        };
        let mut started = Started { way: self, scene, process };
        started.prove();
        started
    }

    /// Returns whether `measurement` is meaningful for this way.
    pub fn takes(&self, measurement: Measurement) -> bool {
        let bulk_only = matches!(self.kind, Kind::Haproxy { splice: Splice::Always });
        !bulk_only || matches!(measurement, Measurement::Bulk { .. })
    }

    /// Returns how many sockets the box has for a connection.
    fn legs(&self) -> usize {
        if matches!(self.kind, Kind::Routing) { 0 } else { 2 }
    }
}

fn intercept(scene: &Scene, binary: &Path) -> Proc {
    let cc = &scene.plan.congestion_control;
    let settings = [
        format!("client.congestion-control={cc}"),
        format!("server.congestion-control={cc}"),
        // Write no line per connection, like HAProxy in this configuration.
        "log.level=warn".to_owned(),
        "log.target=stderr".to_owned(),
    ];
    let set = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<_> = std::iter::once("run").chain(set).collect();
    scene.lab.gateway.spawn(&reachable(binary).display().to_string(), &arguments)
}

fn haproxy(scene: &Scene, splice: Splice) -> Proc {
    let gateway = &scene.lab.gateway;
    let config = scratch("haproxy").join("conf");
    fs::write(&config, haproxy::config(splice, scene.plan.most_idle()))
        .unwrap_or_else(|err| panic!("{}: {err}", config.display()));
    let process = gateway.spawn("haproxy", &["-db", "-f", &config.display().to_string()]);
    let port = haproxy::PORT;
    let ready = || !gateway.ss(&format!("-tln sport = :{port}")).is_empty();
    wait_until("HAProxy listens", SOON, || ready() || process.stderr().contains("ALERT"));
    assert!(ready(), "HAProxy does not start:\n{}", process.stderr());
    gateway.nft(haproxy::RULES);
    gateway.run(haproxy::ROUTES);
    process
}

impl Started<'_> {
    /// Returns the server's address for a measurement. No two ways and no two servers share a port.
    pub fn server(&self, port: u16) -> SocketAddr {
        self.scene.server(port + self.way.nth)
    }

    /// Returns the process ID of the working process; `None` for routing.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Proc::pid).map(working)
    }

    /// Returns for how many connections the box has sockets.
    pub fn sessions(&self) -> usize {
        self.scene.lab.gateway.ss("-tn state established").lines().count() / 2
    }

    /// Stops the way and removes its rules.
    pub fn stop(self) {
        let Some(mut process) = self.process else { return };
        process.signal(Signal::TERM);
        process.wait(SOON);
        if matches!(self.way.kind, Kind::Haproxy { .. }) {
            self.scene.lab.gateway.run(haproxy::REMOVE);
        }
    }

    /// Waits until a new connection has the expected number of sockets on the box, all with the right congestion
    /// control.
    fn prove(&mut self) {
        let (lab, address) = (&self.scene.lab, self.server(7100));
        let _echo = Echo::start(&lab.server, address);
        let mut proven = None;
        // Connections are routed until the rules are installed.
        wait_until(&format!("{}: a connection as it must be", self.way.name), SOON, || {
            let ended = self.process.as_mut().and_then(Proc::try_wait);
            let said = self.process.as_ref().map(Proc::stderr).unwrap_or_default();
            assert!(ended.is_none(), "{} has ended:\n{said}", self.way.name);
            let stream = lab.client().connect(address).and_then(used);
            proven = stream.ok().filter(|stream| lab.legs(stream) == self.way.legs());
            proven.is_some()
        });
        for host in [lab.client(), &lab.gateway, &lab.server] {
            self.check_congestion_control(host, address.port());
        }
    }

    fn check_congestion_control(&self, host: &Host, port: u16) {
        let sockets = host.ss(&format!("-tin state established sport = :{port} or dport = :{port}"));
        let wanted = &self.scene.plan.congestion_control;
        // Each socket has a line of addresses, then an indented line of details.
        let details = sockets.lines().filter(|line| line.starts_with(char::is_whitespace));
        let wrong: Vec<_> =
            details.filter(|line| !line.split_ascii_whitespace().any(|word| word == wanted)).collect();
        assert!(wrong.is_empty(), "{}: not {wanted} on {host}:\n{}", self.way.name, wrong.join("\n"));
    }
}

impl fmt::Display for Started<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.way.name)
    }
}

/// Returns a connection that has completed one round trip.
fn used(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}
