//! Observes a transfer from outside: the bytes received so far, and `ss -ti` of the socket that sends over the WAN.
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::results::{Object, Outcome, Sample, Sender, Trace};
use super::stage::Stage;
use crate::host::Host;

/// The sampling interval. Each sample of the sender starts a process.
const EVERY: Duration = Duration::from_millis(75);

/// Traces `transfer`; `received` returns how many bytes have arrived.
pub(super) fn watch(
    stage: &Stage,
    object: Object,
    received: impl Fn() -> u64 + Sync,
    transfer: impl FnOnce() -> Outcome,
) -> (Outcome, Trace) {
    let (start, over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (host, filter) = stage.sender(object);
            let (mut samples, mut paths) = (Vec::new(), vec![Vec::new(); stage.pair.paths.len()]);
            let before: Vec<_> = stage.delivered(object).collect();
            for n in 0_u32.. {
                // Take the last sample after the transfer has ended.
                let last = over.load(Ordering::Relaxed);
                samples.push(Sample { at: start.elapsed(), bytes: received(), sender: ask(host, &filter) });
                for (path, (now, before)) in paths.iter_mut().zip(stage.delivered(object).zip(&before)) {
                    path.push(now - before);
                }
                if last {
                    break;
                }
                std::thread::sleep((EVERY * (n + 1)).saturating_sub(start.elapsed()));
            }
            (samples, paths)
        });
        let outcome = transfer();
        over.store(true, Ordering::Relaxed);
        let (samples, paths) = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (outcome, Trace { way: stage.way, object, samples, paths })
    })
}

fn ask(host: &Host, filter: &str) -> Option<Sender> {
    let words = filter.split(' ');
    let said = host.enter(|| Command::new("ss").args(["-Htin", "state", "established"]).args(words).output());
    parse(&String::from_utf8_lossy(&said.ok()?.stdout))
}

/// Returns the summed window of all listed sockets and the shortest round trip; `None` if there is no socket.
fn parse(listing: &str) -> Option<Sender> {
    let after =
        |word: &'static str| listing.split_ascii_whitespace().filter_map(move |text| text.strip_prefix(word));
    let windows: Vec<u32> = after("cwnd:").filter_map(|text| text.parse().ok()).collect();
    // rtt:100.216/0.107 is the smoothed round-trip time and its deviation, in milliseconds.
    let round_trips = after("rtt:").filter_map(|text| text.split('/').next()?.parse::<f64>().ok());
    let round_trip = round_trips.min_by(f64::total_cmp)?;
    (!windows.is_empty()).then(|| Sender {
        window: windows.iter().sum(),
        round_trip: Duration::from_secs_f64(round_trip / 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up_and_the_shortest_round_trip_counts() {
        let listing = "0 0 10.2.0.2:7000 10.1.0.2:40000\n\t cubic wscale:7,7 rto:304 rtt:100.216/0.107 mss:1448 cwnd:10 \
                       ssthresh:7 minrtt:100\n0 0 10.3.0.2:5001 10.3.0.1:40001\n\t bbr rtt:20.5/1 cwnd:32\n";
        let round_trip = Duration::from_micros(20_500);
        assert_eq!(parse(listing), Some(Sender { window: 42, round_trip }));
        assert_eq!(parse(""), None);
    }
}
