//! Invented but plausible results, for the tests of the drawings.
use std::time::Duration;

use super::{Comparison, Measured, Object, Outcome, Results, Sample, Sender, Trace, Way, limit};
use crate::stream::Random;
use crate::wan::{Loss, Profile};

const CUT: f64 = 45.0;
const STEP: f64 = 0.02;
const SEGMENT: f64 = 1448.0;

/// Returns results of all profiles, with three rounds.
pub fn results() -> Results {
    let conditions = [
        "2026-11-25 21:00 UTC, Linux 6.12, 2 processors",
        "3 rounds of each object on each way, in turn; transfers were cut after 45 s",
        "client and server: CUBIC; boxes: BBR & Multipath TCP, <no configuration>",
    ];
    Results {
        conditions: conditions.map(str::to_owned).to_vec(),
        comparisons: Profile::all().into_iter().map(comparison).collect(),
    }
}

/// Returns the comparison of one profile.
pub fn comparison(profile: Profile) -> Comparison {
    let all = || Object::ALL.into_iter().flat_map(|object| Way::ALL.map(|way| (object, way)));
    let measured = all().map(|(object, way)| {
        let outcomes = (1..=3).map(|round| outcome(&profile, way, object, round)).collect();
        Measured { way, object, outcomes }
    });
    let measured = measured.collect();
    let traces = all().filter(|(object, _)| object.is_large());
    let traces = traces.map(|(object, way)| trace(&profile, way, object, 1)).collect();
    Comparison { profile, measured, traces }
}

fn outcome(profile: &Profile, way: Way, object: Object, round: u64) -> Outcome {
    if !object.is_large() {
        let spread = 1.0 + 0.02 * round as f64;
        let trips = [2.0, 1.9, 1.1][way as usize];
        return Outcome::Done(limit(profile, object).mul_f64(trips * spread));
    }
    let last = trace(profile, way, object, round).samples.last().copied().unwrap();
    if last.bytes == object.bytes() {
        Outcome::Done(last.at)
    } else {
        Outcome::Cut { after: last.at, bytes: last.bytes }
    }
}

/// Simulates a sender with a congestion window. A box's sender reacts to the rate, an endpoint's to losses.
fn trace(profile: &Profile, way: Way, object: Object, round: u64) -> Trace {
    let link = profile.paths[0].to_client;
    let boxed = way == Way::Pair || (way == Way::OneBox && matches!(object, Object::Up(_)));
    let mut random = Random::new(round * 31 + way as u64);
    let round_trip = link.delay.as_secs_f64() * 2.0;
    let paths = if way == Way::Pair { profile.paths.as_slice() } else { &profile.paths[..1] };
    let rate: u64 = paths.iter().map(|path| path.to_client.rate.unwrap().bits()).sum();
    let rate = rate as f64 / 8.0 * 0.956;
    let full = rate * round_trip / SEGMENT;
    let loss = match link.loss {
        Loss::None => 0.0,
        Loss::Random(share) => share,
        Loss::Bursty { .. } => 0.003,
    };
    let (mut window, mut starts, mut bytes, mut at) = (10.0_f64, true, 0.0_f64, 0.0_f64);
    let mut samples = Vec::new();
    while at < CUT && bytes < object.bytes() as f64 {
        let queued = (window - full).clamp(0.0, full) / full * round_trip;
        let sends = at > 1.5 * round_trip;
        let speed = (window * SEGMENT / (round_trip + queued)).min(rate);
        if sends {
            let moved = speed * STEP * (0.8 + random.below(40) as f64 / 100.0);
            bytes = (bytes + moved).min(object.bytes() as f64);
            let hit = (random.below(100_000) as f64) < loss * moved / SEGMENT * 100_000.0;
            window += if starts { window * STEP / round_trip } else { STEP / round_trip };
            if boxed {
                starts &= window < full * 1.6;
                window = if starts { window } else { full * (1.2 + random.below(20) as f64 / 100.0) };
            } else if hit || window > full * 2.0 {
                (starts, window) = (false, (window * 0.7).max(2.0));
            }
        }
        let sender = sends.then(|| Sender {
            window: window as u32,
            round_trip: Duration::from_secs_f64(round_trip + queued + random.below(4) as f64 / 1000.0),
        });
        at += STEP;
        samples.push(Sample { at: Duration::from_secs_f64(at), bytes: bytes as u64, sender });
    }
    // Only a pair uses paths other than the first.
    let used = if way == Way::Pair { profile.paths.len() } else { 1 };
    let share = |nth: usize, bytes: u64| if nth < used { bytes / used as u64 } else { 0 };
    let of_path = |nth| samples.iter().map(|sample: &Sample| share(nth, sample.bytes)).collect();
    let paths = (0..profile.paths.len()).map(of_path).collect();
    Trace { way, object, samples, paths }
}
