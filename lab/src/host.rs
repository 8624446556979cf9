//! A host: a named network namespace, and the operations that a test performs in it.
use std::fmt;
use std::fs;
use std::io;
use std::iter;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::Proc;
use crate::sh;

/// A network namespace under /run/netns. Dropping the last `Host` that refers to it removes its name. The kernel
/// removes the namespace when no process runs in it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(Arc<Namespace>);

#[derive(Debug, PartialEq, Eq)]
struct Namespace(String);

impl Namespace {
    /// Makes a namespace with this name. Appends a number if another lab already uses the name.
    fn make(name: &str) -> Self {
        static NAMING: Mutex<()> = Mutex::new(());
        let _alone = NAMING.lock().unwrap_or_else(PoisonError::into_inner);
        let numbered = (2..).map(|n: u32| format!("{name}-{n}"));
        let mut names = iter::once(name.to_owned()).chain(numbered);
        let free = names.find(|name| !Path::new("/run/netns").join(name).exists()).unwrap_or_default();
        sh::run(Command::new("ip").args(["netns", "add", &free]), "ip netns add");
        Self(free)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // If the removal fails, the name disappears with the lab's own mount namespace.
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

/// One end of a link: a device on a host, with its addresses (`10.1.0.2/24`, `fd01::2/64`).
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The host that has the device.
    pub host: &'a Host,
    /// The device's name.
    pub device: &'a str,
    /// Its addresses with their prefix lengths.
    pub addresses: &'a [String],
}

impl Host {
    /// Makes a host that has only loopback. Duplicate address detection is off, so addresses are usable immediately.
    pub fn new(name: &str) -> Self {
        let host = Self(Arc::new(Namespace::make(name)));
        host.ip("link set lo up");
        // A namespace inherits the IPv4 settings of the initial one. A strict setting there would fail tests here.
        for (key, value) in [
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.all.accept_dad", "0"),
        ] {
            host.sysctl(key, value);
        }
        host
    }

    /// Returns the host's name, which is the name of its network namespace.
    pub fn name(&self) -> &str {
        &self.0.0
    }

    /// Returns the device `device` of this host as the end of a link.
    pub fn end<'a>(&'a self, device: &'a str, addresses: &'a [String]) -> End<'a> {
        End { host: self, device, addresses }
    }

    /// Runs `ip` with the words of `arguments` on this host and returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        let words = arguments.split_ascii_whitespace();
        sh::run(Command::new("ip").args(["-n", self.name()]).args(words), &format!("{self}: ip {arguments}"))
    }

    /// Loads an nftables ruleset on this host.
    pub fn nft(&self, ruleset: &str) {
        self.run(&format!("nft -f - <<'END'\n{ruleset}\nEND"));
    }

    /// Returns a command that will run on this host.
    pub fn cmd(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), program]);
        command
    }

    /// Runs a shell script on this host and returns its standard output. Panics with all its output if it fails.
    pub fn run(&self, text: &str) -> String {
        sh::run(self.cmd("sh").args(["-ec", text]), &format!("{self}: {text}"))
    }

    /// Like [`Host::run`], but returns an error instead of panicking.
    ///
    /// # Errors
    /// The command fails; the error has all its output.
    pub fn try_run(&self, text: &str) -> io::Result<String> {
        sh::try_run(self.cmd("sh").args(["-ec", text]), &format!("{self}: {text}"))
    }

    /// Starts a program on this host. Dropping the guard kills it.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Proc {
        let mut command = self.cmd(program);
        command.args(arguments);
        Proc::start(&format!("{self}: {program}"), command)
    }

    /// Runs `work` on a thread that lives on this host. Sockets that it makes belong to the host permanently.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_enter(work).unwrap_or_else(|err| panic!("{err}"))
    }

    /// Like [`Host::enter`], but returns an error instead of panicking.
    ///
    /// # Errors
    /// The thread cannot enter the namespace, or the system cannot create a thread.
    pub fn try_enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let path = format!("/run/netns/{}", self.name());
        let named = |err: io::Error| io::Error::new(err.kind(), format!("{path} cannot be entered: {err}"));
        let namespace = fs::File::open(&path).map_err(named)?;
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|err| named(err.into()))?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, inside).map_err(named)?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Sets a sysctl and reads it back, because in a user namespace `sysctl -w` fails silently.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let read = self.enter(|| {
            fs::write(&path, value).unwrap_or_else(|err| panic!("{self}: {path}: {err}"));
            fs::read_to_string(&path).unwrap_or_else(|err| panic!("{self}: {path}: {err}"))
        });
        assert_eq!(read.split_ascii_whitespace().collect::<Vec<_>>().join(" "), value, "{self}: {key}");
    }

    /// Listens on an address of this host.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        let listener = self.enter(|| TcpListener::bind(address));
        listener.unwrap_or_else(|err| panic!("{self} cannot listen on {address}: {err}"))
    }

    /// Connects from this host, with a timeout of ten seconds.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.try_enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))?
    }

    /// Connects from a given address and port of this host, with SO_REUSEADDR.
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.try_enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
            Ok(socket.into())
        })?
    }

    /// Returns the output of `ss -H` with these arguments, as in `host.ss("-tan state time-wait")`.
    pub fn ss(&self, arguments: &str) -> String {
        self.run(&format!("ss -H {arguments}"))
    }

    /// Returns how many sockets a box has for the connection that `stream` is an end of: two if it is intercepted, none
    /// if it is routed.
    pub fn legs(&self, stream: &TcpStream) -> usize {
        let ends = [stream.local_addr(), stream.peer_addr()].map(|end| {
            let end = end.unwrap_or_else(|err| panic!("{stream:?} is not connected: {err}"));
            end.to_string()
        });
        let sockets = self.ss("-tn state established");
        let between =
            |line: &&str| ends.iter().all(|end| line.split_ascii_whitespace().any(|word| word == end));
        sockets.lines().filter(between).count()
    }
}

impl Host {
    /// Returns a kernel counter of this host under its `nstat` name, such as `TcpExtListenOverflows`.
    pub fn counter(&self, name: &str) -> u64 {
        let text = self.run(&format!("nstat -asz {name}"));
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("nstat has no {name}:\n{text}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Interface index of the next cable. If both ends of a cable have the same index, the kernel does not treat them as
/// linked, and IPv6 waits a second (`linkwatch_urgent_event()` in net/core/link_watch.c).
static INDEX: AtomicU32 = AtomicU32::new(1000);

/// Joins two hosts by a virtual cable.
pub fn link(left: End<'_>, right: End<'_>, mtu: u32) {
    let index = INDEX.fetch_add(1, Ordering::Relaxed).to_string();
    sh::run(
        Command::new("ip")
            .args(["link", "add", "name", left.device, "index", &index, "netns", left.host.name()])
            .args(["mtu", &mtu.to_string()])
            .args(["type", "veth", "peer", "name", right.device, "netns", right.host.name()])
            .args(["mtu", &mtu.to_string()]),
        "ip link add",
    );
    for end in [left, right] {
        for address in end.addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            end.host.ip(&format!("address add {address} dev {} {nodad}", end.device));
        }
        end.host.ip(&format!("link set {} up", end.device));
    }
}
