//! From the request head to the 101, or to what a client gets instead.

use tokio::net::TcpListener;

use crate::harness::{
    Harness, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, connect_client, node_frame,
    not_soon, soon, start,
};

#[tokio::test]
async fn i5_nothing_a_client_sends_early_reaches_a_node_before_its_101_and_all_of_it_after() {
    let harness = Harness::start("").await;
    let early = [client_frame(1, b"one"), client_frame(2, b"two"), client_frame(1, b"three")].concat();
    let mut client = harness.connect().await;
    client.send([UPGRADE_REQUEST.as_bytes(), &early].concat()).await;
    let mut node = harness.accept_request().await;
    not_soon(node.0.peek(&mut [0])).await;
    not_soon(client.0.peek(&mut [0])).await;
    node.send([SWITCHING_PROTOCOLS.as_bytes(), &node_frame(1, b"hello")].concat()).await;
    node.expect(&early).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    client.expect(&node_frame(1, b"hello")).await;
}

#[tokio::test]
async fn a_refusal_is_passed_with_its_body_and_nothing_after_the_head_reaches_the_node() {
    let harness = Harness::start("").await;
    let mut client = harness.connect().await;
    client.send([UPGRADE_REQUEST.as_bytes(), &client_frame(1, b"early")].concat()).await;
    let mut node = harness.accept_request().await;
    node.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Why: because\r\n\r\nnope").await;
    let head = client.read_head().await.to_lowercase();
    assert!(head.starts_with("http/1.1 403 ") && head.contains("x-why: because\r\n"), "{head}");
    assert_eq!(client.read_to_end().await, b"nope");
    assert_eq!(node.read_to_end().await, b"");
}

#[tokio::test]
async fn a_bogus_101_is_a_502() {
    let harness = Harness::start("").await;
    let protocol = SWITCHING_PROTOCOLS.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n");
    for answer in [SWITCHING_PROTOCOLS.replace("s3pP", "AAAA"), protocol] {
        let mut client = harness.connect().await;
        client.send([UPGRADE_REQUEST.as_bytes(), &client_frame(1, b"early")].concat()).await;
        let mut node = harness.accept_request().await;
        node.send(&answer).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{answer}{head}");
        client.wait_closed().await;
        assert_eq!(node.read_to_end().await, b"");
    }
}

/// Sends each request, and asserts its status, the end of the stream, and that no node was asked.
async fn assert_refused(cases: &[(String, &str)]) {
    let harness = Harness::start("").await;
    for (request, status) in cases {
        let mut client = harness.connect().await;
        client.send(request).await;
        let answer = String::from_utf8(client.read_to_end().await).unwrap();
        assert_eq!(answer.get(9..12), Some(*status), "{request}{answer}");
        if *status == "426" {
            assert!(answer.to_lowercase().contains("\r\nsec-websocket-version: 13\r\n"), "{answer}");
        }
    }
    not_soon(harness.node.accept()).await;
}

#[tokio::test]
async fn each_bad_upgrade_gets_its_own_4xx_and_the_end() {
    let with = |from: &str, to: &str| {
        let request = UPGRADE_REQUEST.replace(from, to);
        assert_ne!(request, UPGRADE_REQUEST);
        request
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_refused(&[
        (with("GET", "POST"), "405"),
        (with("Version: 13", "Version: 8"), "426"),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400"),
        (with(key, &key.repeat(2)), "400"),
        (with(key, ""), "400"),
        (with("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"), "400"),
        (with("HTTP/1.1", "HTTP/1.0"), "400"),
    ])
    .await;
}

#[tokio::test]
async fn what_two_parsers_could_read_differently_is_refused() {
    let head = |fields: &str| format!("GET /chat HTTP/1.1\r\n{fields}\r\n");
    assert_refused(&[
        (head("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n"), "400"),
        (head("Host: a\r\nHost: b\r\n"), "400"),
        (head("Accept: */*\r\n"), "400"),
        (head("Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"), "400"),
        (head("Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n"), "400"),
        ("GET /chat HTTP/1.1\nHost: a\n\n".into(), "400"),
    ])
    .await;
}

#[tokio::test]
async fn a_node_that_refuses_is_skipped_invisibly() {
    let (gone, node) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let nodes = format!(
        "{{ id: gone, address: \"{}\" }}, {{ id: here, address: \"{}\" }}",
        gone.local_addr().unwrap(),
        node.local_addr().unwrap()
    );
    drop(gone);
    let app = start("{ format: off }", &nodes, "    balance: round_robin\n").await;
    for _ in 0..4 {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        let mut node = accept_request(&node).await;
        node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    }
}

#[tokio::test]
async fn no_node_is_503_with_retry_after() {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: full, address: \"{}\", max_connections: 1 }}", node.local_addr().unwrap());
    let app = start("{ format: off }", &nodes, "").await;
    let mut first = connect_client(&app).await;
    first.send(UPGRADE_REQUEST).await;
    let mut at_node = soon(accept_request(&node)).await;
    at_node.send(SWITCHING_PROTOCOLS).await;
    first.read_head().await;
    let mut second = connect_client(&app).await;
    second.send(UPGRADE_REQUEST).await;
    let answer = String::from_utf8(second.read_to_end().await).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("\r\nretry-after: "), "{answer}");
}
