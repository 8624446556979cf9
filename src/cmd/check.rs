//! `tcp-intercept check`. WIRING.
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::check;
use crate::config::{Config, Faults};
use crate::exit::Exit;

/// The configuration file if `--config` does not name one. It need not exist.
pub const DEFAULT_CONFIG: &str = "/etc/tcp-intercept/config.toml";

/// Runs `check`; returns the text for standard output and the exit status.
pub fn run(config: Option<&Path>, sets: &[String], json: bool) -> (String, Exit) {
    report(read_config(config, sets), json)
}

/// Checks this host for `config`. The status is 78 if the configuration is wrong (then nothing else is checked), 77 if
/// a capability is missing, and 69 if something else that is needed is missing.
pub fn report(config: Result<Config, Faults>, json: bool) -> (String, Exit) {
    let findings = match config {
        Ok(config) => check::judge(&config, &check::gather::facts(&config)),
        Err(faults) => check::faults(&faults),
    };
    let exit = check::exit(&findings);
    (if json { check::json(&findings, exit) } else { check::text(&findings) }, exit)
}

/// Reads the configuration in `file` and applies `sets` to it. Without `file` it reads the default file; if that does
/// not exist, it applies `sets` to the defaults.
pub fn read_config(file: Option<&Path>, sets: &[String]) -> Result<Config, Faults> {
    parse(file, read_text(file)?.as_deref(), sets)
}

/// Reads the text of `file`. Without `file` it reads the default file; `None` if that does not exist.
pub fn read_text(file: Option<&Path>) -> Result<Option<String>, Faults> {
    let path = file.unwrap_or(Path::new(DEFAULT_CONFIG));
    match fs::read_to_string(path) {
        Err(err) if file.is_none() && err.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|err| Faults::unreadable(path, &err)),
    }
}

/// Parses `text`, which is from `file`, and applies `sets` to it.
pub fn parse(file: Option<&Path>, text: Option<&str>, sets: &[String]) -> Result<Config, Faults> {
    let path = file.unwrap_or(Path::new(DEFAULT_CONFIG));
    Config::parse(text.unwrap_or_default(), sets).map_err(|faults| faults.in_file(path))
}
