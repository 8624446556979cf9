//! The record that must survive the process, kept in the kernel with the rules: the comments of a chain that no packet
//! passes. PURE.
//!
//! The record exists as long as the table, once for each network namespace, and a SIGKILL cannot lose it.
use std::fmt;

use crate::units::OwnMark;

use super::ruleset::STATE;

/// A kernel setting that the rules change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sysctl {
    /// Early demux, for IPv4 and IPv6. With it on, the kernel drops packets that match a leftover socket instead of
    /// forwarding them.
    EarlyDemux,
    /// Fast Open: the bit of value 2 lets listeners accept data in a SYN.
    FastOpen,
}

impl Sysctl {
    /// Both settings.
    pub const ALL: [Self; 2] = [Self::EarlyDemux, Self::FastOpen];

    /// Returns the name that `sysctl` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlyDemux => "net.ipv4.tcp_early_demux",
            Self::FastOpen => "net.ipv4.tcp_fastopen",
        }
    }

    /// Returns the path of the file in /proc/sys.
    pub const fn path(self) -> &'static str {
        match self {
            Self::EarlyDemux => "/proc/sys/net/ipv4/tcp_early_demux",
            Self::FastOpen => "/proc/sys/net/ipv4/tcp_fastopen",
        }
    }

    /// Returns the wanted value if the present one is `now`.
    pub const fn target(self, now: u32) -> u32 {
        match self {
            Self::EarlyDemux => 0,
            Self::FastOpen => now | 2,
        }
    }
}

/// A sysctl that we changed, and its previous value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// The sysctl.
    pub sysctl: Sysctl,
    /// The value before the first installation.
    pub was: u32,
}

/// The owner of the rules: it installed them, and it removes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesOwner {
    /// The operator, by `rules install`: the rules stay until `rules remove`.
    Operator,
    /// The daemon, by `run`: it removes the rules at its end. Rules of a killed daemon are removed at the end of the
    /// next.
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

/// The record in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The fingerprint of the installed ruleset.
    pub fingerprint: u64,
    /// The marks of possible leftover sockets.
    pub own: OwnMark,
    /// The owner of the rules.
    pub owner: RulesOwner,
    /// The sysctls to restore at the removal.
    pub saved: Vec<Saved>,
}

impl State {
    /// Returns the comments that contain the record.
    pub fn comments(&self) -> Vec<String> {
        let head = [
            format!("ruleset {:016x}", self.fingerprint),
            format!("own-mark {}", self.own),
            self.owner.comment().to_owned(),
        ];
        let saved = self.saved.iter().map(|saved| format!("{} was {}", saved.sysctl.name(), saved.was));
        head.into_iter().chain(saved).collect()
    }

    /// Parses the record in `comments`; `None` if it is incomplete, as in a table that we did not write.
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

    /// Returns the previous value of `sysctl`; `None` if we did not change it.
    pub fn was(&self, sysctl: Sysctl) -> Option<u32> {
        self.saved.iter().find(|saved| saved.sysctl == sysctl).map(|saved| saved.was)
    }
}

/// Writes the record as a chain of the table.
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
    fn parse_returns_the_record_that_was_written() {
        let own = OwnMark::new("0x60/0x60".parse().unwrap()).unwrap();
        let saved =
            vec![Saved { sysctl: Sysctl::EarlyDemux, was: 1 }, Saved { sysctl: Sysctl::FastOpen, was: 1029 }];
        for owner in RulesOwner::ALL {
            let state = State { fingerprint: 0xab, own, owner, saved: saved.clone() };
            assert_eq!(State::parse(&state.comments()), Some(state));
        }
    }

    #[test]
    fn an_incomplete_record_is_none() {
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
