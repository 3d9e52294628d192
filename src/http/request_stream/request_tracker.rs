//! The connection between a request stream and the service behind hyper: which head a call belongs to, and when its
//! answer is complete.
//!
//! Hyper stands between the two. Counting is enough, because hyper calls the service once for each head, in order, and
//! gets the next head only after the last answer.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::http::framing::HeadError;

/// What a request stream and the service behind hyper share.
#[derive(Debug, Default)]
pub struct RequestTracker(Mutex<RequestCounts>);

/// Counts heads, so that an error reaches the call that it belongs to.
#[derive(Debug, Default)]
struct RequestCounts {
    /// Heads given to hyper, placeholders included.
    released: u64,
    /// Calls of the service.
    begun: u64,
    /// Complete answers.
    answered: u64,
    /// The error of the last released head. No head is released behind a faulty one.
    error: Option<HeadError>,
    /// The body of the last released head came too slowly.
    is_body_too_slow: bool,
    /// The connection's task, while the stream waits for an answer to be complete.
    waker: Option<Waker>,
}

impl RequestTracker {
    /// Begins the service of the next request: call it first in each call of the service. With an error the request
    /// is a placeholder, to be answered with the error and `Connection: close`. Keep the [`InFlightRequest`] until the body of
    /// the answer has been sent or dropped.
    pub fn begin_request(self: &Arc<Self>) -> (Option<HeadError>, InFlightRequest) {
        let mut heads = self.0.lock();
        heads.begun += 1;
        let error = if heads.begun == heads.released { heads.error } else { None };
        (error, InFlightRequest(self.clone()))
    }

    /// No request is being answered.
    pub fn is_idle(&self) -> bool {
        let heads = self.0.lock();
        heads.answered >= heads.released
    }

    /// Whether the request's body broke off because it came too slowly.
    pub(crate) fn is_body_too_slow(&self) -> bool {
        self.0.lock().is_body_too_slow
    }

    /// The body comes too slowly; the stream is about to end it.
    pub(super) fn record_slow_body(&self) {
        self.0.lock().is_body_too_slow = true;
    }

    /// Counts a head that hyper is about to get.
    pub(super) fn record_head(&self, error: Option<HeadError>) {
        let mut heads = self.0.lock();
        heads.released += 1;
        heads.error = error;
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

/// A request that is being answered. When it is dropped, the stream goes on to the next head.
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
    fn an_error_belongs_to_the_call_for_its_head() {
        let tracker = Arc::new(RequestTracker::default());
        tracker.record_head(None);
        tracker.record_head(Some(HeadError::NoHost));
        let (first, _flight) = tracker.begin_request();
        let (second, _flight) = tracker.begin_request();
        let (beyond, _flight) = tracker.begin_request();
        assert_eq!((first, second, beyond), (None, Some(HeadError::NoHost), None));
    }

    #[test]
    fn a_head_is_in_flight_from_its_release_to_the_end_of_its_answer() {
        let tracker = Arc::new(RequestTracker::default());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(tracker.poll_answered(&mut cx).is_ready());
        tracker.record_head(None);
        assert!(tracker.poll_answered(&mut cx).is_pending(), "the service has not been called yet");
        assert!(!tracker.is_idle());
        let (_, in_flight) = tracker.begin_request();
        assert!(tracker.poll_answered(&mut cx).is_pending());
        drop(in_flight);
        assert!(tracker.poll_answered(&mut cx).is_ready());
    }
}
