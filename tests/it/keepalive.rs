//! Clients that are quiet, behind a pool that asks them.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};

use crate::harness::{Harness, client_frame, node_frame, soon};

const PING: &str = "    messages: { ping: 1s }\n";

#[tokio::test]
async fn the_pong_of_a_client_library_stays_at_the_balancer() {
    let harness = Harness::start(PING).await;
    let client = harness.connect().await.0;
    let node = async { accept_async(soon(harness.node.accept()).await.unwrap().0).await.unwrap() };
    let (client, mut node) = tokio::join!(client_async("ws://a.example/chat", client), node);
    let mut client = client.unwrap().0;
    for round in ["one", "two"] {
        let asked = soon(client.next()).await.unwrap().unwrap();
        assert!(matches!(&asked, Message::Ping(payload) if payload.len() == 8), "{asked:?}");
        // The library answers when it is used next; the node hears the word behind the answer, and only that.
        client.send(Message::text(round)).await.unwrap();
        assert_eq!(soon(node.next()).await.unwrap().unwrap(), Message::text(round));
    }
    // What the peers ask each other passes as ever.
    node.send(Message::Ping("theirs".into())).await.unwrap();
    while soon(client.next()).await.unwrap().unwrap() != Message::Ping("theirs".into()) {}
    client.send(Message::text("three")).await.unwrap();
    let words = [soon(node.next()).await.unwrap().unwrap(), soon(node.next()).await.unwrap().unwrap()];
    assert!(words.contains(&Message::Pong("theirs".into())), "{words:?}");
    assert!(words.contains(&Message::text("three")), "{words:?}");
}

#[tokio::test]
async fn a_pong_in_pieces_stays_at_the_balancer_and_one_of_another_payload_does_not() {
    let harness = Harness::start(PING).await;
    let (mut client, mut node) = harness.open_tunnel().await;
    client.expect(&[0x89, 8]).await;
    let mut payload = [0; 8];
    soon(tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut payload)).await.unwrap();
    let pong = client_frame(0xa, &payload);
    for byte in pong.chunks(1) {
        client.send(byte).await;
    }
    payload[3] ^= 1;
    client.send([client_frame(0xa, &payload), client_frame(1, b"behind")].concat()).await;
    node.expect(&[client_frame(0xa, &payload), client_frame(1, b"behind")].concat()).await;
}

#[tokio::test]
async fn a_client_that_never_answers_is_closed_and_the_log_says_silent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness =
        Harness::with_access_log(&format!("{{ format: json, path: \"{}\" }}", path.display()), PING).await;
    let (mut client, mut node) = harness.open_tunnel().await;
    assert_eq!(node.read_close_code().await, 1001);
    node.send(node_frame(8, &1001u16.to_be_bytes())).await;
    node.wait_closed().await;
    // It could have read a Ping and a Close, and then the end.
    let unread = client.read_to_end().await;
    assert_eq!((&unread[..2], unread[10]), (&[0x89, 8][..], 0x88));
    soon(harness.app.stop()).await;
    let log = std::fs::read_to_string(path).unwrap();
    let close: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let end = (&close["event"], &close["side"], &close["code"], &close["why"]);
    assert_eq!(end, (&"close".into(), &"client".into(), &1006.into(), &"silent".into()));
}
