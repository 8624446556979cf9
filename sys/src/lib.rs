//! The system calls of tcp-intercept that no library offers: one safe function each, with a borrowed descriptor as
//! argument and a typed result, without policy or logging. This is the only crate with `unsafe`.

mod descriptors;
mod event;
mod mptcp;
mod packet;
mod peer;
mod process;
mod resolve;
mod signals;
mod sockopt;
mod words;

pub use descriptors::{
    Registered, Unowned, close_unregistered, inherit, keep_over_exec, open_descriptors, set_close_on_exec,
};
pub use event::{Unregistered, async_descriptor, async_socket};
pub use mptcp::{Subflow, subflows};
pub use packet::packet_socket;
pub use peer::{Peer, peer};
pub use process::{Fork, die_with_caller, exit_now, fork, fork_keeping, spawn_sharing_descriptors};
pub use resolve::{Part, resolve};
pub use signals::Signals;
pub use sockopt::{
    Connection, DataInSyn, Handshake, MemInfo, Stage, accept_queue, at_urgent_mark, connection, handshake,
    is_mptcp, mem_info, set_bind_address_no_port, set_fast_open, set_fast_open_connect,
    set_fast_open_no_cookie, set_first_window, set_notsent_lowat, unconfirmed, unsent,
};
pub use words::{Visible, map_words};
