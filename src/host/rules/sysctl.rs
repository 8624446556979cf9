//! Access to /proc/sys. Values are written directly and read back, because `sysctl -w` in a user namespace prints an
//! error and exits with 0. EFFECT.
use std::fs;
use std::io;

use super::state::Sysctl;

/// Reads the present value.
pub fn read(sysctl: Sysctl) -> io::Result<u32> {
    let text = fs::read_to_string(sysctl.path())?;
    let not_a_number =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a number", text.trim()));
    text.trim().parse().map_err(|_| not_a_number())
}

/// Writes `value` and reads it back; returns an error if the kernel did not keep it.
pub fn write(sysctl: Sysctl, value: u32) -> io::Result<()> {
    fs::write(sysctl.path(), value.to_string())?;
    match read(sysctl)? {
        now if now == value => Ok(()),
        now => Err(io::Error::other(format!("the kernel kept {now} instead of {value}"))),
    }
}
