//! HTTP at the front desk: strict framing before hyper sees a byte, header fields on their way through, and the one
//! table of errors that clients get.

pub mod framing;
pub mod request_stream;
pub(crate) mod server;
pub mod headers;
pub(crate) mod reply;
pub(crate) mod trace;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// Any error of a body in transit.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way through.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
