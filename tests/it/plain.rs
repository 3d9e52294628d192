//! Plain HTTP through the balancer, where a scripted node shows what a real one would not.

use mainstay::app::App;
use tokio::net::{TcpListener, TcpStream};

use crate::play::{REQUEST, Raw, YES, asked, client, soon, start};

#[tokio::test]
async fn a_client_whose_body_breaks_off_gets_400_and_ejects_no_node() {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = node.local_addr().unwrap();
    let nodes = format!("{{ id: a, address: \"{address}\" }}, {{ id: b, address: \"{address}\" }}");
    let app = start("{ format: off }", &nodes, "    passive: { failures: 1, eject: 1h }\n").await;
    for _ in 0..2 {
        let mut client = client(&app).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n").await;
        let head = client.head().await;
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
    let mut client = client(&app).await;
    for _ in 0..2 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut asked = Raw(soon(node.accept()).await.unwrap().0);
        assert!(asked.head().await.starts_with("GET /x HTTP/1.1\r\n"));
        asked.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
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
        let mut client = client(&app).await;
        client.send(REQUEST).await;
        let mut asked = asked(&node).await;
        asked.send(YES).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
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

async fn metrics(app: &App) -> String {
    let mut admin = Raw(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
    admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    String::from_utf8(admin.rest().await).unwrap()
}
