//! What is to be measured, how often and how long.
use std::collections::BTreeSet;
use std::path::PathBuf;

use super::figures::OURS;
use super::haproxy::Splice;
use super::measure::Measurement;
use super::ways::{Kind, Way};
use crate::options::{number, read};

const KEYS: [&str; 7] = ["ROUNDS", "SECONDS", "ONLY", "IDLE", "CONGESTION", "BASE", "OUT"];

/// Everything that can be chosen.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each single measurement takes.
    pub seconds: f64,
    /// What is measured.
    pub only: Vec<Measurement>,
    /// The congestion control of all sockets on all hosts.
    pub congestion_control: String,
    /// How many idle sessions there are while round trips are measured: none, then more and more.
    pub idle: Vec<usize>,
    /// How many ports of each of its addresses the client connects from. Before a port's turn comes again its last
    /// connection must have ended a second ago, or the client's own kernel says no: with 16 addresses these are enough for
    /// 32,000 connections a second.
    pub ports: u16,
    /// The program.
    pub binary: PathBuf,
    /// The program of another revision, to compare with.
    pub base: Option<PathBuf>,
    /// The directory in which the results are kept.
    pub out: PathBuf,
}

impl Plan {
    /// What `make bench` does unless told otherwise.
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

    /// As told by words like `ROUNDS=1`; what is empty counts as not told.
    ///
    /// # Errors
    /// Which word is wrong, and what it may be.
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
                // What they cost is seen beside none.
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

    /// The most idle sessions that there will be.
    pub(super) fn most_idle(&self) -> usize {
        let measured = self.only.contains(&Measurement::Idle);
        self.idle.iter().copied().filter(|_| measured).max().unwrap_or_default()
    }

    /// The ways that are compared; the first is what the others are compared with.
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
    fn words_override_and_empty_ones_do_not() {
        let plan = plan(&["ROUNDS=1", "SECONDS=0.2", "ONLY=conn,bulk1", "IDLE=10,5", "CONGESTION="]).unwrap();
        assert_eq!((plan.rounds, plan.seconds, plan.congestion_control.as_str()), (1, 0.2, "cubic"));
        assert_eq!(plan.only, [Measurement::Connections, Measurement::Bulk { streams: 1 }]);
        assert_eq!(plan.idle, [0, 5, 10]);
    }

    #[test]
    fn a_bad_word_is_told_with_what_it_may_be() {
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
    fn another_revision_is_one_way_more() {
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
