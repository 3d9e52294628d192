//! An Engine.IO server of ours on a port of its own, and a raw client that sees every frame of a session.

use std::convert::Infallible;
use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay_node::engine_io::EngineServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::soon;

/// A server on a port of its own.
pub struct Listening {
    /// Where clients come in.
    pub address: SocketAddr,
    /// Ends the accept loop and its connections with the test.
    _tasks: JoinSet<()>,
}

impl Listening {
    /// Accepts for this server.
    pub async fn start(server: EngineServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server));
        Self { address, _tasks: tasks }
    }
}

async fn accept(listener: TcpListener, server: EngineServer) {
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

/// A raw client over a WebSocket.
pub struct Client(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    /// With this query.
    pub async fn connect(address: SocketAddr, query: &str) -> Self {
        let (client, _) = connect_async(format!("ws://{address}/socket.io/?{query}")).await.unwrap();
        Self(client)
    }

    /// With a session whose open packet is taken.
    pub async fn open(address: SocketAddr) -> Self {
        let mut client = Self::connect(address, "EIO=4&transport=websocket").await;
        assert!(client.text().await.starts_with("0{\"sid\":"));
        client
    }

    /// Sends a text message.
    pub async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next message.
    pub async fn next(&mut self) -> Message {
        soon(self.0.next()).await.unwrap().unwrap()
    }

    /// The next message, which is text.
    pub async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    /// Reads to the Close; its code and words.
    pub async fn code(&mut self) -> Option<(u16, String)> {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
            }
        }
    }
}
