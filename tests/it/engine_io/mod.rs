//! The node's Engine.IO server over real sockets, below a layer that echoes and tells the test what it was told.

mod corpus;
mod polling;
mod stand_in;
mod upgrade;
mod websocket;

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay::node::engine_io::{
    CloseKind, Connection, Frame, Handler, Handshake, Inbox, Message, Reason, Server, Settings,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::wire::http::{Answer, Request};

/// The query of a handshake by polling.
const POLLING: &str = "EIO=4&transport=polling";

/// An event that does not come within this has not come.
const SOON: Duration = Duration::from_secs(10);

/// Waits for what must come.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, event).await.expect("it comes soon")
}

/// Answers every message with itself, but for a few words that ask for something else.
struct Echo {
    opened: mpsc::UnboundedSender<Arc<Connection>>,
    closed: mpsc::UnboundedSender<Reason>,
}

impl Handler for Echo {
    fn admits(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        match handshake.header("x-bad") {
            None => Ok(()),
            Some("1") => Err("Forbidden".into()),
            Some(_) => Err("thou shall not pass".into()),
        }
    }

    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn Inbox> {
        self.opened.send(connection.clone()).unwrap();
        Arc::new(Ear(self.closed.clone()))
    }
}

struct Ear(mpsc::UnboundedSender<Reason>);

impl Inbox for Ear {
    fn message(&self, connection: &Arc<Connection>, message: Message<'_>) {
        match message {
            Message::Text("kick") => {
                connection.send(&Frame::text("bye"));
                connection.close(CloseKind::Orderly);
                connection.send(&Frame::text("too late"));
            }
            Message::Text("full") => connection.close(CloseKind::AtCapacity),
            Message::Text("panic") => panic!("as the test asked"),
            Message::Text("two") => connection.send_all(&[Frame::text("a"), Frame::binary(b"\x01")]),
            Message::Text(text) => connection.send(&Frame::text(text)),
            Message::Binary(data) => connection.send(&Frame::binary(data)),
        }
    }

    fn closed(&self, _: &Connection, reason: Reason) {
        let _ = self.0.send(reason);
    }
}

/// A server on a port of its own.
struct Listening {
    address: SocketAddr,
    /// Ends the accept loop and its connections with the test.
    _tasks: JoinSet<()>,
}

impl Listening {
    async fn start(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server));
        Self { address, _tasks: tasks }
    }
}

/// A server that echoes, and what it told the layer above.
struct Served {
    address: SocketAddr,
    server: Server,
    opened: mpsc::UnboundedReceiver<Arc<Connection>>,
    closed: mpsc::UnboundedReceiver<Reason>,
    _listening: Listening,
}

impl Served {
    async fn start(settings: Settings) -> Self {
        let (opened, opened_by) = mpsc::unbounded_channel();
        let (closed, closed_by) = mpsc::unbounded_channel();
        let server = Server::new(settings, Arc::new(Echo { opened, closed }));
        let listening = Listening::start(server.clone()).await;
        Self {
            address: listening.address,
            server,
            opened: opened_by,
            closed: closed_by,
            _listening: listening,
        }
    }

    /// Asks for the path with this query, and `sid` where it says so.
    async fn ask(&self, method: &str, query: &str, body: &str) -> Answer {
        self.ask_with(method, query, &[], body.as_bytes()).await
    }

    async fn ask_with(&self, method: &str, query: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let request = Request::new(method, &format!("/socket.io/?{query}"), headers, body.to_vec());
        soon(request.send(self.address)).await.unwrap()
    }

    /// Opens a session by polling; the query of its later requests.
    async fn poll(&mut self) -> (String, Arc<Connection>) {
        let answer = self.ask("GET", POLLING, "").await;
        let connection = self.session().await;
        assert!(answer.text().contains(connection.sid().as_str()), "{}", answer.text());
        (format!("{POLLING}&sid={}", connection.sid()), connection)
    }

    /// A WebSocket with its open packet taken.
    async fn open(&self) -> Client {
        let mut client = self.connect("EIO=4&transport=websocket").await;
        assert!(client.text().await.starts_with("0{\"sid\":"));
        client
    }

    async fn connect(&self, query: &str) -> Client {
        let (client, _) = connect_async(format!("ws://{}/socket.io/?{query}", self.address)).await.unwrap();
        Client(client)
    }

    async fn ended(&mut self) -> Reason {
        soon(self.closed.recv()).await.unwrap()
    }

    async fn session(&mut self) -> Arc<Connection> {
        soon(self.opened.recv()).await.unwrap()
    }
}

async fn accept(listener: TcpListener, server: Server) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let server = server.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.respond(request, peer).await) }
        });
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
        connections.spawn(async move { drop(connection.await) });
    }
}

/// A raw client that sees every frame.
struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn say(&mut self, text: &str) {
        self.0.send(tungstenite::Message::text(text)).await.unwrap();
    }

    async fn next(&mut self) -> tungstenite::Message {
        soon(self.0.next()).await.unwrap().unwrap()
    }

    async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    /// Reads to the Close; its code and words.
    async fn code(&mut self) -> Option<(u16, String)> {
        loop {
            if let tungstenite::Message::Close(frame) = self.next().await {
                return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
            }
        }
    }
}
