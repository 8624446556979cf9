//! The faults of a configuration, each with its place, its key, its value and the allowed values. PURE.
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use crate::units::BadMark;

/// The source of a value: the file, a line of it, or a `--set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file as a whole.
    File,
    /// A line of the file, counted from 1.
    Line(usize),
    /// The argument of a `--set`.
    Set(String),
}

/// The place of a value, and its text there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The source of the value.
    pub origin: Origin,
    /// The text of the value as written; `None` for a value that is shown by its key alone, such as a table.
    pub written: Option<String>,
}

/// One fault of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The place and the text of the value.
    pub place: Place,
    /// The dotted key; empty if the fault concerns no key.
    pub key: String,
    /// The reason, and the allowed values.
    pub why: Why,
}

/// The reason why a value is refused, and the allowed values.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The text is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A `--set` that is not `KEY=VALUE`.
    #[error("KEY=VALUE is needed, as in server.congestion-control=bbr")]
    NotASetting,
    /// The value is not allowed; the text names the allowed values.
    #[error("{0}")]
    Allowed(&'static str),
    /// A value where a table is required.
    #[error("not a value but a table: write it as [{0}] with its keys below")]
    NotATable(String),
    /// The value is not a valid mark.
    #[error(transparent)]
    Mark(#[from] BadMark),
    /// The divert mark and the own mark have bits in common.
    #[error("shares bits with {other}: diverted packets and our own sockets must be told apart")]
    SharedBits {
        /// The other key and its value.
        other: String,
    },
    /// The same routing table for two purposes.
    #[error(
        "wan.table and rules.table are both {0}: diverted packets and our own sockets need a routing table each"
    )]
    SharedTable(NonZeroU32),
    /// Fast Open on a leg with MPTCP.
    #[error(
        "does not go together with {0}.mptcp = true: data in a SYN stalls an MPTCP connection; set one of the two to false"
    )]
    FastOpenWithMptcp(String),
    /// A path with neither a device nor an address.
    #[error("a path needs a device or an address, as device = \"wan1\" or address = \"192.0.2.1\"")]
    NoPath,
    /// A path with both a device and an address.
    #[error("a path has either a device or an address, not both: leave one of the two out")]
    DeviceAndAddress,
    /// A value that an earlier path has already.
    #[error("{0} has it already: no two paths may have the same")]
    SamePath(String),
    /// A port on a path that is not announced.
    #[error("requires announce = true: the port is announced with the addresses")]
    NotAnnounced,
    /// A key that does not exist.
    #[error("unknown key; {0}")]
    Unknown(Hint),
}

/// A hint at what may have been meant by an unknown key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hint {
    /// A similar key of the same table.
    #[error("did you mean {0}?")]
    Near(String),
    /// The same key in another table.
    #[error("there is {0}")]
    Elsewhere(String),
    /// All keys of the table.
    #[error("known here: {}", .0.join(", "))]
    Known(Vec<String>),
}

/// All faults of a configuration: those of the file in the order of lines, then those of the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults {
    file: PathBuf,
    list: Vec<Fault>,
}

impl Faults {
    /// Sorts `list`; the file is called `config.toml` until [`Faults::in_file`] names it.
    pub(super) fn new(mut list: Vec<Fault>) -> Self {
        list.sort_by_key(|fault| match fault.place.origin {
            Origin::File => 0,
            Origin::Line(line) => line,
            Origin::Set(_) => usize::MAX,
        });
        Self { file: PathBuf::from("config.toml"), list }
    }

    /// Returns the single fault of a file that cannot be read.
    pub fn unreadable(file: &Path, err: &io::Error) -> Self {
        let place = Place { origin: Origin::File, written: None };
        Self::new(vec![Fault { place, key: String::new(), why: Why::Unreadable(err.to_string()) }])
            .in_file(file)
    }

    /// Sets the name of the file that was parsed.
    pub fn in_file(self, file: &Path) -> Self {
        Self { file: file.to_owned(), ..self }
    }

    /// Returns each fault as one line: `config.toml:3: listen.port = 70000: a port is a number from 1 to 65535`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|fault| fault.line(&self.file))
    }

    /// Returns the faults in order.
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

/// Returns `text` for a terminal: one line, without control characters, at most 60 characters.
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
