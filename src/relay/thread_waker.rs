//! The eventfd that wakes a relay thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes a relay thread out of its epoll.
#[derive(Debug, Clone)]
pub(super) struct ThreadWaker(Arc<OwnedFd>);

impl ThreadWaker {
    /// A waker that is polled by nobody yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        // A full counter means that the thread is being woken already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes note of all wake-ups so far.
    pub(super) fn clear(&self) {
        // The counter does not matter: the command channel holds what is to be done.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for ThreadWaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
