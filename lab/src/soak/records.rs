//! The daemon's own records: its log, rotated and read from time to time as logrotate does it.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::servers::scratch;
use lab::{Proc, becomes};
use rustix::process::Signal;

use super::load::Count;
use crate::report::Report;

/// Connections of the mixed load that the daemon has not recorded.
#[derive(Debug, Clone, Copy)]
pub struct Unrecorded {
    /// How many connections have no record, because they ended before they were accepted or were routed.
    count: u64,
    /// Whether some connections were routed.
    routed: bool,
}

/// The log, and the counts of the part that was read.
pub struct Records {
    path: PathBuf,
    ended: u64,
    in_order: u64,
    said: Vec<String>,
}

impl Records {
    pub fn new() -> Self {
        let path = scratch("soak").join("log");
        Self { path, ended: 0, in_order: 0, said: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has(&self, text: &str) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|log| log.contains(text))
    }

    /// Rotates the log: renames the file, makes the daemon open a new one, and reads the old one.
    ///
    /// # Errors
    /// The file does not exist, or the daemon does not open a new one.
    pub fn rotate(&mut self, daemon: &mut Proc) -> io::Result<()> {
        let old = self.path.with_extension("1");
        fs::rename(&self.path, &old).map_err(|err| named(&self.path, &err))?;
        daemon.signal(Signal::HUP);
        // Guardian and worker reopen the file one after the other. Until both have, lines may still go to the old one.
        let mut again = false;
        becomes(Duration::from_secs(300), || {
            again = self.path.exists() && !has_open(daemon.pid(), &old);
            again || daemon.try_wait().is_some()
        });
        self.read(&old)?;
        if again {
            return Ok(());
        }
        let (path, status) = (self.path.display(), daemon.try_wait());
        Err(io::Error::other(format!("SIGHUP did not make the daemon open {path} again (ended: {status:?})")))
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let log = fs::read_to_string(path).map_err(|err| named(path, &err))?;
        for line in log.lines() {
            if !line.contains(" INFO closed client=") {
                self.said.push(line.to_owned());
                continue;
            }
            self.ended += 1;
            self.in_order += u64::from(line.contains(" cause=eof "));
        }
        Ok(())
    }

    /// Compares the records of the mixed load with the clients' counts. Returns which connections have no record.
    pub fn judge_mixed(&self, report: &mut Report, clients: &Count) -> Unrecorded {
        let Self { ended, in_order, .. } = *self;
        report.check(ended <= clients.all, &format!("{ended} records of {} connections", clients.all));
        let count = clients.all.saturating_sub(ended);
        // A daemon that got no processor for a while accepts the queued connections at once, which may exceed the
        // limit.
        let routed = self.said.iter().any(|line| line.contains(" sessions: new connections are routed"));
        let past = clients.in_order.checked_sub(in_order);
        let right = past.is_some_and(|past| past <= if routed { count } else { 0 });
        let by_both = format!("in order by our records: {in_order}, by the clients: {}", clients.in_order);
        let why = if routed { "; the gate was closed for a moment, and some were routed" } else { "" };
        report.check(right, &format!("{by_both}{why}"));
        Unrecorded { count, routed }
    }

    /// Compares the records with the daemon's counters after its end, and prints the rest of its log.
    pub fn judge(&mut self, report: &mut Report, unrecorded: Unrecorded) {
        if let Err(err) = self.read(&self.path.clone()) {
            report.check(false, &format!("the daemon's log can be read: {err}"));
        }
        let counters =
            self.said.iter().rev().find_map(|line| line.split_once("stopped: ")).map(|(_, words)| words);
        let counters = counters.unwrap_or_default().to_owned();
        let counter = |name: &str| {
            let words = counters.split_ascii_whitespace();
            words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name)?.1.parse::<u64>().ok()
        };
        report.say(&format!("    {counters}"));
        let accepted = counter("accepted");
        report.check(
            accepted == Some(self.ended),
            &format!("one record per session: {} of {accepted:?}", self.ended),
        );
        let aborted = counter("aborted");
        let Unrecorded { count, routed } = unrecorded;
        let right = aborted.is_some_and(|aborted| aborted == count || routed && aborted < count);
        report.check(
            right,
            &format!("ended before they were accepted: {aborted:?} of {count} without a record"),
        );
        report.check(counter("gate-closed") > Some(0), "the rushes closed the gate");
        let none = ["exhausted", "shed", "to-listener", "timed-out"].map(counter);
        report.check(none == [Some(0); 4], "no resource ran out, and no connection was turned away");
        let strange = |line: &&String| {
            let trouble = line.contains(" WARN ") || line.contains(" ERROR ");
            trouble
                && !line.contains(" sessions: new connections are ")
                && !line.contains("before it could be accepted")
        };
        let strange: Vec<_> = self.said.iter().filter(strange).collect();
        report.check(strange.is_empty(), &format!("no other warning or error in the log {strange:?}"));
    }
}

/// Returns whether a process has the file open under this name. A worker shares its guardian's descriptors.
fn has_open(pid: u32, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| link == path)
}

fn named(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}
