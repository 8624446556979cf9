//! What a bad link does to its users, and what tcp-intercept makes of it: the same objects end to end, with a box near the
//! client, and with a pair of boxes, over the same WAN.
mod compare;
mod limit;
mod results;
mod stage;
mod transfer;
mod watch;

pub use compare::{Compared, Frames, Plan, compare};
pub use limit::limit;
pub use results::{Comparison, Measured, Object, Outcome, Results, Sample, Sender, Trace, Way};
