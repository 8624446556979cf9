//! `make soak`: mixed load, resets and churn for a chosen time. Nothing may be lost and nothing may leak.
mod kinds;
mod load;
mod records;
mod watch;

use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use lab::options::{self, number};
use lab::{Lab, Proc, becomes, working};
use rustix::process::Signal;

use self::load::Load;
use self::records::Records;
use self::watch::Watch;
use crate::report::Report;

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// The session limit: more than the mixed load has concurrently, less than a rush.
const LIMIT: usize = 200;
const RUSH: usize = 300;
/// The time limit of any step. It is generous enough for a heavily loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Parses how long the mixed load runs (`MINUTES=60`).
///
/// # Errors
/// The first word that is invalid.
pub fn minutes(words: impl Iterator<Item = String>) -> Result<f64, String> {
    let mut minutes = 60.0;
    options::read(words, &["MINUTES"], |_, value| {
        minutes = number(value, 0.1, 100_000.0)?;
        Ok(())
    })?;
    Ok(minutes)
}

/// Runs the mixed load for `minutes` minutes. Fails if anything was lost or has leaked.
pub fn run(binary: &Path, minutes: f64) -> ExitCode {
    let mut report = Report::new();
    let lab = router();
    let mut records = Records::new();
    let limit = format!("limits.connections={LIMIT}");
    let log = format!("log.target={}", records.path().display());
    let mut daemon =
        lab.gateway.spawn(&binary.display().to_string(), &["run", "--set", &limit, "--set", &log]);
    becomes(PATIENCE, || records.has("ready: ") || daemon.try_wait().is_some());
    report.check(records.has("ready: "), "the daemon is ready");
    let load = Load::new(lab, PATIENCE, report.failures());
    let mut watch = match Watch::begin(&load.lab, working(daemon.pid())) {
        Ok(watch) => watch,
        Err(err) => {
            report.check(false, &format!("the daemon can be watched: {err}\n{}", daemon.stderr()));
            return report.end();
        }
    };

    report.section(&format!("Mixed load for {minutes} minutes"));
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    load.carry(until, || {
        std::thread::sleep(SAMPLE_EVERY.min(until.saturating_duration_since(Instant::now())));
        records.rotate(&mut daemon)?;
        report.say(&watch.sample(&load.line())?);
        Ok(())
    });
    load.judge(&mut report);
    watch.judge_trend(&mut report);
    watch.judge_rest(&mut report);
    if let Err(err) = records.rotate(&mut daemon) {
        report.check(false, &format!("the daemon opens its log again: {err}"));
    }
    let unrecorded = records.judge_mixed(&mut report, &load.count());

    report.section(&format!("Rushes of {RUSH} connections, with a limit of {LIMIT}"));
    let rushes = (minutes.ceil() as usize).clamp(3, 20);
    let answered = (0..rushes).map(|_| load.rush(RUSH)).sum::<usize>();
    report.check(
        answered == rushes * RUSH,
        &format!("{answered} of {} were answered, intercepted or routed", rushes * RUSH),
    );

    report.section("Afterwards");
    watch.judge_rest(&mut report);
    watch.judge_memory_of_the_kernel(&mut report);
    stop(&mut report, &load.lab, &mut daemon);
    records.judge(&mut report, unrecorded);
    report.end()
}

/// Makes the box behave like a small router: it masquerades, so conntrack sees every connection. conntrack forgets
/// ended connections quickly; otherwise the end of the soak would take minutes.
fn router() -> Lab {
    let lab = Lab::new();
    lab.masquerade();
    for state in ["time_wait", "syn_sent", "fin_wait", "close", "unacknowledged", "max_retrans"] {
        lab.gateway.sysctl(&format!("net.netfilter.nf_conntrack_tcp_timeout_{state}"), "5");
    }
    // The client reuses its ports as soon as the kernel considers it safe.
    lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1");
    lab
}

fn ended(status: Option<ExitStatus>) -> String {
    status.map_or_else(String::new, |status| format!(", ended with {status}"))
}

fn stop(report: &mut Report, lab: &Lab, daemon: &mut Proc) {
    let start = Instant::now();
    let mut status = daemon.try_wait();
    report.check(status.is_none(), &format!("the daemon ran until the end{}", ended(status)));
    daemon.signal(Signal::TERM);
    becomes(PATIENCE, || {
        status = status.or_else(|| daemon.try_wait());
        status.is_some()
    });
    report.check(
        status.is_some_and(|status| status.success()),
        &format!("after SIGTERM: {} ms{}", start.elapsed().as_millis(), ended(status)),
    );
    let left = lab.gateway.run("nft list tables; ip rule; ip -6 rule; ip route show table all");
    let gone = !left.contains("tcp_intercept") && !left.contains("proto 155");
    report.check(gone, "rules and routes are gone");
    let sockets = lab.gateway.ss("-tan");
    report.check(
        sockets.is_empty(),
        &format!("sockets on the box, including TIME_WAIT: {}", sockets.lines().count()),
    );
}
