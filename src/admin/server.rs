//! The admin server: its connections and their limits.
//!
//! Safe to leave running: it bounds a request's head and body and the time for each, and serves a bounded number of
//! connections at once; when the limit is reached, the oldest connection is closed for the new one. It answers while the
//! process drains and ends when everything has stopped. Errors are JSON: `{"error", "faults"}`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::http::request_stream::{RequestLimits, RequestStream, RequestTracker};
use crate::net::listener::Listener;
use crate::net::stream::Stream;
use crate::shutdown::{Phase, Shutdown};

use super::access::Exposure;
use super::api::{Api, head_error_response};
use super::context::AdminContext;

/// The limits of the server.
#[derive(Clone, Copy)]
struct ServerLimits {
    /// Connections that are served at once.
    connections: usize,
    /// The time for a whole request head.
    head_time: Duration,
    /// The time for a whole request body, however slowly it comes.
    body_time: Duration,
    /// How long a kept-alive connection may be idle.
    keep_alive: Duration,
    /// The longest that a connection lives.
    connection_time: Duration,
    /// How long an answer that is being written at a connection's end is waited for.
    last_answer: Duration,
    /// The same where the listener has been closed: by a reload, which may be the very request that is answered.
    closed_listener: Duration,
}

/// Enough for a few scrapers and operators; a scraper that asks once a minute keeps its connection. A connection ends after
/// ten minutes, so that clients that never read cannot hold theirs for ever; a scraper connects anew.
const LIMITS: ServerLimits = ServerLimits {
    connections: 64,
    head_time: Duration::from_secs(10),
    body_time: Duration::from_secs(10),
    keep_alive: Duration::from_secs(75),
    connection_time: Duration::from_secs(600),
    last_answer: Duration::from_secs(1),
    closed_listener: Duration::from_secs(10),
};

/// Bytes of a request head.
const HEAD_SIZE: usize = 16 * 1024;

/// The pause after a failed accept: the usual cause, no free descriptor, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the listener until everything has stopped, or another process takes over; then closes it and every connection,
/// and returns. Where this is dropped before, the connections end with the answer under way.
pub(crate) async fn serve(listener: Listener, context: Arc<AdminContext>, shutdown: Shutdown) {
    serve_within(LIMITS, listener, context, shutdown).await;
}

async fn serve_within(
    limits: ServerLimits,
    listener: Listener,
    context: Arc<AdminContext>,
    shutdown: Shutdown,
) {
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let api = Api { context, exposure: Exposure::of(&listener), body_time: limits.body_time };
    let server = Arc::new(AdminServer { limits, api, shutdown });
    let mut oldest_first = VecDeque::new();
    loop {
        tokio::select! {
            () = server.shutdown.wait_for(Phase::Stopped) => break,
            () = server.shutdown.wait_for_handover() => break,
            (stream, permit) = accept(&listener, &permits, &mut oldest_first) => {
                let (leave, asked_to_leave) = oneshot::channel();
                oldest_first.retain(|leave: &oneshot::Sender<()>| !leave.is_closed());
                oldest_first.push_back(leave);
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    server.serve_connection(stream, asked_to_leave).await;
                    drop(permit);
                });
            }
        }
    }
    drop(listener);
    // Those that are left end with the answer under way.
    drop(oldest_first);
    connections.close();
    connections.wait().await;
}

