//! The exit statuses of the program: the codes of sysexits.h, as in 1.1.0. PURE.
use std::process::ExitCode;

/// An exit status of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// A value on the command line is wrong (1.1.0's `-b` and `-B`).
    DataErr = 65,
    /// A required resource is in use or missing: a port, `nft`, a kernel feature.
    Unavailable = 69,
    /// A defect in this program.
    Software = 70,
    /// The kernel refused a request that normally succeeds.
    OsErr = 71,
    /// A file cannot be written.
    CantCreat = 73,
    /// A capability is missing.
    NoPerm = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// Returns the variant with the exit status `status`; `None` if this program never exits with it.
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

/// A fatal error: a sentence for the user, and the exit status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    /// The step that failed, the value, the reason, and the remedy.
    pub message: String,
    /// The exit status.
    pub exit: Exit,
}

impl Fatal {
    /// Creates a fatal error.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), exit }
    }
}
