//! Bytes in transit while the kernel has no pipe or no memory for them: they arrive late, but completely.
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use lab::stream::{self, Pace};
use lab::{Daemon, Fault, Ip, Lab, descriptors, netns, netns_as_user, peers, wait_until};
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size, pipe};
use socket2::Socket;
use tcp_intercept::config::Config;
use tcp_intercept::host::kernel::Kernel;
use tcp_intercept::session::leg::Leg;
use tcp_intercept::session::relay::pool::Pool;
use tcp_intercept::session::relay::{self, Directions};
use tcp_intercept::state::flow::Side;
use tcp_intercept::state::table::slot::Slot;

use crate::bench::{BIN, Bench, SOON, Work, speaks};

#[test]
fn without_descriptors_for_pipes_sessions_go_on() {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        let fault = Fault::inject(&bench.lab.gateway, pid, "pipe2:error=EMFILE");
        let held = bench.sessions(100);
        let (near, far, _) =
            peers::pair(bench.lab.client(), &bench.lab.server, bench.lab.server_at(Ip::V6, 81));
        stream::exchange(&near, &far, 64 << 20, Pace::FULL);
        held.iter().for_each(|stream| speaks(stream).unwrap());
        fault.end();
    });
}

#[test]
fn without_memory_to_move_bytes_they_wait_and_all_of_them_come() {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        let held = bench.sessions(10);
        let pair = |ip| peers::pair(bench.lab.client(), &bench.lab.server, bench.lab.server_at(ip, 81));
        let ((near, far, _), (other_near, other_far, _)) = (pair(Ip::V4), pair(Ip::V6));
        let now_and_then = Fault::inject(&bench.lab.gateway, pid, "splice:error=ENOMEM:when=2+7");
        stream::exchange(&near, &far, 4 << 20, Pace::FULL);
        assert!(now_and_then.end() > 1);
        let work = Work::of(pid);
        let always = Fault::inject(&bench.lab.gateway, pid, "splice:error=ENOBUFS");
        std::thread::scope(|scope| {
            scope.spawn(|| stream::exchange(&other_near, &other_far, 4 << 20, Pace::FULL));
            wait_until("splice() has failed often", SOON, || always.count() > 20);
            work.is_little();
            always.end();
        });
        held.iter().for_each(|stream| speaks(stream).unwrap());
    });
}

#[test]
fn where_the_users_budget_for_pipes_is_used_up_small_ones_carry_every_byte() {
    netns_as_user(|| {
        let lab = Lab::new();
        // fs.pipe-user-pages-soft allows 64 MiB, then 8 KiB per pipe. The limit does not bind root, if a host lets only
        // root run this.
        let hold = |_| {
            let (read, write) = pipe().unwrap();
            let _ = fcntl_setpipe_size(&write, 1 << 20);
            (read, write)
        };
        let held: Vec<_> = (0..100).map(hold).collect();
        let small = fcntl_getpipe_size(&held.last().unwrap().1).unwrap() < 1 << 16;
        assert!(small || rustix::process::geteuid().is_root());
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        assert_eq!(lab.legs(&near), 2);
        stream::exchange(&near, &far, 16 << 20, Pace::FULL);
    });
}

/// Returns a connected pair: the test's end and the relay's end.
fn pair(side: Side) -> (TcpStream, Leg) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let outer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let inner = Socket::from(listener.accept().unwrap().0);
    outer.set_nonblocking(true).unwrap();
    inner.set_nonblocking(true).unwrap();
    let options = Kernel::probe(&Config::default()).unwrap().client;
    (outer, Leg::new(inner, side, &options).unwrap())
}

#[test]
fn a_worker_whose_pipes_are_all_held_waits_for_a_descriptor_without_spinning() {
    // Runs in a separate process, because the limit applies to the whole process.
    netns(|| {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let ((mut client, client_leg), (mut server, server_leg)) =
                (pair(Side::Client), pair(Side::Server));
            let (way, pool, came) = (Directions::new(Slot::unkept()), Pool::default(), Cell::new(false));
            let (pid, work) = (std::process::id(), Work::of(std::process::id()));
            // A pipe needs two descriptors. The remaining one is for reading /proc to measure the processor time.
            let before = descriptors::forbid_new(pid, 1).unwrap();
            let test = async {
                client.write_all(b"late").unwrap();
                tokio::time::sleep(Duration::from_secs(2)).await;
                work.is_little();
                assert_eq!(server.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
                descriptors::restore(pid, before).unwrap();
                while !came.get() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    came.set(server.read(&mut [0; 8]).is_ok_and(|len| len == 4));
                }
            };
            tokio::select! {
                end = relay::run(&client_leg, &server_leg, &way, None, &pool) => panic!("{end:?}"),
                done = tokio::time::timeout(SOON, test) => done.unwrap(),
            }
        });
    });
}
