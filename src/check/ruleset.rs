//! The parts of `nft -j list ruleset` that `check` uses. PURE.
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
    /// The family of its table: ip, ip6, inet, bridge…
    pub family: String,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The hook of a base chain; `None`: other chains jump to it.
    pub hook: Option<String>,
    /// Whether its policy is `drop`.
    pub policy_drop: bool,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its handle, as used by `nft delete rule`.
    pub handle: u64,
    /// Its matches, statements and verdict as in nft's JSON: objects with one key.
    pub expr: Vec<Value>,
}

/// A flowtable: packets of an offloaded connection no longer pass any chain.
#[derive(Debug, Clone)]
pub struct Flowtable {
    /// The family of its table.
    pub family: String,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
}

impl Ruleset {
    /// Parses nft's JSON; returns `None` for any other text.
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

    /// Returns the chains that IP packets pass at `hook`.
    pub fn hooked<'r>(&'r self, hook: &'r str) -> impl Iterator<Item = &'r Chain> {
        let ip = |chain: &&Chain| matches!(chain.family.as_str(), "ip" | "ip6" | "inet");
        self.chains.iter().filter(ip).filter(move |chain| chain.hook.as_deref() == Some(hook))
    }

    /// Returns the chain with the name `name` in the table of `from`.
    pub fn target(&self, from: &Chain, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.is(&from.family, &from.table, name))
    }
}

impl Chain {
    fn is(&self, family: &str, table: &str, name: &str) -> bool {
        self.family == family && self.table == table && self.name == name
    }

    /// Returns its name as nft's commands spell it.
    pub fn path(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// Returns whether its policy, one of its rules, or a rule of a chain that it calls refuses packets.
    pub fn refuses(&self, ruleset: &Ruleset) -> bool {
        self.policy_drop || self.refuses_within(ruleset, 0)
    }

    fn refuses_within(&self, ruleset: &Ruleset, depth: usize) -> bool {
        /// The limit of nftables (NFT_JUMP_STACK_SIZE).
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
