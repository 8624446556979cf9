//! What of the path manager's state is ours, kept in the kernel as the comments of a chain that no packet passes. PURE.
//!
//! An endpoint has nowhere to carry a mark of ours. The record lives and dies with the network namespace, as the endpoints do, and a
//! SIGKILL cannot lose it: it is written before what it tells of is done.
use std::fmt::{self, Write};

use super::endpoint::{Limits, Place};

/// The table in the family `inet` that holds the record, apart from that of the rules, which can live longer.
pub const TABLE: &str = "tcp_intercept_paths";
const CHAIN: &str = "state";

/// The record; an empty one is no table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Our endpoints; some may not be there yet, or any more.
    pub places: Vec<Place>,
    /// The limits that we raised.
    pub raised: Vec<Raised>,
}

/// A limit that was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Which.
    pub limit: Limit,
    /// Its value before us.
    pub was: u32,
    /// What we made of it.
    pub set: u32,
}

/// The two limits of the path manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Paths beside the first.
    Subflows,
    /// Announced addresses that are used.
    AddAddrAccepted,
}

impl Limit {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Subflows, Self::AddAddrAccepted];

    /// As `ip mptcp limits` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subflows => "subflows",
            Self::AddAddrAccepted => "add_addr_accepted",
        }
    }

    /// Its value.
    pub const fn of(self, limits: &Limits) -> u32 {
        match self {
            Self::Subflows => limits.subflows,
            Self::AddAddrAccepted => limits.add_addr_accepted,
        }
    }
}

impl Record {
    /// The transaction for `nft -f -` that makes this the record, whatever it was.
    pub fn script(&self) -> String {
        let mut script = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
        if *self != Self::default() {
            // Writing to a String cannot fail.
            let _ = write!(script, "table inet {TABLE} {{\n  chain {CHAIN} {{\n{self}  }}\n}}\n");
        }
        script
    }

    /// This, and more that will be ours. Of a limit it stays known what it was at first.
    pub fn with(&self, places: &[Place], raised: &[Raised]) -> Self {
        let new = places.iter().filter(|place| !self.places.contains(place));
        let raised = raised.iter().filter(|new| self.raised.iter().all(|known| known.limit != new.limit));
        Self {
            places: self.places.iter().chain(new).copied().collect(),
            raised: self.raised.iter().chain(raised).copied().collect(),
        }
    }

    /// The record that these comments hold; what cannot be read is not ours.
    pub fn parse<'c>(comments: impl IntoIterator<Item = &'c str>) -> Self {
        let mut record = Self::default();
        for comment in comments {
            if let Some(place) = comment.strip_prefix("endpoint ") {
                record.places.extend(Place::parse(place));
            } else {
                record.raised.extend(Raised::parse(comment));
            }
        }
        record
    }
}

impl Raised {
    fn parse(comment: &str) -> Option<Self> {
        let words: Vec<&str> = comment.split(' ').collect();
        let ["limit", name, was, "to", set] = words[..] else { return None };
        let limit = Limit::ALL.into_iter().find(|limit| limit.name() == name)?;
        Some(Self { limit, was: was.parse().ok()?, set: set.parse().ok()? })
    }
}

/// `the limit subflows: raised from 2 to 8`
impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, was, set } = self;
        write!(f, "the limit {}: raised from {was} to {set}", limit.name())
    }
}

/// A rule for each thing.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.places {
            writeln!(f, "    return comment \"endpoint {place}\"")?;
        }
        for Raised { limit, was, set } in &self.raised {
            writeln!(f, "    return comment \"limit {} {was} to {set}\"", limit.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let places = ["10.3.1.2 port 5001", "192.0.2.1", "2001:db8::1 port 1"];
        let record = Record {
            places: places.iter().filter_map(|place| Place::parse(place)).collect(),
            raised: Limit::ALL.iter().map(|&limit| Raised { limit, was: 0, set: 8 }).collect(),
        };
        assert_eq!(record.places.len(), places.len());
        let text = record.to_string();
        let comments = text.lines().filter_map(|line| line.split('"').nth(1));
        assert_eq!(Record::parse(comments), record);
    }

    #[test]
    fn without_anything_of_ours_there_is_no_table_and_what_is_strange_is_not_ours() {
        assert!(!Record::default().script().contains(CHAIN));
        let strange = ["endpoint x", "endpoint 10.0.0.1 port 0", "limit x 1 to 2", "limit subflows 1 to", ""];
        assert_eq!(Record::parse(strange), Record::default());
    }
}
