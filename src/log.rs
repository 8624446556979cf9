//! What is said and where it goes: diagnostics and close records, one line each, by one thread that may wait for a disk. EFFECT.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::OFlags;
use sys::Registered;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{self, Level, LogFormat, LogTarget};
use crate::exit::{Exit, Fatal};
use crate::metrics::{Counter, worth_a_line};
use crate::record::{Paths, Record};

/// Lines that wait for the writer; what comes beyond is dropped and counted, so that no disk can hold up a connection.
const QUEUE: usize = 8192;
/// Where journald listens: sd_journal_send(3).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// What the writer is told.
enum Message {
    Line(Line),
    Reopen,
    /// The subscriber keeps a sender of its own, so the queue never ends by itself.
    Last,
}

struct Line {
    priority: u8,
    text: Vec<u8>,
}

/// Where everything that is said goes: to a target by itself, or by way of a thread that may wait for it.
#[derive(Clone)]
pub struct Log(Arc<Out>);

struct Out {
    target: Mutex<Target>,
    /// Of a process that has [a thread](Log::with_a_thread) for it.
    queue: OnceLock<SyncSender<Message>>,
    dropped: Counter,
}

/// Writes what is said from now on. Lets the last lines out when it is dropped.
pub struct Writer {
    messages: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("the log {path:?} (log.target, -l) cannot be opened for appending: {err}")]
    File {
        /// The path.
        path: String,
        /// The kernel's answer.
        err: io::Error,
    },
    /// No journal.
    #[error("log.target = \"journal\": nobody listens at {JOURNAL} ({0}); is systemd-journald running?")]
    Journal(io::Error),
    /// No thread.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
}

/// Opens the target and sends everything there from now on.
///
/// # Errors
/// When the target cannot be opened.
pub fn init(config: &config::Log) -> Result<Log, LogError> {
    let target = Mutex::new(Target::open(&config.target)?);
    let log = Log(Arc::new(Out { target, queue: OnceLock::new(), dropped: Counter::default() }));
    let level = match config.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_ansi(false);
    let builder = builder.with_timer(SystemTime).with_writer(log.clone());
    let set = match config.format {
        LogFormat::Text => tracing::subscriber::set_global_default(builder.finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish())
        }
    };
    // Only a second call in one process can fail here, and the first one's target stays.
    let _ = set;
    Ok(log)
}

/// Whether close records are written. What only they say need not be asked for otherwise.
pub fn recording() -> bool {
    tracing::enabled!(tracing::Level::INFO)
}

/// The close record: the one line of a connection.
pub fn record(record: impl FnOnce() -> Record) {
    if !recording() {
        return;
    }
    let record = record();
    let ms = |d: std::time::Duration| d.as_micros() as f64 / 1000.0;
    let server = record.server.as_ref();
    let (client_paths, server_paths) =
        (record.client.paths.as_ref(), server.and_then(|leg| leg.paths.as_ref()));
    tracing::info!(
        client = %record.flow.client,
        server = %record.flow.orig_dst.0,
        source = record.source.map(tracing::field::display),
        by = record.end.by.as_str(),
        phase = record.end.phase.as_str(),
        cause = %record.end.cause,
        to_server = record.to_server,
        to_client = record.to_client,
        connect_ms = record.connect.map(ms),
        duration_ms = ms(record.duration),
        dialled = record.dialled.map(crate::record::Dialled::as_str),
        client_cc = record.client.congestion_control,
        client_mptcp = record.client.mptcp.as_str(),
        client_subflows = client_paths.map(Paths::count),
        client_paths = client_paths.map(Paths::to_string),
        client_fast_open = record.client_opening.as_str(),
        server_cc = server.map(|leg| leg.congestion_control.as_str()),
        server_mptcp = server.map(|leg| leg.mptcp.as_str()),
        server_subflows = server_paths.map(Paths::count),
        server_paths = server_paths.map(Paths::to_string),
        server_fast_open = record.server_opening.map(crate::record::Opening::as_str),
        "closed"
    );
}

impl Log {
    /// From now on a thread of this process does the writing, to a target of its own: no disk holds up whoever says something.
    ///
    /// # Errors
    /// When there is no thread or no descriptor to be had.
    pub fn with_a_thread(&self) -> Result<Writer, LogError> {
        let mut out = self.target().try_clone().map_err(LogError::Thread)?;
        let (messages, queue) = sync_channel(QUEUE);
        let thread =
            std::thread::Builder::new().name("log".into()).spawn(move || write_all(&queue, &mut out));
        let thread = Some(thread.map_err(LogError::Thread)?);
        // A second thread of one process writes nothing.
        let _ = self.0.queue.set(messages.clone());
        Ok(Writer { messages, thread })
    }

