//! Drives hyper's HTTP/1 server over the requests of one client, until the connection ends or becomes a tunnel.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Body;
use super::request_stream::RequestStream;

/// The least that hyper's buffer may have.
const MIN_BUFFER: usize = 16 << 10;

/// The reply to one request.
pub(crate) struct Reply<T> {
    /// The answer.
    pub response: Response<Body>,
    /// What the connection becomes once a 101 is out.
    pub upgrade: Option<T>,
}

impl<T> From<Response<Body>> for Reply<T> {
    fn from(response: Response<Body>) -> Self {
        Self { response, upgrade: None }
    }
}

/// A connection on which HTTP is over.
pub(crate) struct Served<S, T> {
    /// Its stream.
    pub stream: S,
    /// The bytes that the client sent behind its last request.
    pub early: Bytes,
    /// What it becomes; `None` where it ended, or its 101 could not be sent.
    pub upgrade: Option<T>,
}

/// Answers the requests of a connection in turn. Once `shutdown` is done, the answer under way is the last.
pub(crate) async fn serve<S, T, A>(
    requests: RequestStream<S>,
    shutdown: impl Future<Output = ()>,
    respond: impl Fn(Request<Incoming>) -> A,
) -> Served<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Future<Output = Reply<T>>,
{
    let (upgrade, respond) = (Mutex::new(None), &respond);
    let slot = &upgrade;
    let service = service_fn(move |request| {
        // In a box: a connection that waits for its next request has no room for an answer.
        Box::pin(async move {
            let reply = respond(request).await;
            *slot.lock() = reply.upgrade;
            Ok::<_, Infallible>(reply.response)
        })
    });
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).auto_date_header(false).max_buf_size(requests.max_head().max(MIN_BUFFER));
    let mut served = http.serve_connection(TokioIo::new(requests), service);
    let mut shutdown = pin!(shutdown);
    let mut is_ending = false;
    let outcome = loop {
        tokio::select! {
            outcome = poll_fn(|cx| served.poll_without_shutdown(cx)) => break outcome,
            () = &mut shutdown, if !is_ending => {
                is_ending = true;
                Pin::new(&mut served).graceful_shutdown();
            }
        }
    };
    if let Err(error) = &outcome {
        tracing::debug!(%error, "client connection ended");
    }
    let parts = served.into_parts();
    let (stream, unread) = parts.io.into_inner().into_parts();
    let mut early = BytesMut::from(&parts.read_buf[..]);
    early.extend_from_slice(&unread);
    Served { stream, early: early.freeze(), upgrade: upgrade.into_inner().filter(|_| outcome.is_ok()) }
}
