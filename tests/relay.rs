//! The relay between real sockets on loopback, from every state of a session. It needs no privileges.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{SockRef, Socket};
use tcp_intercept::config::{Config, Timeouts};
use tcp_intercept::host::kernel::{Kernel, LegOptions};
use tcp_intercept::session::leg::{Leg, reset_on_close};
use tcp_intercept::session::relay::pool::{Pipe, Pool};
use tcp_intercept::session::relay::silence::Silence;
use tcp_intercept::session::relay::watch::Watch;
use tcp_intercept::session::relay::{self, Direction, Directions};
use tcp_intercept::state::flow::Side;
use tcp_intercept::state::record::{By, Cause, End, Phase, Timeout};
use tcp_intercept::state::table::slot::Slot;

/// Returns a connected pair: the test's end and the relay's end.
fn pair() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let outer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    outer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let inner = Socket::from(listener.accept().unwrap().0);
    inner.set_nonblocking(true).unwrap();
    inner.set_out_of_band_inline(true).unwrap();
    reset_on_close(&inner).unwrap();
    (outer, inner)
}

/// Returns the options of a leg without configuration.
fn plain() -> LegOptions {
    Kernel::probe(&Config::default()).unwrap().client
}

fn on_a_worker<T>(work: impl Future<Output = T>) -> T {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(20), work).await.expect("it ends in time") })
}

/// Runs a relay in a thread, starting from `way`, and closes its legs as a session does.
fn relay_from(
    way: impl FnOnce(&Pool) -> Directions + Send + 'static,
    timeouts: Timeouts,
) -> (TcpStream, TcpStream, std::thread::JoinHandle<End>) {
    let ((client, client_leg), (server, server_leg)) = (pair(), pair());
    let relay = std::thread::spawn(move || {
        on_a_worker(async move {
            let client = Leg::new(client_leg, Side::Client, &plain()).unwrap();
            let server = Leg::new(server_leg, Side::Server, &plain()).unwrap();
            let pool = Pool::default();
            let watch = Watch::new(Silence::new(&timeouts), None, None);
            let end = relay::run(&client, &server, &way(&pool), watch, &pool).await;
            if end.cause == Cause::Eof {
                client.end_in_order();
                server.end_in_order();
            }
            end
        })
    });
    (client, server, relay)
}

fn relay_new() -> (TcpStream, TcpStream, std::thread::JoinHandle<End>) {
    relay_from(|_| Directions::new(Slot::unkept()), Timeouts::default())
}

fn read_all(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

fn read_some(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut some = vec![0; len];
    stream.read_exact(&mut some).unwrap();
    some
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

fn is_reset<T: std::fmt::Debug>(read: std::io::Result<T>) {
    assert_eq!(Errno::from_io_error(&read.expect_err("a reset, not an end")), Some(Errno::CONNRESET));
}

fn pipe_with(pool: &Pool, bytes: &[u8]) -> Option<(Pipe, usize)> {
    let pipe = pool.take().unwrap();
    rustix::io::write(&pipe.write, bytes).unwrap();
    Some((pipe, bytes.len()))
}

#[test]
fn each_direction_ends_on_its_own_and_the_side_that_ended_first_is_recorded() {
    for (first, by) in [(Side::Client, By::Client), (Side::Server, By::Server)] {
        let (client, server, relay) = relay_new();
        let (mut early, mut late) =
            if first == Side::Client { (&client, &server) } else { (&server, &client) };
        early.write_all(b"question").unwrap();
        early.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(late).unwrap(), b"question");
        late.write_all(b"answer").unwrap();
        late.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(early).unwrap(), b"answer");
        assert_eq!(relay.join().unwrap(), End { by, phase: Phase::Relay, cause: Cause::Eof });
    }
}

