//! Errors of reading or changing the rules, sorted by the operator's remedy. PURE.
use std::fmt;
use std::io;

use crate::exit::{Exit, Fatal};

use super::plan::ForeignRoute;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The program `nft` cannot be found or run.
    #[error(
        "the directories of PATH ({path}) have no program nft that can be run: install the package nftables, or add \
         the directory that has it (/usr/sbin) to PATH"
    )]
    NoNft {
        /// The value of PATH.
        path: String,
    },
    /// The process lacks a permission.
    #[error(
        "could not {step}: {why}. This needs the capability CAP_NET_ADMIN in this network namespace: run it as root, \
         or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    NoPermission {
        /// The step, as a phrase after "could not".
        step: String,
        /// The error.
        why: String,
    },
    /// The kernel lacks a module or option that the rules need.
    #[error(
        "could not {step}: the kernel lacks something that the rules need (the modules nft_tproxy, nft_socket, \
         nft_fib_inet and nft_ct; CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET, CONFIG_NFT_FIB_INET, CONFIG_NFT_CT). nft says:\n{nft}"
    )]
    NoKernelSupport {
        /// The step, as a phrase after "could not".
        step: String,
        /// The output of nft.
        nft: String,
    },
    /// The routing table has a default route of another program.
    #[error(
        "the routing table {table} already has the {} route \"{}\", which is not ours: choose another table \
         (rules.table), or delete that route", route.family, route.text
    )]
    TableTaken {
        /// The table.
        table: u32,
        /// The route in it.
        route: ForeignRoute,
    },
    /// The kernel refuses a value in /proc/sys.
    #[error(
        "could not {step}: {err}. Set it yourself: a sysctl that has the right value already is not written again"
    )]
    Sysctl {
        /// The step, as a phrase after "could not".
        step: String,
        /// The error.
        err: io::Error,
    },
    /// A system call or a program failed.
    #[error("could not {step}: {why}")]
    Failed {
        /// The step, as a phrase after "could not".
        step: String,
        /// The error.
        why: String,
    },
}

impl RulesError {
    /// Returns the error for a step that failed with `err`.
    pub(crate) fn io(step: impl fmt::Display, err: &io::Error) -> Self {
        let (step, why) = (step.to_string(), err.to_string());
        match err.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission { step, why },
            _ => Self::Failed { step, why },
        }
    }

    /// Returns the exit status for this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoNft { .. } | Self::NoKernelSupport { .. } | Self::TableTaken { .. } => Exit::Unavailable,
            Self::NoPermission { .. } => Exit::NoPerm,
            Self::Sysctl { .. } | Self::Failed { .. } => Exit::OsErr,
        }
    }
}

/// One or more errors: the first, then those that followed from it or occurred independently.
#[derive(Debug)]
pub struct Errors {
    first: RulesError,
    more: Vec<RulesError>,
}

impl Errors {
    /// Collects `errors`; returns `None` if there are none.
    pub(crate) fn collect(errors: impl IntoIterator<Item = RulesError>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let first = errors.next()?;
        Some(Self { first, more: errors.collect() })
    }

    /// Appends the errors of another operation.
    pub fn and(mut self, others: Self) -> Self {
        self.more.push(others.first);
        self.more.extend(others.more);
        self
    }

    /// Returns the first error.
    pub fn first(&self) -> &RulesError {
        &self.first
    }

    /// Returns all errors, the first included.
    pub fn iter(&self) -> impl Iterator<Item = &RulesError> {
        std::iter::once(&self.first).chain(&self.more)
    }
}

impl From<RulesError> for Errors {
    fn from(first: RulesError) -> Self {
        Self { first, more: Vec::new() }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.more.iter().try_for_each(|error| write!(f, "\n{error}"))
    }
}

impl std::error::Error for Errors {}

impl From<Errors> for Fatal {
    fn from(errors: Errors) -> Self {
        Self::new(errors.first.exit(), errors.to_string())
    }
}
