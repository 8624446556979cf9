//! Where it was measured.
use std::fmt;
use std::process::Command;

/// What the figures depend on most.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    pub kernel: String,
    pub processors: usize,
    pub haproxy: String,
}

impl Machine {
    pub fn this() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let haproxy = Command::new("haproxy").arg("-v").output();
        let haproxy = haproxy.unwrap_or_else(|err| panic!("haproxy (Debian: haproxy) cannot be run: {err}"));
        let version = String::from_utf8_lossy(&haproxy.stdout);
        // HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/
        let version = version.split_ascii_whitespace().nth(2).unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            haproxy: version.to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, {} processors, HAProxy {}", self.kernel, self.processors, self.haproxy)
    }
}
