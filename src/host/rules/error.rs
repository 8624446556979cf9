//! Why rules could not be changed or read, by what the operator can do about it. PURE.
use std::fmt;
use std::io;

use crate::exit::{Exit, Fatal};

use super::plan::ForeignRoute;

/// One thing that failed.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// There is no program `nft`.
    #[error(
        "there is no program nft that can be run in the directories of PATH ({path}): install the package nftables, or add the \
         directory that has it (/usr/sbin) to PATH"
    )]
    NoNft {
        /// Where it was looked for.
        path: String,
    },
    /// The kernel refuses to let us.
    #[error(
        "could not {step}: {why}. This needs the capability CAP_NET_ADMIN in this network namespace: run it as root, \
         or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    NoPermission {
        /// What was tried, after "could not".
        step: String,
        /// The answer.
        why: String,
    },
    /// The kernel lacks what a rule needs.
    #[error(
        "could not {step}: the kernel lacks something that the rules need (the modules nft_tproxy, nft_socket, \
         nft_fib_inet and nft_ct; CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET, CONFIG_NFT_FIB_INET, CONFIG_NFT_CT). nft says:\n{nft}"
    )]
    NoKernelSupport {
        /// What was tried.
        step: String,
        /// What nft wrote.
        nft: String,
    },
    /// The routing table is in use.
    #[error(
        "the routing table {table} already has the {} route \"{}\", which is not ours: choose another table \
         (rules.table), or delete that route", route.family, route.text
    )]
    TableTaken {
        /// Which.
        table: u32,
        /// What is in it.
        route: ForeignRoute,
    },
    /// A setting in /proc/sys could not be changed.
    #[error(
        "could not {step}: {err}. Set it yourself: what has the right value already is not written again"
    )]
    Sysctl {
        /// What was tried.
        step: String,
        /// The answer.
        err: io::Error,
    },
    /// A system call or a program failed.
    #[error("could not {step}: {why}")]
    Failed {
        /// What was tried.
        step: String,
        /// The answer.
        why: String,
    },
}

impl RulesError {
    /// A step that `err` ended.
    pub(crate) fn io(step: impl fmt::Display, err: &io::Error) -> Self {
        let (step, why) = (step.to_string(), err.to_string());
        match err.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission { step, why },
            _ => Self::Failed { step, why },
        }
    }

    /// The exit status that says the same.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoNft { .. } | Self::NoKernelSupport { .. } | Self::TableTaken { .. } => Exit::Unavailable,
            Self::NoPermission { .. } => Exit::NoPerm,
            Self::Sysctl { .. } | Self::Failed { .. } => Exit::OsErr,
        }
    }
}

/// All that failed: the first, then what failed because of it or beside it. Never empty.
#[derive(Debug)]
pub struct Errors {
    first: RulesError,
    more: Vec<RulesError>,
}

impl Errors {
    /// `None` when nothing failed.
    pub(crate) fn collect(errors: impl IntoIterator<Item = RulesError>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let first = errors.next()?;
        Some(Self { first, more: errors.collect() })
    }

    /// These, and what failed elsewhere.
    pub fn and(mut self, others: Self) -> Self {
        self.more.push(others.first);
        self.more.extend(others.more);
        self
    }

    /// What failed first.
    pub fn first(&self) -> &RulesError {
        &self.first
    }

    /// Everything that failed, the first included.
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
