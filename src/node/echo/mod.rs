//! A node to stand behind the balancer: `GET /health`, `GET /` (the demo page) and `GET /ws` (a WebSocket that
//! answers every message with the node's own name).
//!
//! It is what `mainstay demo` runs in process; it is not a Socket.IO server and knows nothing of the balancer.
//!
//! Rules: every task belongs to the node's tracker, so [`serve`] returns only when the last one has ended; after the
//! shutdown token each connection has `GRACE` to say good-bye, and is then dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

mod page;
mod socket;

/// How long a connection may go on after the shutdown token was cancelled.
const GRACE: Duration = Duration::from_secs(2);

/// A request head must be whole by then.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// The pause after a failed accept (no file descriptors left, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `listener` as the node `id` until `shutdown` is cancelled, then closes every WebSocket with 1001 and returns
/// when the last connection has ended, at the latest after a few seconds.
pub async fn serve(id: Arc<str>, listener: TcpListener, shutdown: CancellationToken) {
    let node = Arc::new(Node {
        page: page::naming(&id),
        id,
        open: AtomicUsize::new(0),
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
    });
    // `None` is the token: nothing more is accepted.
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => drop(node.tasks.spawn(converse(node.clone(), stream))),
            Err(error) => {
                warn!(node = %node.id, %error, "node accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    node.tasks.close();
    node.tasks.wait().await;
}

/// What the connections of one node share.
struct Node {
    /// The name that the node gives itself in every answer.
    id: Arc<str>,
    /// The demo page with the node's name in it; the same bytes for every request.
    page: Bytes,
    /// WebSockets open now; `/health` tells it.
    open: AtomicUsize,
    /// Owns every connection and every WebSocket, so that the end of [`serve`] is the end of all of them.
    tasks: TaskTracker,
    /// Cancelled once: the node is to end.
    shutdown: CancellationToken,
}

/// One accepted connection, request after request, until the client leaves or the node ends.
async fn converse(node: Arc<Node>, stream: TcpStream) {
    // An echo is one small write after one small read, which Nagle would hold back.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(node = %node.id, %error, "nodelay refused");
    }
    let shutdown = node.shutdown.clone();
    let service = service_fn(move |request| {
        let node = node.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&node, request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    // A peer's fault ends its own connection and nothing else, so the result is not looked at.
    if shutdown.run_until_cancelled(connection.as_mut()).await.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(GRACE, connection).await;
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(node: &Arc<Node>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path();
    if !matches!(path, "/" | "/health" | "/ws") {
        return plain(StatusCode::NOT_FOUND, "there is /, /health and /ws");
    }
    let may_head = path != "/ws" && request.method() == Method::HEAD;
    if request.method() != Method::GET && !may_head {
        return not_allowed(path);
    }
    match path {
        "/health" => health(node),
        "/ws" => socket::upgrade(node, request),
        _ => home(node),
    }
}

fn health(node: &Node) -> Answer {
    let open = node.open.load(Ordering::Relaxed);
    let body = serde_json::json!({ "status": "ok", "node": &*node.id, "connections": open });
    let mut answer = Response::new(Full::from(body.to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn home(node: &Node) -> Answer {
    let mut answer = Response::new(Full::new(node.page.clone()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, page::policy());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn not_allowed(path: &str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "this path is for reading");
    let allow = if path == "/ws" { "GET" } else { "GET, HEAD" };
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

fn plain(status: StatusCode, why: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(why));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
    use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

    use super::*;

    type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

    /// A node on a port of its own, ended when the test says so.
    struct Served {
        address: std::net::SocketAddr,
        shutdown: CancellationToken,
        /// The server's one task.
        server: JoinSet<()>,
    }

    impl Served {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let shutdown = CancellationToken::new();
            let mut server = JoinSet::new();
            server.spawn(serve("ws1".into(), listener, shutdown.clone()));
            Self { address, shutdown, server }
        }

        async fn end(self) {
            self.shutdown.cancel();
            tokio::time::timeout(Duration::from_secs(10), self.server.join_all())
                .await
                .expect("the node ends");
        }

        /// Opens a WebSocket and takes the hello.
        async fn open(&self) -> Client {
            let (mut client, _) = connect_async(format!("ws://{}/ws", self.address)).await.unwrap();
            assert_eq!(heard(&mut client).await, json!({ "node": "ws1", "hello": true }));
            client
        }

        /// Sends the lines as one request and reads the answer until the node closes.
        async fn ask(&self, lines: &[&str]) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn connections(&self) -> u64 {
            let answer = self.ask(&["GET /health HTTP/1.1", "Host: n", "Connection: close"]).await;
            let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!((&body["status"], &body["node"]), (&json!("ok"), &json!("ws1")));
            body["connections"].as_u64().unwrap()
        }
    }

    async fn heard(client: &mut Client) -> Value {
        let message = client.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// Reads on to the node's Close, and gives its code.
    async fn code(client: &mut Client) -> Option<CloseCode> {
        loop {
            if let Message::Close(frame) = client.next().await.unwrap().unwrap() {
                return frame.map(|frame| frame.code);
            }
        }
    }

    const HANDSHAKE: [&str; 7] = [
        "GET /ws HTTP/1.1",
        "Host: n",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: chat",
    ];

    #[tokio::test]
    async fn every_text_message_is_answered_with_the_nodes_name_and_in_order() {
        let served = Served::start().await;
        let mut client = served.open().await;
        for n in 0..100 {
            client.feed(Message::text(format!("\"{n}\" \u{1f6a2}"))).await.unwrap();
        }
        client.flush().await.unwrap();
        for n in 0..100 {
            let expected = json!({ "node": "ws1", "echo": format!("\"{n}\" \u{1f6a2}") });
            assert_eq!(heard(&mut client).await, expected);
        }
        served.end().await;
    }

    #[tokio::test]
    async fn a_binary_message_comes_back_as_it_was_up_to_the_largest() {
        let served = Served::start().await;
        let mut client = served.open().await;
        for length in [0, 1, 4096, socket::MAX_MESSAGE] {
            let sent = Message::binary(vec![0xA5; length]);
            client.send(sent.clone()).await.unwrap();
            assert_eq!(client.next().await.unwrap().unwrap(), sent);
        }
        served.end().await;
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_with_1009() {
        let served = Served::start().await;
        let mut client = served.open().await;
        client.send(Message::binary(vec![0; socket::MAX_MESSAGE + 1])).await.unwrap();
        assert_eq!(code(&mut client).await, Some(CloseCode::Size));
        served.end().await;
    }

    #[tokio::test]
    async fn pings_are_answered_and_a_close_is_echoed() {
        let served = Served::start().await;
        let mut client = served.open().await;
        client.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
        client.close(None).await.unwrap();
        while let Some(Ok(_)) = client.next().await {}
        served.end().await;
    }

    #[tokio::test]
    async fn health_counts_the_open_websockets_and_forgets_the_closed() {
        let served = Served::start().await;
        assert_eq!(served.connections().await, 0);
        let (first, mut second) = (served.open().await, served.open().await);
        assert_eq!(served.connections().await, 2);
        second.close(None).await.unwrap();
        while let Some(Ok(_)) = second.next().await {}
        drop(first); // no close frame: a reset
        let gone = async { while served.connections().await > 0 {} };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("both are forgotten");
        served.end().await;
    }

    #[tokio::test]
    async fn at_shutdown_every_websocket_hears_1001_and_serve_ends() {
        let served = Served::start().await;
        let mut clients = [served.open().await, served.open().await];
        served.shutdown.cancel();
        for client in &mut clients {
            assert_eq!(code(client).await, Some(CloseCode::Away));
        }
        served.end().await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_cannot_hold_up_the_shutdown() {
        let served = Served::start().await;
        let silent = TcpStream::connect(served.address).await.unwrap();
        let mut deaf = served.open().await;
        let flood = async { while deaf.send(Message::binary(vec![0; 1 << 20])).await.is_ok() {} };
        // The node's answers fill every buffer, then it reads no more and this end is stuck as well.
        tokio::time::timeout(Duration::from_millis(300), flood).await.expect_err("back-pressure is felt");
        served.end().await;
        drop(silent);
    }

    #[tokio::test]
    async fn the_handshake_is_answered_as_rfc_6455_says_with_its_own_example() {
        let served = Served::start().await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(format!("{}\r\n\r\n", HANDSHAKE.join("\r\n")).as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        assert!(!head.contains("sec-websocket-protocol"), "none is spoken: {head}");
        drop(stream);
        served.end().await;
    }

    #[tokio::test]
    async fn a_handshake_with_a_fault_is_refused_with_the_status_that_names_it() {
        let served = Served::start().await;
        let cases = [
            (0, "POST /ws HTTP/1.1", "405"),
            (0, "GET /ws HTTP/1.0", "426"),
            (2, "Connection: keep-alive", "426"),
            (3, "Upgrade: h2c", "426"),
            (4, "Sec-WebSocket-Version: 8", "426"),
            (4, "X-No-Version: 13", "426"),
            (5, "X-No-Key: 1", "400"),
            (5, "Sec-WebSocket-Key: c2hvcnQ=", "400"),
            (5, "Sec-WebSocket-Key: not base64!", "400"),
            (6, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "400"),
        ];
        for (place, line, status) in cases {
            let mut lines = HANDSHAKE.to_vec();
            lines[place] = line;
            lines.push("Connection: close");
            let answer = served.ask(&lines).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{line}: {answer}");
            let names_it = answer.to_lowercase().contains("sec-websocket-version: 13\r\n");
            assert_eq!(names_it, status == "426", "{line}: {answer}");
        }
        served.end().await;
    }

    #[tokio::test]
    async fn only_the_three_paths_exist_and_they_are_for_reading() {
        let served = Served::start().await;
        let cases = [
            ("GET / HTTP/1.1", "200"),
            ("GET /?user=1 HTTP/1.1", "200"),
            ("HEAD / HTTP/1.1", "200"),
            ("HEAD /health HTTP/1.1", "200"),
            ("HEAD /ws HTTP/1.1", "405"),
            ("DELETE / HTTP/1.1", "405"),
            ("GET /healthz HTTP/1.1", "404"),
            ("POST /nowhere HTTP/1.1", "404"),
            ("OPTIONS * HTTP/1.1", "404"),
        ];
        for (line, status) in cases {
            let answer = served.ask(&[line, "Host: n", "Connection: close"]).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{line}: {answer}");
            assert_eq!(answer.contains("allow: "), status == "405", "{line}: {answer}");
        }
        served.end().await;
    }

    #[tokio::test]
    async fn the_page_names_the_node_and_comes_with_its_policy() {
        let served = Served::start().await;
        let answer = served.ask(&["GET / HTTP/1.1", "Host: n", "Connection: close"]).await;
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'sha256-"), "{head}");
        assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
        assert!(page.contains("data-served-by=\"ws1\""));
        served.end().await;
    }
}
