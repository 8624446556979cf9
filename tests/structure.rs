//! Checks the structure of src/: three tiers (PURE decides, EFFECT touches the kernel, WIRING connects them), folders
//! that use only those below them, and no cycles. Also rejects `unsafe` outside sys/ and files that are too long.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Pure,
    Effect,
    Wiring,
}

/// The top modules of src/, from the bottom up. Each uses only those before it in this list, and its own.
const FLOORS: [&[&str]; 9] = [
    &["exit", "units"],
    &["config"],
    &["state"],
    &["log"],
    &["host"],
    &["session", "check"],
    &["process"],
    &["cmd", "dropin"],
    &["cli"],
];

/// The crates that PURE may use besides std. humantime, strsim and serde_json only convert text to values.
const PURE_CRATES: [&str; 7] = ["serde", "serde_json", "toml", "ipnet", "thiserror", "humantime", "strsim"];

/// Single items of other crates that PURE may name: plain named numbers.
const PURE_ITEMS: [&str; 1] = ["rustix::io::Errno"];

/// Parts of std that PURE must not use: the clock, the file system, the environment, the network.
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
fn every_module_names_its_tier_in_its_first_paragraph() {
    let lost: Vec<_> = modules().into_values().filter(|module| module.tier.is_none()).collect();
    assert!(lost.is_empty(), "end the first paragraph with PURE, EFFECT or WIRING: {lost:?}");
}

