//! Corrupt slots that a worker wrote into the table before it died are rejected.
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use lab::stream::{self, Pace, Random};
use lab::{Daemon, Ip, Lab, netns, peers};
use tcp_intercept::state::table::Table;
use tcp_intercept::state::table::header;
use tcp_intercept::state::table::slot::{Content, WORDS};

use crate::support::{BIN, MANY, counter, kill_worker, said};

const SLOT: u64 = WORDS as u64 * 8;

/// Opens the table of a daemon through /proc, as any process with the permission can.
fn table(daemon: &Daemon) -> OwnedFd {
    let of = format!("/proc/{}/fd", daemon.worker());
    let is_table = |path: &std::path::Path| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("tcp-intercept-sessions"))
    };
    let mut entries = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    let path = entries.find(|path| is_table(path)).unwrap();
    OpenOptions::new().read(true).write(true).open(path).unwrap().into()
}

/// Returns the position of this client's session in the table.
fn place(file: &OwnedFd, client: SocketAddr) -> u64 {
    let table = Table::open(file.as_fd()).unwrap();
    let slots = i32::try_from(table.header().slots().unwrap()).unwrap();
    let number = (0..slots).find(|n| match table.slot(*n).unwrap().read() {
        Content::Session(seen) => seen.flow.client == client,
        _ => false,
    });
    header::WORDS as u64 * 8 + number.unwrap() as u64 * SLOT
}

#[test]
fn a_session_with_garbage_in_its_slot_is_reset_and_no_other() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let at = lab.server_at(Ip::V4, 81);
        let (mut random, mut rejected) = (Random::new(1), 0);
        let mut noise = vec![0; SLOT as usize];
        random.fill(&mut noise);
        // Random bytes; a slot that looks unused; a copy of another session's slot; a state earlier than the real one.
        for kind in 0..4 {
            let (near, far, _) = peers::pair(lab.client(), &lab.server, at);
            let (mut other, mut other_far, _) = peers::pair(lab.client(), &lab.server, at);
            other.write_all(b"kept").unwrap();
            other_far.read_exact(&mut [0; 4]).unwrap();
            let mut speaker = &near;
            speaker.write_all(b"some").unwrap();
            (&far).read_exact(&mut [0; 4]).unwrap();
            let file = table(&daemon);
            let victim = place(&file, near.local_addr().unwrap());
            let file = fs::File::from(file);
            match kind {
                0 => file.write_all_at(&noise, victim).unwrap(),
                1 => file.write_all_at(&vec![0; SLOT as usize], victim).unwrap(),
                2 => {
                    let mut copy = vec![0; SLOT as usize];
                    let from = place(&file.try_clone().unwrap().into(), other.local_addr().unwrap());
                    file.read_exact_at(&mut copy, from).unwrap();
                    file.write_all_at(&copy, victim).unwrap();
                }
                _ => file.write_all_at(&1_u64.to_ne_bytes(), victim).unwrap(),
            }
            kill_worker(&daemon);
            rejected += 1;
            peers::expect_reset(&near);
            peers::expect_reset(&far);
            stream::exchange(&other, &other_far, 1 << 20, Pace::FULL);
        }
        let ended = said(&daemon);
        let log = daemon.stop().1;
        assert_eq!(counter(&log, "not-taken-up"), rejected, "{ended}");
    });
}
