//! /proc/sys: written directly and read back, as `sysctl -w` in a user namespace prints an error and exits 0. EFFECT.
use std::fs;
use std::io;

use super::state::Sysctl;

/// The present value.
pub fn read(sysctl: Sysctl) -> io::Result<u32> {
    let text = fs::read_to_string(sysctl.path())?;
    let not_a_number =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a number", text.trim()));
    text.trim().parse().map_err(|_| not_a_number())
}

/// Sets it, and makes sure that it is set.
pub fn write(sysctl: Sysctl, value: u32) -> io::Result<()> {
    fs::write(sysctl.path(), value.to_string())?;
    match read(sysctl)? {
        now if now == value => Ok(()),
        now => Err(io::Error::other(format!("it was written, but reads {now}"))),
    }
}