    /// Has a file closed and opened again under its name: logrotate may have moved it. Any other target stays as it is.
    pub fn reopen(&self) {
        let reopened = self.target().reopen();
        if let Err(err) = reopened {
            tracing::error!("{err}; the old one stays in use");
        }
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.0.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: Line) {
        let Some(queue) = self.0.queue.get() else {
            // There is nobody to tell when the log itself cannot be written; the next line may go through.
            let _ = self.target().write(&line);
            return;
        };
        if let Err(TrySendError::Full(_)) = queue.try_send(Message::Line(line)) {
            self.0.dropped.count();
            let dropped = self.0.dropped.get();
            if worth_a_line(dropped) {
                let text =
                    format!("the log cannot keep up: {dropped} lines were dropped so far\n").into_bytes();
                let _ = queue.try_send(Message::Line(Line { priority: 4, text }));
            }
        }
    }
}

impl Writer {
    /// As [`Log::reopen`], behind the lines that wait for it. Waits while the queue is full.
    pub fn reopen(&self) {
        // Only a writer that has failed does not listen, and then there is no log.
        let _ = self.messages.send(Message::Reopen);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let last = self.messages.send(Message::Last);
        if let (Ok(()), Some(thread)) = (last, self.thread.take()) {
            let _ = thread.join();
        }
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
        self.log.take(Line { priority: self.priority, text: event.to_vec() });
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(queue: &Receiver<Message>, out: &mut Target) {
    while let Ok(message) = queue.recv() {
        let line = match message {
            Message::Line(line) => line,
            Message::Reopen => match out.reopen() {
                Ok(()) => continue,
                Err(err) => {
                    Line { priority: 3, text: format!("{err}; the old one stays in use\n").into_bytes() }
                }
            },
            Message::Last => return,
        };
        // There is nobody to tell when the log itself cannot be written; the next line may go through.
        let _ = out.write(&line);
    }
}

enum Target {
    Stderr,
    File { file: Registered<File>, path: PathBuf },
    Journal(Registered<UnixDatagram>),
}

impl Target {
    fn open(target: &LogTarget) -> Result<Self, LogError> {
        match target {
            LogTarget::Stderr => Ok(Self::Stderr),
            LogTarget::File(path) => {
                Ok(Self::File { file: Registered::new(append(path)?), path: path.clone() })
            }
            LogTarget::Journal => {
                journal().map(Registered::new).map(Self::Journal).map_err(LogError::Journal)
            }
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Stderr => Self::Stderr,
            Self::File { file, path } => {
                Self::File { file: Registered::new(file.try_clone()?), path: path.clone() }
            }
            Self::Journal(socket) => Self::Journal(Registered::new(socket.try_clone()?)),
        })
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        if let Self::File { file, path } = self {
            *file = Registered::new(append(path)?);
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(&line.text),
            Self::File { file, .. } => (&**file).write_all(&line.text),
            Self::Journal(socket) => socket.send(&journal_entry(line)).map(drop),
        }
    }
}

fn append(path: &Path) -> Result<File, LogError> {
    // A daemon must not get a terminal that it logs to as the one that controls it.
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(path);
    opened.map_err(|err| LogError::File { path: path.display().to_string(), err })
}

fn journal() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL)?;
    Ok(socket)
}

/// The journal's native protocol: FIELD=value lines; a value must not hold a line feed, and no line of ours does.
fn journal_entry(line: &Line) -> Vec<u8> {
    let mut entry =
        format!("PRIORITY={}\nSYSLOG_IDENTIFIER=tcp-intercept\nMESSAGE=", line.priority).into_bytes();
    entry.extend_from_slice(line.text.trim_ascii_end());
    entry.push(b'\n');
    entry
}

impl From<LogError> for Fatal {
    fn from(err: LogError) -> Self {
        let exit = match err {
            LogError::File { .. } => Exit::CantCreat,
            LogError::Journal(_) => Exit::Unavailable,
            LogError::Thread(_) => Exit::OsErr,
        };
        Self::new(exit, err.to_string())
    }
}
