//! The one table of errors: what a client is told when it gets no response of a node.

use std::fmt;

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION,
};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::Body;
use super::framing::HeadError;
use crate::metrics::HandshakeResult;
use crate::ws::handshake::UpgradeRequestError;

/// Why a client gets no response of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyError {
    /// The client's: its request head is not HTTP as it has to be.
    Head(HeadError),
    /// The client's: its upgrade request is wrong.
    Upgrade(UpgradeRequestError),
    /// The client's: CONNECT, or a target that is not a path.
    Target,
    /// The client's: its body broke off or was wrongly framed.
    Body,
    /// The client's: its body came too slowly.
    BodyTooSlow,
    /// The client's: its page is of an origin that may not open a WebSocket here.
    Origin,
    /// The client is at its connection limit.
    ClientConnectionLimit,
    /// The balancer is at its connection limit.
    ConnectionLimit,
    /// Handshakes come faster than their rate limit; Retry-After is spread over so many seconds.
    HandshakeRateLimit {
        /// Seconds, at least 1.
        spread: u64,
    },
    /// No route matches.
    NoRoute,
    /// No node of the pool is up.
    NoNodeUp,
    /// Every node that is up is at its `max_connections`.
    AllNodesFull,
    /// The balancer's: it has no port or no file descriptor left to dial with.
    LocalExhaustion,
    /// The nodes': no candidate could be reached.
    NodesUnreachable,
    /// A node's: its answer did not come in time.
    NodeTimeout,
    /// A node's: its answer is not one.
    BadNodeResponse(String),
    /// The balancer's own: its work on the request broke off in a panic.
    Panicked,
}

