//! TLS tunnels after they have left rustls: how each kind of end is passed on, and what a peer that breaks TLS sees.

use std::io::{Cursor, ErrorKind, Write};
use std::time::Duration;

use mainstay::app::App;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, AlertDescription, ClientConnection, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server;

use crate::certs::{TestCertificates, TlsClient, accept, connect};
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, node_frame, soon,
};

const SITE: &str = "{ certificates: [{ cert: DIR/site.pem, key: DIR/site.key }] }";
const TO_NODE: &str = "    tls: { ca: DIR/ca.pem, server_name: site.example }\n";

/// A balancer whose listener speaks TLS, and its node.
struct TlsHarness {
    certs: TestCertificates,
    node: TcpListener,
    app: App,
}

impl TlsHarness {
    async fn start(pool: &str) -> Self {
        let (certs, node) = (TestCertificates::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        certs.issue("site", &["site.example"]);
        let app = certs.start(SITE, &node, pool).await;
        Self { certs, node, app }
    }

    async fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsClient {
        let config = self.certs.client_config(versions, None);
        let mut client = connect(&self.app, &config, "site.example").await.unwrap();
        client.send(UPGRADE_REQUEST).await;
        client
    }

    /// An open tunnel to a node without TLS.
    async fn tunnel(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> (TlsClient, RawStream<TcpStream>) {
        let mut client = self.client(versions).await;
        let mut node = accept_request(&self.node).await;
        open(&mut client, &mut node).await;
        (client, node)
    }

    /// An open tunnel to a node with TLS.
    async fn tls_tunnel(&self) -> (TlsClient, RawStream<server::TlsStream<TcpStream>>) {
        let mut client = self.client(ALL_VERSIONS).await;
        let mut node = accept(&self.node, &self.certs.node("site", false)).await;
        node.read_head().await;
        open(&mut client, &mut node).await;
        (client, node)
    }

    /// The tunnels that ended on this side with this code, once there are any.
    async fn closes(&self, side: &str, code: u16) {
        let line = format!(
            "mainstay_closes_total{{pool=\"chat\",node=\"ws1\",side=\"{side}\",code=\"{code}\"}} 1\n"
        );
        soon(async {
            loop {
                let mut admin = RawStream(TcpStream::connect(self.app.admin().unwrap()).await.unwrap());
                admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
                if String::from_utf8(admin.read_to_end().await).unwrap().contains(&line) {
                    return;
                }
            }
        })
        .await;
    }
}

/// The node says yes, and something goes both ways over the record layer that is not rustls.
async fn open(client: &mut TlsClient, node: &mut RawStream<impl AsyncRead + AsyncWrite + Unpin>) {
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    client.send(client_frame(1, b"up")).await;
    node.expect(&client_frame(1, b"up")).await;
    node.send(node_frame(1, b"down")).await;
    client.expect(&node_frame(1, b"down")).await;
}

#[tokio::test]
async fn a_goodbye_ends_one_direction_and_the_other_goes_on_until_it_ends_too() {
    let harness = TlsHarness::start("").await;
    let (mut client, mut node) = harness.tunnel(&[&TLS13]).await;
    client.send(client_frame(1, b"last")).await;
    soon(client.0.shutdown()).await.unwrap();
    assert_eq!(node.read_to_end().await, client_frame(1, b"last"));
    node.send(node_frame(1, b"still here")).await;
    client.expect(&node_frame(1, b"still here")).await;
    drop(node);
    // The end of the reader is a goodbye: rustls makes an error of a stream that is cut.
    assert_eq!(client.read_to_end().await, b"");
    harness.closes("client", 1006).await;
}

#[tokio::test]
async fn a_goodbye_in_tls_1_2_is_answered_at_once_and_the_node_is_told() {
    let harness = TlsHarness::start("").await;
    let (mut client, mut node) = harness.tunnel(&[&TLS12]).await;
    client.send(client_frame(1, b"last")).await;
    client.0.get_mut().1.send_close_notify();
    soon(client.0.flush()).await.unwrap();
    assert_eq!(client.read_to_end().await, b"");
    assert_eq!(node.read_to_end().await, client_frame(1, b"last"));
    drop((client, node));
    harness.closes("client", 1006).await;
}

#[tokio::test]
async fn an_end_without_goodbye_is_passed_on_as_one() {
    let harness = TlsHarness::start(TO_NODE).await;
    let (mut client, mut node) = harness.tls_tunnel().await;
    client.send(client_frame(1, b"last")).await;
    soon(client.0.get_mut().0.shutdown()).await.unwrap();
    node.expect(&client_frame(1, b"last")).await;
    let cut = soon(node.0.read_u8()).await.unwrap_err();
    assert!(cut.to_string().contains("close_notify"), "{cut}");
    drop((client, node));
    harness.closes("client", 1006).await;
    let (mut client, mut node) = harness.tls_tunnel().await;
    soon(node.0.shutdown()).await.unwrap();
    assert_eq!(client.read_to_end().await, b"", "an end with goodbye is passed on as such");
}

/// Sends `bytes` below the TLS connection, and more than fits into the kernel's buffers, until the balancer has hung
/// up; gives the alert that came.
async fn break_tls(client: TlsClient, bytes: &[u8]) -> rustls::Error {
    let (mut socket, mut tls) = client.0.into_inner();
    let flood = vec![0; 1 << 20];
    let mut answer = Vec::new();
    soon(socket.write_all(bytes)).await.unwrap();
    let (mut read, mut write) = socket.split();
    let sending = async { while write.write_all(&flood).await.is_ok() {} };
    tokio::select! {
        () = sending => {}
        read = soon(read.read_to_end(&mut answer)) => { read.expect("an end of stream behind the alert"); }
    }
    tls.read_tls(&mut Cursor::new(answer)).unwrap();
    tls.process_new_packets().expect_err("an alert")
}

/// The records that `tls` would send for `plain`.
fn sealed(tls: &mut ClientConnection, plain: &[u8]) -> Vec<u8> {
    tls.writer().write_all(plain).unwrap();
    let mut wire = Vec::new();
    tls.write_tls(&mut wire).unwrap();
    wire
}

#[tokio::test]
async fn a_peer_that_breaks_tls_reads_why_and_nothing_of_it_reaches_the_node() {
    let harness = TlsHarness::start("").await;
    let told =
        [AlertDescription::DecodeError, AlertDescription::BadRecordMac, AlertDescription::BadRecordMac];
    for (way, told) in told.into_iter().enumerate() {
        let (mut client, mut node) = harness.tunnel(ALL_VERSIONS).await;
        let good = sealed(client.0.get_mut().1, &client_frame(1, b"good"));
        let wire = match way {
            0 => [&good[..], b"GET / HTTP/1.1\r\n\r\n"].concat(),
            1 => good.repeat(2),
            _ => {
                let mut flipped = sealed(client.0.get_mut().1, &client_frame(1, b"flipped"));
                flipped[9] ^= 1;
                [good, flipped].concat()
            }
        };
        assert_eq!(break_tls(client, &wire).await, rustls::Error::AlertReceived(told));
        assert_eq!(node.read_to_end().await, client_frame(1, b"good"));
    }
}

#[tokio::test]
async fn a_close_of_the_balancers_ends_with_goodbye() {
    let harness = TlsHarness::start(TO_NODE).await;
    let (mut client, mut node) = harness.tls_tunnel().await;
    let peers = async {
        assert_eq!((client.read_close_code().await, node.read_close_code().await), (1001, 1001));
        client.send(client_frame(8, &1001u16.to_be_bytes())).await;
        node.send(node_frame(8, &1001u16.to_be_bytes())).await;
        assert_eq!((client.read_to_end().await, node.read_to_end().await), (vec![], vec![]));
    };
    tokio::join!(soon(harness.app.stop()), peers);
}

/// A binary frame whose every byte tells its number.
fn numbered(number: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 126, 0xff, 0xf0];
    frame.resize(4 + 0xfff0, (number % 251) as u8);
    frame
}

#[tokio::test]
async fn i10_what_a_slow_tls_client_does_not_take_is_bounded_and_comes_in_order() {
    let harness = TlsHarness::start("").await;
    let (mut client, node) = harness.tunnel(ALL_VERSIONS).await;
    let (mut number, mut sent, mut total) = (0, 0, 0);
    while tokio::time::timeout(Duration::from_millis(500), node.0.writable()).await.is_ok() {
        let frame = numbered(number);
        match node.0.try_write(&frame[sent..]) {
            Ok(len) => (sent, total) = (sent + len, total + len),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        if sent == frame.len() {
            (number, sent) = (number + 1, 0);
        }
        assert!(total < 64 << 20, "the balancer keeps taking what nobody reads");
    }
    // Meanwhile the client wishes for new keys, again and again; the answer waits behind what it has not read.
    for _ in 0..100 {
        client.0.get_mut().1.refresh_traffic_keys().unwrap();
        client.send(client_frame(2, b"x")).await;
    }
    let mut left = total;
    for number in 0.. {
        let expected = numbered(number);
        let expected = &expected[..expected.len().min(left)];
        client.expect(expected).await;
        left -= expected.len();
        if left == 0 {
            break;
        }
    }
}

#[tokio::test]
async fn large_messages_pass_both_ways_at_once_over_tls_on_both_sides() {
    let harness = TlsHarness::start(TO_NODE).await;
    let (client, node) = harness.tls_tunnel().await;
    let (mut client_reads, mut client_writes) = tokio::io::split(client.0);
    let (mut node_reads, mut node_writes) = tokio::io::split(node.0);
    let send = async |to: &mut (dyn AsyncWrite + Unpin + Send), mask: bool| {
        for number in 0..100 {
            let mut frame = numbered(number);
            if mask {
                frame[1] |= 0x80;
                frame.splice(4..4, [0; 4]);
            }
            to.write_all(&frame).await.unwrap();
        }
        to.flush().await.unwrap();
    };
    let receive = async |from: &mut (dyn AsyncRead + Unpin + Send), header: usize| {
        for number in 0..100 {
            let mut frame = vec![0; header + 0xfff0];
            from.read_exact(&mut frame).await.unwrap();
            assert!(frame[header..] == numbered(number)[4..], "frame {number} is not what was sent");
        }
    };
    soon(async {
        tokio::join!(
            send(&mut client_writes, true),
            send(&mut node_writes, false),
            receive(&mut client_reads, 4),
            receive(&mut node_reads, 8),
        )
    })
    .await;
}
