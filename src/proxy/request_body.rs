//! A request's body on its way to a node: whether all of it was sent, and which trailers are sent with it.
//!
//! An answer may come before the request was sent whole. Then the upload goes on for as long as the answer does, and
//! ends with it. The node's connection is closed, since the rest of a body would come next on it (RFC 9112, section
//! 9.3), and the answer tells the client that its connection ends (section 9.6; RFC 9110, section 10.1.1).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http::headers;

/// The body of a client's request.
pub(super) struct RequestBody {
    body: Incoming,
    progress: UploadProgress,
}

/// Whether a body was sent whole; outlives the body.
#[derive(Debug, Clone)]
pub(super) struct UploadProgress(Option<Arc<AtomicBool>>);

impl UploadProgress {
    /// All of the body was taken for the node, or there is none.
    pub(super) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|whole| whole.load(Relaxed))
    }
}

impl RequestBody {
    /// The request with the progress of its body.
    pub(super) fn track(request: Request<Incoming>) -> (Request<Self>, UploadProgress) {
        let is_whole = request.body().is_end_stream();
        let progress = UploadProgress((!is_whole).then(Arc::default));
        (request.map(|body| Self { body, progress: progress.clone() }), progress)
    }

    /// Its progress.
    pub(super) fn progress(&self) -> &UploadProgress {
        &self.progress
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        let is_last = match &mut polled {
            Poll::Ready(Some(Ok(frame))) => match frame.trailers_mut() {
                // Nothing comes behind them.
                Some(trailers) => {
                    headers::strip_trailers(trailers);
                    true
                }
                None => self.body.is_end_stream(),
            },
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_last && let Some(whole) = &self.progress.0 {
            whole.store(true, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