#[test]
fn a_reset_is_passed_on_as_a_reset_in_each_direction() {
    for side in [Side::Client, Side::Server] {
        let (client, server, relay) = relay_new();
        let (from, to) = if side == Side::Client { (client, server) } else { (server, client) };
        reset(from);
        is_reset(read_all(&to));
        let end = relay.join().unwrap();
        assert_eq!(
            (end.by, end.cause.to_string().as_str()),
            (if side == Side::Client { By::Client } else { By::Server }, "reset")
        );
    }
}

#[test]
fn what_came_before_a_reset_is_passed_on_before_it() {
    let (mut client, server, relay) = relay_new();
    client.write_all(b"last words").unwrap();
    reset(client);
    assert_eq!(read_some(&server, 10), b"last words");
    is_reset(read_all(&server));
    relay.join().unwrap();
}

#[test]
fn a_reset_behind_an_end_is_still_a_reset() {
    let (client, mut server, relay) = relay_new();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server).unwrap(), b"");
    reset(client);
    is_reset(loop {
        // The kernel may accept a write or two before it has seen the reset.
        match server.write(b"more") {
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
            Err(err) if Errno::from_io_error(&err) == Some(Errno::PIPE) => {
                break Err::<(), _>(Errno::CONNRESET.into());
            }
            Err(err) => break Err(err),
        }
    });
    assert_eq!(relay.join().unwrap().by, By::Client);
}

#[test]
fn a_reset_from_a_peer_is_noticed_while_the_other_does_not_read() {
    let (mut client, server, relay) = relay_new();
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 20];
    let mut quiet = 0;
    while quiet < 5 {
        match client.write(&chunk) {
            Ok(1..) => quiet = 0,
            _ => {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    reset(client);
    let end = relay.join().unwrap();
    assert_eq!((end.by, end.cause.to_string().as_str()), (By::Client, "reset"));
    drop(server);
}

#[test]
fn urgent_data_stays_urgent_and_in_its_place() {
    let (client, server, relay) = relay_new();
    let sender = SockRef::from(&client);
    SockRef::from(&server).set_out_of_band_inline(true).unwrap();
    sender.send(b"before").unwrap();
    sender.send_out_of_band(b"!").unwrap();
    sender.send(b"behind").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server).unwrap(), b"before!behind");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(relay.join().unwrap().cause, Cause::Eof);

    let (client, server, relay) = relay_new();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    // Read out of band: only a byte that is marked urgent arrives this way.
    let mut urgent = [std::mem::MaybeUninit::uninit()];
    let got = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        SockRef::from(&server).recv_out_of_band(&mut urgent).ok()
    });
    assert_eq!(got, Some(1));
    drop((client, server));
    relay.join().unwrap();
}

#[test]
fn no_byte_of_a_stream_that_comes_in_crumbs_is_taken_for_an_urgent_one() {
    let (client, server, relay) = relay_new();
    // More pieces than a pipe has slots: after each, the relay checks whether that was all.
    let (crumb, crumbs) = ([7; 1000], 50_000);
    client.set_nodelay(true).unwrap();
    let writer = std::thread::spawn(move || {
        for n in 0..crumbs {
            (&client).write_all(&crumb).unwrap();
            // Varies the delay, so that the next write arrives at every moment of the relay's check.
            (0..n * 7919 % 601).for_each(|_| std::hint::spin_loop());
        }
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let came = read_all(&server).unwrap();
    assert_eq!(came.len(), crumbs * crumb.len());
    drop((server, writer.join().unwrap()));
    relay.join().unwrap();
}

#[test]
fn a_relay_goes_on_with_what_another_left_in_its_pipes() {
    let (mut client, mut server, relay) = relay_from(
        |pool| {
            Directions::resume(
                Direction::resume(Slot::unkept().up(), pipe_with(pool, b"up so far, "), 100, None),
                Direction::resume(Slot::unkept().up(), pipe_with(pool, b"down so far, "), 200, None),
            )
        },
        Timeouts::default(),
    );
    client.write_all(b"and up").unwrap();
    server.write_all(b"and down").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server).unwrap(), b"up so far, and up");
    assert_eq!(read_all(&client).unwrap(), b"down so far, and down");
    assert_eq!(relay.join().unwrap().cause, Cause::Eof);
}

