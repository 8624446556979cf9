//! The log writer: a process that moves lines from the pipe to the target, and may block there. EFFECT.
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ioctl_fionread, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::set_name;
use sys::Registered;

use super::LogError;
use super::frame::{Decoder, Frame};
use super::pipe::Log;
use super::target::{Output, Target};
use crate::config::LogTarget;

/// The name of the process.
const NAME: &std::ffi::CStr = c"tcp-int-log";
/// Bytes of one read from the pipe. They are lost if the log writer is killed.
const READ: usize = 16 << 10;
/// Longest time without progress that the daemon allows the log writer at its end. Also the time between attempts to
/// open the target.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Longest time in all that the daemon waits for the log writer at its end.
const AT_MOST: Duration = Duration::from_secs(5);

/// The guardian's handle to the log writer. Dropping it ends the log.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    /// The read end of the pipe. The guardian keeps it, so that lines in the pipe survive the log writer.
    lines: Registered<OwnedFd>,
    target: LogTarget,
    process: Option<Pid>,
    /// Log writers of the programs that this one has replaced. They end after those programs' last line.
    former: Vec<Pid>,
    /// Whether the last attempt to start the process failed, which has been logged.
    failed: bool,
}

impl Writer {
    /// Creates the pipe and starts the process. `open` is the target if it is already open, and `former` are older
    /// log writers.
    ///
    /// # Errors
    /// The pipe cannot be created, or the process cannot be started for a target that is already open. Without an
    /// open target the next [`tick`](Self::tick) retries.
    pub fn start(target: LogTarget, open: Option<Target>, former: Vec<Pid>) -> Result<Self, LogError> {
        let (log, lines) = Log::new().map_err(LogError::Process)?;
        let lines = Registered::new(lines);
        let mut writer = Self { log, lines, target, process: None, former, failed: false };
        let first = open.is_some();
        match writer.fork(open) {
            Err(err) if first => return Err(LogError::Process(err)),
            // Sessions depend on this program: it continues without a log for the moment.
            Err(_) | Ok(()) => {}
        }
        Ok(writer)
    }

    /// Returns the sending end of the log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the process numbers of all log writers, for the program that replaces this one.
    pub fn process_numbers(&self) -> Vec<i32> {
        self.former.iter().chain(&self.process).map(|process| process.as_raw_nonzero().get()).collect()
    }

    /// Does the periodic work, once a second: sends waiting lines, and restarts the log writer if it has died.
    pub fn tick(&mut self) {
        self.log.tick();
        self.former.retain(|&former| reap_if_ended(former).is_none());
        if let Some((process, status)) = self.process.and_then(|pid| Some((pid, reap_if_ended(pid)?))) {
            self.process = None;
            tracing::error!("the log writer (pid {process}) {}: starting another", ended(status));
        }
        if self.process.is_some() {
            return;
        }
        let started = self.fork(None);
        if let Err(err) = &started
            && !self.failed
        {
            tracing::error!("cannot start a log writer, retrying every second: {err}");
        }
        self.failed = started.is_err();
    }

    fn fork(&mut self, open: Option<Target>) -> io::Result<()> {
        let mut kept = vec![self.lines.as_raw_fd()];
        kept.extend(open.as_ref().and_then(Target::descriptor));
        let job = Job { lines: self.lines.as_fd(), target: &self.target, open: Cell::new(open) };
        self.process = Pid::from_raw(sys::fork_keeping(&kept, &job, write_log)?.get());
        Ok(())
    }

    /// Ends the log: waits for the last lines, but gives up on a target that takes nothing.
    fn finish(&mut self) {
        // If the log writer has just died, this starts another one for the last lines.
        self.tick();
        self.log.drain();
        self.log.close();
        let start = Instant::now();
        let left = self.process.filter(|&process| !self.ends_in_time(process, start));
        let ends_soon = |process: &Pid| {
            let rest = Duration::from_millis(999).saturating_sub(start.elapsed());
            ends_within(*process, Timespec { tv_sec: 0, tv_nsec: rest.subsec_nanos().into() })
        };
        let former = self.former.iter().copied().filter(|process| !ends_soon(process));
        for process in left.into_iter().chain(former) {
            // A process that waits for a disk does not die at once. Do not wait for it.
            let _ = kill_process(process, Signal::KILL);
        }
    }

