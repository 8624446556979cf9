//! A connection through the box equals the connection without it: its bytes, its ends, its failures.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use lab::peers::{self, Server};
use lab::servers::{Nginx, Sshd};
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Lab, netns, wait_until, words};
use socket2::SockRef;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);

fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn record(daemon: &Daemon, client: SocketAddr, server: SocketAddr, keys: &str) -> String {
    words(&daemon.record_of(client, server), keys)
}

/// Opens a connection through the box and returns both ends and its flow.
fn pair(lab: &Lab, ip: Ip, port: u16) -> (TcpStream, TcpStream, (SocketAddr, SocketAddr)) {
    let (client, server, peer) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, port));
    let flow = (client.local_addr().unwrap(), lab.server_at(ip, port));
    assert_eq!(peer, flow.0, "the server sees the client's address and port");
    (client, server, flow)
}

#[test]
fn a_quarter_of_a_gigabyte_each_way_at_once_arrives_whole() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let exchange = |ip, bytes| {
            let (client, server, flow) = pair(&lab, ip, 9000);
            stream::exchange(&client, &server, bytes, Pace::UNEVEN);
            drop((client, server));
            let counted = record(&daemon, flow.0, flow.1, "cause to_server to_client");
            assert_eq!(counted, format!("eof {bytes} {bytes}"));
        };
        thread::scope(|scope| {
            scope.spawn(|| exchange(Ip::V6, 32 << 20));
            exchange(Ip::V4, 256 << 20);
        });
    });
}

#[test]
fn a_web_server_logs_the_clients_address_and_port() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let nginx = Nginx::start(&lab.server);
        std::fs::write(nginx.files().join("file"), "content").unwrap();
        for ip in BOTH {
            let url = format!("http://{}/file", lab.server_at(ip, 80));
            let said = lab.client().run(&format!("curl -sS -w ' %{{local_ip}} %{{local_port}}' {url}"));
            let seen = format!("{} 200 ", said.strip_prefix("content ").unwrap());
            wait_until(&seen, SOON, || nginx.log().contains(&seen));
        }
    });
}

const SAYS: &str = "head -c 3000000 /dev/zero | nc -N";

fn hears_all_then_answers(mut nc: &TcpStream) {
    assert_eq!(read_all(nc).len(), 3_000_000);
    nc.write_all(b"answer\n").unwrap();
    nc.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn netcat_as_client_closes_its_side_first_and_still_gets_its_answer() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for (n, ip) in BOTH.into_iter().enumerate() {
            let to = lab.server_at(ip, 7000);
            let listener = lab.server.listen(to);
            let mut nc = lab.client().spawn("sh", &["-c", &format!("{SAYS} {} {}", to.ip(), to.port())]);
            hears_all_then_answers(&listener.accept().unwrap().0);
            assert!(nc.wait(SOON).success(), "{}", nc.stderr());
            assert_eq!(nc.stdout(), "answer\n");
            assert_eq!(words(&daemon.wait_for_records(n + 1)[n], "by phase cause"), "client relay eof");
        }
    });
}

#[test]
fn netcat_as_server_closes_its_side_first_and_still_gets_its_answer() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let to = lab.server_at(ip, 7000);
            let mut nc = lab.server.spawn("sh", &["-c", &format!("{SAYS} -l {} {}", to.ip(), to.port())]);
            wait_until("nc listens", SOON, || !lab.server.ss("-tln sport = :7000").is_empty());
            let client = lab.client().connect(to).unwrap();
            hears_all_then_answers(&client);
            nc.wait(SOON);
            assert_eq!(nc.stdout(), "answer\n");
            let ended = record(&daemon, client.local_addr().unwrap(), to, "by phase cause");
            assert_eq!(ended, "server relay eof");
        }
    });
}

#[test]
fn a_remote_cat_ends_when_its_input_does() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let sshd = Sshd::start(&lab.server);
        for ip in BOTH {
            let mut ssh = sshd.client(lab.client(), lab.server_at(ip, 22).ip());
            let mut ssh = ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let said = vec![b'x'; 1 << 20];
            let mut stdin = ssh.stdin.take().unwrap();
            let writer = thread::spawn({
                let said = said.clone();
                move || stdin.write_all(&said)
            });
            let output = ssh.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(output.status.success() && output.stdout == said);
        }
        assert_eq!(daemon.wait_for_records(2).len(), 2);
    });
}

#[test]
fn a_server_may_speak_first() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let server = Server::start(&lab.server, lab.server_at(ip, 25), peers::banner);
            let mut said = [0; 11];
            lab.client().connect(server.address).unwrap().read_exact(&mut said).unwrap();
            assert_eq!(&said, b"220 speak\r\n");
        }
    });
}

#[test]
fn urgent_data_arrives_urgent() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (client, server, _) = pair(&lab, ip, 23);
            for (from, to) in [(&client, &server), (&server, &client)] {
                SockRef::from(from).send(b"before").unwrap();
                SockRef::from(from).send_out_of_band(b"!").unwrap();
                // Read out of band: only a byte that is marked urgent arrives this way.
                let mut urgent = [std::mem::MaybeUninit::uninit()];
                let mut came = || SockRef::from(to).recv_out_of_band(&mut urgent).is_ok();
                wait_until("an urgent byte", SOON, &mut came);
                let mut before = [0; 6];
                (&*to).read_exact(&mut before).unwrap();
                assert_eq!(&before, b"before");
            }
        }
    });
}

#[test]
fn bulk_transfers_do_not_hold_up_an_interactive_session() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let flood = Server::start(&lab.server, lab.server_at(Ip::V4, 8000), peers::flood);
        let echo = Server::start(&lab.server, lab.server_at(Ip::V4, 7), peers::echo);
        let sink = || {
            let bulk = lab.client().connect(flood.address).unwrap();
            thread::spawn(move || stream::receive(&bulk, Pace::FULL))
        };
        let bulks: Vec<_> = (0..8).map(|_| sink()).collect();
        let mut interactive = lab.client().connect(echo.address).unwrap();
        interactive.set_nodelay(true).unwrap();
        let mut key = [0];
        for n in 0..200 {
            interactive.write_all(&[n]).unwrap();
            interactive.read_exact(&mut key).unwrap();
            assert_eq!(key, [n]);
        }
        assert!(!bulks.iter().any(thread::JoinHandle::is_finished), "the bulk transfers went on meanwhile");
    });
}
