//! The answers of the admin server: their status, headers and body.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;

/// A short plain text.
pub(super) fn text(text: &'static str) -> Response<Full<Bytes>> {
    answer(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

/// The metrics, which Prometheus wants under their version.
pub(super) fn metrics(text: String) -> Response<Full<Bytes>> {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

/// What is wrong, for programs and people.
pub(super) fn error(status: StatusCode, what: &str) -> Response<Full<Bytes>> {
    let body = json!({ "error": what, "faults": [] }).to_string() + "\n";
    answer(status, "application/json", body.into())
}

/// 405 with the methods that there are (RFC 9110, section 15.5.6).
pub(super) fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // A state that is a minute old is worse than none.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
