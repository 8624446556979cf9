//! Traffic that counts itself while it runs, for the benchmark: bulk streams, round trips, connections, idle sessions.
//!
//! Client and server are threads of this process, each in its own network namespace, and nothing else: what the box
//! spends is seen in the box's own process. One thread with epoll serves any number of connections, so that the load
//! takes no more of the processors than it must.
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

/// What a request and its answer have, in bytes.
pub const MESSAGE: usize = 64;
