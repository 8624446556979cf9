//! The command line: what is asked, and where the answer goes. WIRING; the only module that prints.
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

/// Accelerates the TCP connections that pass through this machine, for endpoints that know nothing of it.
///
/// With a subcommand it does what that says. Without one, with the options of tcp-intercept 1.1.0 or none, it does what 1.1.0 did:
/// it installs no rules, listens where -b says, and goes into the background.
#[derive(Debug, Parser)]
#[command(name = "tcp-intercept", version, args_conflicts_with_subcommands = true)]
// As with getopt_long(3), which 1.1.0 used: the last of several counts, and a long name may be cut short.
#[command(args_override_self = true, infer_long_args = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Intercept, in the foreground, until SIGINT or SIGTERM.
    Run(ConfigArgs),
    /// What is wrong with the configuration or the host, why it matters, and the command that mends it.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// The rules that bring connections to the listener.
    Rules {
        #[command(subcommand)]
        action: RulesAction,
    },
    /// Replace the running daemon's program, with every connection going on.
    ///
    /// The new one is tried first; one that cannot go on changes nothing. SIGUSR2 does the same.
    Upgrade {
        /// The new program [default: what is now where the daemon was started from]
        #[arg(value_name = "BINARY")]
        binary: Option<PathBuf>,
    },
    /// Have new connections routed past the daemon, which ends when its last session has, or at stop.drain-deadline.
    Drain,
    /// End the daemon now: every session is reset, at both ends.
    Stop,
}

#[derive(Debug, Subcommand)]
enum RulesAction {
    /// Install them; what is right already is not touched.
    Install(ConfigArgs),
    /// Take away exactly what is ours.
    Remove(ConfigArgs),
    /// Compare what is installed with the configuration; exit 69 when it differs.
    Status(ConfigArgs),
    /// Show what install does.
    Print {
        #[command(flatten)]
        config: ConfigArgs,
        /// "nft": what nft gets; "iptables": commands for a shell on a host that has only iptables
        #[arg(long, value_enum, default_value_t = PrintFormat::Nft)]
        format: PrintFormat,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrintFormat {
    Nft,
    Iptables,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file [default: /etc/tcp-intercept/config.toml if it exists, else every default]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key, as in server.congestion-control=cubic; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The command line as clap knows it: what the manual page is made from.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line asks.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = err.print();
            let asked_for = matches!(err.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { Exit::Ok.into() } else { Exit::Usage.into() };
        }
    };
    match answer(cli) {
        Ok((text, exit)) => {
            match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => exit.into(),
                // Whoever reads has read enough, as `head` does.
                Err(err) if err.kind() == io::ErrorKind::BrokenPipe => exit.into(),
                Err(err) => {
                    eprintln!("tcp-intercept: writing to standard output: {err}");
                    Exit::OsErr.into()
                }
            }
        }
        Err(fatal) => {
            // Of an upgrade that has failed: then the previous program runs in this one's place.
            guardian::fallback::go_back(&fatal.message);
            complain(&fatal);
            fatal.exit.into()
        }
    }
}

/// Prints why the program ends. A daemon must end also beside a standard error that nobody reads: this waits a second for room there.
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
    // Nobody is harmed when whoever asked does not listen.
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
    /// What `run` is to do. What a program goes on with that takes another's place is as that has read it.
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
