//! Traffic that counts itself while it runs, for the benchmark: bulk streams, round trips, connections, idle sessions.
//!
//! Client and server are threads of this process, each in its own network namespace. The box's own process therefore
//! shows only the cost of the box. One thread with epoll serves any number of connections, which minimises the load's
//! own use of the processors.
mod bulk;
mod connects;
mod echo;
mod idle;
mod poll;
mod round_trips;
mod worker;

pub use bulk::Bulk;
pub use connects::{Connects, Outcome};
pub use echo::Echo;
pub use idle::Idle;
pub use round_trips::RoundTrips;

/// The size of a request and of its answer, in bytes.
pub const MESSAGE: usize = 64;
