//! A drain that nobody ordered here, what it means for who has no tunnel, and how it ends with the process.

use std::time::{Duration, SystemTime};

use mainstay::app::App;
use mainstay::proxy::drain::{resume, snapshots};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Pair, bound, config};
use crate::harness::{RawStream, SWITCHING_PROTOCOLS, assert_closes, not_soon, resolve, soon};

/// Answers the next probe of a node.
async fn answer_probe(node: &TcpListener, state: &str) {
    let mut probe = RawStream(soon(node.accept()).await.unwrap().0);
    assert!(probe.read_head().await.starts_with("GET /health HTTP/1.1\r\n"));
    probe.send(format!("HTTP/1.1 200 OK\r\nX-Mainstay-State: {state}\r\nContent-Length: 0\r\n\r\n")).await;
}

#[tokio::test]
async fn a_node_that_asks_for_it_in_its_health_is_drained_as_its_pool_says_until_it_says_otherwise() {
    let nodes = [bound().await, bound().await];
    let pool = "health: { interval: 20ms, timeout: 9s, rise: 1 }, drain: { over: 0s, code: 3333 }";
    let config = resolve(&config(&nodes, pool));
    let (app, ..) =
        tokio::join!(App::start(&config), answer_probe(&nodes[0], "well"), answer_probe(&nodes[1], "well"));
    let pair = Pair { app: app.unwrap(), nodes };
    // A handshake and a probe come to the same listener: whoever asks for the chat is the client.
    let mut client = pair.client(0).await;
    let mut node = soon(async {
        loop {
            let mut met = RawStream(pair.nodes[0].accept().await.unwrap().0);
            if met.read_head().await.starts_with("GET /chat ") {
                break met;
            }
            met.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    answer_probe(&pair.nodes[0], "draining").await;
    assert_closes((client, node), 3333).await;
    let drained = pair.sees(0, |node| node["drain"]["left"] == 0).await;
    assert_eq!(drained["state"], "draining");
    let undrain = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!(undrain.status, 409);
    assert!(undrain.error().contains("the node one asks for its drain itself"), "{}", undrain.error());
    // An operator's order beside it does not end with the node's word, and the other way round.
    assert_eq!(pair.tells("chat/nodes/one/drain", "").await.status, 202);
    answer_probe(&pair.nodes[0], "draining").await;
    let both = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!((both.status, &both.body["state"]), (200, &json!("draining")));
    assert!(both.body["warnings"][0].as_str().unwrap().contains("its drain goes on"), "{}", both.body);
    answer_probe(&pair.nodes[0], "well").await;
    pair.sees(0, |node| node["state"] == "up" && node["drain"].is_null()).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn a_drain_that_meets_the_end_of_the_process_yields_to_it() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let (mut client, node) = pair.tunnel(0, 0).await;
    let (mut second, second_node) = pair.tunnel(0, 0).await;
    pair.tells("chat/nodes/one/drain", "").await;
    // The first of the hour is told by the drain, either of them, the other by the end.
    let (code, is_first) = tokio::select! {
        code = client.read_close_code() => (code, true),
        code = second.read_close_code() => (code, false),
    };
    let (told, stays) = if is_first { (node, [second, second_node]) } else { (second_node, [client, node]) };
    let ends = async {
        let mut codes = vec![code];
        for mut side in [told].into_iter().chain(stays) {
            codes.push(side.read_close_code().await);
        }
        codes
    };
    let (codes, ()) = tokio::join!(ends, soon(pair.app.stop()));
    assert_eq!(codes, [1012, 1012, 1001, 1001]);
}

/// A request of the Socket.IO session `sid`, by polling, of a client of the first node.
async fn polls(pair: &Pair, sid: &str) -> RawStream {
    let mut client = RawStream(soon(TcpStream::connect(&pair.app.listeners()[0])).await.unwrap());
    let target = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a.example\r\nCookie: io=one\r\n\r\n")).await;
    client
}

#[tokio::test]
async fn a_polling_session_stays_until_its_time_in_the_window_and_a_plain_request_moves_at_once() {
    let pair = Pair::set("drain: { over: 1h }").await;
    pair.tells("chat/nodes/one/drain", "").await;
    // Of an hour hardly anything has passed: the sessions that are there stay.
    let _staying = polls(&pair, "lv_VI97HAXpY6yYWAAAB").await;
    soon(pair.nodes[0].accept()).await.unwrap();
    let mut plain = RawStream(soon(TcpStream::connect(&pair.app.listeners()[0])).await.unwrap());
    plain.send("GET /page HTTP/1.1\r\nHost: a.example\r\nCookie: io=one\r\n\r\n").await;
    soon(pair.nodes[1].accept()).await.unwrap();
    pair.tells("chat/nodes/one/drain", r#"{"over":"0s"}"#).await;
    let _moving = polls(&pair, "lv_VI97HAXpY6yYWAAAB").await;
    soon(pair.nodes[1].accept()).await.unwrap();
    not_soon(pair.nodes[0].accept()).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn a_drain_goes_on_in_another_process_as_it_was_wanted() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let (client, node) = pair.tunnel(0, 0).await;
    pair.tells("chat/nodes/one/drain", r#"{"over":"40m","code":4321,"reason":"v8"}"#).await;
    drop((client, node));
    pair.sees(0, |node| node["drain"]["closed"] == 1).await;
    let snapshots = snapshots(pair.app.reload().front());
    assert_eq!(snapshots.len(), 1);
    let snapshot = &snapshots[0];
    assert_eq!((snapshot.pool.as_str(), snapshot.node.as_str(), snapshot.is_ordered), ("chat", "one", true));
    assert_eq!((snapshot.order.code, snapshot.progress.closed), (4321, 1));
    let other = soon(App::start(&resolve(&config(&pair.nodes, "drain: { over: 1h }")))).await.unwrap();
    let other = Pair { app: other, nodes: pair.nodes };
    let arrived = CancellationToken::new();
    assert!(resume(other.app.reload().front(), snapshot, arrived.clone()).is_some());
    let status = other.status(0).await;
    assert_eq!((&status["state"], &status["drain"]["closed"]), (&json!("draining"), &json!(1)));
    let deadline = humantime::parse_rfc3339(status["drain"]["deadline"].as_str().unwrap()).unwrap();
    let left = deadline.duration_since(SystemTime::now()).unwrap();
    assert!((Duration::from_secs(30 * 60)..=Duration::from_secs(41 * 60)).contains(&left), "{left:?}");
    let mut gone = snapshot.clone();
    gone.node = "three".into();
    assert!(resume(other.app.reload().front(), &gone, arrived).is_none());
    assert_eq!(other.tells("chat/nodes/one/undrain", "").await.status, 200);
    pair.app.stop().await;
    other.app.stop().await;
}
