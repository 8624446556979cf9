//! The tiers of src/ stay apart: PURE decides, EFFECT touches the kernel, WIRING puts them together. A module in no
//! tier, an `unsafe` outside sys/, and a file that has grown too long fail here.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Pure,
    Effect,
    Wiring,
}

/// A module is in the tier of its longest prefix here: `config` stands for `config::faults` too.
const TIERS: &[(&str, Tier)] = &[
    ("check", Tier::Pure),
    ("config", Tier::Pure),
    ("dial::destinations", Tier::Pure),
    ("dropin::bind_spec", Tier::Pure),
    ("exit", Tier::Pure),
    ("flow", Tier::Pure),
    ("guardian::crashes", Tier::Pure),
    ("limits", Tier::Pure),
    ("log::frame", Tier::Pure),
    ("metrics", Tier::Pure),
    ("paths::endpoint", Tier::Pure),
    ("paths::lingering", Tier::Pure),
    ("paths::plan", Tier::Pure),
    ("paths::record", Tier::Pure),
    ("paths::standing", Tier::Pure),
    ("record", Tier::Pure),
    ("relay::half", Tier::Pure),
    ("relay::silence", Tier::Pure),
    ("relay::stall", Tier::Pure),
    ("rules::chains", Tier::Pure),
    ("rules::change", Tier::Pure),
    ("rules::compare", Tier::Pure),
    ("rules::error", Tier::Pure),
    ("rules::iptables", Tier::Pure),
    ("rules::plan", Tier::Pure),
    ("rules::ruleset", Tier::Pure),
    ("rules::state", Tier::Pure),
    ("table::header", Tier::Pure),
    ("table::journal", Tier::Pure),
    ("table::slot", Tier::Pure),
    ("table::word", Tier::Pure),
    ("units", Tier::Pure),
    ("wan::lead", Tier::Pure),
    ("wan::plan", Tier::Pure),
    ("wan::route", Tier::Pure),
    ("check::gather", Tier::Effect),
    ("crash", Tier::Effect),
    ("dial", Tier::Effect),
    ("dropin::address", Tier::Effect),
    ("dropin::detach", Tier::Effect),
    ("dropin::pid_file", Tier::Effect),
    ("guardian::door", Tier::Effect),
    ("guardian::fallback", Tier::Effect),
    ("guardian::handover", Tier::Effect),
    ("guardian::service_manager", Tier::Effect),
    ("kernel", Tier::Effect),
    ("leg", Tier::Effect),
    ("listener", Tier::Effect),
    ("lock", Tier::Effect),
    ("log", Tier::Effect),
    ("paths", Tier::Effect),
    ("relay", Tier::Effect),
    ("reserve", Tier::Effect),
    ("rules", Tier::Effect),
    ("table", Tier::Effect),
    ("takeover", Tier::Effect),
    ("wan", Tier::Effect),
    ("cli", Tier::Wiring),
    ("cmd", Tier::Wiring),
    ("daemon", Tier::Wiring),
    ("dropin", Tier::Wiring),
    ("guardian", Tier::Wiring),
    ("follow", Tier::Wiring),
    ("lib", Tier::Wiring),
    ("main", Tier::Wiring),
    ("paths::keep", Tier::Wiring),
    ("session", Tier::Wiring),
    ("shared", Tier::Wiring),
    ("wan::keep", Tier::Wiring),
    ("worker", Tier::Wiring),
];

/// What PURE may use besides std; humantime, strsim and serde_json turn text into values and do nothing else.
const PURE_CRATES: [&str; 7] = ["serde", "serde_json", "toml", "ipnet", "thiserror", "humantime", "strsim"];

/// Single values of other crates that PURE may name: a number with a name.
const PURE_ITEMS: [&str; 1] = ["rustix::io::Errno"];

/// What PURE must not do although std offers it: look at the clock, the file system, the environment, the network.
const IMPURE: [&str; 15] = [
    "std::fs",
    "std::env",
    "std::thread",
    "process::Command",
    "process::exit",
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "ToSocketAddrs",
    "println!",
    "eprintln!",
];

const LONGEST_FILE: usize = 400;

#[test]
fn every_module_is_in_a_tier() {
    let lost: Vec<_> = modules().into_keys().filter(|module| tier(module).is_none()).collect();
    assert!(lost.is_empty(), "add to TIERS in tests/tiers.rs: {lost:?}");
}

