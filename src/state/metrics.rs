//! The counters. PURE: plain atomics; a connection touches one or two of them.
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows, in memory that may outlive the process.
#[derive(Debug, Clone, Copy)]
pub struct Counter(&'static AtomicU64);

impl Default for Counter {
    /// Creates a counter in its own memory, which is never freed.
    fn default() -> Self {
        Self(Box::leak(Box::default()))
    }
}

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident => $word:literal,)+) => {
        /// All counters of the daemon.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: Counter,)+ }

        impl Counters {
            /// The number of counters.
            pub const COUNT: usize = [$($word),+].len();

            /// Returns the counters that are stored in `words`, which must have at least [`Self::COUNT`] elements.
            pub fn over(words: &'static [AtomicU64]) -> Self {
                let mut words = words.iter();
                $(let $name = words.next().map_or_else(Counter::default, Counter);)+
                Self { $($name,)+ }
            }
        }

        impl fmt::Display for Counters {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut gap = "";
                $(write!(f, "{gap}{}={}", $word, self.$name.get())?; gap = " ";)+
                let _ = gap;
                Ok(())
            }
        }
    };
}

// The order is that of the words in the session table. Add new counters at the end; any other change needs another
// LAYOUT.
counters! {
    /// Connections that were intercepted.
    accepted => "accepted",
    /// Sessions that ended with a FIN in both directions.
    ended_in_order => "ended-in-order",
    /// Server legs that connected when the same address and port were retried.
    dialled_again => "dialled-again",
    /// Server legs from the client's address with another port.
    dialled_other_port => "dialled-other-port",
    /// Sessions without a server leg: refused, unreachable, or timed out.
    dial_failed => "dial-failed",
    /// Server legs whose SYN carried the client's first bytes, which the server accepted.
    fast_open_data => "fast-open-data",
    /// Server legs whose Fast Open SYN was lost, or whose data was not accepted.
    fast_open_failed => "fast-open-failed",
    /// Server legs without Fast Open, because it failed with that server before.
    fast_open_avoided => "fast-open-avoided",
    /// Server legs that used Multipath TCP to their end.
    mptcp => "mptcp",
    /// Server legs that were to use Multipath TCP and use TCP: the server, this kernel or a middlebox does not support
    /// it.
    mptcp_failed => "mptcp-failed",
    /// Server legs without Multipath TCP, because it failed with that server before.
    mptcp_avoided => "mptcp-avoided",
    /// Sessions that one of our timeouts ended.
    timed_out => "timed-out",
    /// Connections to the listener itself.
    to_listener => "to-listener",
    /// Connections that ended before they could be accepted.
    aborted => "aborted",
    /// Times that the kernel had no descriptor or memory for another connection.
    exhausted => "exhausted",
    /// Connections that were reset because they had waited for a second without success.
    shed => "shed",
    /// Times that the gate was closed, because the limit was near or the kernel was out of descriptors or memory.
    gate_closed => "gate-closed",
    /// Workers that died or hung, or were killed.
    crashes => "crashes",
    /// Sessions that another worker resumed.
    taken_up => "taken-up",
    /// Sessions that were reset because they could not be resumed.
    not_taken_up => "not-taken-up",
    /// Sessions that were reset because two workers in a row died while driving them.
    given_up => "given-up",
    /// Times that the program was replaced while it ran.
    upgrades => "upgrades",
}

/// Returns whether `count` is 1, 10, 100 …: events that a peer can cause must not fill the log.
pub fn worth_a_line(count: u64) -> bool {
    count > 0 && 10_u64.pow(count.ilog10()) == count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_warnings_make_seven_lines() {
        assert_eq!((0..=1_000_000).filter(|&n| worth_a_line(n)).count(), 7);
    }

    #[test]
    fn counters_are_printed_by_name() {
        let counters = Counters::default();
        counters.dialled_again.count();
        assert!(counters.to_string().contains("dialled-again=1 dialled-other-port=0"));
    }
}
