//! The plan: what to measure, how often and how long.
use std::collections::BTreeSet;
use std::path::PathBuf;

use super::figures::OURS;
use super::haproxy::Splice;
use super::measure::Measurement;
use super::ways::{Kind, Way};
use crate::options::{number, read};

const KEYS: [&str; 7] = ["ROUNDS", "SECONDS", "ONLY", "IDLE", "CONGESTION", "BASE", "OUT"];

/// The options of a benchmark.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number of rounds.
    pub rounds: usize,
    /// The duration of a single measurement in seconds.
    pub seconds: f64,
    /// The measurements to run.
    pub only: Vec<Measurement>,
    /// The congestion control of all sockets on all hosts.
    pub congestion_control: String,
    /// The numbers of idle sessions beside which round trips are measured: none, then more and more.
    pub idle: Vec<usize>,
    /// The number of ports per address that the client connects from. Before a port is used again, its last connection
    /// must have ended a second ago; otherwise the client's own kernel refuses it. With 16 addresses, these are enough
    /// for 32,000 connections per second.
    pub ports: u16,
    /// The path of the program.
    pub binary: PathBuf,
    /// The path of a program of another revision, to compare with.
    pub base: Option<PathBuf>,
    /// The directory for the results.
    pub out: PathBuf,
}

impl Plan {
    /// Returns the defaults of `make bench`.
    pub fn new(binary: PathBuf) -> Self {
        Self {
            rounds: 9,
            seconds: 2.0,
            only: Measurement::ALL.to_vec(),
            congestion_control: "cubic".to_owned(),
            idle: vec![0, 1_000, 9_000],
            ports: 2_000,
            binary,
            base: None,
            out: PathBuf::from("target/bench"),
        }
    }

    /// Applies words like `ROUNDS=1`. An empty value keeps the default.
    ///
    /// # Errors
    /// The first invalid word, and its allowed values.
    pub fn from_words(binary: PathBuf, words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut plan = Self::new(binary);
        read(words, &KEYS, |key, value| plan.set(key, value))?;
        Ok(plan)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "ROUNDS" => self.rounds = number(value, 1, 1000)?,
            "SECONDS" => self.seconds = number(value, 0.1, 600.0)?,
            "ONLY" => self.only = value.split(',').map(Measurement::named).collect::<Result<_, _>>()?,
            "IDLE" => {
                let counts = value.split(',').map(|word| number(word, 0, 9_000));
                // The cost is measured against no idle sessions.
                let counts = std::iter::once(Ok(0)).chain(counts).collect::<Result<BTreeSet<_>, _>>()?;
                self.idle = counts.into_iter().collect();
            }
            "CONGESTION" => self.congestion_control = value.to_owned(),
            "OUT" => self.out = PathBuf::from(value),
            "BASE" => self.base = Some(PathBuf::from(value)),
            _ => unreachable!("{key} is one of {KEYS:?}"),
        }
        Ok(())
    }

    /// Returns the highest number of idle sessions.
    pub(super) fn most_idle(&self) -> usize {
        let measured = self.only.contains(&Measurement::Idle);
        self.idle.iter().copied().filter(|_| measured).max().unwrap_or_default()
    }

    /// Returns the ways to compare. The first is the reference.
    pub(super) fn ways(&self) -> Vec<Way> {
        let ours = |binary: &PathBuf| Kind::Intercept { binary: binary.clone() };
        let base = self.base.as_ref().map(|binary| ("base", ours(binary)));
        let kinds = [("routing", Kind::Routing), (OURS, ours(&self.binary))];
        let haproxy = |splice| Kind::Haproxy { splice };
        let rivals = [("haproxy", haproxy(Splice::Auto)), ("haproxy-splice", haproxy(Splice::Always))];
        let kinds = kinds.into_iter().chain(base).chain(rivals);
        kinds.zip(0..).map(|((name, kind), nth)| Way { name: name.to_owned(), kind, nth }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &[&str]) -> Result<Plan, String> {
        Plan::from_words(PathBuf::from("tcp-intercept"), words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn words_override_defaults_and_empty_words_do_not() {
        let plan = plan(&["ROUNDS=1", "SECONDS=0.2", "ONLY=conn,bulk1", "IDLE=10,5", "CONGESTION="]).unwrap();
        assert_eq!((plan.rounds, plan.seconds, plan.congestion_control.as_str()), (1, 0.2, "cubic"));
        assert_eq!(plan.only, [Measurement::Connections, Measurement::Bulk { streams: 1 }]);
        assert_eq!(plan.idle, [0, 5, 10]);
    }

    #[test]
    fn an_invalid_word_is_reported_with_its_allowed_values() {
        for (word, may_be) in [
            ("ROUNDS=0", "from 1 to 1000"),
            ("SECONDS=long", "from 0.1 to 600"),
            ("ONLY=bulk9", "bulk1, bulk8, rtt, conn, idle"),
            ("IDLE=0,9001", "from 0 to 9000"),
            ("ROUND=1", "ROUNDS="),
            ("ROUND=", "ROUNDS="),
            ("quick", "ROUNDS="),
        ] {
            let message = plan(&[word]).unwrap_err();
            assert!(message.starts_with(word) && message.contains(may_be), "{message}");
        }
    }

    #[test]
    fn another_revision_adds_a_way() {
        let names = |words: &[_]| {
            let ways = plan(words).unwrap().ways();
            ways.into_iter().map(|way| way.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&[]), "routing tcp-intercept haproxy haproxy-splice");
        assert_eq!(names(&["BASE=old"]), "routing tcp-intercept base haproxy haproxy-splice");
    }

    #[test]
    fn descriptors_are_needed_for_idle_sessions_that_are_measured() {
        assert_eq!(plan(&["IDLE=0,10"]).unwrap().most_idle(), 10);
        assert_eq!(plan(&["IDLE=0,10", "ONLY=rtt"]).unwrap().most_idle(), 0);
    }
}
