//! The node's Engine.IO server over real sockets, below a layer that echoes and tells the test what it was told.

mod corpus;
mod polling;
mod stand_in;
mod upgrade;
mod websocket;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use mainstay_node::engine_io::{
    CloseKind, CloseReason, Connection, ConnectionHandler, EngineServer, EngineSettings, Frame, Handshake,
    Message, MessageHandler,
};
use tokio::sync::mpsc;

use crate::listening::{Client, Listening};
use crate::soon;
use crate::wire::http::{Answer, Request};

/// The query of a handshake by polling.
const POLLING: &str = "EIO=4&transport=polling";

/// Answers every message with itself, but for a few words that ask for something else.
struct Echo {
    opened: mpsc::UnboundedSender<Arc<Connection>>,
    closed: mpsc::UnboundedSender<CloseReason>,
}

impl ConnectionHandler for Echo {
    fn admit(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        admits(handshake)
    }

    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn MessageHandler> {
        self.opened.send(connection.clone()).unwrap();
        Arc::new(EchoHandler { connection: connection.clone(), closed: self.closed.clone() })
    }
}

/// The header `x-bad` is for a client that is not let in, as the recorded servers have it.
fn admits(handshake: &Handshake) -> Result<(), Cow<'static, str>> {
    match handshake.header("x-bad") {
        None => Ok(()),
        Some("1") => Err("Forbidden".into()),
        Some(_) => Err("thou shall not pass".into()),
    }
}

struct EchoHandler {
    connection: Arc<Connection>,
    closed: mpsc::UnboundedSender<CloseReason>,
}

impl MessageHandler for EchoHandler {
    fn message(&self, message: Message<'_>) {
        let connection = &self.connection;
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

    fn closed(&self, reason: CloseReason) {
        let _ = self.closed.send(reason);
    }
}

/// A server that echoes, and what it told the layer above.
struct Served {
    address: SocketAddr,
    server: EngineServer,
    opened: mpsc::UnboundedReceiver<Arc<Connection>>,
    closed: mpsc::UnboundedReceiver<CloseReason>,
    _listening: Listening,
}

impl Served {
    async fn start(settings: EngineSettings) -> Self {
        let (opened, opened_by) = mpsc::unbounded_channel();
        let (closed, closed_by) = mpsc::unbounded_channel();
        let server = EngineServer::new(settings, Arc::new(Echo { opened, closed }));
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
        Client::open(self.address).await
    }

    async fn connect(&self, query: &str) -> Client {
        Client::connect(self.address, query).await
    }

    async fn ended(&mut self) -> CloseReason {
        soon(self.closed.recv()).await.unwrap()
    }

    async fn session(&mut self) -> Arc<Connection> {
        soon(self.opened.recv()).await.unwrap()
    }
}