impl ProxyError {
    /// The status that the client gets.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Head(HeadError::TooSlow) | Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Head(HeadError::TooLarge(_) | HeadError::TooManyFields(_)) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Upgrade(UpgradeRequestError::Version) => StatusCode::UPGRADE_REQUIRED,
            Self::Upgrade(UpgradeRequestError::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Head(_) | Self::Upgrade(_) | Self::Target | Self::Body => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::ClientConnectionLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::NoNodeUp
            | Self::AllNodesFull
            | Self::ConnectionLimit
            | Self::HandshakeRateLimit { .. }
            | Self::LocalExhaustion => StatusCode::SERVICE_UNAVAILABLE,
            Self::NodesUnreachable | Self::BadNodeResponse(_) => StatusCode::BAD_GATEWAY,
            Self::NodeTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The label of `handshakes_total`, when the request was an upgrade.
    pub(crate) fn handshake_result(&self) -> HandshakeResult {
        match self {
            Self::AllNodesFull
            | Self::ConnectionLimit
            | Self::ClientConnectionLimit
            | Self::HandshakeRateLimit { .. } => HandshakeResult::Limited,
            _ if self.status().is_client_error() => HandshakeResult::Refused,
            _ => HandshakeResult::Failed,
        }
    }

    /// Over how many seconds Retry-After is spread.
    fn retry_spread(&self) -> u64 {
        match self {
            Self::HandshakeRateLimit { spread } => (*spread).max(1),
            _ => 5,
        }
    }

    /// The response as bytes, for a client whose request has not been read.
    pub(crate) fn to_raw_response(&self, draw: u64) -> String {
        let mut reply = self.to_response(draw);
        let text = format!("{self}\n");
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}\r\n", value.to_str().unwrap_or_default())
        };
        let fields: String = reply.headers().iter().map(field).collect();
        format!("HTTP/1.1 {}\r\n{fields}\r\n{text}", reply.status())
    }

    /// The response. `draw` spreads Retry-After, so that rejected clients do not come back together.
    pub(crate) fn to_response(&self, draw: u64) -> Response<Body> {
        let text = Full::new(Bytes::from(format!("{self}\n")));
        let mut reply = Response::new(text.map_err(|never| match never {}).boxed_unsync());
        *reply.status_mut() = self.status();
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self.status() {
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("GET"));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1 + draw % self.retry_spread()));
            }
            _ => {}
        }
        // After a bad request or a panic, nobody knows where in the stream the next request begins.
        if (self.status().is_client_error() && *self != Self::NoRoute) || *self == Self::Panicked {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(fault) => fault.fmt(f),
            Self::Upgrade(fault) => fault.fmt(f),
            Self::Target => f.write_str("the request target must be a path"),
            Self::Body => f.write_str("the request body broke off"),
            Self::BodyTooSlow => f.write_str("the request body came too slowly"),
            Self::Origin => f.write_str("pages of this origin may not open a WebSocket here"),
            Self::ClientConnectionLimit => f.write_str("too many connections of this client"),
            Self::ConnectionLimit => f.write_str("too many connections"),
            Self::HandshakeRateLimit { .. } => f.write_str("too many handshakes at once"),
            Self::LocalExhaustion => f.write_str("the balancer has no way to a node left"),
            Self::NoRoute => f.write_str("no route for this host and path"),
            Self::NoNodeUp => f.write_str("no node is up"),
            Self::AllNodesFull => f.write_str("every node is full"),
            Self::NodesUnreachable => f.write_str("no node could be reached"),
            Self::NodeTimeout => f.write_str("the node did not answer in time"),
            Self::BadNodeResponse(what) => f.write_str(what),
            Self::Panicked => f.write_str("the balancer failed at this request"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_would_be_right() {
        let reply = ProxyError::Upgrade(UpgradeRequestError::Version).to_response(0);
        assert_eq!(reply.status(), 426);
        assert_eq!(reply.headers()[SEC_WEBSOCKET_VERSION], "13");
        assert_eq!(reply.headers()[CONNECTION], "close");
        let reply = ProxyError::NoNodeUp.to_response(7);
        assert_eq!((reply.status().as_u16(), &reply.headers()[RETRY_AFTER]), (503, &HeaderValue::from(3)));
        assert_eq!(ProxyError::Upgrade(UpgradeRequestError::Method).to_response(0).headers()[ALLOW], "GET");
        assert_eq!(ProxyError::AllNodesFull.handshake_result(), HandshakeResult::Limited);
        assert_eq!(ProxyError::NodesUnreachable.handshake_result(), HandshakeResult::Failed);
        assert_eq!(ProxyError::NoRoute.handshake_result(), HandshakeResult::Refused);
        assert_eq!(
            (ProxyError::Origin.status().as_u16(), ProxyError::Origin.handshake_result()),
            (403, HandshakeResult::Refused)
        );
        assert_eq!(ProxyError::LocalExhaustion.handshake_result(), HandshakeResult::Failed);
        assert_eq!(ProxyError::BodyTooSlow.status(), 408);
    }

    #[test]
    fn rejected_clients_are_told_to_retry_at_different_times() {
        let after = |error: &ProxyError, draw| {
            let reply = error.to_response(draw);
            let after: u64 = reply.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            (reply.status().as_u16(), error.handshake_result(), after)
        };
        assert_eq!(after(&ProxyError::ClientConnectionLimit, 4), (429, HandshakeResult::Limited, 5));
        assert_eq!(after(&ProxyError::ConnectionLimit, 0), (503, HandshakeResult::Limited, 1));
        assert_eq!(
            after(&ProxyError::HandshakeRateLimit { spread: 60 }, 59),
            (503, HandshakeResult::Limited, 60)
        );
        assert_eq!(after(&ProxyError::HandshakeRateLimit { spread: 0 }, 59).2, 1);
    }

    #[test]
    fn a_raw_response_is_complete_and_ends_the_connection() {
        let text = ProxyError::ConnectionLimit.to_raw_response(2);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert_eq!(body, "too many connections\n");
        for field in ["content-length: 21", "connection: close", "retry-after: 3"] {
            assert!(head.lines().any(|line| line == field), "{head}");
        }
    }
}