    /// Waits for the process to end while it takes lines from the pipe. Returns whether it has ended.
    fn ends_in_time(&self, process: Pid, start: Instant) -> bool {
        let mut before = ioctl_fionread(&self.lines).ok();
        while !ends_within(process, PATIENCE) {
            let now = ioctl_fionread(&self.lines).ok();
            if now == before || start.elapsed() >= AT_MOST {
                return false;
            }
            before = now;
        }
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The arguments of the log writer.
struct Job<'a> {
    lines: BorrowedFd<'a>,
    target: &'a LogTarget,
    open: Cell<Option<Target>>,
}

/// Runs the log writer until the end of the pipe, when no process of the daemon is left.
fn write_log(job: &Job<'_>) -> u8 {
    // Without its own name the process works as well.
    let _ = set_name(NAME);
    leave_terminal(matches!(job.target, LogTarget::Stderr));
    let Some(target) = job.open.take().or_else(|| open(job)) else { return 0 };
    let mut output = Output::new(target);
    let mut decoder = Decoder::default();
    let mut bytes = [0; READ];
    while let Ok(len @ 1..) = retry_on_intr(|| rustix::io::read(job.lines, &mut bytes)) {
        decoder.feed(&bytes[..len], |frame| match frame {
            Frame::Line { priority, text } => output.line(priority, text),
            Frame::Reopen => reopen(&mut output, job.target),
            Frame::LeaveTerminal => {
                output.flush();
                leave_terminal(false);
            }
        });
        output.flush();
    }
    0
}

/// Opens the target as soon as possible; `None` if the daemon ends first.
fn open(job: &Job<'_>) -> Option<Target> {
    loop {
        if let Ok(target) = Target::open(job.target) {
            return Some(target);
        }
        let mut pipe = [PollFd::from_borrowed_fd(job.lines, PollFlags::empty())];
        // poll() watches for no events, so it returns early only at the end of the pipe.
        if matches!(poll(&mut pipe, Some(&PATIENCE)), Ok(1..)) {
            return None;
        }
    }
}

fn reopen(output: &mut Output, target: &LogTarget) {
    if !matches!(target, LogTarget::File(_)) {
        return;
    }
    output.flush();
    match Target::open(target) {
        Ok(target) => output.target = target,
        Err(err) => output.line(3, format!("{err}; the old one stays in use").as_bytes()),
    }
}

/// Replaces standard input, output and, unless the log needs it, error by /dev/null, which releases the terminal.
fn leave_terminal(keep_stderr: bool) {
    let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    let _ = dup2_stdin(&null).and_then(|()| dup2_stdout(&null));
    if !keep_stderr {
        let _ = dup2_stderr(&null);
    }
}

/// Waits up to `time` for the process to end, and returns whether it has.
fn ends_within(process: Pid, time: Timespec) -> bool {
    if let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) {
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time));
    }
    reap_if_ended(process).is_some()
}

/// Returns how the process ended, if it has. A process that is not a child of this one counts as ended.
fn reap_if_ended(process: Pid) -> Option<Option<WaitStatus>> {
    match waitpid(Some(process), WaitOptions::NOHANG) {
        Ok(None) => None,
        Ok(Some((_, status))) => Some(Some(status)),
        Err(_) => Some(None),
    }
}

fn ended(status: Option<WaitStatus>) -> String {
    match status.map(|status| (status.terminating_signal(), status.exit_status())) {
        Some((Some(signal), _)) => format!("died of signal {signal}"),
        Some((_, Some(code))) => format!("ended with status {code}"),
        _ => "ended".to_owned(),
    }
}
