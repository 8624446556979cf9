//! `make bench`: routing, tcp-intercept and HAProxy side by side, in the same namespaces, by turns.
//!
//! All hosts share the processors of one machine, and the machine is never quite quiet: absolute figures say little.
//! So in each round every way is measured once, one right after the other, and what counts is the ratio within the
//! round: its median over the rounds, and how far the rounds lie apart.
use crate::topology::Lab;

mod figures;
mod haproxy;
mod measure;
mod plan;
mod rows;
mod scene;
mod spread;
mod ways;

pub use figures::Results;
pub use plan::Plan;
pub use rows::rows;
pub use spread::Spread;

use scene::Scene;

/// Measures what `plan` asks for, in a new [`Lab`]; `tell` hears what is being done.
///
/// # Panics
/// When something that is measured does not work.
pub fn run(plan: Plan, tell: impl Fn(&str)) -> Results {
    let ways = plan.ways();
    let scene = Scene::set(Lab::new(), plan);
    let mut results = Results::new(&scene.plan);
    for round in 0..scene.plan.rounds {
        for measurement in &scene.plan.only {
            for turn in 0..ways.len() {
                let way = &ways[(round + turn) % ways.len()];
                let started = way.start(&scene);
                for (figure, value) in measurement.take(&scene, &started) {
                    results.put(&figure, &way.name, value);
                }
                tell(&format!("round {}/{}  {measurement:6} {}", round + 1, scene.plan.rounds, way.name));
                started.stop();
            }
        }
    }
    results
}
