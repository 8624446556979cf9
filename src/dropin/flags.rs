//! The options of 1.1.0, under their old names. WIRING: clap parses them, and the modules beside this one interpret
//! them.
use std::path::PathBuf;

use clap::Args;

/// The options without a subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of tcp-intercept 1.1.0, without a subcommand")]
pub struct Flags {
    /// Probe silent connections on both legs (SO_KEEPALIVE), with the times of the sysctls tcp_keepalive_time, _intvl
    /// and _probes
    #[arg(short, long)]
    pub keepalive: bool,
    /// Send small segments at once on both legs (TCP_NODELAY); --tcp-nodelay is the same
    #[arg(short = 'n', long = "tcp_nodelay", alias = "tcp-nodelay")]
    pub tcp_nodelay: bool,
    // In a version before 1.1.0 the long name had a typo.
    /// Stay in the foreground instead of going into the background once the listener is bound
    #[arg(short, long, alias = "forgeground")]
    pub foreground: bool,
    /// Write the process number to this file (an absolute path), and remove the file at the end
    #[arg(short, long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Listen on this address. A host or a port in [..] is a number, and no name is looked up. [::] accepts IPv4, too
    #[arg(short, long, value_name = "HOST:PORT", default_value = "[0.0.0.0]:[5000]")]
    pub bind_listen: String,
    /// Connect from this address, or with the word "client" from the client's own address and port; all zeros: from the
    /// address that this machine's routes select
    #[arg(short = 'B', long, value_name = "HOST:PORT|client", default_value = "[0.0.0.0]:[0]")]
    pub bind_outgoing: String,
    /// Append one line for each connection to this file; SIGHUP closes and reopens it
    #[arg(short, long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}
