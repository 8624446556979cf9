//! Runs nft and the legacy iptables, and reads their output. EFFECT.
use std::io::{self, ErrorKind, Write};
use std::process::{Command, Output, Stdio};

use crate::check::facts::Nft;
use crate::check::ruleset::Ruleset;
use crate::config::Config;
use crate::host::rules::{self, Format};

/// Lists the ruleset with nft, and checks with `nft -c`, which changes nothing, whether the kernel accepts the rules.
pub fn nft(config: &Config) -> Nft {
    let listed = match run("nft", &["-j", "list", "ruleset"], "") {
        Err(err) if err.kind() == ErrorKind::NotFound => return Nft::Missing,
        Err(err) => return Nft::Failed(err.to_string()),
        Ok(output) if !output.status.success() => return Nft::Failed(first_line(&output.stderr)),
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
    };
    let Some(ruleset) = Ruleset::parse(&listed) else {
        return Nft::Failed("its output is not JSON".to_owned());
    };
    let refused = match run("nft", &["-c", "-f", "-"], &rules::print(config, Format::Nft)) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(first_line(&output.stderr)),
        Err(err) => Some(err.to_string()),
    };
    Nft::Works { ruleset, refused }
}

/// Returns the output of `program -S INPUT`; `None` if the program fails or cannot run.
pub fn legacy_input(program: &str) -> Option<String> {
    let output = run(program, &["-S", "INPUT"], "").ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // The input fits into the pipe, so that the write does not block. The exit status reports an error.
    child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output()
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or("it printed no message").trim().to_owned()
}
