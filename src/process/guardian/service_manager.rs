//! What the service manager is told (sd_notify(3)), without waiting for it. EFFECT.
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;
use sys::Registered;

/// The variable of the environment that names the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// Messages that are kept for a service manager that does not read. Of more, the oldest are forgotten.
const KEPT: usize = 64;

/// The service manager; nothing is sent where there is none.
#[derive(Debug, Default)]
pub struct ServiceManager {
    /// One socket for all messages: a process at its descriptor limit gets no other.
    socket: Option<(Registered<UnixDatagram>, SocketAddr)>,
    /// Messages that must arrive, in order.
    waiting: VecDeque<String>,
    /// The latest status that was not sent.
    status: Option<String>,
    /// The latest message could not be sent, which was logged.
    failed: bool,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// It may be possible later.
    NotNow,
    /// It will never be sent.
    Never,
}

impl ServiceManager {
    /// The one that the environment names.
    pub fn from_environment() -> Self {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        let mut manager = Self::default();
        match name.as_deref().map(socket_for).transpose() {
            Ok(socket) => manager.socket = socket,
            Err(err) => manager.fail(&err),
        }
        manager
    }

    /// It takes connections, or has reloaded.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// It opens the log again; [`ready`](Self::ready) ends that.
    pub fn reloading(&mut self) {
        // Without the clock's time systemd takes a reload for failed (Type=notify-reload).
        let now = NotifyState::monotonic_usec_now().ok();
        self.tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
    }

    /// It is about to end.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// What `systemctl status` shows from now on.
    pub fn status(&mut self, status: &str) {
        self.status = self.socket.is_some().then(|| text(&[NotifyState::Status(status)]));
        self.send_waiting();
    }

    /// Sends what could not be sent before; if it is `alive`, the watchdog hears so. To be called once a second.
    pub fn tick(&mut self, alive: bool) {
        if self.send_waiting() && alive {
            self.send(&text(&[NotifyState::Watchdog]));
        }
    }

    fn tell(&mut self, state: &[NotifyState<'_>]) {
        if self.socket.is_none() {
            return;
        }
        if self.waiting.len() == KEPT {
            self.waiting.pop_front();
        }
        self.waiting.push_back(text(state));
        self.send_waiting();
    }

    /// Whether nothing waits any more.
    fn send_waiting(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            if self.send(&message) == Sent::NotNow {
                self.waiting.push_front(message);
                return false;
            }
        }
        if let Some(status) = self.status.take()
            && self.send(&status) == Sent::NotNow
        {
            self.status = Some(status);
            return false;
        }
        true
    }

    fn send(&mut self, message: &str) -> Sent {
        let Some((socket, address)) = &self.socket else { return Sent::Never };
        let mut sent = socket.send(message.as_bytes());
        // The service manager may have a new socket under the old name.
        if sent.as_ref().is_err_and(is_disconnected) {
            sent = socket.connect_addr(address).and_then(|()| socket.send(message.as_bytes()));
        }
        match sent {
            Ok(_) => {
                self.failed = false;
                Sent::Yes
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Sent::NotNow,
            Err(err) => {
                self.fail(&err);
                // A message that the kernel does not take as it is must not hold up others.
                if err.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
                    Sent::Never
                } else {
                    Sent::NotNow
                }
            }
        }
    }

    fn fail(&mut self, err: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            let name = std::env::var_os(VARIABLE).unwrap_or_default();
            tracing::warn!("cannot tell the service manager ({VARIABLE}={}): {err}", name.display());
        }
    }
}

/// A socket for the service manager at `name`: a path, or with `@` an abstract name.
fn socket_for(name: &OsStr) -> io::Result<(Registered<UnixDatagram>, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = Registered::new(UnixDatagram::unbound()?);
    socket.set_nonblocking(true)?;
    // One that cannot be reached yet may be when there is something to say.
    let _ = socket.connect_addr(&address);
    Ok((socket, address))
}

fn is_disconnected(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected)
}

fn text(state: &[NotifyState<'_>]) -> String {
    state.iter().map(|state| format!("{state}\n")).collect()
}
