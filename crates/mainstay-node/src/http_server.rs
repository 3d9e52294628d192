//! The node's HTTP/1.1 server: connections in, requests to whoever answers them.
//!
//! Rules: every connection belongs to the tracker, so that the end of the server is the end of all of them. A request
//! head must be whole in time, which is also how long a silent kept-alive connection stays. A peer's fault ends its own
//! connection and nothing else. At the end a connection has two seconds to finish its answer.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::response::HttpResponse;

/// How long a connection may go on after the end of the server.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// The longest head of a request, bytes: twice what balancers and Node.js take, because a proxy adds fields. What a
/// handshake said is kept with its session.
const MAX_HEAD: usize = 32 << 10;

/// The pause after a failed accept (no file descriptors left, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// Whoever answers the requests.
pub(crate) trait RequestHandler: Send + Sync + 'static {
    /// The answer to one request of `peer`.
    fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> impl Future<Output = HttpResponse> + Send;
}

/// Listens on `address`. With `reuse_port`, other processes may do so at the same time, and the kernel spreads new
/// connections over all of them; without, an address that is in use is refused.
///
/// # Errors
///
/// As bind(2).
pub(crate) fn listen(address: SocketAddr, reuse_port: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // On Linux this only passes over TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    // What is accepted inherits it: chat is small writes, which Nagle would hold back.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `stop`, and returns when the last connection has ended; upgraded ones are their owners' business.
pub(crate) async fn serve<S: RequestHandler>(
    listener: TcpListener,
    service: Arc<S>,
    head_time: Duration,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    // `None` is the token: nothing more is accepted.
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let (service, stop) = (Arc::clone(&service), stop.clone());
                tasks.spawn(serve_connection(stream, peer, service, head_time, stop));
            }
            Err(error) => {
                warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// One accepted connection, request after request, until the client leaves, it is upgraded or the server ends.
async fn serve_connection<S: RequestHandler>(
    stream: TcpStream,
    peer: SocketAddr,
    service: Arc<S>,
    head_time: Duration,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let answer = Arc::clone(&service).respond(request, peer);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = match stop.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(SHUTDOWN_GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection failed");
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;

    use super::*;
    use crate::response;

    struct Hello;

    impl RequestHandler for Hello {
        async fn respond(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> HttpResponse {
            response::with_content_type(StatusCode::OK, "text/plain", request.uri().path().to_owned())
        }
    }

    #[tokio::test]
    async fn requests_are_answered_and_the_end_of_the_server_is_the_end_of_its_connections() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(Hello), Duration::from_secs(60), stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        stop.cancel();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.ends_with("/a"), "{rest}");
        server.join_all().await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(Hello), Duration::from_secs(60), CancellationToken::new()));
        for (length, status) in [(MAX_HEAD / 2, "200"), (4 * MAX_HEAD, "431")] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!("GET /a HTTP/1.1\r\nHost: n\r\nX-Long: {}\r\n\r\n", "x".repeat(length));
            // The server may have answered and closed before it has taken all of it.
            let _ = stream.write_all(head.as_bytes()).await;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"));
        }
    }

    #[tokio::test]
    async fn two_may_share_a_port_when_both_say_so_and_not_otherwise() {
        let first = listen("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = first.local_addr().unwrap();
        assert!(listen(address, true).is_ok());
        assert!(listen(address, false).is_err());
        let alone = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        assert!(listen(alone.local_addr().unwrap(), true).is_err());
    }
}
