//! From what was written after `-b` and `-B` to one address. EFFECT: names are looked up.
use std::io;
use std::net::SocketAddr;

use crate::config::Source;
use crate::exit::{Exit, Fatal};

use super::bind_spec::{BadSpec, BindSpec, Outgoing, Part};

/// Why there is no address. The option and its value are in each.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is not written as an address is.
    #[error("{option} {text}: {why}")]
    Written {
        /// `-b` or `-B`
        option: &'static str,
        /// Its value.
        text: String,
        /// What is wrong with it.
        why: BadSpec,
    },
    /// There is no such host or port.
    #[error("{option} {spec}: it does not resolve to an address ({err}); {}", look_at(spec))]
    Unresolved {
        /// `-b` or `-B`
        option: &'static str,
        /// Its value.
        spec: BindSpec,
        /// The resolver's answer.
        err: io::Error,
    },
    /// There are several.
    #[error(
        "{option} {spec}: it resolves to several addresses, write one of them:{}",
        found.iter().map(|addr| format!("\n  {option} [{}]:[{}]", addr.ip(), addr.port())).collect::<String>()
    )]
    Several {
        /// `-b` or `-B`
        option: &'static str,
        /// Its value.
        spec: BindSpec,
        /// What it resolves to.
        found: Vec<SocketAddr>,
    },
    /// Nobody could be led to a port that the kernel chooses.
    #[error(
        "-b {0}: port 0 is none to listen on; write the port that the rules lead to, as in [0.0.0.0]:[5000]"
    )]
    NoPort(BindSpec),
}

/// Where `-b` says to listen.
///
/// # Errors
/// When that is not exactly one address with a port.
pub fn listen(text: &str) -> Result<SocketAddr, AddressError> {
    let option = "-b";
    let spec: BindSpec =
        text.parse().map_err(|why| AddressError::Written { option, text: text.to_owned(), why })?;
    let addr = the_only(option, &spec)?;
    if addr.port() == 0 { Err(AddressError::NoPort(spec)) } else { Ok(addr) }
}

/// Where server legs come from as `-B` says.
///
/// # Errors
/// When that is neither `client` nor exactly one address.
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
