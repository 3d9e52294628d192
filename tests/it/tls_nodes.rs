//! TLS to the nodes, and tunnels with TLS on one side or both.

use mainstay::app::App;
use rustls::ALL_VERSIONS;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::certs::{accept, connect};
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, node_frame, soon,
};
use crate::tls::{GET, SITE, certs, metrics, node};

const TO_NODE: &str = "    tls: { ca: DIR/ca.pem, server_name: node.example";

#[tokio::test]
async fn a_node_is_spoken_to_over_tls_for_requests_tunnels_and_probes() {
    let (certs, node) = (certs(), node().await);
    certs.issue("node", &["node.example"]);
    certs.issue("balancer", &[]);
    let shown = format!("{TO_NODE}, cert: DIR/balancer.pem, key: DIR/balancer.key }}\n");
    let app = certs.start("null", &node, &shown).await;
    let tls = certs.node("node", true);
    let mut client = crate::harness::connect_client(&app).await;
    client.send(GET).await;
    let mut at_node = accept(&node, &tls).await;
    assert_eq!(at_node.0.get_ref().1.server_name(), Some("node.example"));
    assert_eq!(at_node.0.get_ref().1.peer_certificates().unwrap()[0], certs.certificate("balancer"));
    let head = at_node.read_head().await;
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    at_node.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    client.expect(b"ok").await;
    app.stop().await;
}

#[tokio::test]
async fn a_probe_speaks_tls_too() {
    let (certs, node) = (certs(), node().await);
    certs.issue("node", &["node.example"]);
    let config = certs.config("null", &node, &format!("{TO_NODE} }}\n"));
    let mut config = config;
    config.pools[0].health = mainstay::config::HealthCheck::default();
    let tls = certs.node("node", false);
    let answering = async {
        let mut asked = accept(&node, &tls).await;
        assert!(asked.read_head().await.starts_with("GET /health HTTP/1.1\r\n"));
        asked.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    };
    let (app, ()) = tokio::join!(soon(App::start(&config)), answering);
    let app = app.unwrap();
    let probed = "mainstay_health_checks_total{pool=\"chat\",node=\"ws1\",result=\"ok\"} 1\n";
    assert!(metrics(&app).await.contains(probed));
    app.stop().await;
}

