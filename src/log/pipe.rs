//! The daemon's end of the pipe to the log writer: lines go in without waiting. EFFECT.
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use sys::Registered;
use tracing_subscriber::fmt::MakeWriter;

use super::frame::Frame;

/// Lines that a process keeps while the pipe is full. Lines beyond that are dropped and counted, so that no log holds up a connection.
const BACKLOG: usize = 8192;
/// The size of the pipe in bytes; a user without privileges may be refused it.
const SIZE: usize = 1 << 20;
/// A process that ends waits so long for room in the pipe.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// And so long in all.
const AT_MOST: Duration = Duration::from_secs(5);

/// Sends lines to the log writer, from any thread and any process of the daemon. Never blocks.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` once it is closed. Only its end takes the lock for writing.
    pipe: RwLock<Option<Registered<OwnedFd>>>,
    /// There may be lines in the backlog, which go first.
    waiting: AtomicBool,
    backlog: Mutex<Backlog>,
}

/// The lines of one process that did not fit into the pipe.
#[derive(Debug)]
struct Backlog {
    /// The process whose lines they are: a forked one has copies of its parent's, and must not write them again.
    process: u32,
    frames: VecDeque<Vec<u8>>,
    dropped: u64,
    reported: u64,
    /// So many frames come before the latest report of a loss and with it; 0: it was sent.
    report_after: usize,
    /// The next line is the report of a loss, for which there is room.
    reporting: bool,
}

impl Backlog {
    fn new() -> Self {
        let process = std::process::id();
        Self { process, frames: VecDeque::new(), dropped: 0, reported: 0, report_after: 0, reporting: false }
    }

    fn push_line(&mut self, frame: Vec<u8>) {
        let report = std::mem::take(&mut self.reporting);
        if report || self.frames.len() < BACKLOG {
            self.frames.push_back(frame);
        } else {
            self.dropped += 1;
        }
    }

    /// The number of lines that were dropped so far, if that is to be reported now. There is room for the report.
    fn loss(&mut self) -> Option<u64> {
        if self.dropped == self.reported || self.report_after > 0 {
            return None;
        }
        self.reported = self.dropped;
        self.report_after = self.frames.len() + 1;
        self.reporting = true;
        Some(self.dropped)
    }
}

impl Log {
    /// A new pipe: the end for lines, and the log writer's.
    ///
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let mut sizes = (0..4).map(|halved| SIZE >> halved);
        // At worst the pipe stays as the kernel made it.
        let _ = sizes.find(|&size| fcntl_setpipe_size(&write, size).is_ok());
        let (pipe, waiting) = (RwLock::new(Some(Registered::new(write))), AtomicBool::new(false));
        Ok((Self(Arc::new(Shared { pipe, waiting, backlog: Mutex::new(Backlog::new()) })), read))
    }

    /// Has the log file closed and opened again under its name, behind the lines that were sent before: logrotate may have moved it.
    pub fn reopen(&self) {
        self.order(Frame::Reopen);
    }

    /// Has the log writer let go of the terminal, behind the lines that were sent before. A log to standard error ends with that.
    pub fn leave_terminal(&self) {
        self.order(Frame::LeaveTerminal);
    }

    /// Sends lines that wait for room, and reports lines that were lost. To be called about once a second.
    pub fn tick(&self) {
        let mut backlog = self.backlog();
        self.flush(&mut backlog);
        let loss = backlog.loss();
        drop(backlog);
        if let Some(dropped) = loss {
            tracing::error!("the log cannot keep up: {dropped} lines were dropped so far");
        }
    }

    /// Sends all lines that wait, before this process ends. Waits for room, but not for a log that takes nothing.
    pub fn drain(&self) {
        let start = Instant::now();
        loop {
            self.tick();
            if self.backlog().frames.is_empty() || start.elapsed() >= AT_MOST {
                return;
            }
            let pipe = self.0.pipe.read().unwrap_or_else(PoisonError::into_inner);
            let Some(pipe) = &*pipe else { return };
            let room = poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&PATIENCE));
            if !matches!(room, Ok(1..) | Err(Errno::INTR)) {
                return;
            }
        }
    }

    /// Closes the pipe: what is sent from now on is lost.
    pub(super) fn close(&self) {
        *self.0.pipe.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn line(&self, priority: u8, text: &[u8]) {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let frame = Frame::Line { priority, text }.encode();
        if let Some(mut backlog) = self.send(&frame) {
            backlog.push_line(frame);
        }
    }

    /// An order is never dropped. One that waits already is carried out late enough for this one too.
    fn order(&self, order: Frame<'_>) {
        let frame = order.encode();
        if let Some(mut backlog) = self.send(&frame)
            && !backlog.frames.contains(&frame)
        {
            backlog.frames.push_back(frame);
        }
    }

    /// Sends a frame behind those that wait; gives the backlog if it has to wait too.
    fn send(&self, frame: &[u8]) -> Option<MutexGuard<'_, Backlog>> {
        if !self.0.waiting.load(Ordering::Acquire) && self.write(frame) {
            return None;
        }
        let mut backlog = self.backlog();
        self.flush(&mut backlog);
        if backlog.frames.is_empty() && self.write(frame) {
            return None;
        }
        self.0.waiting.store(true, Ordering::Release);
        Some(backlog)
    }

    fn flush(&self, backlog: &mut Backlog) {
        while backlog.frames.front().is_some_and(|frame| self.write(frame)) {
            backlog.frames.pop_front();
            backlog.report_after = backlog.report_after.saturating_sub(1);
        }
        if backlog.frames.is_empty() {
            (backlog.report_after, backlog.reporting) = (0, false);
            self.0.waiting.store(false, Ordering::Release);
        }
    }

    /// Whether the frame is out of the way; `false`: the pipe is full.
    fn write(&self, frame: &[u8]) -> bool {
        let pipe = self.0.pipe.read().unwrap_or_else(PoisonError::into_inner);
        let Some(pipe) = &*pipe else { return true };
        // A pipe that fails otherwise has no log behind it, and there is nobody to tell.
        rustix::io::retry_on_intr(|| rustix::io::write(pipe.as_fd(), frame)) != Err(Errno::AGAIN)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        let mut backlog = self.0.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        if backlog.process != std::process::id() {
            *backlog = Backlog::new();
        }
        backlog
    }
}

