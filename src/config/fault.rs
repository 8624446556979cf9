//! What is wrong in a configuration: every fault with its place, its key, its value and what is allowed. PURE.
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use crate::units::BadMark;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file as a whole.
    File,
    /// A line of the file, counted from 1.
    Line(usize),
    /// The text after a `--set`.
    Set(String),
}

/// Where a value was written, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub origin: Origin,
    /// The value in its writer's own words; `None` for what is shown by its key alone, as a table.
    pub written: Option<String>,
}

/// One fault.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it was written, and which value.
    pub place: Place,
    /// The dotted key; empty where no key is at fault.
    pub key: String,
    /// What is wrong and what is allowed.
    pub why: Why,
}

/// Why a value is refused, and what is allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The text is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A `--set` that sets nothing.
    #[error("KEY=VALUE is needed, as in server.congestion-control=bbr")]
    NotASetting,
    /// The value is none of those that the key has: these are.
    #[error("{0}")]
    Allowed(&'static str),
    /// A table is needed.
    #[error("not a value but a table: write it as [{0}] with its keys below")]
    NotATable(String),
    /// Not a mark.
    #[error(transparent)]
    Mark(#[from] BadMark),
    /// The divert mark and the own mark have bits in common.
    #[error("shares bits with {other}: diverted packets and our own sockets must be told apart")]
    SharedBits {
        /// The other key and its value.
        other: String,
    },
    /// One table for two purposes.
    #[error(
        "wan.table and rules.table are both {0}: diverted packets and our own sockets need a routing table each"
    )]
    SharedTable(NonZeroU32),
    /// Fast Open on a leg with MPTCP.
    #[error(
        "does not go together with {0}.mptcp = true: data in a SYN stalls an MPTCP connection; set one of the two to false"
    )]
    FastOpenWithMptcp(String),
    /// A path that is nowhere.
    #[error("a path needs a device or an address, as device = \"wan1\" or address = \"192.0.2.1\"")]
    NoPath,
    /// A path that is at two places.
    #[error("a path has either a device or an address, not both: leave one of the two out")]
    DeviceAndAddress,
    /// Two paths with the same value.
    #[error("{0} has it already: no two paths may have the same")]
    SamePath(String),
    /// A port that nobody hears of.
    #[error("goes with announce = true only: it is announced with the addresses")]
    NotAnnounced,
    /// No such key.
    #[error("unknown key; {0}")]
    Unknown(Hint),
}

/// What may have been meant by an unknown key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hint {
    /// A key of the same table that differs by little.
    #[error("did you mean {0}?")]
    Near(String),
    /// The same key in another table.
    #[error("there is {0}")]
    Elsewhere(String),
    /// What the table has.
    #[error("known here: {}", .0.join(", "))]
    Known(Vec<String>),
}

/// All faults of a configuration: those of the file by their lines, then those of the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults {
    file: PathBuf,
    list: Vec<Fault>,
}

impl Faults {
    /// Sorted; the file is called `config.toml` until [`Faults::in_file`] says better.
    pub(super) fn new(mut list: Vec<Fault>) -> Self {
        list.sort_by_key(|fault| match fault.place.origin {
            Origin::File => 0,
            Origin::Line(line) => line,
            Origin::Set(_) => usize::MAX,
        });
        Self { file: PathBuf::from("config.toml"), list }
    }

    /// The one fault of a file that cannot be read.
    pub fn unreadable(file: &Path, err: &io::Error) -> Self {
        let place = Place { origin: Origin::File, written: None };
        Self::new(vec![Fault { place, key: String::new(), why: Why::Unreadable(err.to_string()) }])
            .in_file(file)
    }

    /// Names the file that was parsed.
    pub fn in_file(self, file: &Path) -> Self {
        Self { file: file.to_owned(), ..self }
    }

    /// Each fault as one line: `config.toml:3: listen.port = 70000: a port is a number from 1 to 65535`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|fault| fault.line(&self.file))
    }

    /// The faults themselves.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.list.iter()
    }
}

impl Fault {
    fn line(&self, file: &Path) -> String {
        let file = file.display();
        let origin = match &self.place.origin {
            Origin::File => file.to_string(),
            Origin::Line(line) => format!("{file}:{line}"),
            Origin::Set(text) => format!("--set {text}"),
        };
        let Fault { key, why, .. } = self;
        match &self.place.written {
            _ if key.is_empty() => format!("{origin}: {why}"),
            Some(written) => format!("{origin}: {key} = {written}: {why}"),
            None => format!("{origin}: {key}: {why}"),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Faults {}

/// `text` as it may be shown on a terminal: one line, no control characters, not endless.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 60;
    let shown = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() });
    let mut shown: String = shown.collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
