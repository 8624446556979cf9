//! The log: diagnostics and close records, one line each. EFFECT.
//!
//! Every process of the daemon sends its lines into one pipe and never waits. The log writer, a process with no other
//! task, moves them to the target.
mod frame;
mod pipe;
mod target;
mod writer;

use std::io;

use rustix::process::Pid;
use tracing_subscriber::fmt::time::SystemTime;

use self::target::{JOURNAL, Target};
use crate::config::{self, Level, LogFormat};
use crate::exit::{Exit, Fatal};
use crate::state::record::{Paths, Record};

pub use pipe::Log;
pub use writer::Writer;

/// The reasons why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be opened.
    #[error("the log {path:?} (log.target, -l) cannot be opened for appending: {err}")]
    File {
        /// Its path.
        path: String,
        /// The error of open(2).
        err: io::Error,
    },
    /// The journal's socket does not accept a connection.
    #[error("log.target = \"journal\": no process listens at {JOURNAL} ({0}); is systemd-journald running?")]
    Journal(io::Error),
    /// The log writer, or the pipe to it, cannot be created.
    #[error("cannot start the process that writes the log: {0}")]
    Process(io::Error),
}

/// Opens the target and sends all log lines there. Call it after signals are blocked, because the log writer inherits
/// the signal mask, and before a second thread exists.
///
/// # Errors
/// The target cannot be opened, or the log writer cannot be started.
pub fn start(config: &config::Log) -> Result<Writer, LogError> {
    let open = Target::open(&config.target)?;
    let writer = Writer::start(config.target.clone(), Some(open), Vec::new())?;
    subscribe(config, writer.log());
    Ok(writer)
}

/// Works like [`start`], in a program that has replaced another. Sessions depend on this program, so it does not fail
/// if the target cannot be opened yet: the log writer retries. `former` are the process numbers of the previous
/// programs' log writers.
///
/// # Errors
/// The pipe cannot be created.
pub fn resume(config: &config::Log, former: &[i32]) -> Result<Writer, LogError> {
    let former = former.iter().filter_map(|&pid| Pid::from_raw(pid)).collect();
    let writer = Writer::start(config.target.clone(), None, former)?;
    subscribe(config, writer.log());
    Ok(writer)
}

fn subscribe(config: &config::Log, log: &Log) {
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
    // A panic ends the process. Its message must not wait for a standard error that no process reads.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    // Only a second call in one process can fail; the first subscriber stays.
    let _ = set;
}

/// Returns whether close records are written. If not, data that only they contain need not be collected.
pub fn recording() -> bool {
    tracing::enabled!(tracing::Level::INFO)
}

/// Writes the close record: the one line of a connection.
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
        dialled = record.dialled.map(crate::state::record::Dialled::as_str),
        client_cc = record.client.congestion_control,
        client_mptcp = record.client.mptcp.as_str(),
        client_subflows = client_paths.map(Paths::count),
        client_paths = client_paths.map(Paths::to_string),
        client_fast_open = record.client_opening.as_str(),
        server_cc = server.map(|leg| leg.congestion_control.as_str()),
        server_mptcp = server.map(|leg| leg.mptcp.as_str()),
        server_subflows = server_paths.map(Paths::count),
        server_paths = server_paths.map(Paths::to_string),
        server_fast_open = record.server_opening.map(crate::state::record::Opening::as_str),
        "closed"
    );
}

impl From<LogError> for Fatal {
    fn from(err: LogError) -> Self {
        let exit = match err {
            LogError::File { .. } => Exit::CantCreat,
            LogError::Journal(_) => Exit::Unavailable,
            LogError::Process(_) => Exit::OsErr,
        };
        Self::new(exit, err.to_string())
    }
}
