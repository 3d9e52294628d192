//! The answers of the admin server: their status, headers and body.
//!
//! Each is its own fixed text or JSON, never kept by a cache and never taken for another type. None has a CORS
//! header: a page of another origin may not read them.

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

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// A short plain text.
pub(super) fn text(text: &'static str) -> Answer {
    answer(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

/// The metrics, which Prometheus wants under their version.
pub(super) fn metrics(text: String) -> Answer {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text.into())
}

/// What was asked for.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_string(body) {
        Ok(text) => answer(status, "application/json", (text + "\n").into()),
        Err(fault) => error(StatusCode::INTERNAL_SERVER_ERROR, &fault.to_string()),
    }
}

/// What is wrong, for programs and people.
pub(super) fn error(status: StatusCode, what: &str) -> Answer {
    errors(status, what, &[])
}

/// The faults of a config, each with its place.
pub(super) fn config_faults(faults: &Faults) -> Answer {
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

fn errors(status: StatusCode, what: &str, faults: &[Value]) -> Answer {
    let body = json!({ "error": what, "faults": faults }).to_string() + "\n";
    answer(status, "application/json", body.into())
}

/// 401 with what would be right (RFC 6750, section 3).
pub(super) fn no_token() -> Answer {
    let what = "a token is needed; send `Authorization: Bearer TOKEN` with one of the `token_file`";
    with(error(StatusCode::UNAUTHORIZED, what), WWW_AUTHENTICATE, "Bearer realm=\"mainstay\"")
}

/// 405 with the methods that there are (RFC 9110, section 15.5.6).
pub(super) fn method_not_allowed(methods: &'static str) -> Answer {
    let what = format!("the methods here are: {methods}");
    with(error(StatusCode::METHOD_NOT_ALLOWED, &what), ALLOW, methods)
}

/// The answer after which the connection ends, because its client's place in it is not certain.
pub(super) fn last(answer: Answer) -> Answer {
    with(answer, CONNECTION, "close")
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    // A state that is a minute old is worse than none.
    let response = with(response, CACHE_CONTROL, "no-store");
    with(with(response, CONTENT_TYPE, kind), X_CONTENT_TYPE_OPTIONS, "nosniff")
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
