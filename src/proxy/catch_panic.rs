//! Work of the front desk that may panic: the session that it was done for ends, and nothing else does.
//!
//! A panic drops what the work held, so that permits are released on the way out. What the work shares with others is
//! locked by `parking_lot`, whose locks do not poison, and never across a wait.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use crate::metrics::{Metrics, PanicLocation};

/// The output of `work`; `None` when it panicked, which is counted. The work is boxed at once: the future that awaits it
/// needs no room for it before it begins, and holds no second copy while it runs.
pub(super) fn catch_panic<T>(
    metrics: &Metrics,
    work: impl Future<Output = T>,
) -> impl Future<Output = Option<T>> {
    let mut work = Box::pin(work);
    poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        // It is not polled again.
        Err(_) => {
            metrics.record_panic(PanicLocation::FrontDesk);
            Poll::Ready(None)
        }
    })
}