#[test]
fn a_relay_finds_again_what_had_ended_before_it_took_over() {
    let ((client, client_leg), (mut server, server_leg)) = (pair(), pair());
    client.shutdown(Shutdown::Write).unwrap();
    let mut end = [std::mem::MaybeUninit::uninit()];
    while client_leg.recv(&mut end).is_err() {}
    // The previous worker has read the FIN, passed it on, and died.
    server_leg.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server).unwrap(), b"");
    server.write_all(b"answer").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let end = on_a_worker(async {
        let client = Leg::new(client_leg, Side::Client, &plain()).unwrap();
        let server = Leg::new(server_leg, Side::Server, &plain()).unwrap();
        let end =
            relay::run(&client, &server, &Directions::new(Slot::unkept()), None, &Pool::default()).await;
        client.end_in_order();
        server.end_in_order();
        end
    });
    assert_eq!((end.cause, read_all(&client).unwrap()), (Cause::Eof, b"answer".to_vec()));
}

#[test]
fn peers_that_do_not_read_hold_no_pipe_and_stop_nobody() {
    on_a_worker(tokio::task::LocalSet::new().run_until(async {
        let pool = Rc::new(Pool::default());
        let (mut deaf, mut senders, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            let ((client, client_leg), (server, server_leg)) = (pair(), pair());
            client.set_nonblocking(true).unwrap();
            ways.push(spawn_relay(&pool, client_leg, server_leg));
            deaf.push(server);
            senders.push(client);
        }
        let chunk = vec![1; 1 << 18];
        let mut quiet = 0;
        while quiet < 5 {
            let moved: usize = senders.iter_mut().map(|client| client.write(&chunk).unwrap_or(0)).sum();
            quiet = if moved == 0 { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(ways.iter().all(|way| way.up.passed_on() > 0));
        assert_eq!(ways.iter().filter(|way| way.up.holds_pipe()).count(), 0);

        let ((mut client, client_leg), (server, server_leg)) = (pair(), pair());
        spawn_relay(&pool, client_leg, server_leg);
        client.write_all(b"passes").unwrap();
        let passed = tokio::task::spawn_blocking(move || read_some(&server, 6)).await.unwrap();
        assert_eq!(passed, b"passes");
    }));
}

fn spawn_relay(pool: &Rc<Pool>, client: Socket, server: Socket) -> Rc<Directions> {
    let (pool, way) = (Rc::clone(pool), Rc::new(Directions::new(Slot::unkept())));
    let seen = Rc::clone(&way);
    tokio::task::spawn_local(async move {
        let client = Leg::new(client, Side::Client, &plain()).unwrap();
        let server = Leg::new(server, Side::Server, &plain()).unwrap();
        relay::run(&client, &server, &way, None, &pool).await
    });
    seen
}

#[test]
fn silence_ends_a_session_by_the_timeout_that_was_set_and_resets_both() {
    let limit = Some(Duration::from_millis(200));
    let (client, server, relay) =
        relay_from(|_| Directions::new(Slot::unkept()), Timeouts { idle: limit, half_closed: None });
    assert_eq!(relay.join().unwrap(), End::timeout(Phase::Relay, Timeout::Idle));
    is_reset(read_all(&client));
    is_reset(read_all(&server));

    let (client, server, relay) =
        relay_from(|_| Directions::new(Slot::unkept()), Timeouts { idle: None, half_closed: limit });
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(relay.join().unwrap(), End::timeout(Phase::Relay, Timeout::HalfClosed));
    assert_eq!(read_all(&server).unwrap_or_default(), b"");
    is_reset(read_all(&client));
}
