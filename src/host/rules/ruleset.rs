//! The nft table as data: rendered for `nft -f -`, outlined to be compared with what `nft -j` lists. PURE.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Our table in the family `inet`; whatever has another name is not ours.
pub const TABLE: &str = "tcp_intercept";
/// The chain that every new connection passes first. Empty: open.
pub const GATE: &str = "gate";
/// The chain that no packet passes: its comments remember what the kernel must not forget ([`super::state`]).
pub const STATE: &str = "state";

/// The table's sets and chains, in the order in which nft reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Names and bodies.
    pub(super) sets: Vec<(&'static str, String)>,
    /// Those that others lead to come before these.
    pub(super) chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// A rule; its comment says what it is for, and tells it from others when the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) text: String,
    pub(super) comment: &'static str,
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `prerouting`, `output`, …
    pub point: String,
    /// Chains of one hook run by ascending priority.
    pub priority: i32,
    /// What becomes of a packet that no rule decided on.
    pub policy: String,
}

/// What identifies a ruleset in the kernel: names, hooks, and the rules' comments in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The names of the sets.
    pub sets: BTreeSet<String>,
    /// The chains by name.
    pub chains: BTreeMap<String, Shape>,
}

/// One chain of an [`Outline`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// `None`: only reached by a jump.
    pub hook: Option<Hook>,
    /// One a rule; a rule without a comment has an empty one.
    pub comments: Vec<String>,
}

/// Whether new connections are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They are.
    Open,
    /// They are routed as if this program did not exist; what was taken before stays with us.
    Closed,
}

impl Ruleset {
    /// What the kernel should list.
    pub fn outline(&self) -> Outline {
        let shape = |chain: &Chain| {
            let comments = chain.rules.iter().map(|rule| rule.comment.to_owned()).collect();
            (chain.name.to_owned(), Shape { hook: chain.hook.clone(), comments })
        };
        Outline {
            sets: self.sets.iter().map(|(name, _)| (*name).to_owned()).collect(),
            chains: self.chains.iter().map(shape).collect(),
        }
    }

    /// A number that changes whenever a rule does (FNV-1a, so that every build of the program computes the same).
    pub fn fingerprint(&self) -> u64 {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, fnv)
    }
}

/// The inside of the table's braces.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, body) in &self.sets {
            writeln!(f, "  set {name} {{ {body} }}")?;
        }
        self.chains.iter().try_for_each(|chain| chain.fmt(f))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  chain {} {{", self.name)?;
        if let Some(Hook { point, priority, policy }) = &self.hook {
            writeln!(f, "    type filter hook {point} priority {priority}; policy {policy};")?;
        }
        for Rule { text, comment } in &self.rules {
            writeln!(f, "    {text} comment \"{comment}\"")?;
        }
        writeln!(f, "  }}")
    }
}

impl Gate {
    /// The transaction for `nft -f -`.
    pub fn script(self) -> String {
        let chain = format!("inet {TABLE} {GATE}");
        match self {
            Self::Open => format!("flush chain {chain}\n"),
            Self::Closed => format!("flush chain {chain}\nadd rule {chain} goto full comment \"closed\"\n"),
        }
    }
}
