//! Configuration files: their faults, their defaults, and the shipped texts about them.
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::*;
use tcp_intercept::config::{Config, Congestion, CongestionControl, FastOpen, Keepalive, LogTarget, Source};

const SHIPPED: &str = include_str!("../packaging/config.toml");
const GUIDE: &str = include_str!("../docs/configuration.md");

fn sets(sets: &[&str]) -> Vec<String> {
    sets.iter().map(ToString::to_string).collect()
}

fn parse(text: &str) -> Config {
    Config::parse(text, &[]).expect("no faults")
}

fn faults(text: &str) -> String {
    Config::parse(text, &[]).expect_err("faults").to_string()
}

fn faults_of_sets(list: &[&str]) -> String {
    Config::parse("", &sets(list)).expect_err("faults").to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(parse("[client]\n[server.keepalive]\n"), Config::default());
}

#[test]
fn every_key_is_read_into_its_place() {
    let text = r#"
        listen.port = 5001
        [rules]
        manage = false
        interfaces = ["lan0", "lan1"]
        mark = "0x10/0xf0"
        table = 0x7
        own-mark = "0x300/0x300"
        [client]
        congestion-control = "cubic"
        mptcp = true
        no-delay = false
        keepalive = false
        user-timeout = "1m 500ms"
        notsent-lowat = 65536
        send-buffer = 1048576
        [server]
        congestion-control = "bbr"
        fast-open = "no-cookie"
        keepalive = { idle = "60s", interval = "10s", probes = 6 }
        source = "[2001:db8::1]:0"
        connect-timeout = "10s"
        [wan]
        devices = ["wan0", "ppp0"]
        table = 8
        initial-window = 1000
        [[mptcp.path]]
        device = "wan1"
        announce = true
        port = 7000
        backup = true
        id = 255
        [[mptcp.path]]
        address = "2001:db8::1"
        announce = true
        [[mptcp.path]]
        address = "192.0.2.1"
        [timeouts]
        half-closed = "5m"
        idle = "2h"
        [limits]
        connections = 9000
        crashes = 3
        [stop]
        sigterm = "drain"
        drain-deadline = "1h"
        [log]
        target = "/var/log/tcp-intercept.log"
        format = "json"
        level = "debug"
    "#;
    insta::assert_debug_snapshot!(parse(text));
}

#[test]
fn keepalive_is_true_false_or_some_of_its_timers() {
    let on = |idle| Keepalive::On { idle, interval: None, probes: None };
    assert_eq!(parse("client.keepalive = true").client.leg.keepalive, on(None));
    assert_eq!(parse("client.keepalive = false").client.leg.keepalive, Keepalive::Off);
    let idle = parse("client.keepalive = { idle = '9m' }").client.leg.keepalive;
    assert_eq!(idle, on(Some(Duration::from_secs(540))));
}

#[test]
fn zero_seconds_is_no_timeout() {
    let text =
        "[server]\nconnect-timeout = '0s'\nuser-timeout = '0s'\n[timeouts]\nidle = '0s'\nhalf-closed = '0ms'";
    assert_eq!(parse(text), Config::default());
}

#[test]
fn a_set_overrides_the_file_and_a_later_set_an_earlier_one() {
    let file = "[server]\ncongestion-control = 'cubic'\nkeepalive = { idle = '5s', probes = 3 }";
    let list = sets(&[
        "server.congestion-control=reno",
        "server.congestion-control = bbr",
        "server.keepalive.idle=7s",
        "client.keepalive.probes=2",
        "client.fast-open=no-cookie",
        "rules.interfaces=[\"lan0\"]",
        "log.target=/var/log/a=b.log",
        "server.source=192.0.2.1:0",
    ]);
    let config = Config::parse(file, &list).unwrap();
    let bbr = CongestionControl::new("bbr").unwrap();
    assert_eq!(config.server.leg.congestion_control, Congestion::Named(bbr));
    let idle = Some(Duration::from_secs(7));
    assert_eq!(config.server.leg.keepalive, Keepalive::On { idle, interval: None, probes: Some(3) });
    assert_eq!(config.client.leg.keepalive, Keepalive::On { idle: None, interval: None, probes: Some(2) });
    assert_eq!(config.client.fast_open, FastOpen::NoCookie);
    assert_eq!(config.rules.interfaces[0].as_str(), "lan0");
    assert_eq!(config.log.target, LogTarget::File("/var/log/a=b.log".into()));
    assert_eq!(config.server.source, Source::Fixed("192.0.2.1:0".parse().unwrap()));
}

#[test]
fn each_bad_value_of_the_basics_is_told_with_what_is_allowed() {
    let text = r#"
[listen]
port = 70000
[rules]
manage = "yes"
interfaces = ["lan0", "a/b", 3, "a-name-too-long-for-it"]
mark = "0x2/0x1"
table = 254
own-mark = "0x1/0x1"
[wan]
devices = ["wan0", "", "wan*"]
table = 0
initial-window = 1001
[limits]
connections = 0
[log]
target = "log.txt"
format = "xml"
level = 3
"#;
    assert_snapshot!(faults(text));
}

