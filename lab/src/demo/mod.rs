//! `make demo`: client, box and server; routing alone, then tcp-intercept on the box, then without it again.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::servers::{Iperf, Nginx, Sshd};
use lab::{BOTH, Daemon, Host, Ip, Lab};

use crate::report::Report;

mod traffic;

const MEASURE_SECONDS: u32 = 2;
const FILE_BYTES: usize = 256 << 20;

/// The hosts, what runs on the server, and the program to show.
struct Stage {
    lab: Lab,
    nginx: Nginx,
    sshd: Sshd,
    iperf: Iperf,
    binary: PathBuf,
}

/// Shows everything, and fails when anything is wrong.
pub fn run() -> ExitCode {
    let mut report = Report::new();
    let Some(binary) = binary() else {
        eprintln!("tcp-intercept is not built beside this program: cargo build --release");
        return ExitCode::FAILURE;
    };
    let stage = Stage::set(binary);
    introduce(&report);
    let before = netfilter(&stage.lab.gateway);
    report.section("1. Routing alone, for comparison");
    let routed = stage.rates();
    report.say(&format!("iperf3: {} to the server, {} to the client", rate(routed[0]), rate(routed[1])));
    let daemon = stage.start(&mut report);
    stage.show_traffic(&mut report);
    stage.show_speed(&mut report, routed);
    show_records(&mut report, &daemon);
    stage.show_stop(&mut report, daemon, &before);
    stage.show_crash(&mut report, &before);
    report.end()
}

fn introduce(report: &Report) {
    report.section("tcp-intercept on real traffic");
    report.say("client 10.1.0.2, fd01::2  ---  box  ---  server 10.2.0.2, fd02::2");
    let user = rustix::process::getuid();
    let whose =
        if user.is_root() { "root".to_owned() } else { format!("user {}, without root", user.as_raw()) };
    report.say(&format!("Three network namespaces of {whose}; the network of this machine is not touched."));
}

/// The program, built in the same directory as this one.
pub fn binary() -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?.with_file_name("tcp-intercept");
    let binary = lab::reachable(&binary);
    binary.is_file().then_some(binary)
}

/// Everything that the daemon may change on a host: nftables' ruleset, routing rules, all routing tables, two sysctls.
fn netfilter(host: &Host) -> String {
    host.run(
        "nft list ruleset; for ip in -4 -6; do ip $ip rule; ip $ip route show table all | grep -v '^fe80\\|^multicast\\|^ff00'; done
         cd /proc/sys/net/ipv4; cat tcp_early_demux tcp_fastopen",
    )
}

fn rate(bits: f64) -> String {
    format!("{:.1} Gbit/s", bits / 1e9)
}

fn since(start: Instant) -> String {
    format!("{} ms", start.elapsed().as_millis())
}

impl Stage {
    fn set(binary: PathBuf) -> Self {
        let lab = Lab::new();
        let (nginx, sshd) = (Nginx::start(&lab.server), Sshd::start(&lab.server));
        let page = nginx.files().join("index.html");
        std::fs::write(&page, "a page\n").unwrap_or_else(|err| panic!("{}: {err}", page.display()));
        let iperf = Iperf::start(&lab.server);
        Self { lab, nginx, sshd, iperf, binary }
    }

    /// To the server, to the client.
    fn rates(&self) -> [f64; 2] {
        let server = self.lab.server_at(Ip::V4, 0).ip();
        [false, true].map(|back| self.iperf.measure(self.lab.client(), server, MEASURE_SECONDS, back))
    }

    fn start(&self, report: &mut Report) -> Daemon {
        report.section("2. tcp-intercept run, on the box");
        let start = Instant::now();
        let daemon = Daemon::start(&self.lab.gateway, &self.binary, &[]);
        report.check(true, &format!("ready after {}, without a configuration", since(start)));
        let gateway = &self.lab.gateway;
        let table = gateway.run("nft list tables | grep tcp_intercept || true");
        report.check(table.contains("inet tcp_intercept"), &format!("nftables: {}", table.trim()));
        for ip in ["-4", "-6"] {
            let rules = gateway.ip(&format!("{ip} rule"));
            let ours: Vec<_> = rules.lines().filter(|line| line.contains("fwmark")).collect();
            let text = ours.join(", ").replace('\t', " ");
            report.check(ours.len() == 1, &format!("ip {ip} rule: {text}"));
        }
        daemon
    }

    fn show_speed(&self, report: &mut Report, routed: [f64; 2]) {
        report.section("4. How fast");
        let ours = self.rates();
        let row = |what: &str, n: usize| {
            let share = format!("{:.0} %", 100.0 * ours[n] / routed[n]);
            vec![what.to_owned(), rate(routed[n]), rate(ours[n]), share]
        };
        let head =
            ["iperf3, one connection", "routing alone", "tcp-intercept", ""].map(str::to_owned).to_vec();
        report.table(&[head, row("to the server", 0), row("to the client", 1)]);
        report.say("All hosts share this machine's processors: what the box spends, the others lack.");
    }

    fn show_stop(&self, report: &mut Report, daemon: Daemon, before: &str) {
        report.section("6. Stopped");
        let start = Instant::now();
        let (status, log) = daemon.stop();
        report.check(status.success(), &format!("SIGTERM: ended after {} ({status})", since(start)));
        if !status.success() {
            report.say(&log);
        }
        report.check(
            netfilter(&self.lab.gateway) == before,
            "nftables, rules, routes and sysctls are as before",
        );
        self.fetch_directly(report);
    }

    fn show_crash(&self, report: &mut Report, before: &str) {
        report.section("7. Killed");
        let daemon = Daemon::start(&self.lab.gateway, &self.binary, &[]);
        self.fetch(report, Ip::V4);
        daemon.kill9();
        report.say("kill -9: nobody listens, nobody has cleaned up");
        self.fetch_directly(report);
        let mut remove = self.lab.gateway.cmd(&self.binary.display().to_string());
        let removed = remove.args(["rules", "remove"]).output();
        let removed = removed.is_ok_and(|output| output.status.success());
        let clean = netfilter(&self.lab.gateway) == before;
        report.check(removed && clean, "tcp-intercept rules remove: everything is as before");
    }

    fn fetch_directly(&self, report: &mut Report) {
        for ip in BOTH {
            self.fetch(report, ip);
        }
    }
}

fn show_records(report: &mut Report, daemon: &Daemon) {
    report.section("5. What the box recorded, a line a connection");
    // HTTP and SSH over both protocols; iperf3 makes two connections a measurement.
    let records = lab::becomes(Duration::from_secs(3), || daemon.close_records().len() >= 8);
    let head =
        ["client", "server", "bytes to server", "to client", "seconds", "congestion control", "ended by"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for record in daemon.close_records() {
        let text = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
        let seconds = record["duration_ms"].as_f64().unwrap_or_default() / 1000.0;
        rows.push(vec![
            text("client"),
            text("server"),
            record["to_server"].to_string(),
            record["to_client"].to_string(),
            format!("{seconds:.3}"),
            format!("{}, {}", text("client_cc"), text("server_cc")),
            format!("{} ({})", text("by"), text("cause")),
        ]);
    }
    report.table(&rows);
    report.check(records, "every connection has its line");
}
