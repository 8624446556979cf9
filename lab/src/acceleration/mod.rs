//! What a bad link does to its users, and what tcp-intercept makes of it: the same objects end to end, with a box near the
//! client, and with a pair of boxes, over the same WAN.
mod limit;
mod results;

pub use limit::limit;
pub use results::{Comparison, Measured, Object, Outcome, Results, Sample, Sender, Trace, Way};
