//! The machine of the measurement, and its other load.
use std::fmt;
use std::process::Command;
use std::time::Duration;

/// The properties that influence the figures most.
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
            // Strip the distribution's suffix.
            kernel: kernel.split(['-', '\n']).next().unwrap_or_default().to_owned(),
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

/// Returns the share of the processors that other processes use during `pause`, in per cent. This process is idle
/// meanwhile.
pub(super) fn used_by_others(pause: Duration) -> f64 {
    let before = Times::now();
    std::thread::sleep(pause);
    Times::now().used_since(&before)
}

/// Processor time of all processors since boot, in the units of /proc/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    all: u64,
    idle: u64,
}

impl Times {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_else(|err| panic!("/proc/stat: {err}"));
        Self::parse(&stat).unwrap_or_else(|| panic!("/proc/stat has no times of the processors:\n{stat}"))
    }

    /// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`: man 5 proc_stat.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.strip_prefix("cpu ")?.lines().next()?.split_ascii_whitespace();
        let fields: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
        // The last two fields are already contained in the first two.
        let all = fields.iter().take(8).sum();
        Some(Self { all, idle: fields.get(3)? + fields.get(4)? })
    }

    fn used_since(self, before: &Self) -> f64 {
        let (all, idle) = (self.all - before.all, self.idle.saturating_sub(before.idle));
        100.0 * (1.0 - idle as f64 / all.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_neither_idle_nor_iowait_counts_as_used() {
        let before = Times::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!(before, Times { all: 1000, idle: 850 });
        let after = Times::parse("cpu  110 0 60 870 55 1 2 2 9 9\n").unwrap();
        assert_eq!(after.used_since(&before), 25.0);
    }
}
