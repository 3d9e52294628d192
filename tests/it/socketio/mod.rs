//! The node's Socket.IO side over real sockets: what Node.js answered, and recovery.

mod corpus;
mod recovery;
mod talk;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay::node::bus::memory::Memory;
use mainstay::node::engine_io::{self, Server};
use mainstay::node::hub::Hub;
use mainstay::node::limits::{Rates, Seats};
use mainstay::node::metrics::Metrics;
use mainstay::node::socketio::{CONNECT_TIMEOUT, Settings, SocketIo};
use mainstay::route::Origins;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use talk::Talk;

/// An event that does not come within this has not come.
const SOON: Duration = Duration::from_secs(10);

/// Waits for what must come.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, event).await.expect("it comes soon")
}

/// What a test wants of a node.
struct Wanted {
    engine: engine_io::Settings,
    connect_timeout: Duration,
    rates: Rates,
    seats: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            engine: engine_io::Settings::default(),
            connect_timeout: CONNECT_TIMEOUT,
            rates: Rates { messages: 0, bytes: 0 },
            seats: 100,
        }
    }
}

/// A node on a port of its own.
struct Node {
    address: SocketAddr,
    hub: Arc<Hub>,
    server: Server,
    /// Ends the accept loop and its connections with the test.
    _tasks: JoinSet<()>,
}

impl Node {
    async fn start(bus: &Arc<Memory>, wanted: Wanted) -> Self {
        let seats = Seats::new(wanted.seats);
        let metrics = Metrics::new(&seats);
        let namespaces = ["/admin", "/auth", "/auth2", "/plain", "/dyn-7"].map(String::from);
        let hub = Hub::new(bus.clone(), &namespaces, &metrics);
        let settings = Settings {
            connect_timeout: wanted.connect_timeout,
            origins: Origins::default(),
            rates: wanted.rates,
            seats,
            metrics,
        };
        let server = Server::new(wanted.engine, SocketIo::new(&hub, settings, Talk::new(&hub)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server.clone()));
        Self { address, hub, server, _tasks: tasks }
    }

    /// A raw client whose open packet is taken.
    async fn open(&self) -> Client {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.address);
        let mut client = Client(connect_async(url).await.unwrap().0);
        assert!(client.text().await.starts_with("0{\"sid\":"));
        client
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
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn next(&mut self) -> Message {
        soon(self.0.next()).await.unwrap().unwrap()
    }

    async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    /// Reads to the Close; its code and words.
    async fn code(&mut self) -> Option<(u16, String)> {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
            }
        }
    }

    /// Into `/`; the answer's ids.
    async fn enter(&mut self, auth: &str) -> (String, Option<String>) {
        self.say(&format!("40{auth}")).await;
        ids(&self.text().await)
    }
}

/// The ids in an answer to CONNECT.
fn ids(answer: &str) -> (String, Option<String>) {
    let ids: serde_json::Value = serde_json::from_str(answer.strip_prefix("40").expect(answer)).unwrap();
    let text = |key: &str| ids[key].as_str().map(str::to_owned);
    (text("sid").unwrap(), text("pid"))
}
