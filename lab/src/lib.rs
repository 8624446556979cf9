//! Test support shared by the demo, the tests and the benchmarks of tcp-intercept: private namespaces, hosts and links
//! in them, traffic with known content, and the daemon as a guarded process.
//!
//! Setup failures panic with a message that says how to fix them. Nothing is skipped silently.
#![forbid(unsafe_code)]

pub mod acceleration;
pub mod bench;
mod daemon;
pub mod descriptors;
mod fault;
pub mod full_table;
mod host;
mod line;
pub mod load;
mod namespaces;
pub mod options;
mod pair;
pub mod peers;
mod process;
pub mod servers;
mod sh;
pub mod stream;
mod topology;
pub mod traffic;
mod wait;
pub mod wan;

pub use daemon::{Daemon, reachable, words, worker_of};
pub use fault::Fault;
pub use host::{End, Host, link};
pub use line::Line;
pub use namespaces::{netns, netns_as_user, program};
pub use pair::Pair;
pub use process::{Proc, find_log_writer, find_worker, working};
pub use topology::{BOTH, Ip, Lab, Shape};
pub use wait::{becomes, wait_until};
