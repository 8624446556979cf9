//! The formats that one version of the program passes to another: the session table and the handover. tests/golden/ has
//! images of both, written by an earlier revision.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde_json::{Value, json};
use tcp_intercept::process::guardian::handover::{Handover, Previous};
use tcp_intercept::state::flow::{Flow, OrigDst};
use tcp_intercept::state::record::{Dialled, Opening};
use tcp_intercept::state::table::header::{LAYOUT, Unreadable};
use tcp_intercept::state::table::slot::{Content, ObservedDirection, ObservedSession, Urgent};
use tcp_intercept::state::table::{Table, TableError};

/// The table has slots for descriptors below this number.
const SLOTS: usize = 8;

/// An image: word indices and values. All other words are 0.
type Image = Vec<(usize, u64)>;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Parses lines like `64  0000000000000001  # accepted`.
fn parse(text: &str) -> Image {
    let lines = text.lines().filter_map(|line| line.split('#').next());
    let words = lines.map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let words = words.filter(|line| !line.is_empty());
    words.map(|line| (line[0].parse().unwrap(), u64::from_str_radix(line[1], 16).unwrap())).collect()
}

/// Returns the words of a table that are not 0.
fn image_of(file: OwnedFd) -> Image {
    let file = File::from(file);
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
    words.enumerate().filter(|(_, value)| *value != 0).collect()
}

/// Makes a file with these words.
fn file_of(image: &Image) -> OwnedFd {
    const WORDS: usize = 1024 + SLOTS * 24;
    let file = memfd_create("golden", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(file);
    file.set_len(WORDS as u64 * 8).unwrap();
    for (word, value) in image {
        file.write_all_at(&value.to_ne_bytes(), *word as u64 * 8).unwrap();
    }
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    file.into()
}

fn flow(client: &str, server: &str) -> Flow {
    Flow { client: client.parse().unwrap(), orig_dst: OrigDst(server.parse().unwrap()) }
}

fn ipv4() -> Flow {
    flow("192.0.2.1:40000", "198.51.100.2:443")
}

fn ipv6() -> Flow {
    flow("[fe80::1%3]:40001", "[2001:db8::2]:80")
}

/// Returns every counter with its value in the image.
fn counters(table: Table) -> [(tcp_intercept::state::metrics::Counter, u64); 22] {
    let all = table.header().counters();
    let mut n = 100;
    [
        all.accepted,
        all.ended_in_order,
        all.dialled_again,
        all.dialled_other_port,
        all.dial_failed,
        all.fast_open_data,
        all.fast_open_failed,
        all.fast_open_avoided,
        all.mptcp,
        all.mptcp_failed,
        all.mptcp_avoided,
        all.timed_out,
        all.to_listener,
        all.aborted,
        all.exhausted,
        all.shed,
        all.gate_closed,
        all.crashes,
        all.taken_up,
        all.not_taken_up,
        all.given_up,
        all.upgrades,
    ]
    .map(|counter| {
        n += 1;
        (counter, n)
    })
}

/// Writes the image's table with the current code.
fn write() -> OwnedFd {
    let (table, file) = Table::new(SLOTS).unwrap();
    let header = table.header();
    let lives = [(); 3].map(|()| header.begin_generation());
    assert_eq!(lives, [1, 2, 3]);
    header.set_sessions(3);
    header.crash_points().store(0b101, Ordering::Relaxed);
    (0..7).for_each(|_| header.control_heartbeat());
    (0..8).for_each(|_| header.host_heartbeat());
    counters(table).iter().for_each(|(counter, value)| counter.add(*value));
    header.thread(1).heartbeat();
    header.thread(1).set_current_session(Some(5));
    let slot = |n| table.slot(n).unwrap();
    slot(3).accepted(0x333, &ipv4(), Duration::from_secs(3));
    slot(4).accepted(0x444, &ipv4(), Duration::from_secs(4));
    slot(4).dialling(14, 0x41e);
    slot(4).up().passed_on(11);
    slot(5).accepted(0x555, &ipv6(), Duration::from_secs(5));
    slot(5).dialling(15, 0x51e);
    slot(5).relaying(Dialled::OtherPort, Opening::Ignored, Duration::from_millis(50));
    slot(5).suspect_generation(2);
    slot(5).up().pipe(20, 21);
    slot(5).up().passed_on(1000);
    slot(5).up().urgent(Some(Urgent::Seen(b'!')));
    slot(5).down().passed_on(2000);
    slot(5).down().shut();
    slot(5).down().urgent(Some(Urgent::Taken(b'?')));
    slot(6).accepted(0x666, &ipv4(), Duration::from_secs(6));
    slot(6).ended();
    file
}

/// Checks every field of the image's table.
fn check(table: Table) {
    let header = table.header();
    assert_eq!((header.slots(), header.generation(), header.sessions()), (Ok(SLOTS), 3, 3));
    assert_eq!((header.control_heartbeats(), header.host_heartbeats()), (7, 8));
    assert_eq!(header.crash_points().load(Ordering::Relaxed), 0b101);
    for (n, (counter, value)) in counters(table).into_iter().enumerate() {
        assert_eq!(counter.get(), value, "counter {n}");
    }
    let threads = [0, 1].map(|n| (header.thread(n).heartbeats(), header.thread(n).current_session()));
    assert_eq!(threads, [(0, None), (1, Some(5))]);
    let unused = ObservedDirection::default();
    let accepted = ObservedSession {
        cookie: 0x333,
        flow: ipv4(),
        accepted: Duration::from_secs(3),
        server: None,
        dialled: None,
        suspect_generation: 0,
        up: unused,
        down: unused,
    };
    let dialling = ObservedSession {
        cookie: 0x444,
        accepted: Duration::from_secs(4),
        server: Some((14, 0x41e)),
        up: ObservedDirection { passed_on: 11, ..unused },
        ..accepted
    };
    let relaying = ObservedSession {
        cookie: 0x555,
        flow: ipv6(),
        accepted: Duration::from_secs(5),
        server: Some((15, 0x51e)),
        dialled: Some((Dialled::OtherPort, Opening::Ignored, Duration::from_millis(50))),
        suspect_generation: 2,
        up: ObservedDirection {
            pipe: Some((20, 21)),
            passed_on: 1000,
            shut: false,
            urgent: Some(Urgent::Seen(b'!')),
        },
        down: ObservedDirection {
            pipe: None,
            passed_on: 2000,
            shut: true,
            urgent: Some(Urgent::Taken(b'?')),
        },
    };
    let [a, b, c] = [accepted, dialling, relaying].map(Content::Session);
    let all = [Content::Vacant, a, b, c, Content::Ended { cookie: 0x666 }, Content::Vacant];
    for (n, content) in (2..).zip(all) {
        assert_eq!(table.slot(n).unwrap().read(), content, "slot {n}");
    }
    assert!(table.slot(8).is_none());
}

#[test]
fn a_table_of_an_earlier_revision_is_read_if_it_has_this_layout_and_refused_if_not() {
    let mut read = 0;
    for entry in fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let Some(layout) = name.strip_prefix("table-") else { continue };
        let layout: u64 = layout.parse().unwrap();
        let file = file_of(&parse(&fs::read_to_string(&path).unwrap()));
        match Table::open(file.as_fd()) {
            Ok(table) if layout == LAYOUT => {
                check(table);
                read += 1;
            }
            Err(TableError::Unreadable(Unreadable::Layout(other))) if layout != LAYOUT => {
                assert_eq!(other, layout);
            }
            other => panic!("{name}: this program has layout {LAYOUT}: {other:?}"),
        }
    }
    assert_eq!(read, 1, "tests/golden/ has no image of layout {LAYOUT}");
}