/// The next connection, and a permit for it, for which the oldest one is closed when there is none: a client that only
/// holds connections open must not keep out a health check.
async fn accept(
    listener: &Listener,
    permits: &Arc<Semaphore>,
    oldest_first: &mut VecDeque<oneshot::Sender<()>>,
) -> (Stream, OwnedSemaphorePermit) {
    let stream = loop {
        match listener.accept().await {
            Ok((stream, _)) => break stream,
            Err(fault) => {
                warn!(%fault, "admin address cannot accept");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return (stream, permit);
    }
    while let Some(leave) = oldest_first.pop_front() {
        if leave.send(()).is_ok() {
            break;
        }
    }
    (stream, Arc::clone(permits).acquire_owned().await.expect("nobody closes this semaphore"))
}

/// What the connections of one listener share.
struct AdminServer {
    limits: ServerLimits,
    api: Api,
    shutdown: Shutdown,
}

impl AdminServer {
    /// Serves one connection until its client leaves it, it breaks a limit, it is asked to leave, or everything has
    /// stopped.
    async fn serve_connection(&self, stream: Stream, asked_to_leave: oneshot::Receiver<()>) {
        let rules = RequestLimits {
            request_head: HEAD_SIZE,
            head_time: self.limits.head_time,
            keep_alive: self.limits.keep_alive,
            stall_time: self.limits.body_time,
        };
        let (guard, link) = RequestStream::new(stream, rules);
        let service = service_fn(|request| Box::pin(self.reply(request, &link)));
        let mut http = http1::Builder::new();
        http.header_read_timeout(None).max_buf_size(HEAD_SIZE);
        let mut connection = http.serve_connection(TokioIo::new(guard), service);
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                if let Err(fault) = ended {
                    debug!(%fault, "admin connection ended");
                }
                let (stream, _) = connection.into_parts().io.into_inner().into_parts();
                tokio::select! {
                    () = stream.linger() => {}
                    () = self.shutdown.wait_for(Phase::Stopped) => {}
                }
            }
            within = self.told_to_end(asked_to_leave) => {
                if link.is_idle() {
                    return;
                }
                // The answer under way is the last, and who does not read it by then does without it.
                Pin::new(&mut connection).graceful_shutdown();
                let rest = poll_fn(|cx| connection.poll_without_shutdown(cx));
                let _ = time::timeout(within, rest).await;
            }
        }
    }

    /// Gives how long an answer under way is waited for.
    async fn told_to_end(&self, asked_to_leave: oneshot::Receiver<()>) -> Duration {
        let ServerLimits { connection_time, last_answer, closed_listener, .. } = self.limits;
        tokio::select! {
            () = time::sleep(connection_time) => last_answer,
            () = self.shutdown.wait_for(Phase::Stopped) => last_answer,
            asked = asked_to_leave => if asked.is_ok() { last_answer } else { closed_listener },
        }
    }

    /// The answer to one request, in flight for the guard until its body has gone out.
    async fn reply(
        &self,
        request: Request<Incoming>,
        link: &Arc<RequestTracker>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let (fault, in_flight) = link.begin_request();
        let answer = match fault {
            Some(fault) => head_error_response(&fault),
            None => self.api.reply(request).await,
        };
        let hold = move |never| {
            let _in_flight = &in_flight;
            never
        };
        Ok(answer.map(|body| body.map_err(hold).boxed_unsync()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::task::JoinSet;

    use super::*;
    use crate::control::upgrade::{Program, Upgrader};
    use crate::control::{BoundListeners, Reload};
    use crate::log::access::AccessLog;
    use crate::metrics::Metrics;
    use crate::proxy::{ProxyContext, ProxyState};
    use crate::relay::{CloseObserver, Relay};

    /// The server on a free port, for a process with one node that is up.
    struct TestAdmin {
        address: SocketAddr,
        context: Arc<AdminContext>,
        server: JoinSet<()>,
    }

    impl TestAdmin {
        async fn start(limits: ServerLimits) -> Self {
            let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            let (address, context) = (listener.local_address().parse().unwrap(), context().await);
            let mut server = JoinSet::new();
            server.spawn(serve_within(
                limits,
                listener,
                Arc::clone(&context),
                context.proxy().shutdown.clone(),
            ));
            Self { address, context, server }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends these bytes on a connection of their own and gives all that comes back until its end.
        async fn answer(&self, request: &str) -> String {
            let mut stream = self.connect().await;
            stream.write_all(request.as_bytes()).await.unwrap();
            rest(&mut stream).await
        }

        async fn get(&self, path: &str) -> String {
            self.answer(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
        }
    }

    async fn context() -> Arc<AdminContext> {
        let text = b"pools: { p: { nodes: [{ id: a, address: \"a:1\" }], health: null } }";
        let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let config = crate::config::resolve("f", text, &|_| None, &read).unwrap();
        let metrics = Metrics::new(1);
        let log = Arc::new(AccessLog::disabled(metrics.access_log_dropped()));
        let observer: CloseObserver = Arc::new(|_, _| {});
        let state = ProxyState::new(&config, &metrics);
        let proxy = ProxyContext::new(state, Relay::start(1, &observer).unwrap(), metrics, log, 7);
        let reload = Reload::new(Arc::new(proxy), config, None, Box::new(|_, _| Box::pin(async {})));
        reload.start(BoundListeners { clients: Vec::new(), acceptors: Vec::new(), admin: None }).await;
        let (upgrader, _) = Upgrader::new(Program::own().unwrap()).unwrap();
        Arc::new(AdminContext { reload, upgrader, started_at: SystemTime::now() })
    }

    /// All until the end; a reset is an end.
    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).unwrap()
    }

    /// One answer with a short body on a connection that stays.
    async fn asks(stream: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        while !text.contains("\r\n\r\n") || !text.ends_with('\n') || text.ends_with("\r\n\r\n") {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "the connection ended within an answer: {text}");
            text.push_str(str::from_utf8(&bytes[..count]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn the_metrics_are_served_in_the_text_format() {
        let admin = TestAdmin::start(LIMITS).await;
        admin.context.proxy().metrics.node("chat", "ws1").set_state("up");
        let answer = admin.get("/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(
            answer.contains("mainstay_node_state{pool=\"chat\",node=\"ws1\",state=\"up\"} 1\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_process_that_drains_is_alive_and_not_ready() {
        let admin = TestAdmin::start(LIMITS).await;
        assert!(admin.get("/readyz").await.starts_with("HTTP/1.1 200 "));
        admin.context.proxy().shutdown.begin();
        let answer = admin.get("/readyz?verbose").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#""error":"draining""#), "{answer}");
        assert!(admin.get("/healthz").await.ends_with("\r\n\r\nok\n"));
    }

    #[tokio::test]
    async fn a_listener_that_is_closed_lets_go_of_its_connections() {
        let mut admin = TestAdmin::start(LIMITS).await;
        let mut idle = admin.connect().await;
        asks(&mut idle, "/healthz").await;
        admin.server.shutdown().await;
        assert_eq!(rest(&mut idle).await, "");
        assert!(TcpStream::connect(admin.address).await.is_err());
    }

    #[tokio::test]
    async fn at_the_end_the_listener_and_every_connection_are_closed() {
        let mut admin = TestAdmin::start(LIMITS).await;
        let mut idle = admin.connect().await;
        asks(&mut idle, "/healthz").await;
        let mut silent = admin.connect().await;
        admin.context.proxy().shutdown.stop();
        admin.server.join_next().await.unwrap().unwrap();
        assert_eq!([rest(&mut idle).await, rest(&mut silent).await], ["", ""]);
        assert!(TcpStream::connect(admin.address).await.is_err());
    }

    #[tokio::test]
    async fn an_unknown_path_and_another_method_get_an_error_in_json() {
        let admin = TestAdmin::start(LIMITS).await;
        for path in ["/", "/metrics/", "/METRICS", "//metrics", "/x/../metrics", "/%6detrics"] {
            let answer = admin.get(path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
            assert!(answer.contains("content-type: application/json"), "{path}: {answer}");
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["faults"], serde_json::json!([]));
            assert!(body["error"].is_string());
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let request = format!("{method} /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = admin.answer(&request).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
            assert!(answer.contains("allow: GET, HEAD"), "{method}: {answer}");
        }
    }

    #[tokio::test]
    async fn head_is_answered_as_get_without_the_body() {
        let admin = TestAdmin::start(LIMITS).await;
        let answer = admin.answer("HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_request_without_a_host_or_with_two_is_refused() {
        let admin = TestAdmin::start(LIMITS).await;
        for hosts in ["", "Host: a\r\nHost: a\r\n"] {
            let answer =
                admin.answer(&format!("GET /metrics HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
        let old = admin.answer("GET /healthz HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200 "), "HTTP/1.0 knows no Host: {old}");
    }

    #[tokio::test]
    async fn what_is_no_request_or_too_large_a_one_ends_the_connection() {
        let admin = TestAdmin::start(LIMITS).await;
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_SIZE));
        for bad in
            ["\u{0}\u{1}\u{16}\u{3}\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &large]
        {
            let answer = admin.answer(bad).await;
            assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("connection: close"), "{answer}");
            assert!(answer.contains(r#"{"error":""#), "{answer}");
        }
        assert!(admin.get("/healthz").await.starts_with("HTTP/1.1 200 "), "others are served as before");
    }

    #[tokio::test]
    async fn a_body_is_not_taken_for_the_next_request() {
        let admin = TestAdmin::start(LIMITS).await;
        let smuggled = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n";
        let request = format!(
            "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{smuggled}",
            smuggled.len()
        );
        let answer = admin.answer(&request).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_head_is_cut_off() {
        let admin = TestAdmin::start(ServerLimits { head_time: Duration::from_millis(30), ..LIMITS }).await;
        assert_eq!(admin.answer("").await, "");
        for start in ["G", "GET /metrics HTTP/1.1\r\nHost: a\r\n"] {
            let answer = admin.answer(start).await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "after {start:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_connection_gives_its_place_back_after_its_time() {
        let admin =
            TestAdmin::start(ServerLimits { connection_time: Duration::from_millis(30), ..LIMITS }).await;
        let mut stream = admin.connect().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        // Kept alive for ten seconds more, were it not for the time.
        assert!(rest(&mut stream).await.matches("HTTP/1.1 200").count() <= 1);
    }

    #[tokio::test]
    async fn a_client_that_sends_its_head_a_byte_at_a_time_is_cut_off_all_the_same() {
        let admin = TestAdmin::start(ServerLimits { head_time: Duration::from_millis(60), ..LIMITS }).await;
        let mut stream = admin.connect().await;
        let (mut from, mut to) = stream.split();
        let drip = async {
            to.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
            while to.write_all(b"x").await.is_ok() {
                time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await.unwrap_err();
            }
        };
        let answer = tokio::select! {
            answer = rest(&mut from) => answer,
            () = drip => "reset".into(),
        };
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_body_is_cut_off() {
        let admin = TestAdmin::start(ServerLimits { body_time: Duration::from_millis(30), ..LIMITS }).await;
        let head = "POST /api/reload HTTP/1.1\r\nHost: localhost\r\n";
        for body in ["Content-Length: 5\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{"] {
            let answer = admin.answer(&format!("{head}{body}")).await;
            assert!(answer.starts_with("HTTP/1.1 4") || answer.is_empty(), "after {body:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn when_all_places_are_taken_the_oldest_connection_gives_way() {
        let admin = TestAdmin::start(ServerLimits { connections: 2, ..LIMITS }).await;
        let mut first = admin.connect().await;
        asks(&mut first, "/healthz").await;
        let mut second = admin.connect().await;
        asks(&mut second, "/healthz").await;
        let mut third = admin.connect().await;
        assert!(asks(&mut third, "/readyz").await.ends_with("ready\n"));
        assert_eq!(rest(&mut first).await, "", "it is closed between two answers");
        assert!(asks(&mut second, "/healthz").await.ends_with("ok\n"), "younger ones stay");
    }

    #[tokio::test]
    async fn many_who_say_nothing_do_not_keep_out_one_who_asks() {
        let admin = TestAdmin::start(ServerLimits { connections: 4, ..LIMITS }).await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(admin.connect().await);
        }
        let answer = time::timeout(Duration::from_secs(10), admin.get("/healthz")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_served_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = Listener::bind_unix(&path, &Default::default()).unwrap();
        let context = context().await;
        let shutdown = context.proxy().shutdown.clone();
        let client = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
            let answer = rest(&mut stream).await;
            shutdown.stop();
            answer
        };
        let ((), answer) = tokio::join!(serve(listener, context, shutdown.clone()), client);
        assert!(answer.ends_with("ready\n"), "{answer}");
    }
}
