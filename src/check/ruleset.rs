//! What `nft -j list ruleset` says, as far as `check` has use for it. PURE.
use serde_json::Value;

/// The whole ruleset of a network namespace.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    /// Its chains with their rules.
    pub chains: Vec<Chain>,
    /// Its flowtables.
    pub flowtables: Vec<Flowtable>,
    /// Its tables: family and name.
    pub tables: Vec<(String, String)>,
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Of its table: ip, ip6, inet, bridge…
    pub family: String,
    /// Its table's name.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// Where it is hooked in; `None`: it is jumped to.
    pub hook: Option<String>,
    /// What its rules let through is dropped.
    pub policy_drop: bool,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What `nft delete rule` calls it.
    pub handle: u64,
    /// Its matches, statements and verdict, as nft's JSON has them: objects with one key.
    pub expr: Vec<Value>,
}

/// A flowtable: what it has taken passes no chain any more.
#[derive(Debug, Clone)]
pub struct Flowtable {
    /// Of its table.
    pub family: String,
    /// Its table's name.
    pub table: String,
    /// Its own name.
    pub name: String,
}

impl Ruleset {
    /// Reads nft's JSON; `None` when it is not that.
    pub fn parse(json: &str) -> Option<Self> {
        let root: Value = serde_json::from_str(json).ok()?;
        let mut ruleset = Self::default();
        for object in root.get("nftables")?.as_array()? {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            match kind.as_str() {
                "table" => ruleset.tables.push((text("family"), text("name"))),
                "flowtable" => ruleset.flowtables.push(Flowtable {
                    family: text("family"),
                    table: text("table"),
                    name: text("name"),
                }),
                "chain" => ruleset.chains.push(Chain {
                    family: text("family"),
                    table: text("table"),
                    name: text("name"),
                    hook: body.get("hook").and_then(Value::as_str).map(str::to_owned),
                    policy_drop: text("policy") == "drop",
                    rules: Vec::new(),
                }),
                "rule" => ruleset.add_rule(&text("family"), &text("table"), &text("chain"), body),
                _ => {}
            }
        }
        Some(ruleset)
    }

    fn add_rule(&mut self, family: &str, table: &str, chain: &str, body: &Value) {
        let handle = body.get("handle").and_then(Value::as_u64).unwrap_or_default();
        let expr = body.get("expr").and_then(Value::as_array).cloned().unwrap_or_default();
        // nft lists a table's chains before its rules.
        let chain = self.chains.iter_mut().find(|found| found.is(family, table, chain));
        if let Some(chain) = chain {
            chain.rules.push(Rule { handle, expr });
        }
    }

    /// The chains that IP packets pass at `hook`.
    pub fn hooked<'r>(&'r self, hook: &'r str) -> impl Iterator<Item = &'r Chain> {
        let ip = |chain: &&Chain| matches!(chain.family.as_str(), "ip" | "ip6" | "inet");
        self.chains.iter().filter(ip).filter(move |chain| chain.hook.as_deref() == Some(hook))
    }

    /// The chain that a rule of `from` calls `name`.
    pub fn target(&self, from: &Chain, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.is(&from.family, &from.table, name))
    }
}

impl Chain {
    fn is(&self, family: &str, table: &str, name: &str) -> bool {
        self.family == family && self.table == table && self.name == name
    }

    /// As nft's commands name it.
    pub fn path(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// Whether its policy or a rule of its own, or of the chains that it calls, refuses anything.
    pub fn refuses(&self, ruleset: &Ruleset) -> bool {
        self.policy_drop || self.refuses_within(ruleset, 0)
    }

    fn refuses_within(&self, ruleset: &Ruleset, depth: usize) -> bool {
        /// nftables' own limit (NFT_JUMP_STACK_SIZE).
        const DEEPEST: usize = 16;
        let called = |name: Option<&str>| name.and_then(|name| ruleset.target(self, name));
        let refuses = |name: &str, body: &Value| match name {
            "drop" | "reject" => true,
            "jump" | "goto" => called(body.get("target").and_then(Value::as_str))
                .is_some_and(|chain| depth < DEEPEST && chain.refuses_within(ruleset, depth + 1)),
            "xt" => body.get("name").and_then(Value::as_str) == Some("REJECT"),
            "vmap" => body.to_string().contains("\"drop\""),
            _ => false,
        };
        self.rules.iter().flat_map(|rule| &rule.expr).any(|expr| {
            expr.as_object().is_some_and(|object| object.iter().any(|(name, body)| refuses(name, body)))
        })
    }
}
