//! The record of the daemon's own part of the path manager's state. PURE. The kernel keeps it as the comments of a
//! chain that no packet passes.
//!
//! An endpoint has no field for a mark of its owner. Like the endpoints, the record exists as long as the network
//! namespace. The daemon writes it before it changes anything, so that a SIGKILL cannot lose it.
use std::fmt::{self, Write};

use super::endpoint::{Limits, Place};

/// The table in the family `inet` that holds the record. The rules have another table, which can outlive this one.
pub const TABLE: &str = "tcp_intercept_paths";
const CHAIN: &str = "state";

/// The record; if it is empty, there is no table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The daemon's endpoints; some may not exist yet, or no longer.
    pub places: Vec<Place>,
    /// The limits that the daemon raised.
    pub raised: Vec<Raised>,
}

/// A limit that was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// The limit.
    pub limit: Limit,
    /// Its original value.
    pub was: u32,
    /// The value that the daemon set.
    pub set: u32,
}

/// The two limits of the path manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The number of paths besides the first.
    Subflows,
    /// The number of announced addresses that are used.
    AddAddrAccepted,
}

impl Limit {
    /// Both limits.
    pub const ALL: [Self; 2] = [Self::Subflows, Self::AddAddrAccepted];

    /// Returns its name in `ip mptcp limits`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subflows => "subflows",
            Self::AddAddrAccepted => "add_addr_accepted",
        }
    }

    /// Returns its value in `limits`.
    pub const fn of(self, limits: &Limits) -> u32 {
        match self {
            Self::Subflows => limits.subflows,
            Self::AddAddrAccepted => limits.add_addr_accepted,
        }
    }
}

impl Record {
    /// Returns the transaction for `nft -f -` that replaces the stored record with this one.
    pub fn script(&self) -> String {
        let mut script = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
        if *self != Self::default() {
            // Writing to a String cannot fail.
            let _ = write!(script, "table inet {TABLE} {{\n  chain {CHAIN} {{\n{self}  }}\n}}\n");
        }
        script
    }

    /// Returns this record with further endpoints and limits. For a known limit, it keeps the original value.
    pub fn with(&self, places: &[Place], raised: &[Raised]) -> Self {
        let new = places.iter().filter(|place| !self.places.contains(place));
        let raised = raised.iter().filter(|new| self.raised.iter().all(|known| known.limit != new.limit));
        Self {
            places: self.places.iter().chain(new).copied().collect(),
            raised: self.raised.iter().chain(raised).copied().collect(),
        }
    }

    /// Parses the record from `comments`; ignores comments in any other format.
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

/// Writes, for example, `the limit subflows: raised from 2 to 8`.
impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, was, set } = self;
        write!(f, "the limit {}: raised from {was} to {set}", limit.name())
    }
}

/// Writes one rule for each endpoint and each limit.
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
    fn a_written_record_is_read_back() {
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
    fn an_empty_record_has_no_table_and_malformed_comments_are_ignored() {
        assert!(!Record::default().script().contains(CHAIN));
        let strange = ["endpoint x", "endpoint 10.0.0.1 port 0", "limit x 1 to 2", "limit subflows 1 to", ""];
        assert_eq!(Record::parse(strange), Record::default());
    }
}
