//! Plain HTTP through the balancer, where a scripted node shows what a real one would not.

use mainstay::app::App;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, connect_client, soon, start,
};

#[tokio::test]
async fn a_client_whose_body_breaks_off_gets_400_and_ejects_no_node() {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = node.local_addr().unwrap();
    let nodes = format!("{{ id: a, address: \"{address}\" }}, {{ id: b, address: \"{address}\" }}");
    let app = start("{ format: off }", &nodes, "    passive: { failures: 1, eject: 1h }\n").await;
    for _ in 0..2 {
        let mut client = connect_client(&app).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n").await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("\r\ncontent-length: 27\r\n"), "{head}");
    }
    let metrics = metrics(&app).await;
    for node in ["a", "b"] {
        let up = format!("mainstay_node_state{{pool=\"chat\",node=\"{node}\",state=\"up\"}} 1\n");
        assert!(metrics.contains(&up), "{metrics}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_kept_connection_that_went_stale_is_replaced_without_the_client_noticing() {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: a, address: \"{}\" }}", node.local_addr().unwrap());
    let app = start("{ format: off }", &nodes, "    affinity: []\n").await;
    let mut client = connect_client(&app).await;
    for _ in 0..2 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
        assert!(asked.read_head().await.starts_with("GET /x HTTP/1.1\r\n"));
        asked.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 200 OK\r\n"));
        client.expect(b"ok").await;
        // Dropped here: the balancer's kept connection is dead, whether it has noticed by the next request or not.
    }
    app.stop().await;
}

#[tokio::test]
async fn a_node_that_refuses_is_tried_passed_over_and_at_last_ejected_without_a_client_noticing() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = gone.local_addr().unwrap();
    drop(gone);
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!(
        "{{ id: dead, address: \"{dead}\" }}, {{ id: well, address: \"{}\" }}",
        node.local_addr().unwrap()
    );
    let pool = "    balance: round_robin\n    affinity: []\n    passive: { failures: 1, eject: 1h }\n";
    let app = start("{ format: off }", &nodes, pool).await;
    let mut tunnels = Vec::new();
    // In turn: at least one of two begins with the dead node.
    for _ in 0..2 {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        let mut asked = accept_request(&node).await;
        asked.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        tunnels.push((client, asked));
    }
    let metrics = metrics(&app).await;
    assert!(
        metrics.contains("mainstay_node_state{pool=\"chat\",node=\"dead\",state=\"down\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("mainstay_websocket_connections{pool=\"chat\",node=\"well\"} 2\n"), "{metrics}");
    app.stop().await;
}

/// A balancer with one node, which nothing pins.
async fn harness(pool: &str) -> (App, TcpListener) {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: a, address: \"{}\" }}", node.local_addr().unwrap());
    (start("{ format: off }", &nodes, &format!("    affinity: []\n{pool}")).await, node)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_upgrade_to_anything_but_websocket_is_served_as_if_nobody_had_asked_for_it() {
    let (app, node) = harness("").await;
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/2.0\r\n",
        "Upgrade: h2c\r\nUpgrade: websockets\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ] {
        let mut client = connect_client(&app).await;
        // With a body, and with a request behind it.
        let post = format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 4\r\n\r\nbody");
        client.send(format!("{post}GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
        let head = asked.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with("post /x http/1.1\r\n"), "{head}");
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        asked.expect(b"body").await;
        asked.send(OK).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
        client.expect(b"ok").await;
        assert!(asked.read_head().await.starts_with("GET /y HTTP/1.1\r\n"));
        asked.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
        client.wait_closed().await;
    }
    app.stop().await;
}

#[tokio::test]
async fn an_upgrade_list_that_names_websocket_becomes_a_websocket_and_nothing_else() {
    let (app, node) = harness("").await;
    for list in ["Upgrade: h2c, WebSocket", "Upgrade: websocket,h2c", "Upgrade: h2c\r\nUpgrade: websocket"] {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST.replace("Upgrade: websocket", list)).await;
        let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
        let head = asked.read_head().await.to_ascii_lowercase();
        assert!(head.contains("\r\nupgrade: websocket\r\n") && !head.contains("h2c"), "{head}");
        asked.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_chunked_body_reaches_the_node_whatever_the_method() {
    let (app, node) = harness("").await;
    for method in ["GET", "HEAD", "DELETE", "POST"] {
        let mut client = connect_client(&app).await;
        let head = format!("{method} /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("{head}4\r\nbody\r\n0\r\n\r\n")).await;
        let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
        let head = asked.read_head().await.to_ascii_lowercase();
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        assert!(!head.contains("content-length"), "{head}");
        asked.expect(b"4\r\nbody\r\n0\r\n\r\n").await;
        asked.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 204 "));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_request_of_http_1_0_that_names_no_host_reaches_the_node_with_one() {
    let (app, node) = harness("").await;
    let here = app.listeners()[0].clone();
    for (request, host) in [
        ("GET /x HTTP/1.0\r\n\r\n", here.as_str()),
        ("GET http://a.example:81/x HTTP/1.0\r\n\r\n", "a.example:81"),
        ("GET /x HTTP/1.0\r\nHost: a.example\r\n\r\n", "a.example"),
    ] {
        let mut client = connect_client(&app).await;
        client.send(request).await;
        let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
        let head = asked.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with("get /x http/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nhost: {host}\r\n")), "{head}");
        assert!(head.contains(&format!("\r\nx-forwarded-host: {host}\r\n")), "{head}");
        asked.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(client.read_head().await.starts_with("HTTP/1.0 200 "));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_stranger_cannot_say_who_it_is_in_fields_that_a_node_may_read_as_the_balancers() {
    let (app, node) = harness("").await;
    let said = "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nX-Forwarded-Port: 666\r\n\
                X_Forwarded_Proto: six\r\nX-Forwarded-Server: six\r\nX-Original-URL: /six\r\nContent_Length: 6\r\n";
    let mut client = connect_client(&app).await;
    client
        .send(format!(
            "POST /x HTTP/1.1\r\nHost: a\r\n{said}Plain_Field: stays\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X_Real_IP, X-Forwarded_For, X-Sum\r\n\r\n\
             0\r\nX_Real_IP: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\nX-Sum: stays\r\n\r\n"
        ))
        .await;
    let mut asked = RawStream(soon(node.accept()).await.unwrap().0);
    let (head, trailers) = (asked.read_head().await, asked.read_head().await);
    for said in ["six", "6.6.6.6", "x-forwarded-port", "content_length"] {
        assert!(!head.to_ascii_lowercase().contains(said), "{head}");
    }
    assert!(head.contains("x-real-ip: 127.0.0.1\r\n") && head.contains("plain_field: stays\r\n"), "{head}");
    assert!(trailers.contains("x-sum: stays\r\n") && !trailers.contains('6'), "{trailers}");
    asked.send(OK).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
    app.stop().await;
}

#[tokio::test]
async fn a_101_to_a_plain_request_is_a_bad_answer() {
    let (app, node) = harness("    passive: { failures: 1, eject: 1h }\n").await;
    let mut client = connect_client(&app).await;
    client.send("GET /chat HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut asked = accept_request(&node).await;
    asked.send(SWITCHING_PROTOCOLS).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    asked.wait_closed().await;
    app.stop().await;
}

async fn metrics(app: &App) -> String {
    let mut admin = RawStream(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
    admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    String::from_utf8(admin.read_to_end().await).unwrap()
}
