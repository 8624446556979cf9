//! Shared parts of these tests: the state of a host as other programs show it, and a small transparent proxy as the
//! rules' target.
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::Host;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tcp_intercept::config::{Config, Interface};

/// Runs a shell script and returns its standard output.
pub fn sh(text: &str) -> String {
    let output = Command::new("sh").args(["-ec", text]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns everything that installation and removal may change, as other programs show it, without counters.
pub fn view() -> String {
    sh("ip -j rule; ip -6 -j rule; ip -j route show table all; ip -6 -j route show table all
        nft -s -j list ruleset; cat /proc/sys/net/ipv4/tcp_early_demux /proc/sys/net/ipv4/tcp_fastopen")
}

/// Returns the visible parts that belong to the program.
pub fn ours() -> String {
    sh("(ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list tables) |
        grep -E 'proto(col)? 155|inet tcp_intercept' || true")
}

pub fn early_demux() -> String {
    sh("cat /proc/sys/net/ipv4/tcp_early_demux").trim().to_owned()
}

pub fn interfaces(names: &[&str]) -> Config {
    let mut config = Config::default();
    config.rules.interfaces = names.iter().map(|name| Interface::new(name).unwrap()).collect();
    config
}

/// A minimal transparent proxy: one thread per direction of each connection.
pub struct Proxy {
    listeners: Vec<Arc<Socket>>,
    threads: Vec<JoinHandle<()>>,
    taken: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    sessions: Arc<std::sync::Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub fn start(host: &Host, config: &Config) -> Self {
        Self::with_protocol(host, config, Protocol::TCP)
    }

    pub fn with_protocol(host: &Host, config: &Config, protocol: Protocol) -> Self {
        let own = config.rules.own_mark;
        let mut proxy = Self {
            listeners: Vec::new(),
            threads: Vec::new(),
            taken: Arc::default(),
            stopping: Arc::default(),
            sessions: Arc::default(),
        };
        for address in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(address.parse().unwrap(), config.listen.port.get());
            let listener = Arc::new(host.enter(|| transparent(address, own.client(), protocol)).unwrap());
            listener.listen(128).unwrap();
            proxy.listeners.push(Arc::clone(&listener));
            let (taken, stopping) = (Arc::clone(&proxy.taken), Arc::clone(&proxy.stopping));
            let (host, sessions) = (host.clone(), Arc::clone(&proxy.sessions));
            proxy.threads.push(std::thread::spawn(move || {
                while let Ok((client, peer)) = listener.accept() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    taken.fetch_add(1, Ordering::SeqCst);
                    let dialled =
                        host.enter(|| dial(&client, peer.as_socket().unwrap(), own.server(), protocol));
                    match dialled {
                        Ok(server) => relay(client.into(), server.into(), &sessions),
                        Err(err) => {
                            eprintln!("proxy: {err}");
                            client.set_linger(Some(Duration::ZERO)).unwrap();
                        }
                    }
                }
            }));
        }
        proxy
    }

    /// Returns how many connections it has accepted.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Closes both directions of both legs of every session; the peers close afterwards.
    pub fn close_all(&self) {
        for stream in self.sessions.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Closes the listeners; sessions continue.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for listener in self.listeners.drain(..) {
            let _ = listener.shutdown(Shutdown::Both);
        }
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }

    /// Closes all sockets, as the end of a process does. The relaying threads end when they have nothing more to read.
    pub fn drop_sessions(&self) {
        for stream in self.sessions.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes a socket that may bind any address, with the program's own mark.
fn transparent(address: SocketAddr, mark: u32, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    socket.set_mark(mark)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn dial(client: &Socket, peer: SocketAddr, mark: u32, protocol: Protocol) -> io::Result<Socket> {
    let server = transparent(peer, mark, protocol)?;
    server.connect_timeout(&client.local_addr()?, Duration::from_secs(10))?;
    Ok(server)
}

fn relay(client: TcpStream, server: TcpStream, sessions: &std::sync::Mutex<Vec<TcpStream>>) {
    for stream in [&client, &server] {
        SockRef::from(stream).set_tcp_nodelay(true).unwrap();
        sessions.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let mut pairs = vec![(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
    for (mut from, mut to) in pairs.drain(..) {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
