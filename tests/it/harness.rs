//! The harness: a balancer from YAML text, a node that is a listener, and raw sockets with deadlines.

use std::future::Future;
use std::io;
use std::time::Duration;

use mainstay::app::App;
use mainstay::config::{self, Config};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The longest that a test waits for anything that has to happen.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a test watches that something does not happen.
const QUIET_PERIOD: Duration = Duration::from_millis(100);

/// A valid upgrade request with the key of RFC 6455.
pub const UPGRADE_REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The valid answer to it.
pub const SWITCHING_PROTOCOLS: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The output of `event`, within the deadline.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.expect("it did not happen within the deadline")
}

/// Asserts that `event` does not happen for a moment.
pub async fn not_soon<T>(event: impl Future<Output = T>) {
    assert!(tokio::time::timeout(QUIET_PERIOD, event).await.is_err(), "it happened");
}

/// A balancer with its one node.
pub struct Harness {
    pub app: App,
    pub node: TcpListener,
}

impl Harness {
    /// Starts with `pool` among the keys of the pool.
    pub async fn start(pool: &str) -> Self {
        Self::with_access_log("{ format: off }", pool).await
    }

    /// With this access log, too.
    pub async fn with_access_log(log: &str, pool: &str) -> Self {
        let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nodes = format!("{{ id: ws1, address: \"{}\" }}", node.local_addr().unwrap());
        Self { app: start(log, &nodes, pool).await, node }
    }

    /// A new client that has sent nothing yet.
    pub async fn connect(&self) -> RawStream {
        connect_client(&self.app).await
    }

    /// The node's side of the next connection, with the request head read.
    pub async fn accept_request(&self) -> RawStream {
        accept_request(&self.node).await
    }

    /// Client and node with an open tunnel between them.
    pub async fn open_tunnel(&self) -> (RawStream, RawStream) {
        let mut client = self.connect().await;
        client.send(UPGRADE_REQUEST).await;
        let mut node = self.accept_request().await;
        node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        (client, node)
    }
}

/// A balancer in front of `nodes`.
pub async fn start(log: &str, nodes: &str, pool: &str) -> App {
    let text = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {log}\nshutdown: {{ drain: 1s }}\n\
         pools:\n  chat:\n    nodes: [{nodes}]\n    health: null\n{pool}"
    );
    run(&text).await
}

/// A balancer with this config.
pub async fn run(text: &str) -> App {
    soon(App::start(&resolve(text))).await.unwrap()
}

/// The config in this YAML, which names no files.
pub fn resolve(text: &str) -> Config {
    let read = |_: &std::path::Path| Err(io::ErrorKind::NotFound.into());
    let config = config::resolve("it", text.as_bytes(), &|_| None, &read);
    config.unwrap_or_else(|faults| panic!("{faults}"))
}

/// A new client of `app`.
pub async fn connect_client(app: &App) -> RawStream {
    RawStream(soon(TcpStream::connect(&app.listeners()[0])).await.unwrap())
}

/// The next connection to `node`, with the request head read.
pub async fn accept_request(node: &TcpListener) -> RawStream {
    let mut node = RawStream(soon(node.accept()).await.unwrap().0);
    let head = node.read_head().await;
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    node
}

/// A socket, or a TLS stream over one.
#[derive(Debug)]
pub struct RawStream<S = TcpStream>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> RawStream<S> {
    /// Sends all of it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.0.write_all(bytes.as_ref())).await.unwrap();
        soon(self.0.flush()).await.unwrap();
    }

    /// Reads a head and nothing behind it.
    pub async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match soon(self.0.read_u8()).await {
                Ok(byte) => head.push(byte),
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads exactly `bytes`.
    pub async fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        soon(self.0.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, bytes);
    }

    /// All until the end of the stream.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        soon(self.0.read_to_end(&mut rest)).await.unwrap();
        rest
    }

    /// Reads until the stream ends, with an error or without.
    pub async fn wait_closed(&mut self) {
        let _ = soon(self.0.read_to_end(&mut Vec::new())).await;
    }

    /// Reads a Close frame, masked or not, and gives its code.
    pub async fn read_close_code(&mut self) -> u16 {
        let mut head = [0; 2];
        soon(self.0.read_exact(&mut head)).await.unwrap();
        assert_eq!(head[0], 0x88, "no Close frame");
        let mut mask = [0; 4];
        if head[1] & 0x80 != 0 {
            soon(self.0.read_exact(&mut mask)).await.unwrap();
        }
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        soon(self.0.read_exact(&mut payload)).await.unwrap();
        u16::from_be_bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]])
    }
}

/// A short frame as a client sends it: masked, with a mask of zeros.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let len = 0x80 | u8::try_from(payload.len()).unwrap();
    [&[0x80 | opcode, len, 0, 0, 0, 0], payload].concat()
}

/// A short frame as a node sends it.
pub fn node_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, u8::try_from(payload.len()).unwrap()], payload].concat()
}

/// Bytes pass both ways.
pub async fn assert_relays((client, node): &mut (RawStream, RawStream)) {
    client.send(client_frame(1, b"up")).await;
    node.expect(&client_frame(1, b"up")).await;
    node.send(node_frame(1, b"down")).await;
    client.expect(&node_frame(1, b"down")).await;
}

/// Both sides hear a Close with this code, and answer it.
pub async fn assert_closes((mut client, mut node): (RawStream, RawStream), code: u16) {
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (code, code));
    client.send(client_frame(8, &code.to_be_bytes())).await;
    node.send(node_frame(8, &code.to_be_bytes())).await;
    client.wait_closed().await;
    node.wait_closed().await;
}
