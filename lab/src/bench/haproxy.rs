//! HAProxy as a transparent proxy: its configuration, and the rules that direct connections to it.

/// The port of its listener. It listens on loopback only, like tcp-intercept, so it takes no port of a client.
pub(super) const PORT: u16 = 5001;

/// When HAProxy uses splice(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splice {
    /// When HAProxy expects a benefit (`option splice-auto`). Version 2.6 detects a fast stream after a few reads, but
    /// acts on it only when the stream's task runs next (`process_stream()` in src/stream.c). That can take as long as
    /// the shortest of its timeouts.
    Auto,
    /// From the first byte on. This is good for bulk transfers only.
    Always,
}

/// Returns a configuration suited to this comparison: pipes as large as tcp-intercept's, and a thread for each of two
/// processors. The connections and pipes, with two descriptors each, stay below a limit of 20,000 beside 9,000 idle
/// sessions.
pub(super) fn config(splice: Splice, idle: usize) -> String {
    let connections = idle + 400;
    let splice = match splice {
        Splice::Auto => "option splice-auto",
        Splice::Always => "option splice-request\n    option splice-response",
    };
    format!(
        "
global
    nbthread 2
    maxconn {connections}
    maxpipes 256
    tune.pipesize 1048576
defaults
    mode tcp
    {splice}
    option transparent
    source 0.0.0.0 usesrc client
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen clients
    bind 127.0.0.1:{PORT} transparent
"
    )
}

/// Sends the clients' SYNs to the listener, and packets of existing sockets to those sockets.
pub(super) const RULES: &str = "
table inet haproxy {
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        iifname \"lan0\" tcp flags & (fin | syn | rst | ack) == syn tproxy ip to 127.0.0.1:5001 meta mark set 0x1 accept
        meta l4proto { tcp, icmp } socket transparent 1 meta mark set 0x1 accept
    }
}";

/// Delivers marked packets locally, as the rules expect.
pub(super) const ROUTES: &str = "
    ip rule add fwmark 0x1 lookup 50 priority 100
    ip route add local default dev lo table 50";

/// Removes the rules and the routes.
pub(super) const REMOVE: &str = "
    nft delete table inet haproxy
    ip rule del fwmark 0x1 lookup 50 priority 100
    ip route del local default dev lo table 50";
