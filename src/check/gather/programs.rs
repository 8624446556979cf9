//! What other programs say. EFFECT.
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::process::{Command, Output, Stdio};

use crate::check::facts::Nft;
use crate::check::ruleset::Ruleset;

/// What our rules are made of; tried by `nft -c`, which leaves nothing behind.
const TPROXY: &str = "\
table inet tcp_intercept_check {
  chain prerouting {
    type filter hook prerouting priority raw
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:5000 meta mark set meta mark or 0x1 notrack
    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:5000 meta mark set meta mark or 0x1 notrack
    meta l4proto tcp socket transparent 1 accept
  }
}
";

/// Asks nft for the ruleset, and whether the kernel takes a tproxy rule.
pub fn nft() -> Nft {
    let listed = match run("nft", &["-j", "list", "ruleset"], "") {
        Err(err) if err.kind() == ErrorKind::NotFound => return Nft::Missing,
        Err(err) => return Nft::Failed(err.to_string()),
        Ok(output) if !output.status.success() => return Nft::Failed(first_line(&output.stderr)),
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
    };
    let Some(ruleset) = Ruleset::parse(&listed) else {
        return Nft::Failed("its answer is no JSON".to_owned());
    };
    let tproxy = match run("nft", &["-c", "-f", "-"], TPROXY) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(first_line(&output.stderr)),
        Err(err) => Some(err.to_string()),
    };
    Nft::Works { ruleset, tproxy }
}

/// What `program -S INPUT` prints; `None` when it cannot.
pub fn legacy_input(program: &str) -> Option<String> {
    let output = run(program, &["-S", "INPUT"], "").ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program of the administrator's, also where an ordinary user's PATH does not have it.
fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    path.push(":/usr/sbin:/sbin");
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // The texts are smaller than a pipe; one that nobody reads is told by the exit status.
    child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output()
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or("it said nothing").trim().to_owned()
}