#[tokio::test]
async fn a_node_that_asks_for_a_certificate_is_said_to_ask_for_one() {
    let (certs, node) = (certs(), node().await);
    certs.issue("node", &["node.example"]);
    certs.issue("balancer", &[]);
    let strangers = crate::tls::certs();
    strangers.issue("stranger", &[]);
    let stranger = ["pem", "key"].map(|kind| strangers.path(&format!("stranger.{kind}")));
    let stranger = format!(", cert: {}, key: {}", stranger[0], stranger[1]);
    let tls = certs.node("node", true);
    for (shown, said) in [
        ("", "the node asks for a client certificate; write `cert:` and `key:` in the `tls` of the pool"),
        (&stranger, "the node refuses the client certificate that it is shown"),
    ] {
        let mut config = certs.config("null", &node, &format!("{TO_NODE}{shown} }}\n"));
        config.pools[0].health = mainstay::config::HealthCheck::default();
        let refusing = async {
            let (stream, _) = soon(node.accept()).await.unwrap();
            // The connection stays, so that no reset overtakes what is said.
            soon(tls.accept(stream).into_fallible()).await.map(drop).unwrap_err().1
        };
        let (app, _refused) = tokio::join!(soon(App::start(&config)), refusing);
        let app = app.unwrap();
        let status = crate::admin::gets(&app, "/api/status").await;
        let probe = &status["pools"][0]["nodes"][0]["health"]["last_probe"];
        assert!(probe["fault"].as_str().unwrap_or_default().starts_with(said), "{status}");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_cannot_prove_its_name_gets_nothing() {
    let (certs, node) = (certs(), node().await);
    certs.issue("node", &["node.example"]);
    certs.issue("impostor", &["elsewhere.example"]);
    let app = certs.start("null", &node, &format!("{TO_NODE} }}\n")).await;
    for (tls, request) in [
        (Some(certs.node("impostor", false)), GET),
        (Some(certs.node("impostor", false)), UPGRADE_REQUEST),
        (None, GET),
    ] {
        let mut client = crate::harness::connect_client(&app).await;
        client.send(request).await;
        let (mut stream, _) = soon(node.accept()).await.unwrap();
        match tls {
            Some(tls) => assert!(soon(tls.accept(stream)).await.is_err()),
            // It does not speak TLS.
            None => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap(),
        }
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    }
    app.stop().await;
}

/// Both ends of a tunnel say something and close.
async fn talk(
    client: &mut RawStream<impl AsyncRead + AsyncWrite + Unpin>,
    node: &mut RawStream<impl AsyncRead + AsyncWrite + Unpin>,
) {
    for size in [0, 1, 125] {
        let (up, down) = (client_frame(2, &vec![7; size]), node_frame(2, &vec![8; size]));
        client.send(&up).await;
        node.expect(&up).await;
        node.send(&down).await;
        client.expect(&down).await;
    }
    client.send(client_frame(8, &1000_u16.to_be_bytes())).await;
    assert_eq!(node.read_close_code().await, 1000);
    node.send(node_frame(8, &1000_u16.to_be_bytes())).await;
    assert_eq!(client.read_close_code().await, 1000);
}

#[tokio::test]
async fn a_websocket_goes_on_over_tls_after_its_upgrade_with_what_was_sent_early() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    for version in [&TLS12, &TLS13] {
        let mut client = connect(&app, &certs.client_config(&[version], None), "site.example").await.unwrap();
        let early = client_frame(1, b"early");
        client.send([UPGRADE_REQUEST.as_bytes(), &early].concat()).await;
        let mut at_node = accept_request(&node).await;
        client.send(client_frame(1, b"while it is asked")).await;
        at_node.send([SWITCHING_PROTOCOLS.as_bytes(), &node_frame(1, b"hello")].concat()).await;
        at_node.expect(&early).await;
        at_node.expect(&client_frame(1, b"while it is asked")).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        client.expect(&node_frame(1, b"hello")).await;
        talk(&mut client, &mut at_node).await;
        client.0.get_mut().1.send_close_notify();
        client.send("").await;
        at_node.wait_closed().await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_websocket_goes_on_over_tls_on_both_sides() {
    let (certs, node) = (certs(), node().await);
    certs.issue("node", &["node.example"]);
    let app = certs.start(SITE, &node, &format!("{TO_NODE} }}\n")).await;
    let tls = certs.node("node", false);
    let mut client = connect(&app, &certs.client_config(ALL_VERSIONS, None), "site.example").await.unwrap();
    client.send([UPGRADE_REQUEST.as_bytes(), &client_frame(1, b"early")].concat()).await;
    let mut at_node = accept(&node, &tls).await;
    at_node.read_head().await;
    at_node.send([SWITCHING_PROTOCOLS.as_bytes(), &node_frame(1, b"hello")].concat()).await;
    at_node.expect(&client_frame(1, b"early")).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    client.expect(&node_frame(1, b"hello")).await;
    talk(&mut client, &mut at_node).await;
    app.stop().await;
}

#[tokio::test]
async fn a_key_update_before_and_after_the_upgrade_breaks_nothing() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    let mut client = connect(&app, &certs.client_config(&[&TLS13], None), "site.example").await.unwrap();
    client.0.get_mut().1.refresh_traffic_keys().unwrap();
    client.send(UPGRADE_REQUEST).await;
    let mut at_node = accept_request(&node).await;
    at_node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    for _ in 0..3 {
        client.0.get_mut().1.refresh_traffic_keys().unwrap();
        client.send(client_frame(1, b"up")).await;
        at_node.expect(&client_frame(1, b"up")).await;
        at_node.send(node_frame(1, b"down")).await;
        client.expect(&node_frame(1, b"down")).await;
    }
    talk(&mut client, &mut at_node).await;
    app.stop().await;
}
