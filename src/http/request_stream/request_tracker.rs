//! What a guard and the service behind hyper know of each other: which head a call belongs to, and when its answer
//! is done.
//!
//! The two sides never meet otherwise: hyper stands between them. Counting is enough, because hyper calls the
//! service once for each head, in order, and gets the next head only after the last answer.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::http::framing::HeadError;

/// What a guard and the service behind hyper know of each other.
#[derive(Debug, Default)]
pub struct RequestTracker(Mutex<RequestCounts>);

/// Heads are counted, so that a fault meets the call that it belongs to.
#[derive(Debug, Default)]
struct RequestCounts {
    /// Heads given to hyper, stand-ins too.
    released: u64,
    /// Calls of the service.
    begun: u64,
    /// Answers that are done.
    answered: u64,
    /// What was wrong with the last released head. There is none behind a faulty one.
    error: Option<HeadError>,
    /// The body of the last released head came too slowly.
    is_body_too_slow: bool,
    /// The connection's task, while the guard waits for an answer to be done.
    waker: Option<Waker>,
}

impl RequestTracker {
    /// Begins the service of the next request: call it first in each call of the service. With a fault the request
    /// is a stand-in, to be answered with an error and `Connection: close`. Keep the [`InFlightRequest`] until the body of
    /// the answer has been sent or dropped.
    pub fn begin_request(self: &Arc<Self>) -> (Option<HeadError>, InFlightRequest) {
        let mut heads = self.0.lock();
        heads.begun += 1;
        let fault = if heads.begun == heads.released { heads.error } else { None };
        (fault, InFlightRequest(self.clone()))
    }

    /// No request is being answered.
    pub fn is_idle(&self) -> bool {
        let heads = self.0.lock();
        heads.answered >= heads.released
    }

    /// Whether the request's body broke off because it came too slowly.
    pub fn is_body_too_slow(&self) -> bool {
        self.0.lock().is_body_too_slow
    }

    /// The body comes too slowly, and is about to break off.
    pub(super) fn record_slow_body(&self) {
        self.0.lock().is_body_too_slow = true;
    }

    /// Counts a head that hyper is about to get.
    pub(super) fn record_head(&self, fault: Option<HeadError>) {
        let mut heads = self.0.lock();
        heads.released += 1;
        heads.error = fault;
    }

    /// Ready when every released head has been answered.
    pub(super) fn poll_answered(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut heads = self.0.lock();
        if heads.answered >= heads.released {
            heads.waker = None;
            return Poll::Ready(());
        }
        match &mut heads.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A request that is being answered. Dropping it lets the guard go on to the next head.
#[derive(Debug)]
pub struct InFlightRequest(Arc<RequestTracker>);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let waker = {
            let mut heads = self.0.0.lock();
            heads.answered += 1;
            heads.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_fault_belongs_to_the_call_for_its_head() {
        let link = Arc::new(RequestTracker::default());
        link.record_head(None);
        link.record_head(Some(HeadError::NoHost));
        let (first, _flight) = link.begin_request();
        let (second, _flight) = link.begin_request();
        let (beyond, _flight) = link.begin_request();
        assert_eq!((first, second, beyond), (None, Some(HeadError::NoHost), None));
    }

    #[test]
    fn a_head_is_in_flight_from_its_release_to_the_end_of_its_answer() {
        let link = Arc::new(RequestTracker::default());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(link.poll_answered(&mut cx).is_ready());
        link.record_head(None);
        assert!(link.poll_answered(&mut cx).is_pending(), "the service has not been called yet");
        assert!(!link.is_idle());
        let (_, in_flight) = link.begin_request();
        assert!(link.poll_answered(&mut cx).is_pending());
        drop(in_flight);
        assert!(link.poll_answered(&mut cx).is_ready());
    }
}
