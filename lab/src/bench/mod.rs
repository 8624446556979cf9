//! `make bench`: compares routing, tcp-intercept and HAProxy in the same namespaces, in turn.
//!
//! All hosts share the processors of one machine that is never quite idle, so absolute figures mean little. Each round
//! measures every way once, directly one after the other. The result is the ratio within a round: its median over the
//! rounds, and its spread.
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

/// The pause between two measurements: ended connections disappear, and the machine's other load is measured.
const PAUSE: Duration = Duration::from_millis(100);

/// Measures what `plan` selects, in a new [`Lab`]. Reports progress to `tell`.
///
/// # Panics
/// A measurement does not work.
pub fn run(plan: Plan, tell: impl Fn(&str)) -> Results {
    let ways = plan.ways();
    let scene = Scene::set(Lab::new(), plan);
    let mut results = Results::new(&scene.plan, Machine::this());
    for round in 0..scene.plan.rounds {
        for measurement in &scene.plan.only {
            let mut ways: Vec<&Way> = ways.iter().filter(|way| way.takes(*measurement)).collect();
            // Rotate the order: no way is always first, or always after the same other way.
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
