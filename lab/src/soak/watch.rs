//! The resources that the daemon and the kernel use during a soak, and those left over at its end.
use std::fs;
use std::io;
use std::time::Duration;

use lab::{Lab, becomes};

use super::PATIENCE;
use crate::report::Report;

/// The number of samples until memory has reached its working size. After that it should not grow.
const WARM: usize = 6;
const GROWTH_KIB: u64 = 4 << 10;
/// The number of idle pipes that each worker may keep.
const PIPES_A_WORKER: u64 = 4;

/// The resources at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Open descriptors of the daemon, without pipes.
    descriptors: u64,
    pipe_ends: u64,
    threads: u64,
    memory_kib: u64,
    /// Sockets on the box, without those in TIME_WAIT.
    sockets: u64,
    /// Rules, chains and sets of the daemon's table.
    rules: u64,
    /// Elements of the table's sets.
    elements: u64,
    /// Connections that conntrack tracks.
    tracked: u64,
}

/// Takes samples and compares them.
pub struct Watch<'l> {
    lab: &'l Lab,
    pid: u32,
    idle: Sample,
    samples: Vec<Sample>,
}

impl<'l> Watch<'l> {
    /// Begins with a sample of the idle daemon.
    ///
    /// # Errors
    /// The process is gone, or its nftables table is.
    pub fn begin(lab: &'l Lab, pid: u32) -> io::Result<Self> {
        let idle = Sample::take(lab, pid)?;
        Ok(Self { lab, pid, idle, samples: Vec::new() })
    }

    /// Takes another sample and returns it as a line; `what` names the step that preceded it.
    ///
    /// # Errors
    /// The process is gone, or its nftables table is.
    pub fn sample(&mut self, what: &str) -> io::Result<String> {
        let now = Sample::take(self.lab, self.pid)?;
        self.samples.push(now);
        Ok(format!(
            "{what} {:>5} sockets {:>4} descriptors {:>3} pipes {:>7} KiB {:>7} elements {:>6} tracked",
            now.sockets,
            now.descriptors,
            now.pipe_ends / 2,
            now.memory_kib,
            now.elements,
            now.tracked
        ))
    }

    /// Checks that the daemon uses no more resources than after the warm-up.
    pub fn judge_trend(&self, report: &mut Report) {
        let warm =
            self.samples.iter().take(WARM.max(self.samples.len() / 4)).map(|sample| sample.memory_kib).max();
        if let (Some(warm), Some(last)) = (warm, self.samples.last()) {
            let steady = self.samples.len() <= WARM || last.memory_kib <= warm + warm / 10 + GROWTH_KIB;
            report
                .check(steady, &format!("memory: {warm} KiB when warm, {} KiB at the end", last.memory_kib));
        }
        let fewest = |what: fn(&Sample) -> u64| self.samples.iter().map(what).min().unwrap_or(0);
        report.say(&format!(
            "    fewest of each in any sample: {} sockets, {} descriptors, {} pipes",
            fewest(|sample| sample.sockets),
            fewest(|sample| sample.descriptors),
            fewest(|sample| sample.pipe_ends) / 2
        ));
    }

    /// Checks that the resources of all sessions are freed once they have ended.
    pub fn judge_rest(&self, report: &mut Report) {
        let idle = self.idle;
        let as_before = |now: &Sample| (now.sockets, now.descriptors) == (idle.sockets, idle.descriptors);
        let Some(now) = self.settled(report, as_before) else { return };
        report.check(
            now.sockets == idle.sockets,
            &format!("sockets: {} before, {} left", idle.sockets, now.sockets),
        );
        let right = now.descriptors == idle.descriptors;
        report.check(
            right,
            &format!("descriptors without pipes: {} before, {} left", idle.descriptors, now.descriptors),
        );
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let kept = idle.pipe_ends + 2 * PIPES_A_WORKER * workers;
        report.check(
            now.pipe_ends <= kept,
            &format!("pipes: {} kept, {} at most", now.pipe_ends / 2, kept / 2),
        );
        let same = (now.rules, now.threads) == (idle.rules, idle.threads);
        report.check(
            same,
            &format!(
                "rules, chains and sets: {} before, {} left; threads: {}, {}",
                idle.rules, now.rules, idle.threads, now.threads
            ),
        );
    }

    /// Checks that the kernel's temporary entries (set elements, conntrack) expire.
    pub fn judge_memory_of_the_kernel(&self, report: &mut Report) {
        let forgotten = |now: &Sample| now.elements == 0 && now.tracked <= self.idle.tracked;
        let Some(now) = self.settled(report, forgotten) else { return };
        report.check(now.elements == 0, &format!("elements in our sets: {}", now.elements));
        let right = now.tracked <= self.idle.tracked;
        report.check(
            right,
            &format!("connections in conntrack: {} before, {} left", self.idle.tracked, now.tracked),
        );
    }

    /// Takes samples until one satisfies `done`, for at most [`PATIENCE`]. Returns the last one, or `None` if sampling
    /// failed.
    fn settled(&self, report: &mut Report, mut done: impl FnMut(&Sample) -> bool) -> Option<Sample> {
        let mut now = Sample::take(self.lab, self.pid);
        becomes(PATIENCE, || {
            if now.as_ref().map_or(true, &mut done) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
            now = Sample::take(self.lab, self.pid);
            false
        });
        now.map_err(|err| report.check(false, &format!("the daemon can be watched: {err}"))).ok()
    }
}

impl Sample {
    fn take(lab: &Lab, pid: u32) -> io::Result<Self> {
        let proc = format!("/proc/{pid}");
        let gone = |err: io::Error| io::Error::new(err.kind(), format!("process {pid}: {err}"));
        let status = fs::read_to_string(format!("{proc}/status")).map_err(gone)?;
        if status.contains("\nState:\tZ") {
            return Err(gone(io::Error::other("it has ended")));
        }
        let field = |name: &str| {
            let text = status.lines().find_map(|line| line.strip_prefix(name))?;
            text.trim().trim_end_matches(" kB").parse().ok()
        };
        let open = fs::read_dir(format!("{proc}/fd")).map_err(gone)?.flatten();
        let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let (pipes, others): (Vec<_>, Vec<_>) =
            open.partition(|to| to.to_string_lossy().starts_with("pipe:"));
        let table = lab.gateway.try_run("nft -a list table inet tcp_intercept")?;
        let tracked = lab.gateway.try_run("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
        let sockets = lab.gateway.try_run("ss -H -tan state connected exclude time-wait")?;
        Ok(Self {
            descriptors: others.len() as u64,
            pipe_ends: pipes.len() as u64,
            threads: field("Threads:").unwrap_or(0),
            memory_kib: field("VmRSS:").unwrap_or(0),
            sockets: sockets.lines().count() as u64,
            rules: table.matches("# handle").count() as u64,
            elements: table.matches(" expires ").count() as u64,
            tracked: tracked.trim().parse().unwrap_or(0),
        })
    }
}
