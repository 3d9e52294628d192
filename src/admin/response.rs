//! The responses of the admin server: status, headers and body.
//!
//! Each is a short text or JSON, with headers against caching and content sniffing. None has a CORS header: a page of
//! another origin may not read them.

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::Faults;

/// A response with a whole body.
pub(super) type AdminResponse = Response<Full<Bytes>>;

/// A short plain text.
pub(super) fn text(text: &'static str) -> AdminResponse {
    response(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

/// The metrics, which Prometheus wants under their version.
pub(super) fn metrics(text: String) -> AdminResponse {
    response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

/// A body as JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> AdminResponse {
    match serde_json::to_string(body) {
        Ok(text) => response(status, "application/json", (text + "\n").into()),
        Err(fault) => error(StatusCode::INTERNAL_SERVER_ERROR, &fault.to_string()),
    }
}

/// An error as JSON.
pub(super) fn error(status: StatusCode, what: &str) -> AdminResponse {
    errors(status, what, &[])
}

/// The faults of a config, each with its place.
pub(super) fn config_faults(faults: &Faults) -> AdminResponse {
    let list = faults.list().iter().map(|fault| {
        json!({
            "file": faults.file(),
            "line": fault.at.map(|at| at.line),
            "column": fault.at.map(|at| at.column),
            "message": fault.message,
        })
    });
    let what = "the config has faults; the one before stays in effect";
    errors(StatusCode::UNPROCESSABLE_ENTITY, what, &list.collect::<Vec<_>>())
}

fn errors(status: StatusCode, what: &str, faults: &[Value]) -> AdminResponse {
    let body = json!({ "error": what, "faults": faults }).to_string() + "\n";
    response(status, "application/json", body.into())
}

/// 401 with what would be right (RFC 6750, section 3).
pub(super) fn unauthorized() -> AdminResponse {
    let what = "a token is needed; send `Authorization: Bearer TOKEN` with one of the `token_file`";
    with(error(StatusCode::UNAUTHORIZED, what), WWW_AUTHENTICATE, "Bearer realm=\"mainstay\"")
}

/// 405 with the methods that there are (RFC 9110, section 15.5.6).
pub(super) fn method_not_allowed(methods: &'static str) -> AdminResponse {
    let what = format!("the methods here are: {methods}");
    with(error(StatusCode::METHOD_NOT_ALLOWED, &what), ALLOW, methods)
}

/// The response after which the connection ends.
pub(super) fn with_close(response: AdminResponse) -> AdminResponse {
    with(response, CONNECTION, "close")
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> AdminResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    // A client that polls must see the state of now.
    let response = with(response, CACHE_CONTROL, "no-store");
    with(with(response, CONTENT_TYPE, kind), X_CONTENT_TYPE_OPTIONS, "nosniff")
}

fn with(mut response: AdminResponse, name: HeaderName, value: &'static str) -> AdminResponse {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
