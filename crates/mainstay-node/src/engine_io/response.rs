//! The responses that carry no messages of a session: errors, and empty ones.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::response::HttpResponse;

/// Why a request is refused, in Engine.IO's numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// 0: `transport` is none that is served.
    #[error("Transport unknown")]
    UnknownTransport,
    /// 1: no session has that sid.
    #[error("Session ID unknown")]
    UnknownSid,
    /// 2: a handshake that is no GET.
    #[error("Bad handshake method")]
    BadMethod,
    /// 3: the transport or the protocol is not the session's, or a WebSocket without its upgrade.
    #[error("Bad request")]
    BadRequest,
    /// 4: the layer above refused, with these words.
    #[error("{0}")]
    Forbidden(Cow<'static, str>),
    /// 5: a protocol that is not served.
    #[error("Unsupported protocol version")]
    Unsupported,
}

impl RequestError {
    fn code(&self) -> u8 {
        match self {
            Self::UnknownTransport => 0,
            Self::UnknownSid => 1,
            Self::BadMethod => 2,
            Self::BadRequest => 3,
            Self::Forbidden(_) => 4,
            Self::Unsupported => 5,
        }
    }

    /// The answer to a plain request: JSON with the number and the words.
    pub(crate) fn response(&self) -> HttpResponse {
        let status = match self {
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        let words = serde_json::Value::from(self.to_string());
        let body = format!(r#"{{"code":{},"message":{words}}}"#, self.code());
        response(status, &[(CONTENT_TYPE, "application/json")], body)
    }

    /// The answer to a request for an upgrade: 400 and the bare words, whatever the number.
    pub(crate) fn upgrade_response(&self) -> HttpResponse {
        let headers = [(CONNECTION, "close"), (CONTENT_TYPE, "text/html")];
        response(StatusCode::BAD_REQUEST, &headers, self.to_string())
    }
}

/// The server takes nobody in: it is full, or it ends.
pub(crate) fn service_unavailable(words: &'static str) -> HttpResponse {
    let headers = [(CONNECTION, "close"), (CONTENT_TYPE, "text/plain; charset=utf-8"), (RETRY_AFTER, "1")];
    response(StatusCode::SERVICE_UNAVAILABLE, &headers, words)
}

/// An answer of these parts.
pub(crate) fn response(
    status: StatusCode,
    headers: &[(HeaderName, &'static str)],
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    for (name, value) in headers {
        answer.headers_mut().append(name, HeaderValue::from_static(value));
    }
    answer
}

/// A status and nothing else.
pub(crate) fn empty_response(status: StatusCode) -> HttpResponse {
    response(status, &[], Bytes::new())
}
