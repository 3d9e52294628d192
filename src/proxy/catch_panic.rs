//! Work of the front desk that may panic: what it was done for ends, and nothing else does.
//!
//! A panic drops what the work held, so that places and seats are given back on the way out. What the work shares with
//! others is locked by `parking_lot`, whose locks do not poison, and never across a wait.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use super::ProxyContext;
use crate::metrics::Part;

/// What `work` comes to; `None` when it panicked, which is counted. The work is put in a box here and now: whoever waits
/// for it has no room for it before it begins, and none for a second copy while it is under way.
pub fn catch_panic<T>(
    front: &ProxyContext,
    work: impl Future<Output = T>,
) -> impl Future<Output = Option<T>> {
    let mut work = Box::pin(work);
    poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        // It is not polled again.
        Err(_) => {
            front.metrics.panicked(Part::FrontDesk);
            Poll::Ready(None)
        }
    })
}
