//! Opening an Engine.IO session by polling is a handshake: it takes its turn, its rate and its place.

use mainstay::app::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{RawStream, SWITCHING_PROTOCOLS, connect_client, soon};
use crate::limits::with;
use crate::scrape::Scrape;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An Engine.IO node: each polling handshake opens a session with the next number as its sid; upgrades get a yes.
fn serve(node: TcpListener) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        let mut number = 0;
        while let Ok((stream, _)) = node.accept().await {
            number += 1;
            open.spawn(answer(stream, number));
        }
    });
    tasks
}

async fn answer(mut stream: TcpStream, connection: u32) {
    let (mut read, mut number) = (Vec::new(), 0);
    while let Ok(1..) = stream.read_buf(&mut read).await {
        while let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8(read.drain(..end + 4).collect()).unwrap().to_ascii_lowercase();
            number += 1;
            let body = if head.contains("sid=") {
                "6".to_owned()
            } else {
                format!(
                    "0{{\"sid\":\"s{connection}-{number}\",\"pingInterval\":25000,\"pingTimeout\":20000}}"
                )
            };
            let answer = if head.contains("\r\nupgrade: websocket\r\n") {
                SWITCHING_PROTOCOLS.to_owned()
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

/// The status of a GET with this query, and its body.
async fn get(raw: &mut RawStream, query: &str, fields: &str) -> (u16, String) {
    raw.send(format!("GET /socket.io/?{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
    let head = raw.read_head().await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    soon(raw.0.read_exact(&mut body)).await.unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

/// The same on a connection of its own.
async fn asked_once(app: &App, query: &str, fields: &str) -> (u16, String) {
    get(&mut connect_client(app).await, query, fields).await
}

fn sid(body: &str) -> &str {
    body.split('"').nth(3).unwrap()
}

async fn limited(app: &App) -> f64 {
    let samples = Scrape::of(app).await.samples;
    let is_it = |name: &str, label: Option<&String>| {
        name == "mainstay_handshakes_total" && label.is_some_and(|value| value == "limited")
    };
    samples.iter().filter(|one| is_it(&one.name, one.labels.get("result"))).map(|one| one.value).sum()
}

#[tokio::test]
async fn a_client_cannot_open_sessions_by_polling_past_its_limit_however_it_writes_them() {
    let top = "limits: { connections_per_client: 1, handshakes_per_second: 1 }\n";
    let (app, node) = with(top, "").await;
    let _node = serve(node);
    let spellings = [
        "EIO=4&transport=polling",
        "EIO=3&transport=polling",
        "EIO=4&transport=polling&sid=",
        "EIO=4&transport=p%6flling",
        "transport=polling&j=0",
    ];
    let (mut asked, mut opened) = (0, 0);
    while asked < 2_000 {
        let mut raw = connect_client(&app).await;
        // Its last connection may still count; then it is told so before it has asked.
        let query = spellings[asked % spellings.len()];
        let request = format!("GET /socket.io/?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let _ = soon(raw.0.write_all(request.as_bytes())).await;
        let mut answer = Vec::new();
        let _ = soon(raw.0.read_to_end(&mut answer)).await;
        asked += 1;
        opened += usize::from(answer.starts_with(b"HTTP/1.1 200 "));
    }
    assert_eq!(opened, 1);
    assert!(limited(&app).await > 0.0);
    app.stop().await;
}

#[tokio::test]
async fn sessions_opened_by_polling_are_paced_like_upgrades() {
    let (app, node) = with("limits: { handshakes_per_second: 10 }\n", "").await;
    let _node = serve(node);
    let begun = std::time::Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let mut raw = connect_client(&app).await;
        clients.spawn(async move { get(&mut raw, "EIO=4&transport=polling", "").await.0 });
    }
    let statuses = soon(clients.join_all()).await;
    let opened = statuses.iter().filter(|status| **status == 200).count();
    let seconds = begun.elapsed().as_secs() as usize + 1;
    assert!((1..=1 + 10 * seconds).contains(&opened), "{opened} in {seconds} s");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_session_counts_for_its_client_until_it_is_a_tunnel_and_its_polls_never_do() {
    let top = "trusted_proxies: [127.0.0.1]\nlimits: { connections_per_client: 2 }\n";
    let (app, node) = with(top, "").await;
    let _node = serve(node);
    let of = |client: u8| format!("X-Forwarded-For: 192.0.2.{client}\r\n");
    let open = "EIO=4&transport=polling";
    let first = asked_once(&app, open, &of(1)).await.1;
    assert_eq!(asked_once(&app, open, &of(1)).await.0, 200);
    let (status, said) = asked_once(&app, open, &of(1)).await;
    assert_eq!((status, said.as_str()), (429, "too many connections of this client\n"));
    assert_eq!(asked_once(&app, open, &of(2)).await.0, 200, "another client has its own");
    // As many polls as it likes, and whatever else it asks.
    for query in [&format!("{open}&sid={}", sid(&first)), "", "transport=websocket"] {
        for _ in 0..5 {
            assert_eq!(asked_once(&app, query, &of(1)).await.0, 200, "{query}");
        }
    }
    let mut tunnel = connect_client(&app).await;
    let query = format!("EIO=4&transport=websocket&sid={}", sid(&first));
    assert_eq!(get(&mut tunnel, &query, &format!("{}{UPGRADE}", of(1))).await.0, 101);
    assert_eq!(asked_once(&app, open, &of(1)).await.0, 200, "the first session is a connection now");
    assert_eq!(asked_once(&app, open, &of(1)).await.0, 429);
    app.stop().await;
}
