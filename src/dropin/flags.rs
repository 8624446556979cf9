//! 1.1.0's options, as it named them. WIRING: parsed by clap, decided upon in the modules beside this one.
use std::path::PathBuf;

use clap::Args;

/// What can be asked for without a subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of tcp-intercept 1.1.0, without a subcommand")]
pub struct Flags {
    /// Probe silent connections on both legs (SO_KEEPALIVE), as the sysctls tcp_keepalive_time, _intvl and _probes say
    #[arg(short, long)]
    pub keepalive: bool,
    /// Send small segments at once on both legs (TCP_NODELAY); --tcp-nodelay does, too
    #[arg(short = 'n', long = "tcp_nodelay", alias = "tcp-nodelay")]
    pub tcp_nodelay: bool,
    // A version before 1.1.0 knew the long name with a slip of the pen only.
    /// Stay in the foreground instead of going into the background once the listener is bound
    #[arg(short, long, alias = "forgeground")]
    pub foreground: bool,
    /// Write the number of the process into this file (an absolute path), and remove it at the end
    #[arg(short, long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Listen on this address. [..] around the host or the port: it is a number, and no name is looked up. [::] takes IPv4, too
    #[arg(short, long, value_name = "HOST:PORT", default_value = "[0.0.0.0]:[5000]")]
    pub bind_listen: String,
    /// Connect from this address, or from the client's own address and port with the word "client"; all zeros: from the address of
    /// this machine that its routes say
    #[arg(short = 'B', long, value_name = "HOST:PORT|client", default_value = "[0.0.0.0]:[0]")]
    pub bind_outgoing: String,
    /// Append one line for each connection to this file; SIGHUP has it closed and opened again
    #[arg(short, long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}
