//! The order in which the ways over a WAN are measured.
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::results::{Comparison, Measured, Object, Outcome, Trace, Way};
use super::stage::Stage;
use super::transfer::{transfer, watched};
use crate::wan::{Counts, Loss, Profile};

/// The plan of a comparison: what to measure, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The WANs.
    pub profiles: Vec<Profile>,
    /// How often each of the small objects is fetched.
    pub small_rounds: usize,
    /// How often each of the large objects is transferred with a box or two; end to end they are transferred once.
    pub large_rounds: usize,
    /// The time limit of a transfer. A transfer that reaches it is cut, and its rate counts.
    pub cut: Duration,
    /// The path of the program.
    pub binary: PathBuf,
}

/// A comparison, and the faults found during it.
#[derive(Debug)]
pub struct Compared {
    /// The figures.
    pub comparison: Comparison,
    /// Faults of the program; empty if there were none.
    pub wrong: Vec<String>,
    /// Frame counts of the WAN over all ways.
    pub frames: Frames,
}

/// Frame counts that show whether the machine disturbed the measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frames {
    /// Frames that were delivered.
    pub delivered: u64,
    /// Delivered frames that were more than a millisecond late.
    pub late: u64,
    /// Frames dropped because the machine was too busy.
    pub missed: u64,
}

/// A way, and the objects that are sent over it.
struct Turn {
    way: Way,
    objects: Vec<Object>,
}

/// Measures all ways over the WAN of `profile`. Reports the result of each transfer to `tell`.
///
/// # Panics
/// Something cannot be set up, or an object does not arrive intact.
pub fn compare(profile: &Profile, plan: &Plan, tell: impl Fn(&str) + Sync) -> Compared {
    let (beside, in_turn) = turns(profile);
    let run = |turn: &Turn| measure(profile, plan, turn, &tell);
    let parts = Mutex::new(Vec::new());
    let keep = |part: Part| parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    std::thread::scope(|scope| {
        for turn in &beside {
            scope.spawn(|| keep(run(turn)));
        }
        in_turn.iter().for_each(|turn| keep(run(turn)));
    });
    let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
    sorted(profile, parts)
}

/// Returns the turns that run in parallel from the beginning, and those that run one after another meanwhile. Turns
/// that loss slows down leave the machine free for the others, and would take minutes if run alone.
fn turns(profile: &Profile) -> (Vec<Turn>, Vec<Turn>) {
    let turn = |way, objects: &[Object]| Turn { way, objects: objects.to_vec() };
    let (ups, others): (Vec<_>, Vec<_>) =
        Object::ALL.iter().partition(|object| matches!(object, Object::Up(_)));
    let lossless =
        profile.paths.iter().all(|path| [path.to_server.loss, path.to_client.loss] == [Loss::None; 2]);
    // A pair whose far box issues no cookies needs its own turn.
    let (without, with): (Vec<_>, Vec<_>) =
        Object::ALL.iter().partition(|object| matches!(object, Object::BannerWithoutCookie));
    let pairs = [turn(Way::Pair, &with), turn(Way::Pair, &without)];
    if lossless {
        let alone = [Way::EndToEnd, Way::OneBox].map(|way| turn(way, &Object::ALL));
        return (Vec::new(), alone.into_iter().chain(pairs).collect());
    }
    // A box near the client speeds up uploads only.
    let beside = vec![turn(Way::EndToEnd, &others), turn(Way::EndToEnd, &ups), turn(Way::OneBox, &others)];
    (beside, std::iter::once(turn(Way::OneBox, &ups)).chain(pairs).collect())
}

/// The results of a turn.
#[derive(Default)]
struct Part {
    measured: Vec<Measured>,
    traces: Vec<Trace>,
    wrong: Vec<String>,
    frames: Frames,
}

fn measure(profile: &Profile, plan: &Plan, turn: &Turn, tell: &(impl Fn(&str) + Sync)) -> Part {
    let with_cookies = turn.objects != [Object::BannerWithoutCookie];
    let stage = Stage::set(profile, turn.way, with_cookies, &plan.binary);
    let mut part = Part::default();
    // The first connection between two hosts differs: with Fast Open it requests the cookie.
    transfer(&stage, Object::FirstByte, plan.cut);
    for object in turn.objects.iter().copied() {
        let rounds = match (object.is_large(), turn.way) {
            (true, Way::EndToEnd) => 1,
            (true, _) => plan.large_rounds,
            (false, _) => plan.small_rounds,
        };
        let mut outcomes = Vec::new();
        for round in 0..rounds {
            if object.is_large() && round == 0 {
                let (outcome, trace) = watched(&stage, object, plan.cut);
                part.traces.push(trace);
                outcomes.push(outcome);
            } else {
                outcomes.push(transfer(&stage, object, plan.cut));
            }
        }
        let measured = Measured { way: turn.way, object, outcomes };
        tell(&format!("{}: {} over {}: {}", profile.name, object, turn.way, shown(&measured)));
        part.measured.push(measured);
    }
    for path in &stage.pair.paths {
        part.frames.add(path.to_server().into());
        part.frames.add(path.to_client().into());
    }
    part.wrong = stage.strike();
    part
}

fn shown(measured: &Measured) -> String {
    match measured.median() {
        None => "not measured".to_owned(),
        Some(Outcome::Done(time)) if time < Duration::from_secs(1) => {
            format!("{:.0} ms", time.as_secs_f64() * 1e3)
        }
        Some(Outcome::Done(time)) => format!("{:.2} s", time.as_secs_f64()),
        Some(Outcome::Cut { after, bytes }) => {
            let rate = bytes as f64 * 8.0 / after.as_secs_f64() / 1e6;
            format!("cut after {:.0} s, at {rate:.2} Mbit/s", after.as_secs_f64())
        }
    }
}

impl Frames {
    /// Adds the counts of `others`.
    pub fn add(&mut self, others: Self) {
        self.delivered += others.delivered;
        self.late += others.late;
        self.missed += others.missed;
    }
}

impl From<Counts> for Frames {
    fn from(Counts { delivered, late, missed, .. }: Counts) -> Self {
        Self { delivered, late, missed }
    }
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delivered, late, missed } = self;
        let share = 100.0 * *late as f64 / (*delivered).max(1) as f64;
        write!(
            f,
            "the WAN delivered {delivered} frames, {share:.1} % of them more than 1 ms too late, and missed {missed}"
        )
    }
}

fn sorted(profile: &Profile, parts: Vec<Part>) -> Compared {
    let mut all = Part::default();
    for part in parts {
        all.measured.extend(part.measured);
        all.traces.extend(part.traces);
        all.wrong.extend(part.wrong);
        all.frames.add(part.frames);
    }
    let place = |way, object| {
        let object = Object::ALL.iter().position(|other| *other == object);
        (object, Way::ALL.iter().position(|other| *other == way))
    };
    all.measured.sort_by_key(|measured| place(measured.way, measured.object));
    all.traces.sort_by_key(|trace| place(trace.way, trace.object));
    let comparison = Comparison { profile: profile.clone(), measured: all.measured, traces: all.traces };
    Compared { comparison, wrong: all.wrong, frames: all.frames }
}
