//! Readiness of many sockets: epoll(7), level-triggered, keyed by descriptor number.
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// The timeout of a wait, so that a loop notices a request to stop.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const AT_ONCE: usize = 64;

/// A set of sockets.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub(super) fn new() -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = epoll.unwrap_or_else(|err| panic!("cannot create an epoll instance: {err}"));
        Self { epoll, events: Vec::with_capacity(AT_ONCE) }
    }

    /// Watches a socket until it is closed.
    pub(super) fn add(&self, socket: impl AsFd, interest: epoll::EventFlags) {
        let key = epoll::EventData::new_u64(key(&socket) as u64);
        let added = epoll::add(&self.epoll, &socket, key, interest);
        added.unwrap_or_else(|err| panic!("a socket cannot be watched: {err}"));
    }

    /// Changes the events that a socket is watched for.
    pub(super) fn change(&self, socket: impl AsFd, interest: epoll::EventFlags) {
        let key = epoll::EventData::new_u64(key(&socket) as u64);
        let changed = epoll::modify(&self.epoll, &socket, key, interest);
        changed.unwrap_or_else(|err| panic!("a socket cannot be watched: {err}"));
    }

    /// Returns the keys of the ready sockets; none if the wait times out.
    pub(super) fn ready(&mut self) -> impl Iterator<Item = usize> {
        self.events.clear();
        // An interrupted wait is treated like a timeout.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&TICK));
        self.events.iter().map(|event| event.data.u64() as usize)
    }
}

/// Returns the key of a socket: its descriptor number.
pub(super) fn key(socket: impl AsFd) -> usize {
    usize::try_from(socket.as_fd().as_raw_fd()).unwrap_or_else(|_| unreachable!("an open descriptor"))
}

/// Values that belong to open sockets, by their keys.
pub(super) struct Table<T>(Vec<Option<T>>);

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn put(&mut self, key: usize, value: T) {
        if self.0.len() <= key {
            self.0.resize_with(key + 1, || None);
        }
        self.0[key] = Some(value);
    }

    pub(super) fn get(&mut self, key: usize) -> Option<&mut T> {
        self.0.get_mut(key)?.as_mut()
    }

    pub(super) fn take(&mut self, key: usize) -> Option<T> {
        self.0.get_mut(key)?.take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}
