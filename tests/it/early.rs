//! Answers that come before the request was sent whole, and what they leave behind: RFC 9112, sections 9.3 and 9.6.

use mainstay::app::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{RawStream, connect_client, soon, start};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
/// An upload that never ends, with some of its body.
const UPLOAD: &str = "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nonly a little of it";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A balancer and its node, which nothing pins.
async fn harness() -> (App, TcpListener) {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: a, address: \"{}\" }}", node.local_addr().unwrap());
    let app = start("{ format: off }", &nodes, "    affinity: []\n").await;
    (app, node)
}

/// Answers every request as soon as its head is here, as Node.js does where nobody asks for the body, and reads on.
fn answer_early(node: TcpListener) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = node.accept().await {
            open.spawn(serve_early(stream));
        }
    });
    tasks
}

async fn serve_early(mut stream: TcpStream) {
    let (mut read, mut is_upload) = (Vec::new(), false);
    while let Ok(1..) = stream.read_buf(&mut read).await {
        while let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n").filter(|_| !is_upload) {
            is_upload = read.starts_with(b"POST");
            read.drain(..end + 4);
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    }
}

/// The node's side of the next connection.
async fn accepted(node: &TcpListener) -> RawStream {
    RawStream(soon(node.accept()).await.unwrap().0)
}

#[tokio::test]
async fn a_request_never_waits_for_another_clients_upload() {
    let (app, node) = harness().await;
    let _node = answer_early(node);
    let mut uploads = Vec::new();
    for _ in 0..10 {
        let mut upload = connect_client(&app).await;
        upload.send(UPLOAD).await;
        let head = upload.read_head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        upload.expect(b"ok").await;
        uploads.push((upload, head));
    }
    for _ in 0..12 {
        let mut honest = connect_client(&app).await;
        honest.send(GET).await;
        assert!(honest.read_head().await.starts_with("HTTP/1.1 200 "));
        honest.expect(b"ok").await;
    }
    // It was told that the balancer reads no more, and then it does not.
    for (mut upload, head) in uploads {
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        upload.wait_closed().await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_node_connection_is_kept_only_when_its_request_was_sent_whole() {
    let (app, node) = harness().await;
    let mut whole = connect_client(&app).await;
    whole.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole").await;
    let mut first = accepted(&node).await;
    first.read_head().await;
    first.expect(b"whole").await;
    first.send(OK).await;
    assert!(!whole.read_head().await.contains("connection: close"), "it asked to stay");
    whole.expect(b"ok").await;
    whole.send(UPLOAD).await;
    // On the same connection.
    first.read_head().await;
    first.expect(b"only a little of it").await;
    first.send(OK).await;
    assert!(whole.read_head().await.contains("\r\nconnection: close\r\n"));
    whole.expect(b"ok").await;
    // Cut off within the body: nobody can take what comes next for its rest.
    first.wait_closed().await;
    let mut next = connect_client(&app).await;
    next.send(GET).await;
    let mut second = accepted(&node).await;
    second.read_head().await;
    second.send(OK).await;
    next.read_head().await;
    whole.wait_closed().await;
    app.stop().await;
}

#[tokio::test]
async fn an_upload_goes_on_while_its_answer_does() {
    let (app, node) = harness().await;
    let mut client = connect_client(&app).await;
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst").await;
    let mut node = accepted(&node).await;
    node.read_head().await;
    node.expect(b"first").await;
    node.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await;
    let head = client.read_head().await;
    client.expect(b"first").await;
    client.send(b"later").await;
    node.expect(b"later").await;
    node.send(b"later").await;
    client.expect(b"later").await;
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    client.wait_closed().await;
    app.stop().await;
}

#[tokio::test]
async fn a_refusal_of_the_balancers_own_that_leaves_the_body_unread_is_the_last_answer() {
    let app = crate::harness::run(
        "listeners: [{ address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n\
         access_log: { format: off }\n\
         pools: { chat: { nodes: [{ id: a, address: \"127.0.0.1:1\" }], health: null } }\n\
         routes: [{ path: /chat, pool: chat }]\n",
    )
    .await;
    for (path, status) in [("/elsewhere", "404"), ("/chat", "502")] {
        let mut client = connect_client(&app).await;
        client.send(UPLOAD.replace("/up", path)).await;
        let head = client.read_head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        client.wait_closed().await;
    }
    app.stop().await;
}

#[tokio::test]
async fn the_early_answer_of_a_node_that_closes_behind_it_reaches_the_client() {
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = format!("{{ id: a, address: \"{}\" }}", node.local_addr().unwrap());
    let pool = "    affinity: []\n    passive: { failures: 1, eject: 1h }\n";
    let app = start("{ format: off }", &nodes, pool).await;
    for _ in 0..20 {
        let mut client = connect_client(&app).await;
        client.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n").await;
        let mut asked = accepted(&node).await;
        asked.read_head().await;
        asked
            .send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            .await;
        // With the body unread, which makes the kernel answer the rest of it with a reset.
        drop(asked);
        let (mut from, mut to) = client.0.split();
        let upload = async {
            let part = [0; 40_000];
            for _ in 0..100 {
                if to.write_all(&part).await.is_err() {
                    return;
                }
            }
        };
        let answer = async {
            let mut answer = vec![0; 12];
            from.read_exact(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        let (_, answer) = soon(async { tokio::join!(upload, answer) }).await;
        assert_eq!(answer, "HTTP/1.1 413");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_a_node_sends_behind_its_answer_is_nobodys_answer() {
    let (app, node) = harness().await;
    for behind in ["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", "\r\n", "junk"] {
        let mut first = connect_client(&app).await;
        first.send(GET).await;
        let mut talkative = accepted(&node).await;
        talkative.read_head().await;
        talkative.send(format!("{OK}{behind}")).await;
        first.read_head().await;
        first.expect(b"ok").await;
        // On a connection of its own, or it would wait for an answer that has been.
        let mut next = connect_client(&app).await;
        next.send(GET).await;
        let mut honest = accepted(&node).await;
        honest.read_head().await;
        honest.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(next.read_head().await.contains("content-length: 2\r\n"), "after {behind:?}");
        next.expect(b"ok").await;
        talkative.wait_closed().await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_its_upload_takes_the_node_connection_with_it() {
    let (app, node) = harness().await;
    let mut leaving = connect_client(&app).await;
    leaving.send(UPLOAD).await;
    let mut cut = accepted(&node).await;
    cut.read_head().await;
    cut.expect(b"only a little of it").await;
    drop(leaving);
    cut.wait_closed().await;
    let mut next = connect_client(&app).await;
    next.send(GET).await;
    let mut fresh = accepted(&node).await;
    assert!(fresh.read_head().await.starts_with("GET /x "));
    fresh.send(OK).await;
    assert!(next.read_head().await.starts_with("HTTP/1.1 200 "));
    app.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_100_gets_it_or_a_last_answer() {
    let (app, node) = harness().await;
    let expecting = "POST /up HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut waiting = connect_client(&app).await;
    waiting.send(expecting).await;
    assert!(waiting.read_head().await.starts_with("HTTP/1.1 100 "));
    let mut asked = accepted(&node).await;
    assert!(!asked.read_head().await.to_ascii_lowercase().contains("expect"), "it is answered here");
    asked.send(OK).await;
    // The node has answered without the body, and nobody knows whether it comes.
    let head = waiting.read_head().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("\r\nconnection: close\r\n"), "{head}");
    waiting.expect(b"ok").await;
    asked.wait_closed().await;
    waiting.wait_closed().await;
    app.stop().await;
}