#[test]
fn each_bad_value_of_a_leg_is_told_with_what_is_allowed() {
    let text = r#"
[client]
congestion-control = "no such name"
mptcp = 1
no-delay = []
keepalive = "60s"
user-timeout = "25days"
notsent-lowat = 4096
send-buffer = 1000
fast-open = "yes"
[server]
user-timeout = 60
source = "192.0.2.1"
connect-timeout = "soon"
[server.keepalive]
idle = "0s"
interval = "500ms"
probes = 128
[timeouts]
half-closed = "1us"
idle = "366days"
"#;
    assert_snapshot!(faults(text));
}

#[test]
fn values_that_contradict_each_other_are_told_at_what_was_written() {
    let texts = [
        "rules.mark = '0x2/0x2'",
        "rules.own-mark = '0x3/0x3'",
        "[rules]\nmark = '0x8/0xff'\nown-mark = '0x30/0x30'",
        "[client]\nfast-open = true\nmptcp = true",
        "wan.table = 5",
        "[rules]\ntable = 6\n[wan]\ndevices = ['wan0']",
        "[server]\nfast-open = 'no-cookie'\nmptcp = true",
    ];
    assert_snapshot!(texts.map(faults).join("\n"));
    let refused = faults("[rules]\nmark = 'x'\nown-mark = '0x3/0x3'");
    assert_eq!(refused.lines().count(), 1, "a rejected value is not compared: {refused}");
    parse("rules.table = 6");
}

#[test]
fn an_unknown_key_is_told_with_its_nearest_known_one() {
    let text = r#"
sever.mptcp = true
[listen]
prot = 5000
[server]
congestion_control = "bbr"
keep-alive = false
handshake = "fast"
[timeouts]
connect-timeout = "10s"
[client.keepalive]
idel = "60s"
[limits]
"x\u0007y" = 1
[[policy]]
name = "backup"
"#;
    assert_snapshot!(faults(text));
}

#[test]
fn each_bad_value_of_a_path_is_told_with_its_line() {
    let text = r#"
[[mptcp.path]]
device = "a/b"
announce = 1
port = 0
[[mptcp.path]]
address = "192.0.2.1:80"
backup = "no"
id = 256
[[mptcp.path]]
address = "fe80::1"
[[mptcp.path]]
device = "wan1"
address = "192.0.2.1"
[[mptcp.path]]
announce = true
[[mptcp.path]]
device = "wan2"
port = 7000
anounce = true
devices = ["wan3"]
"#;
    assert_snapshot!(faults(text));
}

#[test]
fn no_two_paths_are_the_same_and_there_are_not_too_many() {
    let path = |what: &str| format!("[[mptcp.path]]\n{what}\n");
    let same = [
        "device = 'wan1'\nid = 1",
        "address = '10.0.0.1'",
        "device = 'wan1'",
        "address = '10.0.0.1'\nid = 1",
    ];
    let many: String = (0..9).map(|n| path(&format!("device = 'wan{n}'"))).collect();
    let texts =
        [same.map(path).concat(), many, "mptcp.path = 'wan1'".to_owned(), "mptcp.path = ['wan1']".to_owned()];
    assert_snapshot!(texts.map(|text| faults(&text)).join("\n"));
}

#[test]
fn paths_are_set_as_a_whole() {
    let file = "[[mptcp.path]]\ndevice = 'wan9'\n";
    let list = sets(&["mptcp.path=[{device=\"wan1\", announce=true}, {address=\"192.0.2.1\"}]"]);
    let paths = Config::parse(file, &list).unwrap().mptcp.paths;
    let told: Vec<_> =
        paths.iter().map(|path| (path.to_string(), path.announce.map(|port| port.get()))).collect();
    assert_eq!(told, [("wan1".to_owned(), Some(5001)), ("192.0.2.1".to_owned(), None)]);
    let refused =
        ["mptcp.path=[{device=wan1}]", "mptcp.path=[{device=\"wan1\"},{device=\"wan1\"}]", "mptcp.path=[{}]"];
    let each: Vec<String> = refused.iter().map(|set| faults_of_sets(&[set])).collect();
    assert_snapshot!(each.join("\n"));
}

#[test]
fn a_table_is_not_a_value_and_a_value_no_table() {
    assert_snapshot!(faults("server = 5\n[listen.port]\nx = 1\n[[client]]\n"));
}

#[test]
fn text_that_is_no_toml_is_told_with_its_lines() {
    assert_snapshot!(faults(
        "[listen]\nport = \n[log]\nlevel = info\nformat = json\n[server]\nconnect-timeout = 60s\nmptcp = false\nmptcp = true\n[client\n"
    ));
}

