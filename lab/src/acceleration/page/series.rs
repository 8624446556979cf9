//! Converts the samples of a transfer to the points of a line.
use crate::acceleration::results::{Sample, Sender, Trace};

/// A time in seconds, and a value.
pub(super) type Point = (f64, f64);

/// The number of points that are distinguishable in a panel.
const POINTS: f64 = 300.0;

/// Returns the time of the last byte or of the cut, in seconds.
pub(super) fn end(trace: &Trace) -> f64 {
    trace.samples.last().map_or(0.0, |sample| sample.at.as_secs_f64())
}

/// Returns whether the whole object arrived.
pub(super) fn complete(trace: &Trace) -> bool {
    trace.samples.last().is_some_and(|sample| sample.bytes >= trace.object.bytes())
}

/// Returns the received rate in Mbit/s: at each time, the mean over the `window` around it, within the transfer's
/// duration.
pub(super) fn throughput(trace: &Trace, span: f64, window: f64) -> Vec<Point> {
    let bytes: Vec<_> = trace.samples.iter().map(|sample| sample.bytes).collect();
    rate(trace, &bytes, span, window)
}

/// Returns the rate that path `nth` delivered, like [`throughput`], but of whole frames instead of payload.
pub(super) fn of_path(trace: &Trace, nth: usize, span: f64, window: f64) -> Vec<Point> {
    trace.paths.get(nth).map_or_else(Vec::new, |delivered| rate(trace, delivered, span, window))
}

/// Returns the rate of `counted`, which has one number per sample.
fn rate(trace: &Trace, counted: &[u64], span: f64, window: f64) -> Vec<Point> {
    let end = end(trace);
    let points = moments(end, span).map(|at| {
        let (from, to) = ((at - window / 2.0).max(0.0), (at + window / 2.0).min(end));
        let bytes = (bytes(&trace.samples, counted, to) - bytes(&trace.samples, counted, from)).max(0.0);
        (at, bytes * 8.0 / 1e6 / (to - from).max(1e-3))
    });
    points.collect()
}

/// Returns the value `of` of the sender over time, as one line for each period in which there is a sender.
pub(super) fn of_sender(trace: &Trace, span: f64, of: fn(Sender) -> f64) -> Vec<Vec<Point>> {
    let mut lines = vec![Vec::new()];
    for at in moments(end(trace), span) {
        let before = trace.samples.partition_point(|sample| sample.at.as_secs_f64() <= at);
        let sender = before.checked_sub(1).and_then(|last| trace.samples[last].sender);
        match (sender, lines.last_mut()) {
            (Some(sender), Some(line)) => line.push((at, of(sender))),
            (None, Some(line)) if !line.is_empty() => lines.push(Vec::new()),
            _ => {}
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// Returns evenly spaced times from the start to the end of the transfer or the panel, including that end.
fn moments(end: f64, span: f64) -> impl Iterator<Item = f64> {
    let last = end.min(span);
    let step = (span / POINTS).max(1e-3);
    (0..=(last / step) as u32).map(move |nth| f64::from(nth) * step).chain([last])
}

/// Interpolates the bytes at time `at` between two samples; 0 before connect().
fn bytes(samples: &[Sample], counted: &[u64], at: f64) -> f64 {
    let seconds = |sample: &Sample| sample.at.as_secs_f64();
    let after = samples.partition_point(|sample| seconds(sample) <= at);
    let (from, had) =
        after.checked_sub(1).map_or((0.0, 0.0), |last| (seconds(&samples[last]), counted[last] as f64));
    samples.get(after).map_or(had, |next| {
        let share = (at - from) / (seconds(next) - from).max(1e-9);
        had + (counted[after] as f64 - had) * share
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::acceleration::results::{Object, Way};

    fn trace(samples: &[(f64, u64, Option<u32>)]) -> Trace {
        let samples = samples.iter().map(|(at, bytes, window)| Sample {
            at: Duration::from_secs_f64(*at),
            bytes: *bytes,
            sender: window.map(|window| Sender { window, round_trip: Duration::from_millis(100) }),
        });
        let samples: Vec<_> = samples.collect();
        let paths = vec![samples.iter().map(|sample| 2 * sample.bytes).collect()];
        Trace { way: Way::Pair, object: Object::Down(2_000_000), samples, paths }
    }

    #[test]
    fn an_even_transfer_is_a_level_line_to_its_end() {
        let even = trace(&[(1.0, 1_000_000, Some(10)), (2.0, 2_000_000, Some(10))]);
        let line = throughput(&even, 4.0, 0.2);
        assert!(line.iter().all(|(_, mbit)| (7.99..8.01).contains(mbit)), "{line:?}");
        assert_eq!(line.last().map(|(at, _)| *at), Some(2.0));
        assert!(complete(&even));
        let path = of_path(&even, 0, 4.0, 0.2);
        assert!(path.iter().all(|(_, mbit)| (15.99..16.01).contains(mbit)), "{path:?}");
        assert!(of_path(&even, 1, 4.0, 0.2).is_empty());
    }

    #[test]
    fn a_missing_sender_interrupts_the_line() {
        let gap = trace(&[(0.5, 0, Some(10)), (1.0, 0, None), (1.5, 0, Some(2)), (2.0, 0, Some(3))]);
        let lines = of_sender(&gap, 2.0, |sender| sender.window.into());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].last(), Some(&(2.0, 3.0)));
        assert!(!complete(&gap));
    }

    #[test]
    fn no_samples_give_no_line() {
        let nothing = trace(&[]);
        assert!(throughput(&nothing, 0.0, 0.2).iter().all(|(_, mbit)| *mbit == 0.0));
        assert!(of_sender(&nothing, 1.0, |_| 1.0).is_empty());
    }
}
