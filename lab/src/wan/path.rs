//! Cables whose ends meet in a namespace of their own, and the threads that carry frames from one end to the other.
//!
//! The threads are this process's: they end with the path, and with the process however it ends.
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{RecvFlags, SendFlags, netdevice, recv, send};
use rustix::process::setpriority_process;
use socket2::Socket;

use super::channel::{Channel, Counts};
use super::{Conditions, Link};
use crate::host::{End, Host, link};

/// Frames that are taken from a cable before those that have arrived are looked after.
const BATCH: usize = 16;
/// The priority of what goes before all other programs.
const FIRST: i32 = -20;
/// No cable here has a larger MTU.
const LONGEST: usize = 64 << 10;
/// What a socket may hold while its thread waits for a processor; the kernel gives what it allows.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The namespace in which the paths of one topology are.
#[derive(Debug)]
pub(crate) struct Wan(Host);

impl Wan {
    /// It takes no part in the traffic: it has no addresses, and asks for none.
    pub fn new() -> Self {
        let host = Host::new("wan");
        host.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        Self(host)
    }

    /// Joins two devices by path `n`, `near` on the client's side.
    pub fn lay(&self, n: u8, near: End<'_>, far: End<'_>, conditions: Link, seed: u64) -> Path {
        let sockets = [("near", near), ("far", far)].map(|(side, end)| {
            let device = format!("{side}{n}");
            link(end, self.0.end(&device, &[]), 1500);
            whole_frames(end);
            Arc::new(self.0.enter(|| open(&device)))
        });
        introduce(near, far);
        introduce(far, near);
        let [near, far] = sockets;
        let carry = |direction: u64, from: &Arc<Socket>, to: &Arc<Socket>, conditions| {
            let seed = seed.wrapping_mul(1000).wrapping_add(2 * u64::from(n) + direction);
            Carrier::start(from, to, Channel::new(conditions, seed))
        };
        Path {
            to_server: carry(0, &near, &far, conditions.to_server),
            to_client: carry(1, &far, &near, conditions.to_client),
        }
    }
}

/// A path of the WAN. Dropping it cuts it for good.
#[derive(Debug)]
pub struct Path {
    to_server: Carrier,
    to_client: Carrier,
}

impl Path {
    /// Changes what it does. Frames that wait for the link get the new conditions, those that fly do not.
    pub fn set(&self, link: Link) {
        self.to_server.set(link.to_server);
        self.to_client.set(link.to_client);
    }

    /// Loses all that is under way, and all that comes until [`Path::mend`]. The devices at its ends stay up: nobody
    /// is told.
    pub fn cut(&self) {
        self.to_server.channel().cut();
        self.to_client.channel().cut();
    }

    /// Ends a cut.
    pub fn mend(&self) {
        self.to_server.channel().mend();
        self.to_client.channel().mend();
    }

    /// What became of the frames towards the server.
    pub fn to_server(&self) -> Counts {
        self.to_server.counts()
    }

    /// What became of the frames towards the client.
    pub fn to_client(&self) -> Counts {
        self.to_client.counts()
    }
}

/// A direction of a path, and the thread that works for it.
#[derive(Debug)]
struct Carrier {
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    fn start(from: &Arc<Socket>, to: &Arc<Socket>, channel: Channel) -> Self {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let lane = Arc::new(Lane {
            from: Arc::clone(from),
            to: Arc::clone(to),
            channel: Mutex::new(channel),
            start: Instant::now(),
            wake: wake.unwrap_or_else(|err| panic!("eventfd: {err}")),
            over: AtomicBool::new(false),
        });
        let worker = Arc::clone(&lane);
        let thread = std::thread::Builder::new().name("wan".to_owned()).spawn(move || worker.work());
        Self { lane, thread: Some(thread.unwrap_or_else(|err| panic!("a thread of the WAN: {err}"))) }
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.lane.channel()
    }

    fn set(&self, conditions: Conditions) {
        self.channel().set(self.lane.now(), conditions);
    }

