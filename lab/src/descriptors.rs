//! The descriptor table of another process: read from /proc, limited by prlimit(2).
use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Returns the open descriptors of a process, in ascending order.
///
/// # Errors
/// The process is gone or belongs to another user.
pub fn open(pid: u32) -> io::Result<Vec<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|err| io::Error::new(err.kind(), format!("descriptors of process {pid}: {err}")))?;
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Limits a process to its present descriptors and `free` more, and returns the previous limit. The limit is not a
/// count: it is the lowest number that the process cannot get.
///
/// # Errors
/// The process is gone or belongs to another user.
pub fn forbid_new(pid: u32, free: u64) -> io::Result<Rlimit> {
    // If the process is this one, listing the directory would itself use a descriptor.
    let is_open = |number: &u64| Path::new(&format!("/proc/{pid}/fd/{number}")).is_symlink();
    limit(pid, (0..).take_while(is_open).count() as u64 + free)
}

/// Restores the limit that a process had before.
///
/// # Errors
/// The process is gone or belongs to another user.
pub fn restore(pid: u32, before: Rlimit) -> io::Result<()> {
    set(pid, before).map(drop)
}

/// Sets the soft limit, keeps the hard limit, and returns both previous values.
pub(crate) fn limit(pid: u32, soft: u64) -> io::Result<Rlimit> {
    let maximum = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let maximum = maximum.lines().find_map(|line| line.strip_prefix("Max open files"));
    let maximum = maximum.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    set(pid, Rlimit { current: Some(soft), maximum })
}

fn set(pid: u32, limit: Rlimit) -> io::Result<Rlimit> {
    let named = |err| io::Error::other(format!("RLIMIT_NOFILE of process {pid}: {err}"));
    let process =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| named("no such number".into()))?;
    prlimit(Some(process), Resource::Nofile, limit).map_err(|err| named(err.to_string()))
}

/// Returns the lowest number that is not open.
pub(crate) fn first_free(open: &[u64]) -> u64 {
    (0..).zip(open).find(|(number, open)| number != *open).map_or(open.len() as u64, |(number, _)| number)
}

/// Returns how many numbers below `soft` are not open.
pub(crate) fn free_below(open: &[u64], soft: u64) -> u64 {
    soft - open.iter().filter(|number| **number < soft).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_number_that_is_not_open_is_free() {
        assert_eq!(
            (first_free(&[]), first_free(&[0, 1, 2]), first_free(&[0, 2, 3]), first_free(&[1])),
            (0, 3, 1, 0)
        );
    }

    #[test]
    fn numbers_beyond_the_limit_are_not_free() {
        assert_eq!(
            (free_below(&[0, 1, 2, 9], 4), free_below(&[0, 1, 2, 9], 3), free_below(&[0, 5], 10)),
            (1, 0, 8)
        );
    }
}
