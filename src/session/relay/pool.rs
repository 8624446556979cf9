//! The pool of pipes, which hold bytes between two sockets. EFFECT.
//!
//! A thread needs one pipe, and one more for each direction whose sink took less than the room that it had reported.
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Pipe sizes in bytes, largest first; more than the first brings no gain (design decision 1). The kernel refuses the
/// larger ones beyond an unprivileged user's budget (`fs.pipe-user-pages-soft`). If it grants none, its default size
/// stays.
const SIZES: [usize; 3] = [1 << 20, 1 << 18, 1 << 16];
/// Number of idle pipes that a thread keeps.
const KEPT: usize = 4;
/// Bytes of a page: the most that one buffer of a pipe holds. The least is one byte of a segment.
const PAGE: usize = 4096;

/// An empty or filled pipe.
#[derive(Debug)]
pub struct Pipe {
    /// The read end.
    pub read: OwnedFd,
    /// The write end.
    pub write: OwnedFd,
    capacity: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        let granted = SIZES.into_iter().find_map(|size| fcntl_setpipe_size(&write, size).ok());
        let capacity = granted.or_else(|| fcntl_getpipe_size(&write).ok()).unwrap_or(PAGE);
        Ok(Self { read, write, capacity })
    }

    /// Wraps a pipe that already exists.
    ///
    /// # Errors
    /// `InvalidInput`: the two descriptors are not the ends of one pipe.
    pub fn found(read: OwnedFd, write: OwnedFd) -> io::Result<Self> {
        let (one, other) = (fstat(&read)?, fstat(&write)?);
        let is_pipe = |mode| FileType::from_raw_mode(mode) == FileType::Fifo;
        let same = (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
        if !same || !is_pipe(one.st_mode) || !fcntl_getfl(&write)?.contains(OFlags::WRONLY) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let capacity = fcntl_getpipe_size(&write)?;
        Ok(Self { read, write, capacity })
    }

    /// Returns the nominal capacity in bytes. The pipe may hold more, as the kernel moves whole buffers.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of buffers that fit, even if each holds only one byte.
    pub fn slots(&self) -> usize {
        self.capacity / PAGE
    }
}

/// The idle pipes of one thread.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<Vec<Pipe>>,
}

impl Pool {
    /// Creates a pool with the one pipe that a thread needs: later no descriptor may be left for it, and no byte would move.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left.
    pub fn with_a_pipe() -> io::Result<Self> {
        Ok(Self { idle: RefCell::new(vec![Pipe::new()?]) })
    }

    /// Returns an empty pipe: an idle one or a new one.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left; the caller waits and retries.
    pub fn take(&self) -> io::Result<Pipe> {
        let idle = self.idle.borrow_mut().pop();
        idle.map_or_else(Pipe::new, Ok)
    }

    /// Returns a pipe to the pool. It must be empty: bytes left in it would be sent in another session.
    pub fn give(&self, empty: Pipe) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < KEPT {
            idle.push(empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_pool_keeps_few_pipes() {
        let pool = Pool::default();
        let pipes: Vec<_> = (0..KEPT + 3).map(|_| pool.take().unwrap()).collect();
        pipes.into_iter().for_each(|pipe| pool.give(pipe));
        assert_eq!(pool.idle.borrow().len(), KEPT);
    }

    #[test]
    fn found_accepts_only_the_two_ends_of_one_pipe() {
        let [one, other] = [0, 1].map(|_| Pool::default().take().unwrap());
        let dup = |fd: &OwnedFd| fd.try_clone().unwrap();
        assert!(Pipe::found(dup(&one.read), dup(&other.write)).is_err());
        assert!(Pipe::found(dup(&one.read), dup(&one.read)).is_err());
        let found = Pipe::found(dup(&one.read), dup(&one.write)).unwrap();
        assert_eq!(found.capacity(), one.capacity());
    }

    #[test]
    fn a_pipe_is_as_large_as_the_kernel_grants() {
        let pipe = Pool::default().take().unwrap();
        assert_eq!(pipe.capacity(), fcntl_getpipe_size(&pipe.read).unwrap());
        assert!(pipe.slots() >= 1);
    }
}
