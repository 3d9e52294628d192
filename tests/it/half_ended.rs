//! Tunnels of which one side is done and the other does not care: `timeouts.close` bounds them.

use std::time::{Duration, Instant};

use mainstay::app::App;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::certs::connect;
use crate::harness::{
    self, Harness, RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, node_frame,
    soon,
};
use crate::tls;

const CLOSE: &str = "    timeouts: { close: 1s }\n";

/// What ends a tunnel on one side only, and how the log tells of it: side and code.
const WAYS: [(&str, &str, u64); 5] = [
    ("the node closes", "node", 3000),
    ("the client closes", "client", 1000),
    ("the node ends its stream", "node", 1006),
    ("the client ends its stream", "client", 1006),
    ("the node closes and ends its stream", "node", 3000),
];

#[tokio::test]
async fn a_tunnel_of_which_one_side_is_done_ends_by_timeouts_close_and_the_log_says_so() {
    for (way, side, code) in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let harness =
            Harness::with_access_log(&format!("{{ format: json, path: \"{}\" }}", path.display()), CLOSE)
                .await;
        let (mut client, mut node) = harness.open_tunnel().await;
        let begun = Instant::now();
        match way {
            "the node closes" => node.send(node_frame(8, &3000u16.to_be_bytes())).await,
            "the client closes" => client.send(client_frame(8, &1000u16.to_be_bytes())).await,
            "the node ends its stream" => soon(node.0.shutdown()).await.unwrap(),
            "the client ends its stream" => soon(client.0.shutdown()).await.unwrap(),
            _ => {
                node.send(node_frame(8, &3000u16.to_be_bytes())).await;
                soon(node.0.shutdown()).await.unwrap();
            }
        }
        // Who ignores it all still talks: that keeps nothing open.
        let (peer, word) = match side {
            "node" => (&mut client, client_frame(1, b"well?")),
            _ => (&mut node, node_frame(1, b"well?")),
        };
        let talk = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            while peer.0.write_all(&word).await.is_ok() {
                ticks.tick().await;
            }
        };
        soon(talk).await;
        assert!(begun.elapsed() >= Duration::from_secs(1), "{way}");
        soon(harness.app.stop()).await;
        let log = std::fs::read_to_string(path).unwrap();
        let close: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let end = (&close["event"], &close["side"], &close["code"], &close["why"]);
        assert_eq!(end, (&"close".into(), &side.into(), &code.into(), &"close_timeout".into()), "{way}");
    }
}

#[tokio::test]
async fn who_answers_in_time_is_closed_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness =
        Harness::with_access_log(&format!("{{ format: json, path: \"{}\" }}", path.display()), "").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    node.send(node_frame(8, &3000u16.to_be_bytes())).await;
    assert_eq!(client.read_close_code().await, 3000);
    client.send(client_frame(8, &3000u16.to_be_bytes())).await;
    assert_eq!(node.read_close_code().await, 3000);
    drop((client, node));
    soon(harness.app.stop()).await;
    let log = std::fs::read_to_string(path).unwrap();
    assert!(log.contains("\"why\":\"closed\""), "{log}");
}

/// A client is let in, sooner or later; those before it were full.
async fn is_let_in(app: &App, node: &TcpListener) -> RawStream {
    let entering = async {
        loop {
            let mut client = harness::connect_client(app).await;
            client.send(UPGRADE_REQUEST).await;
            let mut first = [0; 12];
            let answered = tokio::select! {
                read = client.0.read_exact(&mut first) => { read.unwrap(); None }
                at_node = accept_request(node) => Some(at_node),
            };
            let Some(mut at_node) = answered else {
                assert_eq!(&first, b"HTTP/1.1 503");
                continue;
            };
            at_node.send(SWITCHING_PROTOCOLS).await;
            assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
            return client;
        }
    };
    soon(entering).await
}

/// A balancer before one node that takes twenty, all there.
async fn full() -> (App, TcpListener, Vec<(RawStream, RawStream)>) {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: ws1, address: \"{}\", max_connections: 20 }}", node.local_addr().unwrap());
    let app = harness::start("{ format: off }", &nodes, CLOSE).await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        let mut client = harness::connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        let mut at_node = accept_request(&node).await;
        at_node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        tunnels.push((client, at_node));
    }
    (app, node, tunnels)
}

#[tokio::test]
async fn clients_that_a_node_kicked_and_that_ignore_it_keep_nobody_out() {
    let (app, node, tunnels) = full().await;
    let mut kicked = Vec::new();
    for (client, mut at_node) in tunnels {
        at_node.send(node_frame(8, &3000u16.to_be_bytes())).await;
        kicked.push(client);
    }
    let mut let_in = Vec::new();
    for _ in 0..20 {
        let_in.push(is_let_in(&app, &node).await);
    }
    assert_eq!((kicked.len(), let_in.len()), (20, 20));
    soon(app.stop()).await;
}

#[tokio::test]
async fn a_node_that_has_stopped_gives_back_the_places_of_clients_that_have_left() {
    let (app, node, tunnels) = full().await;
    let mut stopped = Vec::new();
    for (mut client, at_node) in tunnels {
        client.send(client_frame(1, b"is anybody there?")).await;
        stopped.push(at_node);
    }
    let mut let_in = Vec::new();
    for _ in 0..20 {
        let_in.push(is_let_in(&app, &node).await);
    }
    assert_eq!((stopped.len(), let_in.len()), (20, 20));
    soon(app.stop()).await;
}

#[tokio::test]
async fn who_takes_nothing_is_reset_when_its_time_is_over() {
    let harness = Harness::start(CLOSE).await;
    let (mut client, mut node) = harness.open_tunnel().await;
    soon(client.0.shutdown()).await.unwrap();
    // More than all buffers on the way hold, in one message that never ends.
    node.send([0x82, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0]).await;
    let news = vec![0; 1 << 20];
    soon(async { while node.0.write_all(&news).await.is_ok() {} }).await;
    let mut unread = Vec::new();
    let end = soon(client.0.read_to_end(&mut unread)).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn over_tls_half_ended_tunnels_end_by_timeouts_close_as_well() {
    let (certs, node) = (tls::certs(), tls::node().await);
    let app = certs.start(tls::SITE, &node, CLOSE).await;
    for ends in [false, true] {
        let config = certs.client_config(rustls::ALL_VERSIONS, None);
        let mut client = connect(&app, &config, "site.example").await.unwrap();
        client.send(UPGRADE_REQUEST).await;
        let mut at_node = accept_request(&node).await;
        at_node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        if ends {
            soon(client.0.shutdown()).await.unwrap();
            at_node.wait_closed().await;
        } else {
            at_node.send(node_frame(8, &3000u16.to_be_bytes())).await;
            assert_eq!(client.read_close_code().await, 3000);
            client.wait_closed().await;
        }
    }
    soon(app.stop()).await;
}
