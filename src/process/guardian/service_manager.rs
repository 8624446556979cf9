//! Messages to the service manager (sd_notify(3)), sent without waiting for it. EFFECT.
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;
use sys::Registered;

/// The environment variable that names the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// The highest number of messages kept for a service manager that does not read. Beyond it the oldest is dropped.
const KEPT: usize = 64;

/// The service manager. If there is none, nothing is sent.
#[derive(Debug, Default)]
pub struct ServiceManager {
    /// One socket for all messages: at its descriptor limit the process cannot open another one.
    socket: Option<(Registered<UnixDatagram>, SocketAddr)>,
    /// Messages that must arrive, in order.
    waiting: VecDeque<String>,
    /// The latest status, if it has not been sent.
    status: Option<String>,
    /// The latest attempt to send has failed, and the failure was logged.
    failed: bool,
}

/// The result of an attempt to send a message.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The message may be sent later.
    NotNow,
    /// The message can never be sent.
    Never,
}

impl ServiceManager {
    /// Connects to the service manager that the environment names.
    pub fn from_environment() -> Self {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        let mut manager = Self::default();
        match name.as_deref().map(socket_for).transpose() {
            Ok(socket) => manager.socket = socket,
            Err(err) => manager.fail(&err),
        }
        manager
    }

    /// Reports that the daemon accepts connections, or has reloaded.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// Reports that the daemon reopens its log; [`ready`](Self::ready) ends the reload.
    pub fn reloading(&mut self) {
        // Without the time, systemd considers the reload failed (Type=notify-reload).
        let now = NotifyState::monotonic_usec_now().ok();
        self.tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
    }

    /// Reports that the daemon is about to end.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Sets the text that `systemctl status` shows.
    pub fn status(&mut self, status: &str) {
        self.status = self.socket.is_some().then(|| text(&[NotifyState::Status(status)]));
        self.send_waiting();
    }

    /// Sends the waiting messages. If none is left and the daemon is `alive`, it also feeds the watchdog. Must be
    /// called once a second.
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

    /// Sends the waiting messages; returns whether none is left.
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
        // The service manager may have made a new socket under the old name.
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
                // A message that is too long for the kernel must not hold up others.
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
            tracing::warn!("cannot notify the service manager ({VARIABLE}={}): {err}", name.display());
        }
    }
}

/// Returns a socket for the service manager at `name`: a path, or with `@` an abstract name.
fn socket_for(name: &OsStr) -> io::Result<(Registered<UnixDatagram>, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = Registered::new(UnixDatagram::unbound()?);
    socket.set_nonblocking(true)?;
    // Ignore the error: the service manager may be reachable when the first message is sent.
    let _ = socket.connect_addr(&address);
    Ok((socket, address))
}

fn is_disconnected(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected)
}

fn text(state: &[NotifyState<'_>]) -> String {
    state.iter().map(|state| format!("{state}\n")).collect()
}
