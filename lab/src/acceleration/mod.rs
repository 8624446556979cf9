//! Measures how a bad link slows transfers down, and how tcp-intercept improves them. The same objects are sent end to
//! end, with a box near the client, and with a pair of boxes, over the same WAN.
mod compare;
#[cfg(test)]
mod example;
mod json;
mod judged;
mod limit;
mod page;
mod results;
mod stage;
mod table;
mod transfer;
mod units;
mod watch;

pub use compare::{Compared, Frames, Plan, compare};
pub use json::json;
pub use limit::limit;
pub use page::link::sentences as describe;
pub use page::page;
pub use results::{Comparison, Measured, Object, Outcome, Results, Sample, Sender, Trace, Way};
pub use table::rows;
