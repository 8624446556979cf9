//! `tcp-intercept check`. WIRING.
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::check;
use crate::config::{Config, Faults};
use crate::exit::Exit;

/// Where the configuration is when `--config` does not say it; there need be none.
pub const DEFAULT_CONFIG: &str = "/etc/tcp-intercept/config.toml";

/// The text for standard output and the exit status of `check`.
pub fn run(config: Option<&Path>, sets: &[String], json: bool) -> (String, Exit) {
    report(read_config(config, sets), json)
}

/// Checks this host for `config`; the status is 78 when the configuration is wrong (nothing else is looked at then), 77
/// when a capability is missing, 69 when something else that is needed is missing.
pub fn report(config: Result<Config, Faults>, json: bool) -> (String, Exit) {
    let findings = match config {
        Ok(config) => check::judge(&config, &check::gather::facts(&config)),
        Err(faults) => check::faults(&faults),
    };
    let exit = check::exit(&findings);
    (if json { check::json(&findings, exit) } else { check::text(&findings) }, exit)
}

/// The configuration in `file`, with `sets` over it. Without `file` it is the default file, or what the defaults and
/// `sets` make when there is none.
pub fn read_config(file: Option<&Path>, sets: &[String]) -> Result<Config, Faults> {
    parse(file, read_text(file)?.as_deref(), sets)
}

/// The text of `file`; without `file` of the default one, if it is there.
pub fn read_text(file: Option<&Path>) -> Result<Option<String>, Faults> {
    let path = file.unwrap_or(Path::new(DEFAULT_CONFIG));
    match fs::read_to_string(path) {
        Err(err) if file.is_none() && err.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|err| Faults::unreadable(path, &err)),
    }
}

/// The configuration that `text` from `file` says, with `sets` over it.
pub fn parse(file: Option<&Path>, text: Option<&str>, sets: &[String]) -> Result<Config, Faults> {
    let path = file.unwrap_or(Path::new(DEFAULT_CONFIG));
    Config::parse(text.unwrap_or_default(), sets).map_err(|faults| faults.in_file(path))
}
