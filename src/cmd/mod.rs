//! The subcommands: each turns its arguments into the text for standard output. WIRING.
pub mod check;
pub mod control;
pub mod rules;
