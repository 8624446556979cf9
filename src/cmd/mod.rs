//! The subcommands: what each does with its arguments. WIRING.
pub mod check;
