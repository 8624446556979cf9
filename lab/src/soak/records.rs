//! What the daemon says it did: its log, moved away and read now and then as logrotate does it.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::servers::scratch;
use lab::{Proc, becomes};
use rustix::process::Signal;

use super::load::Count;
use crate::report::Report;

/// The log, and what has been read of it.
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

    /// Moves the file away, has the daemon open another, and reads the old one.
    pub fn rotate(&mut self, daemon: &Proc) {
        let old = self.path.with_extension("1");
        let moved = fs::rename(&self.path, &old);
        moved.unwrap_or_else(|err| panic!("{}: {err}", self.path.display()));
        daemon.signal(Signal::HUP);
        let again = becomes(Duration::from_secs(300), || self.path.exists());
        assert!(again, "SIGHUP does not have {} opened again", self.path.display());
        self.read(&old);
    }

    fn read(&mut self, path: &Path) {
        let log = fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        for line in log.lines() {
            if !line.contains(" INFO closed client=") {
                self.said.push(line.to_owned());
                continue;
            }
            self.ended += 1;
            self.in_order += u64::from(line.contains(" cause=eof "));
        }
    }

    /// Compares what was recorded of the mixed load with what its clients did. Gives how many connections have no record: they were
    /// over before they were accepted.
    pub fn judge_mixed(&self, report: &mut Report, clients: &Count) -> u64 {
        let Self { ended, in_order, .. } = *self;
        report.check(ended <= clients.all, &format!("{ended} records of {} connections", clients.all));
        let right = in_order == clients.in_order;
        report.check(
            right,
            &format!("in order by our records: {in_order}, by the clients: {}", clients.in_order),
        );
        clients.all.saturating_sub(ended)
    }

    /// When the daemon has ended: compares the records with its counters, and shows what else it said.
    pub fn judge(&mut self, report: &mut Report, without: u64) {
        self.read(&self.path.clone());
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
            &format!("one record a session: {} of {accepted:?}", self.ended),
        );
        let aborted = counter("aborted");
        report.check(
            aborted == Some(without),
            &format!("over before they were accepted: {aborted:?} of {without}"),
        );
        report.check(counter("gate-closed") > Some(0), "the rushes had the gate closed");
        let none = ["exhausted", "shed", "to-listener", "timed-out"].map(counter);
        report.check(none == [Some(0); 4], "nothing had run out, and nobody had to be turned away");
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
