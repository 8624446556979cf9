//! Moving bytes inside the kernel with splice(2). EFFECT.
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{SpliceFlags, splice};

use super::half::Moved;
use super::pool::Pipe;
use crate::session::leg::Leg;

/// Bytes requested from an MPTCP source beyond those available, so that a short result means that the source is
/// empty.
const BEYOND: usize = 4096;

/// Moves bytes from `source` into the empty `pipe`, at most `most`, the room of the sink. Returns the number of bytes
/// requested and the result.
pub fn fill(source: &Leg, pipe: &Pipe, most: usize) -> io::Result<(usize, Moved)> {
    let asked = if source.is_mptcp_socket() { most.min(there(source)?.saturating_add(BEYOND)) } else { most };
    let moved = match moved(source, &pipe.write, asked) {
        Ok(Some(n)) => match NonZeroUsize::new(n) {
            Some(n) => Moved::Bytes(n),
            None => end_or_urgent(source)?,
        },
        Ok(None) => Moved::NotReady,
        Err(err) => return Err(source.keep(err)),
    };
    Ok((asked, moved))
}

fn there(source: &Leg) -> io::Result<usize> {
    Ok(usize::try_from(ioctl_fionread(source)?).unwrap_or(usize::MAX))
}

/// Tells an EOF from the other reasons for which splice() returns 0. One is an urgent byte, once the FIN behind it
/// has arrived (tcp_splice_read() in net/ipv4/tcp.c). The other is an error that the kernel has already reported.
fn end_or_urgent(source: &Leg) -> io::Result<Moved> {
    match source.failed() {
        Some(err) => Err(err),
        // MPTCP has no urgent data, and its FIONREAD returns 1 at the end (mptcp_inq_hint() in net/mptcp/protocol.c).
        None if !source.is_mptcp_socket() && there(source)? > 0 => Ok(Moved::NotReady),
        None => Ok(Moved::Eof),
    }
}

/// Moves at most `len` bytes from `pipe` to `sink`; `None` if the sink has no room.
pub fn drain(pipe: &Pipe, sink: &Leg, len: NonZeroUsize) -> io::Result<Option<NonZeroUsize>> {
    match moved(&pipe.read, sink, len.get()) {
        Ok(n) => {
            sink.sent(n.unwrap_or(0));
            Ok(n.and_then(NonZeroUsize::new))
        }
        Err(err) => Err(sink.keep(err)),
    }
}

fn moved(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<Option<usize>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match retry_on_intr(|| splice(&from, None, &to, None, len, flags)) {
        Ok(n) => Ok(Some(n)),
        // EINPROGRESS: the socket was to send its SYN with these bytes, and has sent it without them.
        Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Takes the urgent byte at which splice() has stopped, if there is one. This is the only payload byte that passes
/// through user memory: the kernel has no other way past it (tcp_read_sock() in net/ipv4/tcp.c).
///
/// Ordinary data may have arrived since splice() found none, so the byte is taken only at the urgent mark. `seen` is
/// called before the byte is taken.
pub fn take_urgent(source: &Leg, seen: impl FnOnce(u8)) -> io::Result<Option<u8>> {
    if source.is_mptcp_socket() || !sys::at_urgent_mark(source.as_fd())? {
        return Ok(None);
    }
    if let Some(byte) = next_byte(source, RecvFlags::PEEK)? {
        seen(byte);
    }
    next_byte(source, RecvFlags::empty())
}

fn next_byte(source: &Leg, how: RecvFlags) -> io::Result<Option<u8>> {
    let mut byte = [0];
    match recv(source, &mut byte, how | RecvFlags::DONTWAIT) {
        Ok((1.., _)) => Ok(Some(byte[0])),
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(err) => Err(source.keep(err.into())),
    }
}

/// Sends `byte` to `sink` as urgent data; `None` if the sink has no room.
pub fn give_urgent(sink: &Leg, byte: u8) -> io::Result<Option<()>> {
    match send(sink, &[byte], SendFlags::OOB | SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(Some(())),
        Err(Errno::AGAIN) => Ok(None),
        Err(err) => Err(sink.keep(err.into())),
    }
}
