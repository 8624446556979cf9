//! The command line: parses it, runs the command, and prints the result. WIRING; the only module that prints.
#![allow(clippy::disallowed_macros, reason = "standard output belongs to this module")]
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stderr;

use crate::cmd;
use crate::cmd::rules::Action;
use crate::config::{Config, Faults};
use crate::dropin::{self, Flags};
use crate::exit::{Exit, Fatal};
use crate::host::rules::Format;
use crate::process::daemon::Setup;
use crate::process::guardian::handover::Inherited;
use crate::process::guardian::{self, control_socket};

/// Accelerates the TCP connections that pass through this machine; the endpoints need not know of it.
///
/// Without a subcommand it behaves as tcp-intercept 1.1.0 did, and takes the options of that version. It then installs
/// no rules, listens on the address of -b, and goes into the background.
#[derive(Debug, Parser)]
#[command(name = "tcp-intercept", version, args_conflicts_with_subcommands = true)]
// As with getopt_long(3), which 1.1.0 used: the last occurrence of an option counts, and a long name may be
// abbreviated.
#[command(args_override_self = true, infer_long_args = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Intercept connections in the foreground, until SIGINT or SIGTERM.
    Run(ConfigArgs),
    /// Report problems with the configuration and the host, why each matters, and the command that fixes it.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Manage the rules that lead connections to the listener.
    Rules {
        #[command(subcommand)]
        action: RulesAction,
    },
    /// Replace the program of the running daemon; every connection continues.
    ///
    /// The new program is tried first. If the trial fails, nothing changes. SIGUSR2 also starts an upgrade.
    Upgrade {
        /// The new program [default: the file at the path that the daemon was started from]
        #[arg(value_name = "BINARY")]
        binary: Option<PathBuf>,
    },
    /// Route new connections past the daemon, which ends with its last session, or at stop.drain-deadline.
    Drain,
    /// End the daemon now; every session is reset at both ends.
    Stop,
}

#[derive(Debug, Subcommand)]
enum RulesAction {
    /// Install the rules; correct ones stay untouched.
    Install(ConfigArgs),
    /// Remove the rules of this program, and nothing else.
    Remove(ConfigArgs),
    /// Compare the installed rules with the configuration; exit with status 69 if they differ.
    Status(ConfigArgs),
    /// Show what install does.
    Print {
        #[command(flatten)]
        config: ConfigArgs,
        /// "nft": input for nft; "iptables": shell commands for a host that has only iptables
        #[arg(long, value_enum, default_value_t = PrintFormat::Nft)]
        format: PrintFormat,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrintFormat {
    Nft,
    Iptables,
}

/// The source of the configuration.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file [default: /etc/tcp-intercept/config.toml if it exists, else the built-in defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key, for example server.congestion-control=cubic; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Returns clap's description of the command line, from which the manual page is generated.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Ignore write errors: the terminal may be gone.
            let _ = err.print();
            let asked_for = matches!(err.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { Exit::Ok.into() } else { Exit::Usage.into() };
        }
    };
    match answer(cli) {
        Ok((text, exit)) => {
            match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => exit.into(),
                // The reader has closed the pipe, as `head` does.
                Err(err) if err.kind() == io::ErrorKind::BrokenPipe => exit.into(),
                Err(err) => {
                    eprintln!("tcp-intercept: writing to standard output: {err}");
                    Exit::OsErr.into()
                }
            }
        }
        Err(fatal) => {
            // If this program was to replace another one, the previous program runs again in its place.
            guardian::fallback::go_back(&fatal.message);
            complain(&fatal);
            fatal.exit.into()
        }
    }
}

/// Prints why the program ends. Waits up to a second until standard error is writable: a daemon must end even if nobody
/// reads it.
fn complain(fatal: &Fatal) {
    let mut room = [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
    if !matches!(poll(&mut room, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })), Ok(0)) {
        eprintln!("tcp-intercept: {fatal}");
    }
}

fn answer(cli: Cli) -> Result<(String, Exit), Fatal> {
    let Some(command) = cli.command else { return dropin::run(&cli.flags) };
    match command {
        Command::Run(args) => {
            let inherited = guardian::inherited()?;
            let setup = args.setup(inherited.as_ref())?;
            guardian::run(setup, inherited, || Ok(())).map(|text| (text, Exit::Ok))
        }
        Command::Check { config, json } => Ok(cmd::check::run(config.config.as_deref(), &config.set, json)),
        Command::Rules { action } => {
            let (action, config) = action.resolve();
            cmd::rules::run(action, &config.load()?).map(|text| (text, Exit::Ok))
        }
        Command::Upgrade { binary } => ask(&cmd::control::upgrade(binary)?),
        Command::Drain => ask(&control_socket::Command::Drain),
        Command::Stop => ask(&control_socket::Command::Stop),
    }
}

fn ask(command: &control_socket::Command) -> Result<(String, Exit), Fatal> {
    // Ignore write errors: the reader may have closed the pipe.
    cmd::control::ask(command, |text| drop(writeln!(io::stdout(), "{text}"))).map(|text| (text, Exit::Ok))
}

impl RulesAction {
    fn resolve(self) -> (Action, ConfigArgs) {
        match self {
            Self::Install(config) => (Action::Install, config),
            Self::Remove(config) => (Action::Remove, config),
            Self::Status(config) => (Action::Status, config),
            Self::Print { config, format: PrintFormat::Nft } => (Action::Print(Format::Nft), config),
            Self::Print { config, format: PrintFormat::Iptables } => {
                (Action::Print(Format::Iptables), config)
            }
        }
    }
}

impl ConfigArgs {
    /// Returns the setup for `run`. A program that replaces another one uses the configuration text that the other has
    /// read.
    fn setup(&self, inherited: Option<&Inherited>) -> Result<Setup, Fatal> {
        let text = match inherited {
            Some(Inherited { handover, .. }) => handover.config.clone(),
            None => cmd::check::read_text(self.config.as_deref())?,
        };
        let config = cmd::check::parse(self.config.as_deref(), text.as_deref(), &self.set)?;
        Ok(Setup { text, ..config.into() })
    }

    fn load(&self) -> Result<Config, Faults> {
        cmd::check::read_config(self.config.as_deref(), &self.set)
    }
}

impl From<Faults> for Fatal {
    fn from(faults: Faults) -> Self {
        Self::new(Exit::Config, format!("the configuration is refused, nothing was changed:\n{faults}"))
    }
}
