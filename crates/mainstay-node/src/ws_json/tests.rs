//! Clients of the JSON protocol against an application that answers `join` with who asks, echoes what is published, and floods a
//! client that asks for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;
use yawc::{Options, WebSocket};

use mainstay_core::origin::Origins;

use super::message::event;
use super::*;
use crate::auth::tests::{SECRET, in_seconds, token};
use crate::auth::{AuthSettings, Authenticator, JwtAlgorithm, JwtKey};
use crate::http_server;
use crate::limits::{ConnectionLimiter, RateLimits};
use crate::metrics::Metrics;
use crate::response::HttpResponse;
use socketio_redis::value::Value;

type ClientSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Actors {
    here: Mutex<Vec<Arc<str>>>,
}

impl WsJsonHandler for Actors {
    fn connected(&self, client: &Arc<WsJsonClient>) {
        self.here.lock().push(Arc::clone(&client.id));
    }

    fn request(&self, client: &Arc<WsJsonClient>, word: &str, fields: &[(Box<str>, Value)]) -> ReplyFuture {
        let outcome = match word {
            "join" => Ok(vec![("you", Value::Text((&*client.id).into()))]),
            "publish" => {
                let data = fields.iter().find(|(name, _)| **name == *"data").unwrap().1.clone();
                client.send(&event(&[Value::Text("echo".into()), data]).unwrap());
                Ok(vec![])
            }
            "leave" => {
                let flood = Bytes::from(vec![b'x'; 64 << 10]);
                while client.send(&flood) {}
                Ok(vec![])
            }
            _ => Err("not here".into()),
        };
        Box::pin(async { outcome })
    }

    fn disconnected(&self, client: &WsJsonClient) {
        self.here.lock().retain(|id| *id != client.id);
    }
}

impl http_server::RequestHandler for WsJsonServer {
    async fn respond(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> HttpResponse {
        self.upgrade(request, peer)
    }
}

struct Served {
    address: SocketAddr,
    ws_json: Arc<WsJsonServer>,
    stage: Arc<Actors>,
    metrics: Metrics,
    stop: CancellationToken,
    server: JoinSet<()>,
}

impl Served {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut WsJsonSettings)) -> Self {
        let limiter = ConnectionLimiter::new(50_000);
        let metrics = Metrics::new(&limiter);
        let mut settings = WsJsonSettings {
            node: "ws1".into(),
            auth: Arc::new(Authenticator::new(&AuthSettings::default())),
            origins: Origins::default(),
            max_payload: 16 << 10,
            backlog: 1 << 20,
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(60),
            rates: RateLimits { messages: 1000, bytes: 0 },
            limiter,
            metrics: metrics.clone(),
        };
        change(&mut settings);
        let stage = Arc::new(Actors::default());
        let ws_json = Arc::new(WsJsonServer::new(settings, Arc::clone(&stage) as _));
        let listener = http_server::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut server = JoinSet::new();
        server.spawn(http_server::serve(
            listener,
            Arc::clone(&ws_json),
            Duration::from_secs(60),
            stop.clone(),
        ));
        Self { address, ws_json, stage, metrics, stop, server }
    }

    async fn open(&self, query: &str) -> ClientSocket {
        connect_async(format!("ws://{}/ws{query}", self.address)).await.unwrap().0
    }

    /// The status of a handshake that is refused.
    async fn refused(&self, query: &str) -> u16 {
        match connect_async(format!("ws://{}/ws{query}", self.address)).await {
            Err(Error::Http(answer)) => answer.status().as_u16(),
            other => panic!("{other:?}"),
        }
    }

    async fn end(self) {
        timeout(PATIENCE, self.ws_json.shutdown(Duration::ZERO)).await.unwrap();
        self.stop.cancel();
        timeout(PATIENCE, self.server.join_all()).await.unwrap();
        assert!(self.stage.here.lock().is_empty());
    }
}

