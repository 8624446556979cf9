//! Reading the state of the host: our nft table, our rules and routes, the sysctls. EFFECT.
use std::fs;
use std::num::NonZeroU32;

use serde_json::Value;

use super::change::{Family, LocalRoute, PolicyRule};
use super::error::RulesError;
use super::plan::{ForeignRoute, Seen, SeenTable};
use super::ruleset::{GATE, Gate, Hook, Outline, STATE, Shape, TABLE};
use super::state::{State, Sysctl};
use super::{netlink, nft, sysctl};

/// Reads the state with which a plan for the routing table `table` is compared.
pub fn seen(table: NonZeroU32) -> Result<Seen, RulesError> {
    let (rules, routes) = netlink()?;
    let foreign = foreign_routes(table)?;
    let table = nft_table()?;
    Ok(Seen { rules, routes, foreign, table, sysctls: sysctls()? })
}

/// Tells whether IPv6 works: the kernel has it, and it is enabled on loopback, where the listener is.
pub fn ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

/// Returns the sysctls that can be read, with their values.
pub fn readable_sysctls() -> Vec<(Sysctl, u32)> {
    Sysctl::ALL.into_iter().filter_map(|key| Some((key, sysctl::read(key).ok()?))).collect()
}

/// Lists our policy rules and routes, of any configuration.
pub fn netlink() -> Result<(Vec<PolicyRule>, Vec<LocalRoute>), RulesError> {
    let (mut rules, mut routes) = (Vec::new(), Vec::new());
    for &family in families() {
        let failed = |what, err| RulesError::io(format!("list the {family} {what}"), &err);
        rules.extend(netlink::rules(family).map_err(|err| failed("policy rules", err))?);
        routes.extend(netlink::routes(family).map_err(|err| failed("routes", err))?);
    }
    Ok((rules, routes))
}

/// Reads our nft table; `None` if there is none.
pub fn nft_table() -> Result<Option<SeenTable>, RulesError> {
    let step = "list the nft tables";
    let tables = nft::list(step, &["-j", "list", "tables", "inet"])?;
    let ours = |item: &Value| item["table"]["name"] == TABLE;
    if !items(step, &tables)?.iter().any(ours) {
        return Ok(None);
    }
    let step = "list our nft table";
    let json = nft::list(step, &["-j", "list", "table", "inet", TABLE])?;
    let listing = nft::list(step, &["-t", "list", "table", "inet", TABLE])?;
    Ok(Some(seen_table(&items(step, &json)?, listing)))
}

/// Returns the address families that the kernel has.
pub(crate) fn families() -> &'static [Family] {
    match fs::exists("/proc/sys/net/ipv6") {
        Ok(false) => &[Family::V4],
        _ => &[Family::V4, Family::V6],
    }
}

fn foreign_routes(table: NonZeroU32) -> Result<Vec<ForeignRoute>, RulesError> {
    let mut all = Vec::new();
    for &family in families() {
        let routes = netlink::foreign_routes(family, table);
        all.extend(
            routes
                .map_err(|err| RulesError::io(format!("list the {family} routes in table {table}"), &err))?,
        );
    }
    Ok(all)
}

fn sysctls() -> Result<Vec<(Sysctl, u32)>, RulesError> {
    let value = |key: Sysctl| match sysctl::read(key) {
        Ok(value) => Ok((key, value)),
        Err(err) => Err(RulesError::Failed { step: format!("read {}", key.path()), why: err.to_string() }),
    };
    Sysctl::ALL.into_iter().map(value).collect()
}

fn items(step: &str, json: &str) -> Result<Vec<Value>, RulesError> {
    let failed = |why: String| RulesError::Failed { step: step.to_owned(), why };
    let mut root: Value =
        serde_json::from_str(json).map_err(|err| failed(format!("nft -j did not write JSON: {err}")))?;
    match root["nftables"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(failed("nft -j wrote JSON without \"nftables\"".to_owned())),
    }
}

fn seen_table(items: &[Value], listing: String) -> SeenTable {
    let mut outline = Outline::default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for item in items {
        if let Some(set) = item.get("set") {
            outline.sets.insert(text(&set["name"]));
        } else if let Some(chain) = item.get("chain") {
            outline.chains.entry(text(&chain["name"])).or_default().hook = hook(chain);
        } else if let Some(rule) = item.get("rule") {
            let shape: &mut Shape = outline.chains.entry(text(&rule["chain"])).or_default();
            shape.comments.push(text(&rule["comment"]));
        }
    }
    let state = outline.chains.remove(STATE).and_then(|shape| State::parse(&shape.comments));
    // The gate's content is a switch, not a part of the installation.
    let inside = outline.chains.get_mut(GATE).map(|gate| std::mem::take(&mut gate.comments));
    let gate = if inside.is_some_and(|rules| !rules.is_empty()) { Gate::Closed } else { Gate::Open };
    SeenTable { outline, state, gate, listing }
}

fn hook(chain: &Value) -> Option<Hook> {
    let point = chain.get("hook")?.as_str()?.to_owned();
    let priority = i32::try_from(chain.get("prio")?.as_i64()?).ok()?;
    Some(Hook { point, priority, policy: chain.get("policy")?.as_str()?.to_owned() })
}
