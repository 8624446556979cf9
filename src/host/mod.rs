//! What the program reads and changes on this machine: rules, routes, paths, and what the kernel can do. EFFECT.
pub(crate) mod follow;
pub mod kernel;
pub mod paths;
pub mod reserve;
pub mod rules;
pub mod wan;
