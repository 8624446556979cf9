//! What is counted. PURE: plain atomics, one or two of them touched in a connection's life.
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, in memory that may outlive the process.
#[derive(Debug, Clone, Copy)]
pub struct Counter(&'static AtomicU64);

impl Default for Counter {
    /// One of its own, which is never given back.
    fn default() -> Self {
        Self(Box::leak(Box::default()))
    }
}

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident => $word:literal,)+) => {
        /// Everything that the daemon counts.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: Counter,)+ }

        impl Counters {
            /// How many there are.
            pub const COUNT: usize = [$($word),+].len();

            /// Those that are kept in `words`, of which there must be [`Self::COUNT`] or more.
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

// Their order is that of their words in the table of sessions. Add a new counter at the end; any other change needs another LAYOUT.
counters! {
    /// Connections that were intercepted.
    accepted => "accepted",
    /// Sessions that ended with a FIN in both directions.
    ended_in_order => "ended-in-order",
    /// Server legs that came about when the same address and port were tried again.
    dialled_again => "dialled-again",
    /// Server legs from the client's address with another port.
    dialled_other_port => "dialled-other-port",
    /// Sessions without a server leg: refused, unreachable, or timed out.
    dial_failed => "dial-failed",
    /// Server legs whose SYN carried the client's first bytes, which were taken.
    fast_open_data => "fast-open-data",
    /// Server legs whose SYN with Fast Open was lost or whose data was not taken.
    fast_open_failed => "fast-open-failed",
    /// Server legs without Fast Open, because it failed with that server before.
    fast_open_avoided => "fast-open-avoided",
    /// Server legs that were Multipath TCP to their end.
    mptcp => "mptcp",
    /// Server legs that were to be Multipath TCP and are TCP: the server, this kernel, or something between them has it not.
    mptcp_failed => "mptcp-failed",
    /// Server legs without Multipath TCP, because it failed with that server before.
    mptcp_avoided => "mptcp-avoided",
    /// Sessions that one of our timeouts ended.
    timed_out => "timed-out",
    /// Connections to the listener itself.
    to_listener => "to-listener",
    /// Connections that were over before they could be accepted.
    aborted => "aborted",
    /// Times that the kernel had no descriptor or memory for one more connection.
    exhausted => "exhausted",
    /// Connections that were reset because they had waited for a place in vain.
    shed => "shed",
    /// Times that new connections were routed past us, because the limit was near or the kernel had nothing left.
    gate_closed => "gate-closed",
    /// Workers that died, were killed or hung.
    crashes => "crashes",
    /// Sessions that another worker has gone on with.
    taken_up => "taken-up",
    /// Sessions that were reset because they could not be gone on with.
    not_taken_up => "not-taken-up",
    /// Sessions that were reset because two workers in a row died while they drove them.
    given_up => "given-up",
    /// Times that the program was replaced while it ran.
    upgrades => "upgrades",
}

/// Says yes to the first and then to each ten times as many: what a peer can trigger must not fill a log.
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
    fn counters_are_said_by_name() {
        let counters = Counters::default();
        counters.dialled_again.count();
        assert!(counters.to_string().contains("dialled-again=1 dialled-other-port=0"));
    }
}
