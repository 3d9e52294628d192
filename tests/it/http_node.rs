//! A node that serves plain HTTP without being played by hand.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A node that answers by the path: `/status/404` with this status, a polling handshake with an open packet, all
/// else with 200; and on each answer it says its load, if it has one.
pub struct HttpNode {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl HttpNode {
    pub async fn start(load: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut answers = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                answers.spawn(answer(stream, load));
            }
        });
        Self { address, _tasks: tasks }
    }
}

async fn answer(mut stream: TcpStream, load: Option<&str>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let status = target.strip_prefix("/status/").unwrap_or("200");
    let body = if target.contains("transport=polling") {
        r#"0{"sid":"abc","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#
    } else {
        ""
    };
    let load = load.map(|load| format!("X-Mainstay-Load: {load}\r\n")).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {status} So\r\n{load}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A client that has gone needs no answer.
    let _ = stream.write_all(answer.as_bytes()).await;
}
