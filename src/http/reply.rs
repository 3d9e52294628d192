//! The one table of failures: what a client is told when it gets no answer of a node's.

use std::fmt;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::Body;
use super::framing::HeadFault;
use crate::metrics::Handshake;
use crate::ws::handshake::RequestFault;

/// Why a client gets no answer of a node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The client's: its request head is not HTTP as it has to be.
    Head(HeadFault),
    /// The client's: its upgrade request is wrong.
    Upgrade(RequestFault),
    /// The client's: CONNECT, or a target that is not a path.
    Target,
    /// The client's: its body broke off or was wrongly framed.
    Body,
    /// No route matches.
    NoRoute,
    /// No node of the pool is up.
    NoneUp,
    /// Every node that is up is at its `max_connections`.
    AllFull,
    /// The nodes': no candidate could be reached.
    Unreachable,
    /// A node's: its answer did not come in time.
    TooSlow,
    /// A node's: its answer is not one.
    BadAnswer(String),
}

impl Failure {
    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Head(HeadFault::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Head(HeadFault::TooLarge(_) | HeadFault::TooManyFields(_)) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Upgrade(RequestFault::Version) => StatusCode::UPGRADE_REQUIRED,
            Self::Upgrade(RequestFault::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Head(_) | Self::Upgrade(_) | Self::Target | Self::Body => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoneUp | Self::AllFull => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable | Self::BadAnswer(_) => StatusCode::BAD_GATEWAY,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The label of `handshakes_total`, when the request was an upgrade.
    pub fn handshake(&self) -> Handshake {
        match self {
            Self::AllFull => Handshake::Limited,
            _ if self.status().is_client_error() => Handshake::Refused,
            _ => Handshake::Failed,
        }
    }

    /// The answer. `draw` spreads Retry-After, so that those who are sent away do not come back together.
    pub fn reply(&self, draw: u64) -> Response<Body> {
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
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1 + draw % 5));
            }
            _ => {}
        }
        // A client whose request was wrong has lost its place in the stream, or may have.
        if self.status().is_client_error() && *self != Self::NoRoute {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(fault) => fault.fmt(f),
            Self::Upgrade(fault) => fault.fmt(f),
            Self::Target => f.write_str("the request target must be a path"),
            Self::Body => f.write_str("the request body broke off"),
            Self::NoRoute => f.write_str("no route for this host and path"),
            Self::NoneUp => f.write_str("no node is up"),
            Self::AllFull => f.write_str("every node is full"),
            Self::Unreachable => f.write_str("no node could be reached"),
            Self::TooSlow => f.write_str("the node did not answer in time"),
            Self::BadAnswer(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_says_what_would_be_right() {
        let reply = Failure::Upgrade(RequestFault::Version).reply(0);
        assert_eq!(reply.status(), 426);
        assert_eq!(reply.headers()[SEC_WEBSOCKET_VERSION], "13");
        assert_eq!(reply.headers()[CONNECTION], "close");
        let reply = Failure::NoneUp.reply(7);
        assert_eq!((reply.status().as_u16(), &reply.headers()[RETRY_AFTER]), (503, &HeaderValue::from(3)));
        assert_eq!(Failure::Upgrade(RequestFault::Method).reply(0).headers()[ALLOW], "GET");
        assert_eq!(Failure::AllFull.handshake(), Handshake::Limited);
        assert_eq!(Failure::Unreachable.handshake(), Handshake::Failed);
        assert_eq!(Failure::NoRoute.handshake(), Handshake::Refused);
    }
}