    fn counts(&self) -> Counts {
        let mut counts = self.channel().counts;
        counts.missed += u64::from(drops(&self.lane.from));
        counts
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.lane.over.store(true, Ordering::Relaxed);
        // It fails when the counter is full, and the thread awake.
        let _ = rustix::io::write(&self.lane.wake, &1_u64.to_ne_bytes());
        // A panic of the thread has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the thread of a direction and its owner share.
#[derive(Debug)]
struct Lane {
    from: Arc<Socket>,
    to: Arc<Socket>,
    channel: Mutex<Channel>,
    start: Instant,
    wake: OwnedFd,
    over: AtomicBool,
}

impl Lane {
    fn work(&self) {
        // A cable does not wait for a processor. Where this is not allowed, frames come late more often.
        let _ = setpriority_process(None, FIRST);
        let mut buffer = vec![0; LONGEST];
        while !self.over.load(Ordering::Relaxed) {
            if self.take(&mut buffer) < BATCH {
                self.wait(self.deliver());
            } else {
                self.deliver();
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has come, a batch at most, and says how many frames that were.
    fn take(&self, buffer: &mut [u8]) -> usize {
        for n in 0..BATCH {
            match recv(&*self.from, &mut *buffer, RecvFlags::empty()) {
                Ok((_, bytes)) => self.channel().offer(self.now(), buffer[..bytes].to_vec()),
                // A device that is set down says so once.
                Err(Errno::AGAIN | Errno::INTR | Errno::NETDOWN) => return n,
                Err(err) => panic!("the WAN cannot take frames from a cable: {err}"),
            }
        }
        BATCH
    }

    /// Delivers what has arrived, and says when the next frame does.
    fn deliver(&self) -> Option<Duration> {
        let mut channel = self.channel();
        while let Some(frame) = channel.due(self.now()) {
            match send(&*self.to, &frame, SendFlags::empty()) {
                Ok(bytes) => {
                    channel.counts.delivered += 1;
                    channel.counts.bytes += bytes as u64;
                }
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NETDOWN | Errno::NXIO) => {
                    channel.counts.missed += 1;
                }
                Err(err) => panic!("the WAN cannot put a frame of {} bytes on a cable: {err}", frame.len()),
            }
        }
        channel.next()
    }

    /// Waits for a frame, for that moment, or for the end.
    fn wait(&self, until: Option<Duration>) {
        let time = until.map(|until| until.saturating_sub(self.now()));
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let mut fds = [PollFd::new(&*self.from, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => panic!("the WAN cannot wait for frames: {err}"),
        }
    }
}

/// A socket for the frames of one device.
fn open(device: &str) -> Socket {
    let any = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
    let index = any.and_then(|any| Ok(netdevice::name_to_index(&any, device)?));
    let socket = index.and_then(|index| sys::packet_socket(i32::try_from(index).map_err(io::Error::other)?));
    let socket = socket.unwrap_or_else(|err| panic!("{device} of the WAN cannot be listened to: {err}"));
    // Only root may have more than net.core.rmem_max.
    let set = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    let set = set.or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER));
    set.unwrap_or_else(|err| panic!("SO_RCVBUF: {err}"));
    socket
}

/// How many frames the kernel could not keep for `socket`.
fn drops(socket: &Socket) -> u32 {
    sys::mem_info(socket.as_fd()).map(|info| info.drops).unwrap_or_else(|err| panic!("SO_MEMINFO: {err}"))
}

/// Makes the host itself cut what it sends into frames and sum them up: on a cable between namespaces the kernel
/// leaves both to the next device, and would pass 64 KiB as one frame without a checksum.
fn whole_frames(end: End<'_>) {
    end.host.run(&format!("ethtool -K {} tx off tso off gso off gro off", end.device));
}

/// Tells a host its neighbour across the WAN for good: no router asks for it across an ocean, and a question that is
/// lost would cost a second.
fn introduce(host: End<'_>, neighbour: End<'_>) {
    let links = neighbour.host.ip(&format!("-br link show dev {}", neighbour.device));
    let mac = links.split_ascii_whitespace().nth(2).unwrap_or_else(|| panic!("no address: {links}"));
    for address in neighbour.addresses {
        let address = address.split('/').next().unwrap_or_default();
        host.host.ip(&format!("neighbour replace {address} lladdr {mac} dev {} nud permanent", host.device));
    }
}
