//! What must survive us, kept in the kernel with the rules: the comments of a chain that no packet passes. PURE.
//!
//! The record lives and dies with the table, one for each network namespace, and a SIGKILL cannot lose it.
use std::fmt;

use crate::units::OwnMark;

use super::ruleset::STATE;

/// The two kernel settings that are ever changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sysctl {
    /// With early demux, packets for a leftover socket are dropped where they should be forwarded (trap 22).
    /// It is the switch for IPv6 too.
    EarlyDemux,
    /// Bit 2 lets listeners accept data in a SYN.
    FastOpen,
}

impl Sysctl {
    /// Both.
    pub const ALL: [Self; 2] = [Self::EarlyDemux, Self::FastOpen];

    /// As `sysctl` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlyDemux => "net.ipv4.tcp_early_demux",
            Self::FastOpen => "net.ipv4.tcp_fastopen",
        }
    }

    /// Where it is read and written.
    pub const fn path(self) -> &'static str {
        match self {
            Self::EarlyDemux => "/proc/sys/net/ipv4/tcp_early_demux",
            Self::FastOpen => "/proc/sys/net/ipv4/tcp_fastopen",
        }
    }

    /// What we make of the value `now`.
    pub const fn target(self, now: u32) -> u32 {
        match self {
            Self::EarlyDemux => 0,
            Self::FastOpen => now | 2,
        }
    }
}

/// A sysctl that we changed, and what it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Which.
    pub sysctl: Sysctl,
    /// Its value before us.
    pub was: u32,
}

/// Who installed the rules, and so who removes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesOwner {
    /// `rules install`: they stay until `rules remove`.
    Operator,
    /// `run`: they go with the daemon; what a SIGKILL left goes with the next one.
    Daemon,
}

impl RulesOwner {
    const ALL: [Self; 2] = [Self::Operator, Self::Daemon];

    const fn comment(self) -> &'static str {
        match self {
            Self::Operator => "installed by rules install",
            Self::Daemon => "installed by run",
        }
    }
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The ruleset that was installed.
    pub fingerprint: u64,
    /// The marks of the sockets that may be left over.
    pub own: OwnMark,
    /// Who installed them.
    pub owner: RulesOwner,
    /// What is to be restored.
    pub saved: Vec<Saved>,
}

impl State {
    /// The comments that hold the record.
    pub fn comments(&self) -> Vec<String> {
        let head = [
            format!("ruleset {:016x}", self.fingerprint),
            format!("own-mark {}", self.own),
            self.owner.comment().to_owned(),
        ];
        let saved = self.saved.iter().map(|saved| format!("{} was {}", saved.sysctl.name(), saved.was));
        head.into_iter().chain(saved).collect()
    }

    /// The record in `comments`; `None` when it is not whole, as in a table that we did not write.
    pub fn parse<S: AsRef<str>>(comments: &[S]) -> Option<Self> {
        let value = |key: &str| comments.iter().find_map(|comment| comment.as_ref().strip_prefix(key));
        let fingerprint = u64::from_str_radix(value("ruleset ")?, 16).ok()?;
        let own = OwnMark::new(value("own-mark ")?.parse().ok()?)?;
        let is = |owner: &RulesOwner| comments.iter().any(|comment| comment.as_ref() == owner.comment());
        let owner = RulesOwner::ALL.into_iter().find(is)?;
        let was = |sysctl: Sysctl| value(&format!("{} was ", sysctl.name()))?.parse().ok();
        let saved =
            Sysctl::ALL.into_iter().filter_map(|sysctl| Some(Saved { sysctl, was: was(sysctl)? })).collect();
        Some(Self { fingerprint, own, owner, saved })
    }

    /// What `sysctl` was before us, if we changed it.
    pub fn was(&self, sysctl: Sysctl) -> Option<u32> {
        self.saved.iter().find(|saved| saved.sysctl == sysctl).map(|saved| saved.was)
    }
}

/// The chain for the table's text.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {STATE} {{")?;
        for comment in self.comments() {
            writeln!(f, "    return comment \"{comment}\"")?;
        }
        writeln!(f, "  }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_the_table_is_read_back() {
        let own = OwnMark::new("0x60/0x60".parse().unwrap()).unwrap();
        let saved =
            vec![Saved { sysctl: Sysctl::EarlyDemux, was: 1 }, Saved { sysctl: Sysctl::FastOpen, was: 1029 }];
        for owner in RulesOwner::ALL {
            let state = State { fingerprint: 0xab, own, owner, saved: saved.clone() };
            assert_eq!(State::parse(&state.comments()), Some(state));
        }
    }

    #[test]
    fn a_record_that_is_not_whole_is_none() {
        for comments in [&[][..], &["ruleset 0"], &["own-mark 0x6/0x6"], &["ruleset x", "own-mark 0x6/0x6"]] {
            assert_eq!(State::parse(comments), None, "{comments:?}");
        }
    }

    #[test]
    fn fast_open_keeps_the_bits_of_others() {
        assert_eq!(Sysctl::FastOpen.target(0x401), 0x403);
        assert_eq!(Sysctl::EarlyDemux.target(1), 0);
    }
}