async fn heard(socket: &mut ClientSocket) -> Json {
    let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

async fn say(socket: &mut ClientSocket, message: Json) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// Reads on to the Close, and gives its code and words.
async fn closed(socket: &mut ClientSocket) -> (u16, String) {
    let reading = async {
        loop {
            if let Message::Close(frame) = socket.next().await.unwrap().unwrap() {
                let frame = frame.unwrap();
                return (frame.code.into(), frame.reason.to_string());
            }
        }
    };
    timeout(PATIENCE, reading).await.unwrap()
}

#[tokio::test]
async fn a_client_is_welcomed_and_each_request_is_answered_once_and_in_order() {
    let served = Served::start();
    let mut socket = served.open("?user=alice").await;
    let welcome = heard(&mut socket).await;
    assert_eq!(
        (&welcome["type"], &welcome["node"], &welcome["user"]),
        (&json!("welcome"), &json!("ws1"), &json!("alice"))
    );
    assert_eq!(welcome["id"].as_str().unwrap().len(), 20);
    for n in 0..50 {
        say(&mut socket, json!({ "type": "publish", "room": "r", "data": n, "id": n })).await;
    }
    for n in 0..50 {
        assert_eq!(heard(&mut socket).await, json!({ "type": "event", "event": "echo", "data": [n] }));
        assert_eq!(heard(&mut socket).await, json!({ "type": "ok", "request": "publish", "id": n }));
    }
    say(&mut socket, json!({ "type": "join", "room": "r" })).await;
    assert_eq!(heard(&mut socket).await["you"], welcome["id"]);
    say(&mut socket, json!({ "type": "presence", "room": "r", "id": "p" })).await;
    assert_eq!(heard(&mut socket).await, json!({ "type": "error", "id": "p", "error": "not here" }));
    socket.send(Message::text("nonsense")).await.unwrap();
    assert_eq!(heard(&mut socket).await, json!({ "type": "error", "error": "a message is one JSON object" }));
    served.end().await;
}

#[tokio::test]
async fn messages_are_compressed_where_the_client_can_and_each_on_its_own() {
    let served = Served::start();
    let (mut plain, answer) = connect_async(format!("ws://{}/ws", served.address)).await.unwrap();
    assert!(!answer.headers().contains_key("sec-websocket-extensions"));
    heard(&mut plain).await;
    let url = format!("ws://{}/ws", served.address).parse().unwrap();
    let options = Options::default().with_low_latency_compression();
    let mut socket = WebSocket::connect(url).with_options(options).await.unwrap();
    let welcome = socket.next_frame().await.unwrap();
    assert!(welcome.as_str().contains("welcome"));
    let long = "to be compressed ".repeat(200);
    for _ in 0..3 {
        let message = json!({ "type": "publish", "room": "r", "data": long }).to_string();
        socket.send(yawc::Frame::text(message)).await.unwrap();
        let echo: Json = serde_json::from_str(socket.next_frame().await.unwrap().as_str()).unwrap();
        assert_eq!(echo["data"][0], long);
        assert!(socket.next_frame().await.unwrap().as_str().contains("ok"));
    }
    served.end().await;
}

#[tokio::test]
async fn the_extension_is_agreed_without_context_takeover() {
    let served = Served::start();
    let mut request = format!("ws://{}/ws", served.address).into_client_request().unwrap();
    let offer = HeaderValue::from_static("permessage-deflate; client_max_window_bits");
    request.headers_mut().insert("sec-websocket-extensions", offer);
    let mut raw = TcpStream::connect(served.address).await.unwrap();
    let mut head = format!("GET /ws HTTP/1.1\r\nHost: {}\r\n", served.address);
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != "host") {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    raw.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(raw.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    let line = answer.lines().find(|line| line.starts_with("sec-websocket-extensions:")).unwrap();
    assert!(
        line.contains("server_no_context_takeover") && line.contains("client_no_context_takeover"),
        "{line}"
    );
    drop(raw);
    served.end().await;
}

#[tokio::test]
async fn the_one_client_too_many_is_told_that_the_server_is_at_capacity() {
    let served = Served::start_with(|settings| settings.limiter = ConnectionLimiter::new(1));
    let mut first = served.open("").await;
    heard(&mut first).await;
    let mut second = served.open("").await;
    assert_eq!(closed(&mut second).await, (1008, "Server at capacity".into()));
    first.close(None).await.unwrap();
    while let Some(Ok(_)) = first.next().await {}
    let mut third = loop {
        let mut third = served.open("").await;
        match timeout(PATIENCE, third.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(_) => break third,
            _ => continue, // The seat of the first was not free yet.
        }
    };
    third.close(None).await.unwrap();
    assert!(served.metrics.text().contains("mainstay_node_refused_total{reason=\"capacity\"}"));
    served.end().await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_the_connection_ends_with_it() {
    let served = Served::start_with(|settings| {
        let key = Some(JwtKey::parse(JwtAlgorithm::Hs256, SECRET).unwrap());
        settings.auth = Arc::new(Authenticator::new(&AuthSettings { key, ..AuthSettings::default() }));
    });
    assert_eq!(served.refused("").await, 401);
    assert_eq!(served.refused("?user=alice").await, 401);
    assert_eq!(served.refused("?token=a.b.c").await, 401);
    let long = token(&json!({ "sub": "alice", "exp": in_seconds(600) }));
    let mut lasting = served.open(&format!("?token={long}")).await;
    assert_eq!(heard(&mut lasting).await["user"], "alice");
    let mut request = format!("ws://{}/ws", served.address).into_client_request().unwrap();
    let offer = format!("mainstay.v1, bearer.{long}");
    request.headers_mut().insert("sec-websocket-protocol", offer.parse().unwrap());
    let (mut page, answer) = connect_async(request).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "mainstay.v1");
    assert_eq!(heard(&mut page).await["user"], "alice");
    let short = token(&json!({ "sub": "bob", "exp": in_seconds(4) }));
    let mut brief = served.open(&format!("?token={short}")).await;
    assert_eq!(heard(&mut brief).await["user"], "bob");
    assert_eq!(closed(&mut brief).await, (1008, "token expired".into()));
    served.end().await;
}

#[tokio::test]
async fn only_pages_of_the_listed_origins_and_programs_may_connect() {
    let served = Served::start_with(|settings| {
        settings.origins = Origins::new(vec!["https://chat.example.com".parse().unwrap()]);
    });
    let from = |origin: &'static str| {
        let mut request = format!("ws://{}/ws", served.address).into_client_request().unwrap();
        request.headers_mut().insert("origin", HeaderValue::from_static(origin));
        connect_async(request)
    };
    assert!(matches!(from("https://evil.example").await, Err(Error::Http(answer)) if answer.status() == 403));
    assert!(from("https://chat.example.com").await.is_ok());
    served.open("").await;
    served.end().await;
}

#[tokio::test]
async fn who_says_too_much_or_too_long_or_broken_things_is_closed_with_the_code_that_names_it() {
    let served = Served::start_with(|settings| {
        settings.rates.messages = 3;
        settings.max_payload = 1 << 10;
    });
    let mut loud = served.open("").await;
    for _ in 0..200 {
        loud.feed(Message::text(json!({ "type": "join", "room": "r" }).to_string())).await.unwrap();
    }
    loud.flush().await.unwrap();
    assert_eq!(closed(&mut loud).await, (1008, "Too many messages".into()));
    let mut long = served.open("").await;
    long.send(Message::text("x".repeat(1025))).await.unwrap();
    assert_eq!(closed(&mut long).await.0, 1009);
    let mut fits = served.open("").await;
    heard(&mut fits).await;
    fits.send(Message::text("x".repeat(1024))).await.unwrap();
    assert_eq!(heard(&mut fits).await["type"], "error");
    let mut binary = served.open("").await;
    binary.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(closed(&mut binary).await, (1003, "messages are text".into()));
    served.end().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_counted() {
    let served = Served::start_with(|settings| settings.backlog = 64 << 10);
    let mut deaf = served.open("").await;
    heard(&mut deaf).await;
    say(&mut deaf, json!({ "type": "leave", "room": "r" })).await;
    let gone = async {
        while !served.stage.here.lock().is_empty() {
            tokio::task::yield_now().await
        }
    };
    timeout(PATIENCE, gone).await.expect("it is cut");
    assert!(served.metrics.text().contains("mainstay_node_slow_consumers_total 1"));
    served.end().await;
}

#[tokio::test]
async fn a_client_that_gives_no_sign_of_life_is_closed() {
    let served = Served::start_with(|settings| {
        settings.ping_interval = Duration::from_millis(50);
        settings.ping_timeout = Duration::from_millis(50);
        settings.idle = Duration::from_millis(100);
    });
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let head = "GET /ws HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    // It reads bytes and answers no ping, so its connection ends.
    timeout(PATIENCE, silent.read_to_end(&mut all)).await.unwrap().unwrap();
    assert!(all.windows(2).any(|bytes| bytes == 1001_u16.to_be_bytes()), "a Close with 1001");
    served.end().await;
}

#[tokio::test]
async fn at_the_end_every_client_hears_1012_and_nobody_is_let_in() {
    let served = Served::start();
    let mut clients = [served.open("").await, served.open("").await];
    for client in &mut clients {
        heard(client).await;
    }
    let ending = served.ws_json.shutdown(Duration::from_millis(200));
    let hearing = async {
        for client in &mut clients {
            assert_eq!(closed(client).await, (1012, "service restart".into()));
        }
    };
    timeout(PATIENCE, async { tokio::join!(ending, hearing) }).await.unwrap();
    assert_eq!(served.refused("").await, 503);
    served.end().await;
}