#[test]
fn a_table_is_written_as_its_layout_number_says() {
    let written = image_of(write());
    let path = golden().join(format!("table-{LAYOUT}.txt"));
    let text = fs::read_to_string(&path);
    let golden = parse(&text.unwrap_or_else(|err| {
        panic!("{}: {err}: add an image with these words: {}", path.display(), show(&written))
    }));
    let only_in = |one: &Image, other: &Image| -> Image {
        one.iter().filter(|word| !other.contains(word)).copied().collect()
    };
    let (was, is) = (only_in(&golden, &written), only_in(&written, &golden));
    assert!(
        was.is_empty() && is.is_empty(),
        "words have another meaning now: change LAYOUT in src/state/table/header.rs, keep this image, and add one of the new layout.\n\
         expected:{}\nwritten:{}",
        show(&was),
        show(&is)
    );
}

fn show(image: &Image) -> String {
    image.iter().map(|(word, value)| format!("\n{word:>4}  {value:016x}")).collect()
}

/// Returns the handover of an earlier revision.
fn handover() -> Value {
    serde_json::from_str(&fs::read_to_string(golden().join("handover.json")).unwrap()).unwrap()
}

fn read(handover: Value) -> Handover {
    serde_json::from_value(handover).unwrap()
}

#[test]
fn a_handover_of_an_earlier_revision_is_read() {
    let handover = read(handover());
    assert_eq!((handover.version.as_str(), handover.trial), ("2.0.0-dev", false));
    assert_eq!(handover.config.as_deref(), Some("[stop]\nsigterm = \"drain\"\n"));
    assert_eq!((handover.lock, handover.table, handover.caller), (3, 9, Some(17)));
    assert_eq!(handover.listeners, [[4, 5], [6, 7]]);
    assert_eq!((handover.limit, handover.ours), (9000, true));
}

#[test]
fn an_earlier_revision_can_read_the_handover() {
    let file = read(handover()).write().unwrap();
    let written: Value = serde_json::from_reader(file).unwrap();
    // An earlier revision ignores unknown fields.
    for (field, value) in handover().as_object().unwrap() {
        assert_eq!(&written[field], value, "{field}");
    }
}

#[test]
fn a_handover_with_unknown_fields_or_without_optional_ones_is_read() {
    let mut newer = handover();
    newer["unknown"] = json!({ "from": ["a", "newer", "program"] });
    assert_eq!(read(newer), read(handover()));
    let mut older = handover();
    let fields = older.as_object_mut().unwrap();
    ["config", "caller"].iter().for_each(|optional| drop(fields.remove(*optional).unwrap()));
    assert_eq!(read(older), Handover { config: None, caller: None, ..read(handover()) });
}

#[test]
fn a_handover_that_leads_back_is_read_as_it_was_written() {
    let previous = Previous {
        binary: 20,
        arguments: vec!["run".into(), "--set".into(), OsStr::from_bytes(b"\xff").into()],
    };
    let there = Handover { previous: Some(previous), log_writers: vec![4711], ..read(handover()) };
    let back = Handover { failed: Some("why".to_owned()), ..there.clone() };
    for handover in [there, back] {
        assert_eq!(read(serde_json::from_reader(handover.write().unwrap()).unwrap()), handover);
    }
}
