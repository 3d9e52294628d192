//! The handshake of a WebSocket, and the stream that it leaves.

use std::io;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;

use mainstay_core::ws::handshake;

use crate::engine_io::response::{RequestError, response};
use crate::response::HttpResponse;

/// The 101 to a WebSocket's request, and what comes after it.
pub(crate) fn switch_protocols(parts: &mut Parts) -> Result<(HttpResponse, OnUpgrade), RequestError> {
    handshake::check_request(&parts.method, parts.version, &parts.headers)
        .map_err(|_| RequestError::BadRequest)?;
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let accept = key
        .and_then(|key| HeaderValue::try_from(handshake::accept(key)).ok())
        .ok_or(RequestError::BadRequest)?;
    let upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(RequestError::BadRequest)?;
    let headers = [(CONNECTION, "Upgrade"), (UPGRADE, "websocket")];
    let mut answer = response(StatusCode::SWITCHING_PROTOCOLS, &headers, "");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok((answer, upgrade))
}

/// The stream, registered with the runtime anew: in its old registration it would hold the waker of hyper's task, and so
/// the 2 KiB of that task, for as long as the socket lives.
pub(crate) fn reregister(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}
