//! Tests of the session table. The writer is killed after each of its stores. A reader then finds the state before
//! the step, the state after it, or an empty slot.
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use proptest::prelude::*;

use super::Table;
use super::header::{LAYOUT, Unreadable};
use super::slot::{Content, ObservedDirection, ObservedSession, Slot, Urgent, WORDS};
use super::word::fuse;
use crate::state::flow::{Flow, OrigDst};
use crate::state::metrics::Counters;
use crate::state::record::{Dialled, Opening};

/// A step of a session that writes to its slot.
#[derive(Debug, Clone, Copy)]
enum Step {
    Accepted(u64, Flow, Duration),
    Dialling(i32, u64),
    Relaying(Dialled, Opening, Duration),
    Ended,
    Suspected(u64),
    Pipe(bool, i32, i32),
    NoPipe(bool),
    PassedOn(bool, u64),
    Shut(bool),
    Urgent(bool, Option<Urgent>),
}

impl Step {
    fn apply(self, slot: Slot) {
        let way = |up| if up { slot.up() } else { slot.down() };
        match self {
            Self::Accepted(cookie, flow, at) => slot.accepted(cookie, &flow, at),
            Self::Dialling(fd, cookie) => slot.dialling(fd, cookie),
            Self::Relaying(dialled, opening, connect) => slot.relaying(dialled, opening, connect),
            Self::Ended => slot.ended(),
            Self::Suspected(generation) => slot.suspect_generation(generation),
            Self::Pipe(up, read, write) => way(up).pipe(read, write),
            Self::NoPipe(up) => way(up).no_pipe(),
            Self::PassedOn(up, bytes) => way(up).passed_on(bytes),
            Self::Shut(up) => way(up).shut(),
            Self::Urgent(up, byte) => way(up).urgent(byte),
        }
    }

    /// Returns the content that the model expects after the step; `None` if the step is not possible in the state
    /// `before`.
    fn expected(self, before: Content) -> Option<Content> {
        let mut seen = match (self, before) {
            (Self::Accepted(cookie, flow, accepted), Content::Vacant | Content::Ended { .. }) => {
                let way = ObservedDirection::default();
                let seen = ObservedSession {
                    cookie,
                    flow,
                    accepted,
                    server: None,
                    dialled: None,
                    suspect_generation: 0,
                    up: way,
                    down: way,
                };
                return Some(Content::Session(seen));
            }
            (Self::Accepted(..), _) => return None,
            (_, Content::Session(seen)) => seen,
            _ => return None,
        };
        let way = |seen: &mut ObservedSession, up, change: &dyn Fn(&mut ObservedDirection)| {
            change(if up { &mut seen.up } else { &mut seen.down });
        };
        match self {
            Self::Accepted(..) => {}
            Self::Dialling(..) | Self::Relaying(..) if seen.dialled.is_some() => return None,
            Self::Dialling(fd, cookie) => seen.server = Some((fd, cookie)),
            Self::Relaying(..) if seen.server.is_none() => return None,
            Self::Relaying(dialled, opening, connect) => seen.dialled = Some((dialled, opening, connect)),
            Self::Ended => return Some(Content::Ended { cookie: seen.cookie }),
            Self::Suspected(generation) => seen.suspect_generation = generation,
            Self::Pipe(up, read, write) => way(&mut seen, up, &|way| way.pipe = Some((read, write))),
            Self::NoPipe(up) => way(&mut seen, up, &|way| way.pipe = None),
            Self::PassedOn(up, bytes) => way(&mut seen, up, &|way| way.passed_on = bytes),
            Self::Shut(up) => way(&mut seen, up, &|way| way.shut = true),
            Self::Urgent(up, byte) => way(&mut seen, up, &|way| way.urgent = byte),
        }
        Some(Content::Session(seen))
    }
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
    // IPv4-mapped addresses are read back as IPv4 addresses.
    let v6 = any::<([u16; 8], u16)>()
        .prop_map(SocketAddr::from)
        .prop_filter("mapped", |addr| addr.ip().to_canonical() == addr.ip());
    prop_oneof![v4, v6]
}

