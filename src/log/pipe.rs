//! The daemon's end of the pipe to the log writer: lines are sent without waiting. EFFECT.
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

/// Lines that a process keeps while the pipe is full. Further lines are dropped and counted, so that a slow log never
/// delays a connection.
const BACKLOG: usize = 8192;
/// Size of the pipe in bytes; the kernel may refuse it to an unprivileged user.
const SIZE: usize = 1 << 20;
/// Longest wait of a process that ends for any room in the pipe.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Longest wait of a process that ends, in all.
const AT_MOST: Duration = Duration::from_secs(5);

/// Sends lines to the log writer, from any thread and any process of the daemon. Never blocks.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The write end; `None` once the log is closed. Only [`Log::close`] takes the lock for writing.
    pipe: RwLock<Option<Registered<OwnedFd>>>,
    /// Whether the backlog may hold lines, which are sent first.
    waiting: AtomicBool,
    backlog: Mutex<Backlog>,
}

/// The lines of one process that did not fit into the pipe.
#[derive(Debug)]
struct Backlog {
    /// The process that the lines belong to. A forked process has copies of its parent's lines and must not send them
    /// again.
    process: u32,
    frames: VecDeque<Vec<u8>>,
    dropped: u64,
    reported: u64,
    /// Number of frames up to and including the latest report of lost lines; 0 if that was sent.
    report_after: usize,
    /// Whether the next line is the report of lost lines, for which room is reserved.
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

    /// Returns the number of dropped lines, if it must be reported now, and reserves room for the report.
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
    /// Creates the pipe: the write end for lines, and the log writer's read end.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let mut sizes = (0..4).map(|halved| SIZE >> halved);
        // If all sizes are refused, the pipe keeps its default size.
        let _ = sizes.find(|&size| fcntl_setpipe_size(&write, size).is_ok());
        let (pipe, waiting) = (RwLock::new(Some(Registered::new(write))), AtomicBool::new(false));
        Ok((Self(Arc::new(Shared { pipe, waiting, backlog: Mutex::new(Backlog::new()) })), read))
    }

    /// Makes the log writer close and reopen the log file by its name, after all lines sent before: logrotate may
    /// have moved it.
    pub fn reopen(&self) {
        self.order(Frame::Reopen);
    }

    /// Makes the log writer release the terminal, after all lines sent before. A log to standard error ends there.
    pub fn leave_terminal(&self) {
        self.order(Frame::LeaveTerminal);
    }

    /// Sends waiting lines and reports lost ones. Call it about once a second.
    pub fn tick(&self) {
        let mut backlog = self.backlog();
        self.flush(&mut backlog);
        let loss = backlog.loss();
        drop(backlog);
        if let Some(dropped) = loss {
            tracing::error!("the log cannot keep up: {dropped} lines dropped so far");
        }
    }

    /// Sends all waiting lines before this process ends. It waits for room, but gives up if the log writer takes
    /// nothing.
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

    /// Closes the pipe. Later lines are lost.
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

    /// Sends an order, which is never dropped. An equal order that already waits is carried out late enough for both.
    fn order(&self, order: Frame<'_>) {
        let frame = order.encode();
        if let Some(mut backlog) = self.send(&frame)
            && !backlog.frames.contains(&frame)
        {
            backlog.frames.push_back(frame);
        }
    }

    /// Sends a frame after those that wait. Returns the backlog if this frame must wait too.
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

    /// Writes a frame; `false` if the pipe is full. A frame that cannot be delivered counts as written.
    fn write(&self, frame: &[u8]) -> bool {
        let pipe = self.0.pipe.read().unwrap_or_else(PoisonError::into_inner);
        let Some(pipe) = &*pipe else { return true };
        // After any other error the pipe has no reader, and the error cannot be reported.
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

/// The writer of one event.
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
    /// Sends one event: the subscriber passes a whole event in each call.
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

    /// Closes the log once all lines are sent, and returns the frames as text.
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
    fn lines_wait_in_order_behind_a_full_pipe_and_excess_lines_are_counted() {
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