/// One event on its way.
pub struct Entry<'a> {
    log: &'a Log,
    priority: u8,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry { log: self, priority: 6 }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Entry<'a> {
        // syslog(3): LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG.
        let priority = match *meta.level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        };
        Entry { log: self, priority }
    }
}

impl Write for Entry<'_> {
    /// The subscriber hands over one whole event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.log.line(self.priority, event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::frame::Decoder;
    use std::fs::File;
    use std::io::Read;

    /// All lines that are sent until now, as text.
    fn received(log: &Log, read: OwnedFd) -> Vec<String> {
        let (mut decoder, mut lines) = (Decoder::default(), Vec::new());
        let mut read = File::from(read);
        let mut bytes = vec![0; SIZE];
        loop {
            log.tick();
            if log.backlog().frames.is_empty() {
                log.close();
            }
            let len = read.read(&mut bytes).unwrap();
            decoder.feed(&bytes[..len], |frame| lines.push(format!("{frame:?}")));
            if len == 0 {
                return lines;
            }
        }
    }

    fn shown(text: &str) -> String {
        format!("{:?}", Frame::Line { priority: 6, text: text.as_bytes() })
    }

    #[test]
    fn lines_behind_a_full_pipe_wait_in_order_and_what_is_too_much_is_counted() {
        let (log, read) = Log::new().unwrap();
        let text = |n: usize| format!("{n} {}", "x".repeat(1000));
        let lines = (0..).take_while(|&n| {
            log.line(6, text(n).as_bytes());
            log.backlog().dropped < 10
        });
        let sent = lines.count() + 1 - 10;
        log.reopen();
        log.reopen();
        assert_eq!(log.backlog().frames.len(), BACKLOG + 1);
        let expected: Vec<String> = (0..sent).map(|n| shown(&text(n))).chain(["Reopen".to_owned()]).collect();
        let lines = received(&log, read);
        assert!(lines == expected, "{} lines of {}", lines.len(), expected.len());
        assert!(!log.0.waiting.load(Ordering::Relaxed));
    }

    #[test]
    fn a_loss_is_reported_once_until_the_report_is_sent() {
        let mut backlog = Backlog::new();
        (0..BACKLOG + 5).for_each(|_| backlog.push_line(Vec::new()));
        assert_eq!(backlog.loss(), Some(5));
        backlog.push_line(b"the report".to_vec());
        backlog.push_line(Vec::new());
        assert_eq!((backlog.frames.len(), backlog.dropped), (BACKLOG + 1, 6));
        assert_eq!(backlog.loss(), None);
        backlog.report_after = 0;
        assert_eq!(backlog.loss(), Some(6));
    }

    #[test]
    fn lines_of_another_process_are_not_sent_again() {
        let (log, read) = Log::new().unwrap();
        let mut backlog = log.backlog();
        backlog.push_line(b"theirs\0".to_vec());
        backlog.process += 1;
        drop(backlog);
        log.0.waiting.store(true, Ordering::Relaxed);
        log.line(6, b"ours\n");
        assert_eq!(received(&log, read), [shown("ours")]);
    }
}
