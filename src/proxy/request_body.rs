//! A request's body on its way to a node: whether all of it has gone, and which trailers go with it.
//!
//! An answer may come before the request was sent whole. Then the upload goes on for as long as the answer does, and
//! ends with it: the node's connection is cut off, since what would come next on it is the rest of a body (RFC 9112,
//! section 9.3), and the client is told beforehand that its connection ends with this answer (section 9.6; RFC 9110,
//! section 10.1.1).

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
pub struct RequestBody {
    body: Incoming,
    progress: UploadProgress,
}

/// How far an upload is; outlives it.
#[derive(Debug, Clone)]
pub struct UploadProgress(Option<Arc<AtomicBool>>);

impl UploadProgress {
    /// All of the body has been taken for the node, or there is none.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|whole| whole.load(Relaxed))
    }
}

impl RequestBody {
    /// The request with its body followed.
    pub fn track(request: Request<Incoming>) -> (Request<Self>, UploadProgress) {
        let is_whole = request.body().is_end_stream();
        let progress = UploadProgress((!is_whole).then(Arc::default));
        (request.map(|body| Self { body, progress: progress.clone() }), progress)
    }

    /// How far it is.
    pub fn progress(&self) -> &UploadProgress {
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
                // Nobody asks for what comes behind them.
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
