//! How tunnels end, and that each end is written down once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::harness::{Harness, client_frame, node_frame, soon};

/// The ways in which a tunnel ends here, with the side, code and reason in the log.
const CLOSES: [(&str, u64, &str); 4] = [
    ("client", 1000, "closed"),
    ("node", 3000, "closed"),
    ("client", 1006, "broken"),
    ("node", 1006, "ended"),
];

#[tokio::test]
async fn i7_every_session_ends_in_one_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness =
        Harness::with_access_log(&format!("{{ format: json, path: \"{}\" }}", path.display()), "").await;
    for round in 0..20 {
        let (mut client, mut node) = harness.open_tunnel().await;
        match round % CLOSES.len() {
            0 => {
                client.send(client_frame(8, &1000u16.to_be_bytes())).await;
                assert_eq!(node.read_close_code().await, 1000);
            }
            1 => {
                node.send(node_frame(8, &3000u16.to_be_bytes())).await;
                assert_eq!(client.read_close_code().await, 3000);
            }
            2 => {
                socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
                drop(client);
                node.wait_closed().await;
            }
            _ => {
                drop(node);
                client.wait_closed().await;
            }
        }
    }
    soon(harness.app.stop()).await;
    let log = std::fs::read_to_string(path).unwrap();
    let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        events.entry(event["id"].as_str().unwrap().to_owned()).or_default().push(event);
    }
    assert_eq!(events.len(), 20, "{log}");
    let mut ends = BTreeMap::new();
    for lines in events.values() {
        let [open, close] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&open["event"], &close["event"]), (&"open".into(), &"close".into()));
        let end = format!("{} {} {}", close["side"], close["code"], close["why"]);
        *ends.entry(end).or_insert(0) += 1;
    }
    let expected = CLOSES.map(|(side, code, why)| (format!("\"{side}\" {code} \"{why}\""), 5));
    assert_eq!(ends, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_message_over_the_limit_ends_with_1009_on_both_sides() {
    let harness = Harness::start("    messages: { max_size: 1KiB }\n").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    // A header of 2000 bytes says enough.
    client.send([0x82, 0xfe, 0x07, 0xd0, 0, 0, 0, 0]).await;
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1009, 1009));
}

#[tokio::test]
async fn no_reserved_opcode_carries_more_than_the_limit() {
    // A whole message of an opcode that has no meaning yet, and between two fragments; a control frame of 2,000 bytes.
    let large = |first: u8| [first, 0xfe, 0x07, 0xd0, 0, 0, 0, 0].to_vec();
    let begun = [&[0x02, 0xfe, 0x02, 0x00, 0, 0, 0, 0][..], &[0; 512]].concat();
    let between = [&begun[..], &[0x83, 0xfe, 0x02, 0x01, 0, 0, 0, 0]].concat();
    for (sent, passes, code) in
        [(large(0x83), 0, 1009), (large(0x87), 0, 1009), (between, begun.len(), 1009), (large(0x8b), 0, 1002)]
    {
        let harness = Harness::start("    messages: { max_size: 1KiB }\n").await;
        let (mut client, mut node) = harness.open_tunnel().await;
        client.send(&sent).await;
        node.expect(&sent[..passes]).await;
        assert_eq!((client.read_close_code().await, node.read_close_code().await), (code, code));
    }
}

#[tokio::test]
async fn half_close_is_passed_on() {
    let harness = Harness::start("").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    client.send(client_frame(1, b"last")).await;
    soon(client.0.shutdown()).await.unwrap();
    assert_eq!(node.read_to_end().await, client_frame(1, b"last"));
    node.send(node_frame(1, b"still here")).await;
    client.expect(&node_frame(1, b"still here")).await;
    drop(node);
    assert_eq!(client.read_to_end().await, b"");
}

#[tokio::test]
async fn garbage_ends_with_1002() {
    let harness = Harness::start("").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    // A Ping in fragments.
    client.send([0x09, 0x80, 0, 0, 0, 0]).await;
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1002, 1002));
}

#[tokio::test]
async fn idle_tunnels_are_closed_with_1001() {
    let harness = Harness::start("    timeouts: { idle: 1s }\n").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1001, 1001));
}

#[tokio::test]
async fn stopping_closes_tunnels_with_1001() {
    let harness = Harness::start("").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    let peers = async {
        assert_eq!((client.read_close_code().await, node.read_close_code().await), (1001, 1001));
        client.send(client_frame(8, &1001u16.to_be_bytes())).await;
        node.send(node_frame(8, &1001u16.to_be_bytes())).await;
        client.wait_closed().await;
        node.wait_closed().await;
    };
    tokio::join!(soon(harness.app.stop()), peers);
}
