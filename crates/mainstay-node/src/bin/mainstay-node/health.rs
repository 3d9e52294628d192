//! `mainstay-node health ADDRESS`: one GET of /health on one connection, with a deadline over all of it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The time for a connection and a whole answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// The time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of an answer.
const LARGEST_ANSWER: usize = 1 << 20;

/// Reads `HOST:PORT` or `[IPV6]:PORT`; the port is not 0.
///
/// # Errors
///
/// What would be right.
pub fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let is_host = |host: &str| {
        let bare = host.strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
        bare.map_or_else(
            || !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
            |inside| inside.parse::<std::net::Ipv6Addr>().is_ok(),
        )
    };
    match port {
        Some((host, port)) if port != 0 && is_host(host) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no address of a node; write HOST:PORT or [IPV6]:PORT")),
    }
}

/// Returns when the node at `address` says that it is healthy.
///
/// # Errors
///
/// Why it is not, or that nobody answers.
pub fn check(address: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let answer = runtime.block_on(async { timeout(DEADLINE, request_health(address)).await });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    answer.unwrap_or_else(|_| Err(format!("{address} gave no answer within {DEADLINE:?}")))
}

async fn request_health(address: &str) -> Result<(), String> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(late).flatten();
    let stream = stream.map_err(|error| format!("nobody answers at {address}: {error}"))?;
    let (status, body) = exchange(stream, address)
        .await
        .map_err(|error| format!("{address} gives no answer of a node: {error}"))?;
    if status.is_success() {
        return Ok(());
    }
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    Err(match body["error"].as_str() {
        Some(what) => what.chars().map(printable).collect(),
        None => format!("it answers with status {}", status.as_u16()),
    })
}

async fn exchange(
    stream: TcpStream,
    address: &str,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/health")
        .header(HOST, address)
        .header(USER_AGENT, concat!("mainstay-node/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok((status, Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await?.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The end of the connection may be the end of an answer; what is there of one is read.
        _ = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_address_is_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = check(&address).unwrap_err();
        assert!(error.starts_with(&format!("nobody answers at {address}: ")), "{error}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["127.0.0.1:3001", "[::1]:3001", "node.example:1", "localhost:65535"] {
            assert_eq!(address(text).as_deref(), Ok(text));
        }
        for text in ["", "3001", ":3001", "::1:3001", "a:0", "a:65536", "http://a:1", "a b:1", "[a]:1"] {
            assert!(address(text).unwrap_err().contains("write HOST:PORT"), "{text}");
        }
    }
}
