//! How long a client may stall in the midst of a request, for its body or to take its answer.
//!
//! What passes buys more time, so that one that is steady is never cut, however much it has to send or to take; one
//! that trickles has spent its time as soon as one that stands still.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The time that a byte of a body or an answer buys: a client slower than 500 bytes a second does not want to come to
/// an end.
const TIME_PER_BYTE: Duration = Duration::from_millis(2);
/// The most time that an answer can have bought, in times to stall. What the kernel took counts before the client has
/// taken it: a client of 500 bytes a second has a write wait some two minutes for the 64 KiB that make room again.
const MAX_EARNED: u32 = 4;

/// The time that `length` bytes buy.
pub(super) fn earned_time(length: usize) -> Duration {
    TIME_PER_BYTE.saturating_mul(u32::try_from(length).unwrap_or(u32::MAX))
}

/// What is left until the deadline of `sleep`.
pub(super) fn time_left(sleep: &Sleep) -> Duration {
    sleep.deadline().saturating_duration_since(Instant::now())
}

/// The clock of an answer; it runs while the client takes nothing.
#[derive(Debug)]
pub(super) struct WriteTimeout {
    /// What is left of the time to stall.
    left: Duration,
    /// The most that may be left.
    most: Duration,
    /// Runs while a write waits.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    /// For the answer to a new request, which may stall for `stall_time`.
    pub fn new(stall_time: Duration) -> Self {
        Self { left: stall_time, most: stall_time.saturating_mul(MAX_EARNED), sleep: None }
    }

    /// What a write came to: an error once the client has taken too little for too long.
    pub fn check_write(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => {
                let left = self.left;
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
                ready!(sleep.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not take its answer",
                )))
            }
            Poll::Ready(Ok(length)) => {
                let left = self.sleep.take().map_or(self.left, |sleep| time_left(&sleep));
                self.left = left.saturating_add(earned_time(length)).min(self.most);
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}
