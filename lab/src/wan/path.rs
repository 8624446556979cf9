//! Cables whose ends meet in a namespace of their own, and the threads that forward frames between the ends.
//!
//! The threads belong to this process. They end with the path, and with the process however it ends.
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

/// The number of frames that a thread takes from a cable before it delivers the due ones.
const BATCH: usize = 16;
/// The nice value with the highest priority.
const FIRST: i32 = -20;
/// The size of the frame buffer. No cable in the lab has a larger MTU.
const LONGEST: usize = 64 << 10;
/// Requested receive buffer of a socket in bytes, for frames that arrive while its thread waits for a processor.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The namespace that contains the paths of one topology.
#[derive(Debug)]
pub(crate) struct Wan(Host);

impl Wan {
    /// Makes the namespace. It carries no traffic of its own: it has no addresses and requests none.
    pub fn new() -> Self {
        let host = Host::new("wan");
        host.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        Self(host)
    }

    /// Joins two devices by path `n`; `near` is on the client's side.
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

/// A path of the WAN. Dropping it cuts it permanently.
#[derive(Debug)]
pub struct Path {
    to_server: Carrier,
    to_client: Carrier,
}

impl Path {
    /// Changes the conditions. They also apply to frames that wait for the link, but not to those in flight.
    pub fn set(&self, link: Link) {
        self.to_server.set(link.to_server);
        self.to_client.set(link.to_client);
    }

    /// Drops everything in flight and everything that enters until [`Path::mend`]. The devices at its ends stay up, so
    /// the hosts receive no notification.
    pub fn cut(&self) {
        self.to_server.channel().cut();
        self.to_client.channel().cut();
    }

    /// Ends a cut.
    pub fn mend(&self) {
        self.to_server.channel().mend();
        self.to_client.channel().mend();
    }

    /// Returns the counts of the frames towards the server.
    pub fn to_server(&self) -> Counts {
        self.to_server.counts()
    }

    /// Returns the counts of the frames towards the client.
    pub fn to_client(&self) -> Counts {
        self.to_client.counts()
    }
}

/// One direction of a path and its thread.
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
        // The write fails only if the counter is full; the thread is then awake anyway.
        let _ = rustix::io::write(&self.lane.wake, &1_u64.to_ne_bytes());
        // A panic of the thread has already been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The state that the thread of a direction and its owner share.
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
        // A real cable does not wait for a processor. Without permission for this priority, frames are late more often.
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

    /// Receives the available frames, at most a batch, and returns their number.
    fn take(&self, buffer: &mut [u8]) -> usize {
        for n in 0..BATCH {
            match recv(&*self.from, &mut *buffer, RecvFlags::empty()) {
                Ok((_, bytes)) => self.channel().offer(self.now(), buffer[..bytes].to_vec()),
                // The kernel reports a device that goes down once.
                Err(Errno::AGAIN | Errno::INTR | Errno::NETDOWN) => return n,
                Err(err) => panic!("the WAN cannot take frames from a cable: {err}"),
            }
        }
        BATCH
    }

    /// Delivers the due frames and returns when the next frame is due.
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

    /// Waits for a frame, for the time `until`, or for the end of the path.
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

/// Opens a packet socket for the frames of one device.
fn open(device: &str) -> Socket {
    let any = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
    let index = any.and_then(|any| Ok(netdevice::name_to_index(&any, device)?));
    let socket = index.and_then(|index| sys::packet_socket(i32::try_from(index).map_err(io::Error::other)?));
    let socket = socket.unwrap_or_else(|err| panic!("{device} of the WAN cannot be listened to: {err}"));
    // Only root may exceed net.core.rmem_max.
    let set = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    let set = set.or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER));
    set.unwrap_or_else(|err| panic!("SO_RCVBUF: {err}"));
    socket
}

/// Returns how many frames the kernel dropped because the buffer of `socket` was full.
fn drops(socket: &Socket) -> u32 {
    sys::mem_info(socket.as_fd()).map(|info| info.drops).unwrap_or_else(|err| panic!("SO_MEMINFO: {err}"))
}

/// Makes the host itself segment its frames and compute their checksums. Between namespaces the kernel leaves both to
/// the next device, and would pass 64 KiB as one frame without a checksum.
fn whole_frames(end: End<'_>) {
    end.host.run(&format!("ethtool -K {} tx off tso off gso off gro off", end.device));
}

/// Gives a host a permanent neighbour entry for the other end of the WAN. A real WAN needs no address resolution across
/// an ocean, and a lost request would cost a second.
fn introduce(host: End<'_>, neighbour: End<'_>) {
    let links = neighbour.host.ip(&format!("-br link show dev {}", neighbour.device));
    let mac = links.split_ascii_whitespace().nth(2).unwrap_or_else(|| panic!("no address: {links}"));
    for address in neighbour.addresses {
        let address = address.split('/').next().unwrap_or_default();
        host.host.ip(&format!("neighbour replace {address} lladdr {mac} dev {} nud permanent", host.device));
    }
}
