//! The node's WebSocket: the upgrade, and a conversation in which every message is answered.
//!
//! On open the node says `{"node":ID,"hello":true}`; a text message M is answered with `{"node":ID,"echo":M}`, a
//! binary one with itself. Pings and closes are answered by the library.
//!
//! Rules: one message is answered before the next is read, so a client that does not read is not read from; the
//! node's end is Close 1001, a client's fault the code of RFC 6455 section 7.4.1 that names it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE as UPGRADE_HEADER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use super::{Answer, GRACE, Node, plain};

/// A larger message is refused with 1009; the same as Socket.IO's default `maxHttpBufferSize`, in binary.
pub(super) const MAX_MESSAGE: usize = 1024 * 1024;

/// The library's default read buffer is 128 KiB for each connection, which a demo of thousands would feel.
const READ_BUFFER: usize = 4 * 1024;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers a GET of `/ws`: 101 and a conversation of its own task, or what is wrong with the request.
pub(super) fn upgrade(node: &Arc<Node>, mut request: Request<Incoming>) -> Answer {
    let accept = match accept_key(request.version(), request.headers()) {
        Ok(accept) => accept,
        Err(fault) => return refusal(fault),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    node.tasks.spawn(converse(node.clone(), upgraded));

    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE_HEADER, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

/// Why a GET of `/ws` is no WebSocket handshake (RFC 6455 section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// No upgrade to `websocket` was asked for, in HTTP/1.1.
    NotAnUpgrade,
    /// `Sec-WebSocket-Version` is not 13.
    Version,
    /// `Sec-WebSocket-Key` is missing, there twice, or not 16 bytes in base64.
    Key,
}

fn accept_key(version: Version, headers: &HeaderMap) -> Result<HeaderValue, Fault> {
    let asks = lists(headers, CONNECTION, "upgrade") && lists(headers, UPGRADE_HEADER, "websocket");
    if version != Version::HTTP_11 || !asks {
        return Err(Fault::NotAnUpgrade);
    }
    if only(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Fault::Version);
    }
    let key = only(headers, SEC_WEBSOCKET_KEY).ok_or(Fault::Key)?;
    let nonce = STANDARD.decode(key.as_bytes()).map_err(|_| Fault::Key)?;
    if nonce.len() != 16 {
        return Err(Fault::Key);
    }
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| Fault::Key)
}

/// Whether the comma-separated header has `token` among its members, in any case.
fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|member| member.trim().eq_ignore_ascii_case(token)))
}

/// The header's value, when it is there exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn refusal(fault: Fault) -> Answer {
    let (status, why) = match fault {
        Fault::NotAnUpgrade => (StatusCode::UPGRADE_REQUIRED, "this path is a WebSocket, over HTTP/1.1"),
        Fault::Version => (StatusCode::UPGRADE_REQUIRED, "the WebSocket version spoken here is 13"),
        Fault::Key => (StatusCode::BAD_REQUEST, "one Sec-WebSocket-Key of 16 bytes in base64 is needed"),
    };
    let mut answer = plain(status, why);
    if status == StatusCode::UPGRADE_REQUIRED {
        // RFC 9110 section 15.5.22: a 426 names the protocol, and an Upgrade line needs its Connection option.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        answer.headers_mut().insert(UPGRADE_HEADER, HeaderValue::from_static("websocket"));
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    answer
}

/// The life of one WebSocket: counted while it is open, ended by the client, by a fault or by the node's shutdown.
async fn converse(node: Arc<Node>, upgraded: OnUpgrade) {
    let Ok(upgraded) = upgraded.await else {
        return; // The client left before it read the 101.
    };
    let _open = Open::count(node.clone());
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let code = match node.shutdown.run_until_cancelled(answer_all(&node.id, &mut socket)).await {
        None => Some(CloseCode::Away),
        Some(Ok(())) => None,
        Some(Err(error)) => close_code(&error),
    };
    if let Some(code) = code {
        debug!(node = %node.id, code = u16::from(code), "node closes a websocket");
        let _ = timeout(GRACE, part(&mut socket, code)).await;
    }
}

/// Ends with `Ok` when the close handshake is over.
async fn answer_all(id: &str, socket: &mut Socket) -> Result<(), Error> {
    let hello = serde_json::json!({ "node": id, "hello": true });
    socket.send(Message::text(hello.to_string())).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => {
                let echo = serde_json::json!({ "node": id, "echo": text.as_str() });
                socket.send(Message::text(echo.to_string())).await?;
            }
            Message::Binary(bytes) => socket.send(Message::Binary(bytes)).await?,
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
    Ok(())
}

/// The code that tells the client its fault; none when there is nobody left to tell.
fn close_code(error: &Error) -> Option<CloseCode> {
    match error {
        Error::Capacity(_) => Some(CloseCode::Size),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        Error::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

/// Sends the Close and reads until the client has answered it, so that the kernel does not reset what is still on
/// its way to the client.
async fn part(socket: &mut Socket, code: CloseCode) {
    let reason = if code == CloseCode::Away { "the node is going away" } else { "" };
    if socket.close(Some(CloseFrame { code, reason: reason.into() })).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}

/// One open WebSocket in the node's count, for as long as it lives.
struct Open(Arc<Node>);

impl Open {
    fn count(node: Arc<Node>) -> Self {
        node.open.fetch_add(1, Ordering::Relaxed);
        Self(node)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
