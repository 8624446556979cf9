//! Pipes: where bytes are on their way from one socket to the other. A worker needs one, and one more for each direction whose
//! sink took less than it promised. EFFECT.
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// The most that pays (design decision 1); the sizes below are tried where an ordinary user's budget ends
/// (`fs.pipe-user-pages-soft`), and the kernel's own choice stays when none is granted.
const SIZES: [usize; 3] = [1 << 20, 1 << 18, 1 << 16];
/// How many idle pipes a worker keeps for the next need.
const KEPT: usize = 4;
/// The least that one of a pipe's buffers holds is one byte of a segment; the most is a page.
const PAGE: usize = 4096;

/// An empty or filled pipe.
#[derive(Debug)]
pub struct Pipe {
    /// Where bytes come out.
    pub read: OwnedFd,
    /// Where bytes go in.
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

    /// One that is there already.
    ///
    /// # Errors
    /// When the two are not the ends of one pipe.
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

    /// Bytes that it is meant to hold; it may hold more, as the kernel moves whole buffers.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// So many buffers fit, be they one byte each.
    pub fn slots(&self) -> usize {
        self.capacity / PAGE
    }
}

/// The idle pipes of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<Vec<Pipe>>,
}

impl Pool {
    /// With the one pipe that a worker needs, if it is to be had: later there may be no descriptor for it.
    pub fn with_a_pipe() -> Self {
        Self { idle: RefCell::new(Pipe::new().into_iter().collect()) }
    }

    /// An empty pipe, used before or new.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left; the caller waits and tries again.
    pub fn take(&self) -> io::Result<Pipe> {
        let idle = self.idle.borrow_mut().pop();
        idle.map_or_else(Pipe::new, Ok)
    }

    /// Gives a pipe back. It must be empty: what is in it would come out in another session.
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
    fn what_is_found_is_a_pipe_if_both_are_its_ends() {
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
