//! `lab never-drop`: kills the worker and replaces the program under load, each TIMES (100) times. No session may be
//! lost. `make soak` runs it.
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::descriptors;
use lab::full_table::FullTable;
use lab::options::{self, number};
use lab::stream::Random;
use lab::traffic::{Amount, Traffic};
use lab::{BOTH, Daemon, Ip, Lab, becomes};
use rustix::process::{Signal, nice};

use crate::report::Report;

/// The load that the issue and the documentation name.
const LOAD: Amount = Amount { bulk: 200, interactive: 2000, connecting: 4, pulses: 10 };
/// The longest pause that a disturbance may cause, from the requirements.
const PAUSE: Duration = Duration::from_millis(150);
/// The delay between a disturbance and the measurement of its pauses.
const SEEN_AFTER: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

/// The nice value of the load's threads, which inherit it.
const NICER: i32 = 10;

struct Scene {
    lab: Lab,
    daemon: Daemon,
    traffic: Traffic,
    random: Random,
    times: usize,
}

/// Parses how often each disturbance happens (`TIMES=100`).
///
/// # Errors
/// The first word that is invalid.
pub fn times(words: impl Iterator<Item = String>) -> Result<usize, String> {
    let mut times = 100;
    options::read(words, &["TIMES"], |_, value| {
        times = number(value, 1, 100_000)?;
        Ok(())
    })?;
    Ok(times)
}

/// Runs all rows, with `times` repetitions of each disturbance.
pub fn run(binary: &Path, times: usize) -> ExitCode {
    let mut report = Report::new();
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, binary, &["limits.crashes=4294967295"]);
    let before = daemon.worker();
    let idle = descriptors(before);
    report.section(&format!(
        "{} bulk sessions, {} interactive ones, continuous new connections",
        LOAD.bulk, LOAD.interactive
    ));
    let at = BOTH.map(|ip| lab.server_at(ip, 9000));
    // In production, clients and servers run on other machines. Here the load yields the processors to the box.
    if let Err(err) = nice(NICER) {
        report.say(&format!("cannot lower the priority of the load: {err}"));
    }
    let traffic = Traffic::start(lab.client(), &lab.server, &at, LOAD);
    std::thread::sleep(Duration::from_secs(2));
    let undisturbed = longest(&traffic.pauses());
    report.say(&format!("the longest wait for an answer without disturbance is {undisturbed:.1?}"));
    let mut scene = Scene { lab, daemon, traffic, random: Random::new(times as u64), times };
    scene.row(&mut report, "SIGKILL to the worker", Some(PAUSE), |scene| {
        scene.kill();
        Ok(())
    });
    let path = binary.display().to_string();
    scene.row(&mut report, "upgrade", Some(PAUSE), |scene| {
        scene.upgrade(&path);
        Ok(())
    });
    scene.row(&mut report, "SIGKILL twice within 50 ms", Some(PAUSE), |scene| {
        scene.kill();
        std::thread::sleep(Duration::from_millis(scene.random.below(50) as u64));
        scene.kill();
        Ok(())
    });
    scene.row(&mut report, "SIGKILL during an upgrade", Some(PAUSE), |scene| {
        let after = Duration::from_millis(scene.random.below(80) as u64);
        let scene = &*scene;
        std::thread::scope(|scope| {
            scope.spawn(|| scene.upgrade(&path));
            std::thread::sleep(after);
            scene.kill();
        });
        Ok(())
    });
    scene.full_table(&mut report);

    afterwards(&mut report, scene, idle);
    report.end()
}

/// Ends the load, and checks that every session completed and that nothing is left over.
fn afterwards(report: &mut Report, scene: Scene, idle: usize) {
    report.section("Afterwards");
    let Scene { lab, mut daemon, traffic, .. } = scene;
    let outcome = traffic.end();
    for failure in outcome.failures.iter().take(20) {
        report.say(failure);
    }
    report.check(
        outcome.failures.is_empty(),
        &format!(
            "{} sessions and {} connections meanwhile, {} of them failed",
            LOAD.bulk + LOAD.interactive + LOAD.pulses,
            outcome.connected,
            outcome.failures.len()
        ),
    );
    if let Some(status) = daemon.process().try_wait() {
        report.check(false, &format!("the guardian has ended unexpectedly ({status})"));
        last_words(&daemon).iter().for_each(|line| report.say(line));
        return;
    }
    let mut now = 0;
    // If the last worker was just killed, the next one still has its descriptors.
    let closed = becomes(PATIENCE, || {
        now = lab::find_worker(daemon.guardian()).map_or(usize::MAX, descriptors);
        now <= idle + 2
    });
    report.check(closed, &format!("descriptors: {idle} before, {now} afterwards"));
    let (status, log) = daemon.stop();
    report.check(status.success(), &format!("the daemon exits successfully ({status})"));
    let lost = log.matches("damaged ones").count() + log.matches("two workers in a row").count();
    report.check(lost == 0, &format!("workers that found a damaged session: {lost}"));
    drop(lab);
}

