//! `make bench`: routing, tcp-intercept and HAProxy side by side, in the same namespaces, by turns.
//!
//! All hosts share the processors of one machine, and the machine is never quite quiet: absolute figures say little.
//! So in each round every way is measured once, one right after the other, and what counts is the ratio within the
//! round: its median over the rounds, and how far the rounds lie apart.
use std::time::Duration;

use crate::topology::Lab;

mod figures;
mod haproxy;
mod json;
mod machine;
mod measure;
mod plan;
mod plot;
mod results;
mod rows;
mod scene;
mod spread;
mod ways;

pub use json::json;
pub use measure::Measurement;
pub use plan::Plan;
pub use plot::plot;
pub use results::Results;
pub use rows::rows;

use machine::{Machine, used_by_others};
use scene::Scene;
use ways::Way;

/// Between two measurements: for what has ended to be gone, and to see what else this machine has to do.
const PAUSE: Duration = Duration::from_millis(100);

/// Measures what `plan` asks for, in a new [`Lab`]; `tell` hears what has been done.
///
/// # Panics
/// When something that is to be measured does not work.
pub fn run(plan: Plan, tell: impl Fn(&str)) -> Results {
    let ways = plan.ways();
    let scene = Scene::set(Lab::new(), plan);
    let mut results = Results::new(&scene.plan, Machine::this());
    for round in 0..scene.plan.rounds {
        for measurement in &scene.plan.only {
            let mut ways: Vec<&Way> = ways.iter().filter(|way| way.takes(*measurement)).collect();
            // No way is always the first, or always the one after the same other.
            let first = round % ways.len();
            ways.rotate_left(first);
            for way in ways {
                let started = way.start(&scene);
                let measured = measurement.take(&scene, &started);
                started.stop();
                results.noise.push(used_by_others(PAUSE));
                measured.iter().for_each(|(figure, value)| results.put(figure, &way.name, *value));
                tell(&format!("round {} of {}: {measurement}, {}", round + 1, scene.plan.rounds, way.name));
            }
        }
    }
    results
}