#[test]
fn a_module_that_says_its_tier_is_in_it() {
    let mut wrong = Vec::new();
    for file in rust_files(&root().join("src")) {
        let text = fs::read_to_string(&file).expect("readable");
        let first = text.lines().next().unwrap_or_default();
        let words = [("PURE", Tier::Pure), ("EFFECT", Tier::Effect), ("WIRING", Tier::Wiring)];
        let said = words.iter().find(|(word, _)| first.contains(word)).map(|(_, tier)| *tier);
        wrong.extend(
            said.filter(|_| tier(&module_of(&file)) != said)
                .map(|said| format!("{said:?}: {}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_module_uses_only_its_own_tier_and_those_below() {
    let mut wrong = Vec::new();
    for (module, code) in modules() {
        // lib.rs only declares the modules.
        let (Some(own), false) = (tier(&module), module == "lib") else { continue };
        for path in internal_paths(&module, &code) {
            let used = tier(&path).filter(|used| *used > own);
            wrong.extend(used.map(|used| format!("{module} ({own:?}) uses {path} ({used:?})")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_decides_uses_neither_the_host_nor_a_runtime() {
    let forbidden = dependencies().into_iter().filter(|name| !PURE_CRATES.contains(&name.as_str()));
    let forbidden: Vec<_> = forbidden.map(|name| format!("{name}::")).collect();
    let mut wrong = Vec::new();
    for (module, code) in modules().iter().filter(|(module, _)| tier(module) == Some(Tier::Pure)) {
        let impure = IMPURE.into_iter().filter(|what| code.contains(what));
        let code = PURE_ITEMS.iter().fold(code.clone(), |code, item| code.replace(item, "Errno"));
        let foreign = forbidden.iter().map(String::as_str).filter(|name| names(&code, name));
        wrong.extend(impure.chain(foreign).map(|what| format!("{module}: {what}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for lib in ["src/lib.rs", "lab/src/lib.rs"] {
        let text = fs::read_to_string(root().join(lib)).expect(lib);
        assert!(text.contains("#![forbid(unsafe_code)]"), "{lib}");
    }
    let keyword = concat!("un", "safe");
    for file in ["src", "tests", "lab"].iter().flat_map(|dir| rust_files(&root().join(dir))) {
        let text = code(&fs::read_to_string(&file).expect("readable"));
        let found = text.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|word| word == keyword);
        assert!(!found, "{} has {keyword} code", file.display());
    }
}

#[test]
fn no_file_is_longer_than_can_be_read_at_once() {
    for file in ["src", "tests", "sys", "lab"].iter().flat_map(|dir| rust_files(&root().join(dir))) {
        let lines = fs::read_to_string(&file).expect("readable").lines().count();
        assert!(lines <= LONGEST_FILE, "{}: {lines} lines; split it", file.display());
    }
}

#[test]
fn the_paths_of_a_use_tree_are_taken_apart() {
    let code = "use crate::{config::{Config, Leg}, units::Port};\nlet x = crate::relay::half::Step; use super::plan::Op;";
    let found = internal_paths("rules::apply", code);
    assert_eq!(
        found,
        ["config::Config", "config::Leg", "units::Port", "relay::half::Step", "rules::plan::Op"]
    );
    assert_eq!((tier("relay::half::Step"), tier("relay::halfway")), (Some(Tier::Pure), Some(Tier::Effect)));
    assert!(names("a(tokio::x)", "tokio::") && !names("my_tokio::x, a::tokio::x", "tokio::"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The modules of src/ by path (`relay::half`), each with its code without comments and tests.
fn modules() -> BTreeMap<String, String> {
    let files = rust_files(&root().join("src")).into_iter();
    let modules = files.map(|file| (module_of(&file), code(&fs::read_to_string(&file).expect("readable"))));
    // A file that is only tests (`#[cfg(test)] mod tests;`) belongs to no tier.
    modules.filter(|(name, _)| !name.ends_with("::tests")).collect()
}

fn module_of(file: &Path) -> String {
    let name = file.strip_prefix(root().join("src")).expect("below src").with_extension("");
    let name = name.to_str().expect("UTF-8").replace('/', "::");
    name.strip_suffix("::mod").map(str::to_owned).unwrap_or(name)
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("readable").path());
    let files = paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// Without comments, and without the tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn tier(path: &str) -> Option<Tier> {
    let below = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    TIERS
        .iter()
        .filter(|(prefix, _)| below(prefix))
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, tier)| *tier)
}

/// Every path into the crate that `code` names; main.rs and its modules may name it by the crate's name.
fn internal_paths(module: &str, code: &str) -> Vec<String> {
    let parent = module.rsplit_once("::").map(|(parent, _)| format!("{parent}::")).unwrap_or_default();
    let starts = [("crate::", ""), ("tcp_intercept::", ""), ("super::", parent.as_str())];
    let paths = starts.into_iter().flat_map(|(start, prefix)| {
        code.match_indices(start).flat_map(move |(at, _)| expand(prefix, &code[at + start.len()..]).0)
    });
    paths.collect()
}

/// The paths of the use tree at the start of `text`, and what follows it: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn expand<'t>(prefix: &str, text: &'t str) -> (Vec<String>, &'t str) {
    let end = text.find(|c: char| c != '_' && c != ':' && !c.is_alphanumeric()).unwrap_or(text.len());
    let (path, mut rest) = (format!("{prefix}{}", &text[..end]), &text[end..]);
    if !rest.starts_with('{') || !(path.is_empty() || path.ends_with("::")) {
        return (vec![path], rest);
    }
    let mut paths = Vec::new();
    while let Some(next) = rest.strip_prefix(['{', ',']) {
        let (mut inner, after) = expand(&path, next.trim_start());
        paths.append(&mut inner);
        rest = after.trim_start();
    }
    (paths, rest.strip_prefix('}').unwrap_or(rest))
}

/// The dependencies of the product, as code names them.
fn dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    manifest["dependencies"].as_table().expect("a table").keys().map(|name| name.replace('-', "_")).collect()
}

/// Whether `path` stands in `code` at the start of a path.
fn names(code: &str, path: &str) -> bool {
    let inner = |c: char| c == '_' || c == ':' || c.is_alphanumeric();
    code.match_indices(path).any(|(at, _)| !code[..at].ends_with(inner))
}
