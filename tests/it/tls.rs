//! TLS at the front desk: versions, certificates by host, client certificates, tickets, swaps.

use std::sync::Arc;
use std::time::Duration;

use mainstay::app::App;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, ClientConfig, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::certs::{TestCertificates, TlsClient, connect};
use crate::harness::{RawStream, UPGRADE_REQUEST, soon};

pub const SITE: &str = "{ certificates: [{ cert: DIR/site.pem, key: DIR/site.key }] }";
pub const GET: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nX-Client-Cert-Subject: CN=admin\r\n\r\n";

pub async fn node() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

pub fn certs() -> TestCertificates {
    let certs = TestCertificates::new();
    certs.issue("site", &["site.example"]);
    certs
}

/// A request on `client` and its answer of `node`'s; what the node and the client read.
async fn exchange(
    client: &mut RawStream<impl AsyncRead + AsyncWrite + Unpin>,
    node: &TcpListener,
) -> (String, String) {
    client.send(GET).await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    let head = at_node.read_head().await;
    at_node.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = client.read_head().await;
    client.expect(b"ok").await;
    (head.to_lowercase(), answer.to_lowercase())
}

fn kind(client: &TlsClient) -> HandshakeKind {
    client.0.get_ref().1.handshake_kind().unwrap()
}

fn certificate(client: &TlsClient) -> &[u8] {
    &client.0.get_ref().1.peer_certificates().unwrap()[0]
}

