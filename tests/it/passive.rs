//! What takes a node out: never what one client does, and never more nodes than the config allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mainstay::app::App;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, connect_client, soon, start};
use crate::scrape::Scrape;

/// How a node can take an upgrade badly.
#[derive(Debug, Clone, Copy)]
pub enum Refusal {
    /// It closes without a word.
    Close,
    /// It resets the connection.
    Reset,
    /// It says this, and closes.
    Says(&'static str),
}

const REFUSALS: [Refusal; 13] = [
    Refusal::Close,
    Refusal::Reset,
    Refusal::Says("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says("HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n"),
    Refusal::Says(
        "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n",
    ),
    Refusal::Says("HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    Refusal::Says(
        "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    ),
    Refusal::Says("\0\u{1}\u{2} garbage\r\n\r\n"),
    Refusal::Says("HTTP/1.1 200 OK\r\nContent-Le"),
];

/// A node that refuses whatever it is asked.
pub struct Refusing {
    pub address: String,
    /// Requests so far.
    pub asked: Arc<AtomicUsize>,
    /// Accepts and refuses until this is dropped.
    _serving: JoinSet<()>,
}

impl Refusing {
    pub async fn start(how: Refusal) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let mut stream = RawStream(listener.accept().await.unwrap().0);
                stream.read_head().await;
                count.fetch_add(1, Relaxed);
                match how {
                    Refusal::Close => {}
                    Refusal::Reset => stream.0.set_zero_linger().unwrap(),
                    Refusal::Says(answer) => stream.send(answer).await,
                }
            }
        });
        Self { address, asked, _serving: serving }
    }
}

/// Three of them, as the config lists them.
async fn three(how: Refusal) -> ([Refusing; 3], String) {
    let nodes = [Refusing::start(how).await, Refusing::start(how).await, Refusing::start(how).await];
    let listed = listed(nodes.iter().map(|node| node.address.as_str()));
    (nodes, listed)
}

pub fn listed<'a>(addresses: impl IntoIterator<Item = &'a str>) -> String {
    let node = |(index, address): (usize, &str)| format!("{{ id: ws{index}, address: \"{address}\" }}");
    addresses.into_iter().enumerate().map(node).collect::<Vec<_>>().join(", ")
}

/// The nodes that are up.
async fn up(app: &App) -> Vec<String> {
    let scrape = Scrape::of(app).await;
    let states = scrape.with("mainstay_node_state", &[("state", "up")]);
    let up = states.into_iter().filter(|sample| sample.value == 1.0);
    up.map(|sample| sample.labels["node"].clone()).collect()
}

/// The status of the answer to this request, by a client at `127.0.0.CLIENT`.
async fn status_for(app: &App, client: u8, request: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, client], 0).into()).unwrap();
    let mut client = RawStream(soon(socket.connect(app.listeners()[0].parse().unwrap())).await.unwrap());
    client.send(request).await;
    let head = client.read_head().await;
    head.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn no_sequence_of_requests_from_one_client_ejects_a_node() {
    const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for how in REFUSALS {
        let (_nodes, listed) = three(how).await;
        let pool = "    affinity: []\n    balance: round_robin\n    passive: { failures: 2, eject: 1h }\n";
        let app = start("{ format: off }", &listed, pool).await;
        for attempt in 0..30 {
            let request = if attempt % 2 == 0 { UPGRADE_REQUEST } else { PLAIN };
            let status = status_for(&app, 1, request).await;
            assert!(request != UPGRADE_REQUEST || status != "101", "{how:?}");
        }
        assert_eq!(up(&app).await, ["ws0", "ws1", "ws2"], "{how:?}");
        app.stop().await;
    }
}

#[tokio::test]
async fn several_clients_eject_a_node_that_fails_all_of_them_and_never_more_than_may_be() {
    for (max_ejected, left) in [("50%", 2), ("100%", 1), ("0%", 3)] {
        let (_nodes, listed) = three(Refusal::Close).await;
        let pool = format!(
            "    affinity: []\n    balance: round_robin\n    retries: {{ attempts: 1 }}\n    \
             passive: {{ failures: 3, eject: 1h, max_ejected: {max_ejected} }}\n"
        );
        let app = start("{ format: off }", &listed, &pool).await;
        for round in 0..4 {
            for who in 1..=8 {
                assert_eq!(status_for(&app, who, UPGRADE_REQUEST).await, "502", "{round}");
            }
        }
        assert_eq!(up(&app).await.len(), left, "{max_ejected}");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_hangs_at_upgrades_is_ejected_by_several_clients() {
    let (hanging, well) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addresses = [&hanging, &well].map(|node| node.local_addr().unwrap().to_string());
    let pool = "    affinity: []\n    balance: round_robin\n    timeouts: { handshake: 100ms }\n    \
                passive: { failures: 3, eject: 1h }\n";
    let app = start("{ format: off }", &listed(addresses.iter().map(String::as_str)), pool).await;
    let mut serving = JoinSet::<()>::new();
    serving.spawn(async move {
        let mut tunnels = Vec::new();
        loop {
            let mut node = RawStream(well.accept().await.unwrap().0);
            node.read_head().await;
            node.send(SWITCHING_PROTOCOLS).await;
            tunnels.push(node);
        }
    });
    let mut statuses = Vec::new();
    for who in 1..=8 {
        statuses.push(status_for(&app, who, UPGRADE_REQUEST).await);
    }
    assert_eq!(up(&app).await, ["ws1"], "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| *status == "504").count(), 3, "{statuses:?}");
    serving.abort_all();
    app.stop().await;
}

#[tokio::test]
async fn an_ejected_node_says_in_its_status_why_and_until_when_and_serves_when_nobody_else_does() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let well = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [address.to_string(), well.local_addr().unwrap().to_string()];
    let pool = "    affinity: []\n    balance: round_robin\n    passive: { failures: 2, eject: 1h }\n";
    let app = start("{ format: off }", &listed(addresses.iter().map(String::as_str)), pool).await;
    for _ in 0..8 {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        let mut node = RawStream(soon(well.accept()).await.unwrap().0);
        node.read_head().await;
        node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    }
    let mut admin = RawStream(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
    admin.send("GET /api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    let text = String::from_utf8(admin.read_to_end().await).unwrap();
    let status: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let [dead, alive] = [0, 1].map(|node| status["pools"][0]["nodes"][node]["health"]["ejected"].clone());
    assert_eq!(dead["reason"], "2 failures in a row, the last: connection refused", "{text}");
    assert!(dead["until"].as_str().unwrap().ends_with('Z') && alive.is_null(), "{text}");

    // The other one is gone now, and what was ejected is back: it is asked, though its time is not over.
    drop(well);
    let back = TcpListener::bind(address).await.unwrap();
    let mut client = connect_client(&app).await;
    client.send(UPGRADE_REQUEST).await;
    let mut node = RawStream(soon(back.accept()).await.unwrap().0);
    node.read_head().await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    app.stop().await;
}
