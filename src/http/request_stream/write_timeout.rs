//! How long a client may stall in the middle of a request: while it sends its body, or reads its response.
//!
//! Every byte that passes adds time, so a steady client is never cut off, however much it has to send or to read. A
//! client that sends single bytes uses its time up as soon as one that sends nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The time that a byte of a body or a response adds: a client slower than 500 bytes a second is taken for an attack.
const TIME_PER_BYTE: Duration = Duration::from_millis(2);
/// The most time that a response can have, in stall times. Bytes count when the kernel takes them, before the client
/// reads them: with a client of 500 bytes a second, a write waits some two minutes until 64 KiB are free again.
const MAX_EARNED: u32 = 4;

/// The time that `length` bytes add.
pub(super) fn earned_time(length: usize) -> Duration {
    TIME_PER_BYTE.saturating_mul(u32::try_from(length).unwrap_or(u32::MAX))
}

/// The time until the deadline of `sleep`.
pub(super) fn time_left(sleep: &Sleep) -> Duration {
    sleep.deadline().saturating_duration_since(Instant::now())
}

/// The timeout of a response. Its time runs while a write waits for the client.
#[derive(Debug)]
pub(super) struct WriteTimeout {
    /// The time left to stall.
    left: Duration,
    /// The most that may be left.
    most: Duration,
    /// Runs while a write waits.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    /// For the response to a new request, which may stall for `stall_time`.
    pub(super) fn new(stall_time: Duration) -> Self {
        Self { left: stall_time, most: stall_time.saturating_mul(MAX_EARNED), sleep: None }
    }

    /// The result of a write; an error once the client has read too little for too long.
    pub(super) fn check_write(
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
                    "the client does not read its response",
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
