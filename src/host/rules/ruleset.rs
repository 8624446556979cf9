//! The nft table as data: rendered for `nft -f -`, and outlined for the comparison with the output of `nft -j`. PURE.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The name of our table in the family `inet`; no table of another name is ours.
pub const TABLE: &str = "tcp_intercept";
/// The chain that every new connection passes first. An empty gate is open.
pub const GATE: &str = "gate";
/// The chain that no packet passes: its comments contain the record ([`super::state`]).
pub const STATE: &str = "state";

/// The table's sets and chains, in the order in which nft reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The names and bodies of the sets.
    pub(super) sets: Vec<(&'static str, String)>,
    /// The chains; the target of a jump comes before the chain that jumps to it.
    pub(super) chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// A rule. Its comment states its purpose, and identifies it in the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) text: String,
    pub(super) comment: &'static str,
}

/// The hook of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The name of the hook: `prerouting`, `output`, …
    pub point: String,
    /// The priority; chains of one hook run in ascending order.
    pub priority: i32,
    /// The verdict for packets on which no rule decides.
    pub policy: String,
}

/// The outline that identifies a ruleset in the kernel: names, hooks, and the rules' comments in order.
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
    /// The hook; `None` for a chain that only jumps reach.
    pub hook: Option<Hook>,
    /// One comment for each rule; empty for a rule without a comment.
    pub comments: Vec<String>,
}

/// Whether new connections are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// New connections are intercepted.
    Open,
    /// New connections are routed as if the program did not exist; intercepted connections continue.
    Closed,
}

impl Ruleset {
    /// Returns the outline that the kernel should list.
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

    /// Returns a hash of the ruleset's text. It is FNV-1a, so that every build of the program computes the same.
    pub fn fingerprint(&self) -> u64 {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, fnv)
    }
}

/// Writes the text between the braces of the table.
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
    /// Returns the transaction for `nft -f -`.
    pub fn script(self) -> String {
        let chain = format!("inet {TABLE} {GATE}");
        match self {
            Self::Open => format!("flush chain {chain}\n"),
            Self::Closed => format!("flush chain {chain}\nadd rule {chain} goto full comment \"closed\"\n"),
        }
    }
}