#[test]
fn a_folder_uses_only_those_below_it() {
    let floor = |path: &str| {
        let top = path.split("::").next().unwrap_or_default();
        FLOORS.iter().position(|floor| floor.contains(&top))
    };
    let mut wrong = Vec::new();
    for (name, module) in modules() {
        // These two only declare and start the program.
        if ["lib", "main"].contains(&name.as_str()) {
            continue;
        }
        let own = floor(&name).unwrap_or_else(|| panic!("add {name} to FLOORS in tests/structure.rs"));
        let top = |path: &str| path.split("::").next().map(str::to_owned);
        for path in internal_paths(&name, &module.code) {
            let up = floor(&path).is_some_and(|used| used >= own) && top(&path) != top(&name);
            wrong.extend(up.then(|| format!("{name} uses {path}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_modules_of_a_folder_do_not_use_each_other_in_a_circle() {
    let modules = modules();
    let mut circles = Vec::new();
    let folders: BTreeSet<_> = modules.keys().filter_map(|name| name.rsplit_once("::")).collect();
    for folder in folders.iter().map(|(folder, _)| *folder).chain([""]) {
        let child = |path: &str| {
            let inner =
                if folder.is_empty() { path } else { path.strip_prefix(folder)?.strip_prefix("::")? };
            inner.split("::").next().map(str::to_owned)
        };
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let children: BTreeSet<_> = modules.keys().filter_map(|name| child(name)).collect();
        for (name, module) in &modules {
            let Some(own) = child(name) else { continue };
            let used = internal_paths(name, &module.code).into_iter().filter_map(|path| child(&path));
            uses.entry(own.clone())
                .or_default()
                .extend(used.filter(|used| *used != own && children.contains(used)));
        }
        // Modules without dependencies are removed repeatedly, until only cycles are left.
        while let Some(end) = uses.iter().find(|(_, used)| used.is_empty()).map(|(own, _)| own.clone()) {
            uses.remove(&end);
            for used in uses.values_mut() {
                used.remove(&end);
            }
        }
        circles.extend((!uses.is_empty()).then(|| format!("{folder}: {uses:?}")));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_module_uses_only_its_own_tier_and_those_below() {
    let mut wrong = Vec::new();
    let modules = modules();
    for (name, module) in &modules {
        for path in internal_paths(name, &module.code) {
            let used = tier(&modules, &path).filter(|used| Some(*used) > module.tier);
            wrong.extend(used.map(|used| format!("{name} ({:?}) uses {path} ({used:?})", module.tier)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_decides_uses_neither_the_host_nor_a_runtime() {
    let forbidden = dependencies().into_iter().filter(|name| !PURE_CRATES.contains(&name.as_str()));
    let forbidden: Vec<_> = forbidden.map(|name| format!("{name}::")).collect();
    let mut wrong = Vec::new();
    for (name, module) in modules().iter().filter(|(_, module)| module.tier == Some(Tier::Pure)) {
        let impure = IMPURE.into_iter().filter(|what| module.code.contains(what));
        let code = PURE_ITEMS.iter().fold(module.code.clone(), |code, item| code.replace(item, "Errno"));
        let foreign = forbidden.iter().map(String::as_str).filter(|name| names(&code, name));
        wrong.extend(impure.chain(foreign).map(|what| format!("{name}: {what}")));
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
    let modules = modules();
    let tier = |path| tier(&modules, path);
    assert_eq!(
        (tier("session::relay::half::Step"), tier("session::relay::halfway")),
        (Some(Tier::Pure), Some(Tier::Effect))
    );
    assert!(names("a(tokio::x)", "tokio::") && !names("my_tokio::x, a::tokio::x", "tokio::"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A module: its tier, and its code without comments and tests.
#[derive(Debug)]
struct Module {
    tier: Option<Tier>,
    code: String,
}

/// Returns the modules of src/ by path (`session::relay::half`).
fn modules() -> BTreeMap<String, Module> {
    let module = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("readable");
        (module_of(&file), Module { tier: tier_of(&text), code: code(&text) })
    };
    let modules = rust_files(&root().join("src")).into_iter().map(module);
    // A file with only tests (`#[cfg(test)] mod tests;`) belongs to no tier, and lib.rs only declares.
    modules.filter(|(name, _)| !name.ends_with("::tests") && name != "lib").collect()
}

/// Returns the tier that the first paragraph of a module's documentation names.
fn tier_of(text: &str) -> Option<Tier> {
    let paragraph = text.lines().map_while(|line| line.strip_prefix("//! "));
    let words = [("PURE", Tier::Pure), ("EFFECT", Tier::Effect), ("WIRING", Tier::Wiring)];
    let mut named = paragraph.filter_map(|line| words.iter().find(|(word, _)| line.contains(word)));
    named.next().map(|(_, tier)| *tier)
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

/// Returns the code without comments and without the tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Returns the tier of the module that `path` leads into.
fn tier(modules: &BTreeMap<String, Module>, path: &str) -> Option<Tier> {
    let mut name = path;
    loop {
        if let Some(module) = modules.get(name) {
            return module.tier;
        }
        name = name.rsplit_once("::")?.0;
    }
}

/// Returns every path into the crate that `code` names. main.rs and its modules may use the crate's name.
fn internal_paths(module: &str, code: &str) -> Vec<String> {
    let parent = module.rsplit_once("::").map(|(parent, _)| format!("{parent}::")).unwrap_or_default();
    let starts = [("crate::", ""), ("tcp_intercept::", ""), ("super::", parent.as_str())];
    let paths = starts.into_iter().flat_map(|(start, prefix)| {
        code.match_indices(start).flat_map(move |(at, _)| expand(prefix, &code[at + start.len()..]).0)
    });
    paths.collect()
}

/// Expands the use tree at the start of `text` into its paths, and returns the rest of the text: `a::{b, c::d}` gives
/// `a::b` and `a::c::d`.
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

/// Returns the dependencies of the product, as code names them.
fn dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    manifest["dependencies"].as_table().expect("a table").keys().map(|name| name.replace('-', "_")).collect()
}

/// Returns whether `path` occurs in `code` at the start of a path.
fn names(code: &str, path: &str) -> bool {
    let inner = |c: char| c == '_' || c == ':' || c.is_alphanumeric();
    code.match_indices(path).any(|(at, _)| !code[..at].ends_with(inner))
}