impl Scene {
    /// Disturbs the daemon `times` times and judges the effect on the traffic. Also judges the pauses if they must be
    /// short.
    fn row(
        &mut self,
        report: &mut Report,
        what: &str,
        pause: Option<Duration>,
        mut disturb: impl FnMut(&mut Self) -> io::Result<()>,
    ) {
        let (failed, connected) = (self.traffic.failures().len(), self.traffic.connected());
        let (mut pauses, mut done) = (Vec::new(), Ok(()));
        let (began, mut times) = (Instant::now(), 0);
        while times < self.times && done.is_ok() {
            std::thread::sleep(Duration::from_millis(self.random.below(300) as u64));
            self.traffic.pauses();
            done = disturb(self);
            std::thread::sleep(SEEN_AFTER);
            pauses.extend(self.traffic.pauses());
            times += 1;
        }
        if let Err(err) = &done {
            report.check(false, &format!("{what}: time {times} of {}: {err}", self.times));
            last_words(&self.daemon).iter().for_each(|line| report.say(line));
        }
        pauses.sort_unstable();
        let at = |share: usize| {
            pauses.get(pauses.len().saturating_sub(1) * share / 100).copied().unwrap_or_default()
        };
        let now = self.traffic.failures();
        let text = format!(
            "{what}, {times} times in {:.0?}: {} sessions or connects failed, {} connections were made; pause p50 {:.0?}, p99 {:.0?}, most {:.0?}",
            began.elapsed(),
            now.len() - failed,
            self.traffic.connected() - connected,
            at(50),
            at(99),
            at(100),
        );
        report.check(now.len() == failed && pause.is_none_or(|most| at(99) <= most), &text);
        now.iter().skip(failed).take(5).for_each(|failure| report.say(failure));
    }

    /// Runs the row in which the daemon has no free descriptor when its worker is killed. New connections may then be
    /// reset or routed, but no session may be lost. The pauses are not judged.
    fn full_table(&mut self, report: &mut Report) {
        let what = "SIGKILL with a full descriptor table (EMFILE)";
        let echo = self.lab.server_at(Ip::V4, 9001);
        let table = FullTable::new(&self.lab.gateway, self.daemon.guardian(), self.lab.client(), echo);
        let mut table = match table {
            Ok(table) => table,
            Err(err) => return report.check(false, &format!("{what}: {err}")),
        };
        let away = self.traffic.turned_away();
        self.row(report, what, None, |scene| table.kill_worker(&scene.traffic));
        if let Err(err) = table.recovers(&self.traffic) {
            report.check(false, &format!("{what}: {err}"));
        }
        let failures = table.failures();
        report.check(
            failures.is_empty(),
            &format!(
                "{} more sessions filled the table, and {} of them failed; {} new connections were reset while it was full",
                table.held(),
                failures.len(),
                self.traffic.turned_away() - away
            ),
        );
        failures.iter().take(5).for_each(|failure| report.say(failure));
    }

    fn kill(&self) {
        if let Some(worker) = lab::find_worker(self.daemon.guardian()) {
            self.daemon.signal_process(worker, Signal::KILL);
        }
    }

    fn upgrade(&self, binary: &str) {
        // The daemon may refuse the upgrade, for example while another one is in progress. Only lost sessions count.
        self.lab.gateway.run(&format!("{binary} upgrade 2>&1 || true"));
    }
}

fn longest(pauses: &[Duration]) -> Duration {
    pauses.iter().copied().max().unwrap_or_default()
}

fn descriptors(pid: u32) -> usize {
    descriptors::open(pid).map_or(0, |open| open.len())
}

/// Returns the end of a daemon's log without its close records.
fn last_words(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().rev().filter(|line| !line.contains("\"closed\""));
    let mut last: Vec<_> = lines.take(5).map(str::to_owned).collect();
    last.reverse();
    last
}
