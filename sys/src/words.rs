//! Memory that several processes share.
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

/// The visibility of writes to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// All processes that map the file see the writes (MAP_SHARED).
    ToAll,
    /// Only this process sees its writes (MAP_PRIVATE). It no longer sees writes of others to a page that it has
    /// written.
    ToSelf,
}

/// Maps the first `count` words of `file` for the lifetime of the process.
///
/// # Errors
/// `InvalidInput` if the file is shorter or could be shortened: it must be a memfd with F_SEAL_SHRINK. Else the errors
/// of mmap(2), fcntl(2) and fstat(2).
pub fn map_words(file: BorrowedFd<'_>, count: usize, visible: Visible) -> io::Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(size_of::<AtomicU64>()).filter(|&bytes| bytes > 0);
    let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
    if seals(file)? & libc::F_SEAL_SHRINK == 0 || length(file)? < bytes {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let kind = if visible == Visible::ToAll { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let flags = kind | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses the address of the new mapping, which replaces no other.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has `count` words, is page-aligned, is never unmapped, and its file cannot be shortened. Any
    // bytes are a valid AtomicU64, and other processes access it only as atomics.
    Ok(unsafe { slice::from_raw_parts(start.cast::<AtomicU64>(), count) })
}

fn seals(file: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GET_SEALS accesses no memory of this process.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } {
        -1 => Err(io::Error::last_os_error()),
        seals => Ok(seals),
    }
}

fn length(file: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: an all-zero `stat` is valid.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable.
    if unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(stat.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::sync::atomic::Ordering;

    fn memory(bytes: i64, seals: i32) -> OwnedFd {
        // SAFETY: the name is a C string; the descriptor is new, and nothing else owns it.
        let file = unsafe {
            OwnedFd::from_raw_fd(libc::memfd_create(
                c"words".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        // SAFETY: neither call accesses memory of this process.
        unsafe {
            assert_eq!(libc::ftruncate(file.as_raw_fd(), bytes), 0);
            assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        }
        file
    }

    #[test]
    fn shared_mappings_see_each_others_writes_and_a_private_one_keeps_its_own() {
        let file = memory(4096, libc::F_SEAL_SHRINK);
        let [one, other] = [0; 2].map(|_| map_words(file.as_fd(), 512, Visible::ToAll).unwrap());
        one[511].store(7, Ordering::Relaxed);
        assert_eq!(other[511].load(Ordering::Relaxed), 7);
        let private = map_words(file.as_fd(), 512, Visible::ToSelf).unwrap();
        assert_eq!(private[511].swap(8, Ordering::Relaxed), 7);
        assert_eq!(one[511].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn a_file_that_is_or_may_become_too_short_is_not_mapped() {
        let refused = |file: OwnedFd| map_words(file.as_fd(), 512, Visible::ToAll).unwrap_err().kind();
        assert_eq!(refused(memory(4095, libc::F_SEAL_SHRINK)), io::ErrorKind::InvalidInput);
        assert_eq!(refused(memory(4096, 0)), io::ErrorKind::InvalidInput);
    }
}
