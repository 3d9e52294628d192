//! Work of the front desk that may panic: what it was done for ends, and nothing else does.
//!
//! A panic drops what the work held, so that places and seats are given back on the way out. What the work shares with
//! others is locked by `parking_lot`, whose locks do not poison, and never across a wait.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use super::Front;
use crate::metrics::Part;

/// What `work` comes to; `None` when it panicked, which is counted.
pub async fn contained<T>(front: &Front, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let outcome = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        // It is not polled again.
        Err(_) => Poll::Ready(None),
    });
    let outcome = outcome.await;
    if outcome.is_none() {
        front.metrics.panicked(Part::FrontDesk);
    }
    outcome
}
