//! Resolves the values of `-b` and `-B` to one address each. EFFECT: names are looked up.
use std::io;
use std::net::SocketAddr;

use crate::config::Source;
use crate::exit::{Exit, Fatal};

use super::bind_spec::{BadSpec, BindSpec, Outgoing, Part};

/// Why a value gives no address. Each variant contains the option and its value.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The value is malformed.
    #[error("{option} {text}: {why}")]
    Written {
        /// The option: `-b` or `-B`.
        option: &'static str,
        /// Its value.
        text: String,
        /// What is wrong with it.
        why: BadSpec,
    },
    /// The host or the port does not exist.
    #[error("{option} {spec}: it does not resolve to an address ({err}); {}", look_at(spec))]
    Unresolved {
        /// The option: `-b` or `-B`.
        option: &'static str,
        /// Its value.
        spec: BindSpec,
        /// The resolver's answer.
        err: io::Error,
    },
    /// The value resolves to several addresses.
    #[error(
        "{option} {spec}: it resolves to several addresses, write one of them:{}",
        found.iter().map(|addr| format!("\n  {option} [{}]:[{}]", addr.ip(), addr.port())).collect::<String>()
    )]
    Several {
        /// The option: `-b` or `-B`.
        option: &'static str,
        /// Its value.
        spec: BindSpec,
        /// What it resolves to.
        found: Vec<SocketAddr>,
    },
    /// The port is 0: rules cannot lead to a port that the kernel chooses.
    #[error("-b {0}: cannot listen on port 0; write the port that the rules lead to, as in [0.0.0.0]:[5000]")]
    NoPort(BindSpec),
}

/// Returns the address to listen on that `-b` gives.
///
/// # Errors
/// Fails if the value is not exactly one address with a port other than 0.
pub fn listen(text: &str) -> Result<SocketAddr, AddressError> {
    let option = "-b";
    let spec: BindSpec =
        text.parse().map_err(|why| AddressError::Written { option, text: text.to_owned(), why })?;
    let addr = the_only(option, &spec)?;
    if addr.port() == 0 { Err(AddressError::NoPort(spec)) } else { Ok(addr) }
}

/// Returns the source of server legs that `-B` gives.
///
/// # Errors
/// Fails if the value is neither `client` nor exactly one address.
pub fn outgoing(text: &str) -> Result<Source, AddressError> {
    let option = "-B";
    match text.parse().map_err(|why| AddressError::Written { option, text: text.to_owned(), why })? {
        Outgoing::Client => Ok(Source::Client),
        Outgoing::At(spec) => Ok(match the_only(option, &spec)? {
            addr if addr.ip().is_unspecified() && addr.port() == 0 => Source::Gateway,
            addr => Source::Fixed(addr),
        }),
    }
}

fn the_only(option: &'static str, spec: &BindSpec) -> Result<SocketAddr, AddressError> {
    let unresolved = |err| AddressError::Unresolved { option, spec: spec.clone(), err };
    let found = sys::resolve(asked(&spec.host), asked(&spec.port)).map_err(unresolved)?;
    match found[..] {
        [only] => Ok(only),
        _ => Err(AddressError::Several { option, spec: spec.clone(), found }),
    }
}

fn asked(part: &Part) -> sys::Part<'_> {
    match part {
        Part::Name(text) => sys::Part::Name(text),
        Part::Number(text) => sys::Part::Number(text),
    }
}

fn look_at(spec: &BindSpec) -> &'static str {
    match (&spec.host, &spec.port) {
        (Part::Number(_), Part::Number(_)) => "in brackets, the host is an IP address and the port a number",
        (Part::Number(_), _) => "in brackets, the host is an IP address; names of ports are in /etc/services",
        (_, Part::Number(_)) => "see getent ahosts; in brackets, the port is a number",
        _ => "see getent ahosts, and getent services for the port",
    }
}

impl From<AddressError> for Fatal {
    fn from(err: AddressError) -> Self {
        Self::new(Exit::DataErr, err.to_string())
    }
}