#[test]
fn a_bad_set_is_told_as_it_was_written() {
    let list =
        ["listen.port=0", "server.source=", "no-equals", "=5", "a.b.c.d.e=1", "srv.mptcp=true", "server=5"];
    let each: Vec<String> = list.iter().map(|set| faults_of_sets(&[set])).collect();
    assert_snapshot!(each.join("\n"));
}

#[test]
fn faults_of_the_file_come_before_those_of_the_command_line_and_name_the_file() {
    let both = Config::parse("[listen]\nport = 0", &sets(&["server.keepalive={idle='0s'}"])).unwrap_err();
    assert_snapshot!(both.in_file("/etc/tcp-intercept/config.toml".as_ref()));
}

/// Returns the defaults that the texts show: the lines that begin with `#` and a key.
fn shown_defaults() -> String {
    let shown = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    SHIPPED.lines().map(shown).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_changes_nothing_and_shows_the_defaults() {
    assert_eq!(parse(SHIPPED), Config::default());
    assert_ne!(shown_defaults(), SHIPPED);
    assert_eq!(parse(&shown_defaults()), Config::default());
}

#[test]
fn the_shipped_files_examples_are_valid() {
    let mut table = String::new();
    for line in SHIPPED.lines() {
        if line.starts_with('[') {
            table = line.to_owned();
        } else if let Some(example) = line.strip_prefix("# Example: ") {
            assert_ne!(parse(&format!("{table}\n{example}\n")), Config::default(), "{example}");
        }
    }
}

#[test]
fn every_key_is_in_the_shipped_file_and_in_both_documents() {
    let (guide, manual) = (GUIDE, include_str!("../docs/man/tcp-intercept.toml.5"));
    for key in Config::keys() {
        let last = key.rsplit('.').next().unwrap();
        assert!(SHIPPED.contains(&format!("{last} = ")), "{key} is not in packaging/config.toml");
        assert!(guide.contains(&format!("`{key}`")), "{key} is not in docs/configuration.md");
        assert!(manual.contains(&format!(".B {}", key.replace('-', "\\-"))), "{key} is not in the man page");
    }
}

#[test]
fn the_guide_shows_faults_as_they_are_told_and_examples_that_are_valid() {
    let text = "\n[listen]\nport = 70000\n\n\n\n\n[server]\ncongestion_control = \"bbr\"\n";
    let faults = Config::parse(text, &sets(&["log.level=verbose"])).unwrap_err();
    let told = faults.in_file("/etc/tcp-intercept/config.toml".as_ref()).to_string();
    assert!(GUIDE.contains(&told), "{told}");
    let texts = [GUIDE, include_str!("../docs/pair.md")];
    let examples = texts.iter().flat_map(|text| text.split("```toml\n").skip(1));
    let examples: Vec<&str> = examples.filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        assert_ne!(parse(example), Config::default(), "{example}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_by_its_name() {
    let err = std::io::Error::from_raw_os_error(13);
    let told = tcp_intercept::config::Faults::unreadable("/etc/x.toml".as_ref(), &err).to_string();
    assert_eq!(told, "/etc/x.toml: cannot be read: Permission denied (os error 13)");
}

proptest! {
    #[test]
    fn no_text_and_no_set_makes_parse_panic(text in "\\PC*", list in proptest::collection::vec("\\PC*", 0..3)) {
        let _ = Config::parse(&text, &list).map_err(|faults| faults.to_string());
    }

    #[test]
    fn text_that_looks_like_a_configuration_is_read_or_refused_and_never_panics(
        lines in proptest::collection::vec(
            ("(\\[|\\[\\[)?(listen|rules|server|client|log)?(\\]|\\]\\])?", "(port|mark|keepalive|idle|source|x)?( = |=|\\.)?",
             "(true|-?[0-9]{1,20}|\"[^\"]{0,9}\"|\\{ idle = \"[0-9]{1,20}(s|ms|years)\" \\}|\\[.{0,5}\\]|0x[0-9a-f]{1,9})?"),
            0..8),
        set in "(server|rules|client)\\.(mark|keepalive|keepalive\\.idle|idle)=.{0,12}",
    ) {
        let text: String = lines.iter().map(|(table, key, value)| format!("{table}\n{key}{value}\n")).collect();
        let _ = Config::parse(&text, &[set]).map_err(|faults| faults.to_string());
    }

    #[test]
    fn any_port_is_read_or_refused_as_its_range_says(port in prop_oneof![any::<i64>(), -5i64..70_000]) {
        let parsed = Config::parse(&format!("listen.port = {port}"), &[]);
        prop_assert_eq!(parsed.ok().map(|config| i64::from(config.listen.port.get())), (1..=65_535).contains(&port).then_some(port));
    }
}