fn step() -> impl Strategy<Value = Step> {
    let fd = 0..1 << 20;
    let time = any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
    let urgent = any::<(bool, u8)>()
        .prop_map(|(seen, byte)| if seen { Urgent::Seen(byte) } else { Urgent::Taken(byte) });
    let how = (proptest::sample::select(Dialled::ALL), proptest::sample::select(Opening::ALL));
    prop_oneof![
        4 => (any::<u64>(), addr(), addr(), time.clone()).prop_map(|(cookie, client, server, at)| {
            Step::Accepted(cookie, Flow { client, orig_dst: OrigDst(server) }, at)
        }),
        3 => (fd.clone(), any::<u64>()).prop_map(|(fd, cookie)| Step::Dialling(fd, cookie)),
        3 => (how, time).prop_map(|((dialled, opening), connect)| Step::Relaying(dialled, opening, connect)),
        1 => Just(Step::Ended),
        1 => any::<u64>().prop_map(Step::Suspected),
        3 => (any::<bool>(), fd.clone(), fd).prop_map(|(up, read, write)| Step::Pipe(up, read, write)),
        1 => any::<bool>().prop_map(Step::NoPipe),
        2 => any::<(bool, u64)>().prop_map(|(up, bytes)| Step::PassedOn(up, bytes)),
        1 => any::<bool>().prop_map(Step::Shut),
        1 => (any::<bool>(), proptest::option::of(urgent)).prop_map(|(up, byte)| Step::Urgent(up, byte)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_writer_killed_after_any_store_leaves_the_old_state_the_new_state_or_none(
        steps in proptest::collection::vec(step(), 1..40),
        stores in 0..200_usize,
    ) {
        let slot = Slot::unkept();
        let (mut before, mut after) = (Content::Vacant, Content::Vacant);
        let mut left = stores;
        for step in steps {
            let Some(expected) = step.expected(after) else { continue };
            (before, after) = (after, expected);
            left = fuse::burns_after(left, || step.apply(slot));
            if left == 0 {
                break;
            }
        }
        let read = slot.read();
        let torn = read == Content::Vacant || without_server(before) == Some(read);
        prop_assert!(read == before || read == after || torn, "{read:?} is neither {before:?} nor {after:?}");
    }

    #[test]
    fn random_words_are_not_a_session(words in proptest::collection::vec(any::<u64>(), WORDS)) {
        let slot = slot_of(&words);
        prop_assert_eq!(slot.read(), Content::Garbage);
    }

    #[test]
    fn a_flipped_bit_in_the_checked_words_is_detected(word in 0..12_usize, bit in 0..64_u32) {
        let slot = Slot::unkept();
        let flow = Flow {
            client: ([10, 1, 0, 2], 40_000).into(),
            orig_dst: OrigDst(([10, 2, 0, 2], 80).into()),
        };
        slot.accepted(7, &flow, Duration::from_secs(1));
        slot.dialling(9, 8);
        slot.relaying(Dialled::First, Opening::Ordinary, Duration::ZERO);
        prop_assert!(matches!(slot.read(), Content::Session(_)));
        slot.flip(word, bit);
        prop_assert_eq!(slot.read(), Content::Garbage);
    }
}

/// Replacing a server socket takes two stores; between them the slot has none.
fn without_server(content: Content) -> Option<Content> {
    match content {
        Content::Session(seen) => Some(Content::Session(ObservedSession { server: None, ..seen })),
        _ => None,
    }
}

fn slot_of(words: &[u64]) -> Slot {
    let slot = Slot::unkept();
    words.iter().enumerate().for_each(|(n, word)| slot.write(n, *word));
    slot
}

#[test]
fn a_table_that_another_program_made_is_read_if_it_has_this_layout() {
    let (table, file) = Table::new(64).unwrap();
    let counters = table.header().counters();
    counters.accepted.count();
    table.header().thread(3).set_current_session(Some(0));
    let again = Table::open(file.as_fd()).unwrap();
    assert_eq!(again.header().counters().accepted.get(), 1);
    assert_eq!(again.header().thread(3).current_session(), Some(0));
    assert_eq!(again.header().thread(4).current_session(), None);
    assert_eq!((again.header().begin_generation(), table.header().begin_generation()), (1, 2));
    assert!(table.slot(63).is_some() && table.slot(64).is_none() && table.slot(-1).is_none());
}

#[test]
fn a_table_of_another_layout_or_none_at_all_is_refused() {
    let (table, file) = Table::new(64).unwrap();
    table.words[1].store(99, std::sync::atomic::Ordering::Relaxed);
    let refused = |file: &OwnedFd| Table::open(file.as_fd()).unwrap_err().to_string();
    assert!(refused(&file).contains("layout 99, and this program knows layout 1"));
    table.words[0].store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(refused(&file), Unreadable::Foreign.to_string());
    let (table, file) = Table::new(64).unwrap();
    table.words[2].store(65, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(refused(&file), Unreadable::Short.to_string());
}

/// Checks the numbers in the table. New numbers may be added at the end of each list. Any other change needs another
/// [`LAYOUT`], or a program that takes over misreads the table. tests/golden.rs checks the words themselves.
#[test]
fn the_numbers_in_the_table_belong_to_the_layout() {
    let dialled = [Dialled::First, Dialled::Again, Dialled::OtherPort];
    let opening = [
        Opening::Ordinary,
        Opening::Avoided,
        Opening::Asked,
        Opening::Empty,
        Opening::Data,
        Opening::Ignored,
        Opening::Lost,
    ];
    assert_eq!((LAYOUT, WORDS), (1, 24));
    assert_eq!(dialled.map(|how| how as u8), [0, 1, 2]);
    assert_eq!(opening.map(|how| how as u8), [0, 1, 2, 3, 4, 5, 6]);
    let counters = Counters::default().to_string();
    let counters: Vec<_> = counters.split(' ').filter_map(|word| word.split('=').next()).collect();
    assert!(
        counters.join(" ").starts_with(
            "accepted ended-in-order dialled-again dialled-other-port dial-failed fast-open-data fast-open-failed \
             fast-open-avoided mptcp mptcp-failed mptcp-avoided timed-out to-listener aborted exhausted shed \
             gate-closed crashes taken-up not-taken-up given-up upgrades"
        )
    );
}
