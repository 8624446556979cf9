//! A host's routes and rules as `ip` shows them.
use std::time::Duration;

use lab::{Daemon, Host};
use serde_json::Value;

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
/// The marks of the daemon's sockets.
pub const MARKS: [&str; 2] = ["2", "4"];

/// Starts a daemon with `wan0` and `wan1` as its wan devices.
pub fn daemon(host: &Host) -> Daemon {
    Daemon::start(host, BIN, &["wan.devices=[\"wan0\", \"wan1\"]"])
}

/// Returns every route and policy rule of `host`, in all tables.
pub fn everything(host: &Host) -> Vec<Value> {
    let lists = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
    let list = |what: &&str| -> Vec<Value> { serde_json::from_str(&host.ip(&format!("-j {what}"))).unwrap() };
    lists.iter().flat_map(list).collect()
}

/// Returns the routes and rules that do not belong to the daemon.
pub fn operators(host: &Host) -> Vec<Value> {
    let ours = |line: &Value| line["protocol"] == "155" || line["protocol"] == "156";
    everything(host).into_iter().filter(|line| !ours(line)).collect()
}

/// Returns the routes and rules of the mirror.
pub fn mirror(host: &Host) -> Vec<Value> {
    everything(host).into_iter().filter(|line| line["protocol"] == "156").collect()
}

/// Returns the route from `host` to `to` and its initial window; `options` as in `mark 2`. For an unreachable
/// destination, the route is the kernel's error text.
pub fn way(host: &Host, to: &str, options: &str) -> (String, Option<u64>) {
    let text = host.run(&format!("ip -j route get {to} {options} 2>&1 || true"));
    let Ok(Value::Array(found)) = serde_json::from_str(&text) else { return (text.trim().to_owned(), None) };
    let word = |key: &str| found[0][key].to_string();
    let window = found[0]["metrics"][0]["initcwnd"].as_u64();
    (["gateway", "via", "dev", "prefsrc"].map(word).join(" "), window)
}

/// Checks that the daemon's sockets reach `to` by the same route as all others, and returns its initial window.
pub fn window(host: &Host, to: &str) -> Option<u64> {
    let (others, theirs) = way(host, to, "");
    let ours = MARKS.map(|mark| way(host, to, &format!("mark {mark}")));
    for (way, window) in &ours {
        assert_eq!((way, window), (&others, &ours[0].1), "{to}");
    }
    assert_ne!(theirs, Some(100), "{to}: the window is for our sockets");
    ours[0].1
}
