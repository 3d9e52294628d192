//! The PROXY protocol, in from a proxy and out to a node, on real sockets.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use crate::certs::TestCertificates;
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, client_frame, connect_client, node_frame, not_soon, run,
    soon,
};
use crate::limits::{node, refused, with};
use crate::tls::SITE;

/// Version 2 from 192.0.2.9:4000 to 198.51.100.1:443, with an extension behind the addresses.
fn v2() -> Vec<u8> {
    let addresses = [192, 0, 2, 9, 198, 51, 100, 1, 0x0f, 0xa0, 1, 0xbb];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12"[..], &addresses, &[0x20, 0, 3, 1, 2, 3]].concat()
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.9 198.51.100.1 4000 443\r\n";

/// A balancer whose listener expects a header, from this machine.
fn listener(more: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\", proxy_protocol: true }}]\ntrusted_proxies: [127.0.0.1]\n{more}"
    )
}

#[tokio::test]
async fn the_client_is_whom_the_header_names_however_it_comes() {
    let (app, node) = with(&listener(""), "").await;
    for header in [V1.to_vec(), v2()] {
        for pieces in [header.len(), 1] {
            let mut proxy = connect_client(&app).await;
            for piece in header.chunks(pieces) {
                proxy.send(piece).await;
            }
            proxy.send([UPGRADE_REQUEST.as_bytes(), &client_frame(1, b"early")].concat()).await;
            let (mut node, head) = asked_with_head(&node).await;
            for field in ["x-forwarded-for: 192.0.2.9\r\n", "x-real-ip: 192.0.2.9\r\n"] {
                assert!(head.contains(field), "{head}");
            }
            node.send(SWITCHING_PROTOCOLS).await;
            assert!(proxy.read_head().await.starts_with("HTTP/1.1 101 "));
            node.expect(&client_frame(1, b"early")).await;
            node.send(node_frame(1, b"back")).await;
            proxy.expect(&node_frame(1, b"back")).await;
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_probe_of_the_proxy_itself_is_served_as_the_proxy() {
    let (app, node) = with(&listener(""), "").await;
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut proxy = connect_client(&app).await;
        proxy.send([header, UPGRADE_REQUEST.as_bytes()].concat()).await;
        let (_node, head) = asked_with_head(&node).await;
        assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_does_not_begin_with_a_header_is_cut_without_an_answer() {
    let (app, node) = with(&listener(""), "").await;
    let binary = v2();
    for begin in [UPGRADE_REQUEST.as_bytes(), b"PROXY TCP4 x\r\n", b"\r\n\r\n\0\r\nQUIT\n\x51", &binary[..12]]
    {
        let mut proxy = connect_client(&app).await;
        proxy.send(begin).await;
        if begin == &binary[..12] {
            // Well begun: only the end of the stream makes it none.
            soon(tokio::io::AsyncWriteExt::shutdown(&mut proxy.0)).await.unwrap();
        }
        let mut rest = Vec::new();
        let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut proxy.0, &mut rest)).await;
        assert_eq!(rest, b"", "{}", begin.escape_ascii());
    }
    assert_eq!(refused(&app, "proxy_protocol").await, 4.0);
    not_soon(node.accept()).await;
    app.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_no_trusted_proxy_is_cut_even_with_a_sound_header() {
    let trusting = listener("").replace("[127.0.0.1]", "[10.0.0.0/8]");
    let (app, node) = with(&trusting, "").await;
    let mut stranger = connect_client(&app).await;
    stranger.send([V1, UPGRADE_REQUEST.as_bytes()].concat()).await;
    stranger.wait_closed().await;
    assert_eq!(refused(&app, "proxy_protocol").await, 1.0);
    not_soon(node.accept()).await;
    app.stop().await;
}

#[tokio::test]
async fn a_header_that_does_not_come_is_cut_by_its_deadline() {
    let (app, _node) = with(&listener("limits: { head_time: 200ms }\n"), "").await;
    let mut silent = connect_client(&app).await;
    silent.wait_closed().await;
    let mut slow = connect_client(&app).await;
    // Each byte comes well within the time; all of them do not.
    let trickle = async {
        for byte in V1 {
            if tokio::io::AsyncWriteExt::write_all(&mut slow.0, &[*byte]).await.is_err() {
                break;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        }
    };
    soon(trickle).await;
    slow.wait_closed().await;
    assert_eq!(refused(&app, "proxy_protocol").await, 2.0);
    app.stop().await;
}

#[tokio::test]
async fn the_node_is_told_whose_connection_it_is_before_anything_else() {
    for (version, header) in [
        ("v1", "PROXY TCP4 127.0.0.1 127.0.0.1 CLIENT LISTENER\r\n"),
        ("v2", "\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}"),
    ] {
        let (app, node) = with("", &format!("    send_proxy_protocol: {version}\n")).await;
        let mut peer = connect_client(&app).await;
        let port = |address: std::net::SocketAddr| address.port();
        let (from, to) = (port(peer.0.local_addr().unwrap()), port(peer.0.peer_addr().unwrap()));
        peer.send(UPGRADE_REQUEST).await;
        let mut node = RawStream(soon(node.accept()).await.unwrap().0);
        let text = header.replace("CLIENT", &from.to_string()).replace("LISTENER", &to.to_string());
        node.expect(text.as_bytes()).await;
        if version == "v2" {
            node.expect(&[127, 0, 0, 1, 127, 0, 0, 1]).await;
            node.expect(&[from.to_be_bytes(), to.to_be_bytes()].concat()).await;
        }
        assert!(node.read_head().await.starts_with("GET /chat HTTP/1.1\r\n"));
        node.send(SWITCHING_PROTOCOLS).await;
        assert!(peer.read_head().await.starts_with("HTTP/1.1 101 "));
        app.stop().await;
    }
}

#[tokio::test]
async fn with_a_header_no_connection_is_shared_by_plain_requests() {
    let (app, node) = with("", "    send_proxy_protocol: v1\n").await;
    for _ in 0..2 {
        let mut peer = connect_client(&app).await;
        peer.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
        let port = peer.0.local_addr().unwrap().port();
        at_node.expect(format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} ").as_bytes()).await;
        let head = at_node.read_head().await;
        assert!(head.contains("GET /x HTTP/1.1\r\n"), "{head}");
        at_node.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(peer.read_head().await.starts_with("HTTP/1.1 200 "));
        peer.expect(b"ok").await;
        assert_eq!(at_node.read_to_end().await, b"", "it is not kept");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_probe_says_that_it_is_the_balancers_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: null\naccess_log: {{ format: off }}\n\
         shutdown: {{ drain: 1s }}\npools:\n  chat:\n    nodes: [{}]\n    send_proxy_protocol: v1\n\
         \x20   health: {{ http: {{ path: /health, status: 200 }} }}\n",
        node(&listener)
    );
    let probed = async {
        let mut probe = RawStream(soon(listener.accept()).await.unwrap().0);
        probe.expect(b"PROXY UNKNOWN\r\n").await;
        assert!(probe.read_head().await.starts_with("GET /health "));
        probe.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        probe
    };
    let (app, _probe) = tokio::join!(run(&text), probed);
    app.stop().await;
}

/// The node's side of the next connection, and the head of its request.
async fn asked_with_head(node: &TcpListener) -> (RawStream, String) {
    let mut node = RawStream(soon(node.accept()).await.unwrap().0);
    let head = node.read_head().await;
    (node, head)
}

#[tokio::test]
async fn both_at_once_pass_the_clients_address_through() {
    let (app, node) = with(&listener(""), "    send_proxy_protocol: v1\n").await;
    let mut proxy = connect_client(&app).await;
    proxy.send([&v2()[..], UPGRADE_REQUEST.as_bytes()].concat()).await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    at_node.expect(V1).await;
    let head = at_node.read_head().await;
    assert!(head.contains("x-forwarded-for: 192.0.2.9\r\n"), "{head}");
    at_node.send(SWITCHING_PROTOCOLS).await;
    assert!(proxy.read_head().await.starts_with("HTTP/1.1 101 "));
    app.stop().await;
}

#[tokio::test]
async fn the_header_stands_before_tls_on_both_sides() {
    let certs = TestCertificates::new();
    certs.issue("site", &["site.example"]);
    certs.issue("node", &["node.example"]);
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = "    send_proxy_protocol: v1\n    tls: { ca: DIR/ca.pem, server_name: node.example }\n\
                trusted_proxies: [127.0.0.1]\n";
    let app = certs.start(&format!("{SITE}, proxy_protocol: true"), &node, pool).await;
    let mut proxy = connect_client(&app).await;
    proxy.send(V1).await;
    let connector = TlsConnector::from(certs.client_config(rustls::ALL_VERSIONS, None));
    let name = "site.example".try_into().unwrap();
    let mut proxy = RawStream(soon(connector.connect(name, proxy.0)).await.unwrap());
    proxy.send(UPGRADE_REQUEST).await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    at_node.expect(V1).await;
    let mut at_node = RawStream(soon(certs.node("node", false).accept(at_node.0)).await.unwrap());
    let head = at_node.read_head().await;
    for field in ["x-forwarded-for: 192.0.2.9\r\n", "x-forwarded-proto: https\r\n"] {
        assert!(head.contains(field), "{head}");
    }
    at_node.send(SWITCHING_PROTOCOLS).await;
    assert!(proxy.read_head().await.starts_with("HTTP/1.1 101 "));
    app.stop().await;
}
