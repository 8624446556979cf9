//! How the program ends: the codes of sysexits.h, as 1.1.0 used them. PURE.
use std::process::ExitCode;

/// An exit status of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// A value on the command line is wrong (1.1.0's `-b` and `-B`).
    DataErr = 65,
    /// What is needed is taken or missing: a port, `nft`, a kernel feature.
    Unavailable = 69,
    /// Ours to mend.
    Software = 70,
    /// The system refused what it should grant.
    OsErr = 71,
    /// A file cannot be written.
    CantCreat = 73,
    /// A capability is missing.
    NoPerm = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// The one that a process has ended with, if this program ends so.
    pub fn from_status(status: i32) -> Option<Self> {
        use Exit::{CantCreat, Config, DataErr, NoPerm, Ok, OsErr, Software, Unavailable, Usage};
        let all = [Ok, Usage, DataErr, Unavailable, Software, OsErr, CantCreat, NoPerm, Config];
        all.into_iter().find(|exit| i32::from(*exit as u8) == status)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the program ends, in a sentence for its user, and the status it ends with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    /// What failed, with which value, why, and what to do.
    pub message: String,
    /// The exit status.
    pub exit: Exit,
}

impl Fatal {
    /// A reason to end.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), exit }
    }
}
