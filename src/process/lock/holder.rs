//! The names that instances hold in this network namespace, and the processes that hold them. EFFECT.
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;
use sys::Peer;

use super::NAME;

/// The list of the Unix sockets of this network namespace: proc_net_unix(5).
const SOCKETS: &str = "/proc/net/unix";

/// A process that holds a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process number, if known.
    pub pid: Option<i32>,
    /// Its uid, if known.
    pub uid: Option<u32>,
    /// It may be an instance: its user is root, or the user of this process.
    pub trusted: bool,
}

impl Holder {
    /// A holder that keeps its name but cannot be identified. An instance is not in this state for long.
    pub const UNKNOWN: Self = Self { pid: None, uid: None, trusted: false };
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.uid) {
            (Some(pid), Some(uid)) => write!(f, "process {pid} of uid {uid}"),
            (None, Some(uid)) => write!(f, "a process of uid {uid}"),
            _ => f.write_str("an unknown process"),
        }
    }
}

/// Returns whether the process at the other end of `socket` runs as root or as the user of this process.
///
/// A user that the user namespace of this process does not map has the overflow uid (65534), which is neither. A
/// process that itself runs as that user cannot distinguish the two.
pub fn is_trusted(socket: impl AsFd) -> bool {
    sys::peer(socket.as_fd()).is_ok_and(|peer| is_trusted_uid(peer.uid))
}

fn is_trusted_uid(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// The result of looking at a name.
pub enum Look {
    /// This process holds the name; the descriptor is a connection to it.
    Held(Holder, OwnedFd),
    /// No process listens on the name.
    Refused,
    /// The holder's queue of connections is full.
    Full,
}

/// Connects to `name` without waiting, to identify the process that holds it.
pub fn look(name: &str) -> Look {
    let connected = || -> io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        let peer = sys::peer(socket.as_fd())?;
        Ok((socket, peer))
    };
    match connected() {
        Ok((socket, Peer { pid, uid })) => {
            Look::Held(Holder { pid, uid: Some(uid), trusted: is_trusted_uid(uid) }, socket)
        }
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Look::Refused,
        Err(_) => Look::Full,
    }
}

/// Returns the preferred name, and all other names that an instance may hold.
pub fn names() -> Vec<String> {
    let mut names: Vec<_> = listed().into_iter().map(|(name, _)| name).collect();
    names.push(NAME.to_owned());
    names.sort();
    names.dedup();
    names
}

/// Returns the processes that hold `names`, found by their descriptors. For names to which no connection is possible.
pub fn holders_of(names: &[String]) -> Vec<Holder> {
    let sockets = listed().into_iter().filter(|(name, _)| names.contains(name));
    let mut holders: BTreeMap<String, Vec<Holder>> =
        sockets.map(|(_, inode)| (format!("socket:[{inode}]"), Vec::new())).collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Only root can see the descriptors of other users.
        for descriptor in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(descriptor.path()).unwrap_or_default();
            if let Some(holders) = link.to_str().and_then(|link| holders.get_mut(link)) {
                holders.push(Holder::of_process(pid));
            }
        }
    }
    // An untrusted process may have passed its socket to a program with more rights. So an untrusted holder wins.
    let strangest = |holders: Vec<Holder>| holders.into_iter().min_by_key(|holder| holder.trusted);
    holders.into_values().map(|holders| strangest(holders).unwrap_or(Holder::UNKNOWN)).collect()
}

impl Holder {
    fn of_process(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let uids: Vec<u32> = uids.split_ascii_whitespace().filter_map(|uid| uid.parse().ok()).collect();
        let trusted = !uids.is_empty() && uids.iter().copied().all(is_trusted_uid);
        Self { pid: Some(pid), uid: uids.first().copied(), trusted }
    }
}

/// Returns the names that look like an instance's, each with the inode of its socket.
fn listed() -> Vec<(String, u64)> {
    let sockets = fs::read(SOCKETS).unwrap_or_default();
    String::from_utf8_lossy(&sockets).lines().filter_map(parse).collect()
}

/// Parses a line of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`.
fn parse(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(6);
    let (inode, path) = (fields.next()?.parse().ok()?, fields.next()?);
    let name = path.strip_prefix('@')?;
    let rest = name.strip_prefix(NAME)?;
    let is_suffix = |suffix: &str| suffix.len() == 16 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit());
    (rest.is_empty() || rest.strip_prefix('-').is_some_and(is_suffix)).then(|| (name.to_owned(), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_instances_are_found_among_all_sockets() {
        let line = |path: &str| format!("0000000000000000: 00000002 00000000 00010000 0001 01 48213 {path}");
        for name in ["tcp-intercept", "tcp-intercept-0123456789abcdef"] {
            assert_eq!(parse(&line(&format!("@{name}"))), Some((name.to_owned(), 48213)));
        }
        for path in
            ["", "tcp-intercept", "@tcp-intercept-", "@tcp-intercept-0123456789abcdeg", "@tcp-interceptor"]
        {
            assert_eq!(parse(&line(path)), None, "{path}");
        }
        assert_eq!(parse("Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }

    #[test]
    fn this_process_is_trusted_and_the_overflow_uid_is_not() {
        let pid = i32::try_from(std::process::id()).expect("a number");
        assert!(Holder::of_process(pid).trusted);
        assert!(!is_trusted_uid(65534) || geteuid().as_raw() == 65534);
    }
}
