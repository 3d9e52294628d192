//! What the node answers over HTTP, whichever part of it does: one body type, and the few kinds there are.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// An answer.
pub(crate) type HttpResponse = Response<Full<Bytes>>;

/// JSON; never kept by anybody on the way.
pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> HttpResponse {
    with_content_type(status, "application/json", body.to_string())
}

/// `{"error": …}`, with what would be right.
pub(crate) fn error(status: StatusCode, words: &str) -> HttpResponse {
    json(status, &serde_json::json!({ "error": words }))
}

/// This method is none of the path's.
pub(crate) fn not_allowed(allowed: &'static str) -> HttpResponse {
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this path is for {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// A body of this type.
pub(crate) fn with_content_type(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