pub async fn metrics(app: &App) -> String {
    let mut admin = RawStream(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
    admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    String::from_utf8(admin.read_to_end().await).unwrap()
}

#[tokio::test]
async fn plain_requests_over_both_versions_reach_the_node_as_https_with_a_secure_cookie() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    for (version, spoken) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut client = connect(&app, &certs.client_config(&[version], None), "site.example").await.unwrap();
        assert_eq!(client.0.get_ref().1.protocol_version(), Some(spoken));
        let (head, answer) = exchange(&mut client, &node).await;
        assert!(head.contains("\r\nx-forwarded-proto: https\r\n"), "{head}");
        assert!(head.contains(";proto=https\r\n"), "{head}");
        assert!(!head.contains("x-client-cert-subject"), "{head}");
        assert!(answer.contains("set-cookie: mainstay=") && answer.contains("; secure"), "{answer}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_version_below_the_lowest_is_refused_and_counted() {
    let (certs, node) = (certs(), node().await);
    let tls = SITE.replace(" }] }", " }], min_version: \"1.3\" }");
    let app = certs.start(&tls, &node, "").await;
    let refused = connect(&app, &certs.client_config(&[&TLS12], None), "site.example").await;
    assert!(refused.unwrap_err().to_string().contains("ProtocolVersion"));
    let mut client = connect(&app, &certs.client_config(ALL_VERSIONS, None), "site.example").await.unwrap();
    exchange(&mut client, &node).await;
    assert!(metrics(&app).await.contains("mainstay_handshakes_total{pool=\"\",result=\"refused\"} 1\n"));
    app.stop().await;
}

#[tokio::test]
async fn a_host_gets_its_own_certificate_or_that_of_its_level_or_the_first() {
    let (certs, node) = (TestCertificates::new(), node().await);
    certs.issue("first", &["first.example", "127.0.0.1"]);
    certs.issue("wild", &["*.wild.example"]);
    certs.issue("own", &["own.example"]);
    let one = |name: &str| format!("{{ cert: DIR/{name}.pem, key: DIR/{name}.key }}");
    let tls = format!("{{ certificates: [{}, {}, {}] }}", one("first"), one("wild"), one("own"));
    let app = certs.start(&tls, &node, "").await;
    let config = certs.client_config(ALL_VERSIONS, None);
    for (host, expected) in [
        ("first.example", "first"),
        ("own.example", "own"),
        ("OWN.Example", "own"),
        ("other.wild.example", "wild"),
        ("127.0.0.1", "first"),
    ] {
        let client = connect(&app, &config, host).await.unwrap();
        assert_eq!(certificate(&client), &certs.certificate(expected)[..], "{host}");
    }
    for host in ["a.b.wild.example", "wild.example", "elsewhere.test"] {
        let refused = connect(&app, &config, host).await.unwrap_err();
        assert!(
            refused.to_string().contains("certificate"),
            "{host} got the first, which is not for it: {refused}"
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn a_client_must_show_a_certificate_where_one_is_asked_for_and_the_node_hears_whose() {
    let (certs, node) = (certs(), node().await);
    certs.issue("alice", &[]);
    let tls = SITE.replace(" }] }", " }], client_ca: DIR/ca.pem }");
    let app = certs.start(&tls, &node, "").await;
    for version in [&TLS12, &TLS13] {
        let mut client =
            connect(&app, &certs.client_config(&[version], Some("alice")), "site.example").await.unwrap();
        let (head, _) = exchange(&mut client, &node).await;
        assert_eq!(head.matches("x-client-cert-subject").count(), 1, "{head}");
        assert!(head.contains("\r\nx-client-cert-subject: o=tests\\, inc.,cn=alice\r\n"), "{head}");
        client.send(UPGRADE_REQUEST.replace("\r\n\r\n", "\r\nX_Client_Cert_Subject: CN=admin\r\n\r\n")).await;
        let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
        let head = at_node.read_head().await.to_lowercase();
        assert_eq!(head.matches("client").count(), 1, "{head}");
        assert!(head.contains("cn=alice\r\n"), "{head}");
    }
    let stranger = TestCertificates::new();
    stranger.issue("mallory", &[]);
    for shown in [None, Some("mallory")] {
        let shown_by = if shown.is_some() { &stranger } else { &certs };
        let mut config = ClientConfig::clone(&certs.client_config(ALL_VERSIONS, None));
        config.client_auth_cert_resolver =
            shown_by.client_config(ALL_VERSIONS, shown).client_auth_cert_resolver.clone();
        // In TLS 1.3 the client is done before the balancer has looked at its certificate.
        let Ok(mut client) = connect(&app, &Arc::new(config), "site.example").await else { continue };
        let _ = client.0.write_all(GET.as_bytes()).await;
        assert!(soon(client.0.read_u8()).await.is_err());
    }
    app.stop().await;
}

#[tokio::test]
async fn a_session_resumes_on_every_balancer_with_the_same_ticket_secret_and_on_no_other() {
    let (certs, node) = (certs(), node().await);
    certs.issue("alice", &[]);
    let secret = |letter: &str| format!("{letter}:{}A=\n", letter.repeat(42));
    certs.write("one", secret("A"));
    certs.write("rotated", secret("B") + &secret("A"));
    certs.write("other", secret("C"));
    let with = |more: &str| SITE.replace(" }] }", &format!(" }}], {more} }}"));
    let mut apps = Vec::new();
    for more in [
        "ticket_secret_file: DIR/one",
        "ticket_secret_file: DIR/rotated",
        "ticket_secret_file: DIR/other",
        "ticket_secret_file: DIR/one, client_ca: DIR/ca.pem",
    ] {
        apps.push(certs.start(&with(more), &node, "").await);
    }
    let [first, rotated, other, asking] = &apps[..] else { unreachable!() };
    for version in [&TLS12, &TLS13] {
        let config = certs.client_config(&[version], Some("alice"));
        let visit = async |app: &App| {
            let mut client = connect(app, &config, "site.example").await.unwrap();
            let (head, _) = exchange(&mut client, &node).await;
            (kind(&client), head.contains("cn=alice"))
        };
        let (full, resumed) = (HandshakeKind::Full, HandshakeKind::Resumed);
        assert_eq!(visit(first).await, (full, false), "{version:?}");
        assert_eq!(visit(first).await, (resumed, false));
        assert_eq!(visit(rotated).await, (resumed, false));
        assert_eq!(visit(other).await.0, full);
        assert_eq!(visit(first).await.0, full, "the other's ticket");
        let (kind, is_known) = visit(asking).await;
        assert_ne!(kind, resumed, "its client has to show a certificate");
        assert!(is_known);
        assert_eq!(visit(asking).await, (resumed, true), "the subject is in the ticket");
    }
    for app in apps {
        app.stop().await;
    }
}

#[tokio::test]
async fn without_a_ticket_secret_a_session_resumes_also_after_a_reload() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    let config = certs.client_config(ALL_VERSIONS, None);
    exchange(&mut connect(&app, &config, "site.example").await.unwrap(), &node).await;
    certs.issue("site", &["site.example"]);
    soon(app.reload().apply(certs.config(SITE, &node, ""))).await.unwrap();
    let mut again = connect(&app, &config, "site.example").await.unwrap();
    assert_eq!(kind(&again), HandshakeKind::Resumed);
    exchange(&mut again, &node).await;
    app.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_swapped_in_and_connections_go_on() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    let fresh = || certs.client_config(ALL_VERSIONS, None);
    let mut before = connect(&app, &fresh(), "site.example").await.unwrap();
    let old = certs.certificate("site");
    certs.issue("site", &["site.example", "new.example"]);
    let changes = soon(app.reload().apply(certs.config(SITE, &node, ""))).await.unwrap();
    let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("certificate") && said[0].ends_with("replaced"), "{said:?}");
    let after = connect(&app, &fresh(), "new.example").await.unwrap();
    assert_eq!((certificate(&before), certificate(&after)), (&old[..], &certs.certificate("site")[..]));
    exchange(&mut before, &node).await;
    // And off, on the same socket.
    soon(app.reload().apply(certs.config("null", &node, ""))).await.unwrap();
    let mut bare = RawStream(soon(TcpStream::connect(&app.listeners()[0])).await.unwrap());
    let (head, _) = exchange(&mut bare, &node).await;
    assert!(head.contains("\r\nx-forwarded-proto: http\r\n"), "{head}");
    app.stop().await;
}

#[tokio::test]
async fn only_http_1_1_is_agreed_on() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    let mut config = ClientConfig::clone(&certs.client_config(ALL_VERSIONS, None));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = connect(&app, &Arc::new(config.clone()), "site.example").await.unwrap();
    assert_eq!(client.0.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let refused = connect(&app, &Arc::new(config), "site.example").await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    app.stop().await;
}

#[tokio::test]
async fn who_says_nothing_or_half_a_hello_or_something_else_is_cut() {
    let (certs, node) = (certs(), node().await);
    let app = certs.start(SITE, &node, "").await;
    // The beginning of a hello that says it has 512 bytes.
    let half = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    for said in [&b""[..], &half[..3], &half, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = RawStream(soon(TcpStream::connect(&app.listeners()[0])).await.unwrap());
        client.send(said).await;
        let rest = client.read_to_end().await;
        assert!(rest.len() <= 7, "at most an alert: {rest:?}");
    }
    // A byte now and then does not help, either: the time is for all of the hello.
    let mut client = soon(TcpStream::connect(&app.listeners()[0])).await.unwrap();
    soon(async {
        let mut sent = half.iter().chain(std::iter::repeat(&0));
        let mut answer = [0];
        let pause = Duration::from_millis(20);
        loop {
            if let Ok(read) = tokio::time::timeout(pause, client.read(&mut answer)).await {
                break assert!(read.is_err() || matches!(read, Ok(0)));
            }
            let _ = client.write_all(&[*sent.next().unwrap()]).await;
        }
    })
    .await;
    app.stop().await;
}
