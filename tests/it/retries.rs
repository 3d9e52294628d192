//! A handshake that a node refuses is sent to another, within bounds.

use std::sync::atomic::Ordering::Relaxed;

use mainstay::app::App;
use tokio::net::TcpListener;

use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, connect_client, not_soon, soon, start,
};
use crate::passive::{Refusal, Refusing, listed};
use crate::scrape::Scrape;

const BUSY: Refusal = Refusal::Says("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nX-From: node\r\n\r\nbusy");
/// Nobody is ejected, and the first request goes to the first node.
const POOL: &str = "    affinity: []\n    balance: round_robin\n    passive: { failures: 0 }\n";

async fn retries(app: &App, result: &str) -> f64 {
    let scrape = Scrape::of(app).await;
    scrape.value("mainstay_handshake_retries_total", &[("pool", "chat"), ("result", result)]).unwrap()
}

#[tokio::test]
async fn an_upgrade_that_a_node_refuses_is_taken_by_the_next_one() {
    for how in [
        Refusal::Close,
        Refusal::Reset,
        Refusal::Says("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
        BUSY,
        Refusal::Says("HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n"),
        Refusal::Says("SSH-2.0-OpenSSH_9.9\r\n"),
    ] {
        let (refusing, well) = (Refusing::start(how).await, TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = well.local_addr().unwrap().to_string();
        let app = start("{ format: off }", &listed([refusing.address.as_str(), &address]), POOL).await;
        for _ in 0..2 {
            let mut client = connect_client(&app).await;
            client.send(UPGRADE_REQUEST).await;
            let mut node = RawStream(soon(well.accept()).await.unwrap().0);
            assert!(node.read_head().await.starts_with("GET /chat HTTP/1.1\r\n"));
            node.send(SWITCHING_PROTOCOLS).await;
            assert!(client.read_head().await.starts_with("HTTP/1.1 101 "), "{how:?}");
            node.send(b"\x81\x02hi").await;
            client.expect(b"\x81\x02hi").await;
        }
        assert!(refusing.asked.load(Relaxed) >= 1, "{how:?}");
        let scrape = Scrape::of(&app).await;
        let upgraded = [("pool", "chat"), ("result", "upgraded")];
        assert_eq!(scrape.value("mainstay_handshakes_total", &upgraded), Some(2.0), "{how:?}");
        let all = scrape.with("mainstay_handshakes_total", &[("pool", "chat")]);
        assert_eq!(
            all.iter().map(|sample| sample.value).sum::<f64>(),
            2.0,
            "each handshake ends once: {how:?}"
        );
        assert!(retries(&app, "sent").await >= 1.0);
        app.stop().await;
    }
}

#[tokio::test]
async fn what_is_the_clients_fault_is_its_own_to_hear_and_goes_to_no_other_node() {
    for status in ["400 Bad Request", "401 Unauthorized", "404 Not Found", "500 Oh"] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").leak();
        let nodes =
            [Refusing::start(Refusal::Says(answer)).await, Refusing::start(Refusal::Says(answer)).await];
        let app =
            start("{ format: off }", &listed(nodes.iter().map(|node| node.address.as_str())), POOL).await;
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        assert!(client.read_head().await.starts_with(&format!("HTTP/1.1 {status}\r\n")));
        assert_eq!(nodes.iter().map(|node| node.asked.load(Relaxed)).sum::<usize>(), 1);
        app.stop().await;
    }
}

#[tokio::test]
async fn when_all_refuse_the_client_hears_the_last_node_in_its_own_words() {
    for (attempts, asked) in [(1, 1), (2, 2), (3, 3), (9, 4)] {
        let nodes = [
            Refusing::start(BUSY).await,
            Refusing::start(BUSY).await,
            Refusing::start(BUSY).await,
            Refusing::start(BUSY).await,
        ];
        let pool = format!("{POOL}    retries: {{ attempts: {attempts} }}\n");
        let app =
            start("{ format: off }", &listed(nodes.iter().map(|node| node.address.as_str())), &pool).await;
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        let head = client.read_head().await;
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("x-from: node\r\n"), "{head}");
        client.expect(b"busy").await;
        assert_eq!(nodes.iter().map(|node| node.asked.load(Relaxed)).sum::<usize>(), asked, "{attempts}");
        app.stop().await;
    }
}

#[tokio::test]
async fn retries_are_at_most_the_part_of_the_handshakes_that_the_config_allows() {
    let nodes = [Refusing::start(BUSY).await, Refusing::start(BUSY).await, Refusing::start(BUSY).await];
    let pool = format!("{POOL}    retries: {{ attempts: 3, of_handshakes: 20% }}\n");
    let app = start("{ format: off }", &listed(nodes.iter().map(|node| node.address.as_str())), &pool).await;
    for _ in 0..100 {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 503 "));
    }
    let asked = nodes.iter().map(|node| node.asked.load(Relaxed)).sum::<usize>();
    // A fifth, three at once, and what the floor gives while this runs, which is within the deadline.
    assert!((103..=100 + 20 + 3 + 3).contains(&asked), "{asked}");
    assert!(retries(&app, "over_budget").await > 0.0);
    assert_eq!(retries(&app, "sent").await, (asked - 100) as f64);
    app.stop().await;
}

#[tokio::test]
async fn a_request_of_a_socket_io_session_goes_to_its_node_alone() {
    let (refusing, other) = (Refusing::start(BUSY).await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = other.local_addr().unwrap().to_string();
    let pool = "    affinity: [cookie: { name: io, set_by: node }]\n";
    let app = start("{ format: off }", &listed([refusing.address.as_str(), &address]), pool).await;
    let of_session = |sid: &str| {
        let target = format!("/socket.io/?EIO=4&transport=websocket{sid}");
        UPGRADE_REQUEST
            .replace("/chat", &target)
            .replace("Host: a.example", "Host: a.example\r\nCookie: io=ws0")
    };
    let mut first = connect_client(&app).await;
    first.send(of_session("&sid=abc")).await;
    assert!(first.read_head().await.starts_with("HTTP/1.1 503 "));
    not_soon(other.accept()).await;
    // One that opens there is pinned by its cookie as well, and can live elsewhere.
    let mut second = connect_client(&app).await;
    second.send(of_session("")).await;
    let mut node = RawStream(soon(other.accept()).await.unwrap().0);
    node.read_head().await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(second.read_head().await.starts_with("HTTP/1.1 101 "));
    app.stop().await;
}
