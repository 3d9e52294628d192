//! What a client may take, and what it hears when it wants more: connections, handshakes, time, origins.

use std::time::Duration;

use mainstay::app::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, connect_client, not_soon,
    run, soon,
};
use crate::scrape::Scrape;

/// The one node of a config.
pub fn node(listener: &TcpListener) -> String {
    format!("{{ id: ws1, address: \"{}\" }}", listener.local_addr().unwrap())
}

/// A balancer with `top` among the keys at the top and `pool` among those of its pool, and its node. What of the
/// listeners `top` does not say is a port of 127.0.0.1.
pub async fn with(top: &str, pool: &str) -> (App, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = if top.contains("listeners:") { "" } else { "listeners: [{ address: \"127.0.0.1:0\" }]\n" };
    let text = format!(
        "{own}{top}admin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\n\
         pools:\n  chat:\n    nodes: [{}]\n    health: null\n    affinity: []\n{pool}",
        node(&listener)
    );
    (run(&text).await, listener)
}

async fn sample(app: &App, name: &str, label: (&str, &str)) -> f64 {
    let is_it = |sample: &&crate::scrape::Sample| {
        sample.name == name && sample.labels.get(label.0).is_some_and(|value| value == label.1)
    };
    Scrape::of(app).await.samples.iter().filter(is_it).map(|sample| sample.value).sum()
}

/// How many connections were refused for this reason, before HTTP.
pub async fn refused(app: &App, reason: &str) -> f64 {
    sample(app, "mainstay_connections_refused_total", ("reason", reason)).await
}

async fn handshakes(app: &App, result: &str) -> f64 {
    sample(app, "mainstay_handshakes_total", ("result", result)).await
}

/// Answers every upgrade with yes; a tunnel ends with the task.
fn serve(node: TcpListener) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = node.accept().await {
            open.spawn(async move {
                let mut node = RawStream(stream);
                node.read_head().await;
                node.send(SWITCHING_PROTOCOLS).await;
                let _ = node.0.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    tasks
}

/// The status, and the seconds of Retry-After where there are any.
fn told(answer: &str) -> (u16, Option<u64>) {
    let after = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse().ok());
    (answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), after)
}

async fn answer(mut client: RawStream) -> String {
    String::from_utf8(client.read_to_end().await).unwrap()
}

#[tokio::test]
async fn over_the_limit_of_connections_a_client_is_told_at_once_and_a_place_that_is_free_is_given() {
    let (app, node) = with("limits: { connections: 2 }\n", "").await;
    let _nodes = serve(node);
    let mut first = connect_client(&app).await;
    first.send(UPGRADE_REQUEST).await;
    assert!(first.read_head().await.starts_with("HTTP/1.1 101 "));
    let mut second = connect_client(&app).await;
    second.send("GET / HTTP/1.1\r\n").await;
    // Nobody has to ask: there is no place even for the question.
    let text = answer(connect_client(&app).await).await;
    let (status, after) = told(&text);
    assert!(status == 503 && after.is_some_and(|after| (1..=5).contains(&after)), "{text}");
    assert!(text.ends_with("too many connections\n") && text.contains("connection: close\r\n"), "{text}");
    assert_eq!(refused(&app, "connections").await, 1.0);
    // A tunnel gives its place back when it ends.
    drop(first);
    soon(async {
        loop {
            let mut third = connect_client(&app).await;
            third.send(UPGRADE_REQUEST).await;
            if third.read_head().await.starts_with("HTTP/1.1 101 ") {
                return;
            }
        }
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn each_client_has_its_own_limit_counted_behind_the_proxy_protocol() {
    let top = "listeners: [{ address: \"127.0.0.1:0\", proxy_protocol: true }]\n\
               trusted_proxies: [127.0.0.1]\nlimits: { connections_per_client: 2 }\n";
    let (app, node) = with(top, "").await;
    let _nodes = serve(node);
    let of = async |address: &str| {
        let mut proxy = connect_client(&app).await;
        let family = if address.contains(':') { "TCP6" } else { "TCP4" };
        let here = if address.contains(':') { "::1" } else { "127.0.0.1" };
        proxy.send(format!("PROXY {family} {address} {here} 1 2\r\n{UPGRADE_REQUEST}")).await;
        let head = proxy.read_head().await;
        (told(&head).0, proxy)
    };
    let mut held = Vec::new();
    for (address, status) in [
        ("192.0.2.1", 101),
        ("192.0.2.1", 101),
        ("192.0.2.1", 429),
        ("192.0.2.2", 101),
        ("2001:db8::1", 101),
        ("2001:db8::2", 101),
        ("2001:db8::3", 429),
        ("2001:db8:0:1::3", 101),
    ] {
        let (got, open) = of(address).await;
        assert_eq!(got, status, "{address}");
        held.push(open);
    }
    assert_eq!(refused(&app, "connections_per_client").await, 2.0);
    drop(held);
    soon(async { while of("192.0.2.1").await.0 != 101 {} }).await;
    app.stop().await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_upgrade_counts_for_its_own_client() {
    let top = "trusted_proxies: [127.0.0.1]\nlimits: { connections_per_client: 1 }\n";
    let (app, node) = with(top, "").await;
    let _nodes = serve(node);
    let mut held = Vec::new();
    for (address, status) in [("192.0.2.1", 101), ("192.0.2.2", 101), ("192.0.2.1", 429)] {
        let mut proxy = connect_client(&app).await;
        proxy
            .send(UPGRADE_REQUEST.replace("\r\n\r\n", &format!("\r\nX-Forwarded-For: {address}\r\n\r\n")))
            .await;
        let head = proxy.read_head().await;
        assert_eq!(told(&head).0, status, "{head}");
        held.push(proxy);
    }
    assert_eq!(handshakes(&app, "limited").await, 1.0);
    app.stop().await;
}

#[tokio::test]
async fn a_storm_is_let_in_at_the_pace_and_the_rest_hears_when_to_come_back() {
    let (app, node) = with("limits: { handshakes_per_second: 40 }\n", "").await;
    let _nodes = serve(node);
    let mut clients = JoinSet::new();
    for _ in 0..400 {
        let mut client = connect_client(&app).await;
        clients.spawn(async move {
            client.send(UPGRADE_REQUEST).await;
            let head = client.read_head().await;
            (told(&head), client)
        });
    }
    let (mut upgraded, mut sent_away) = (0, Vec::new());
    let mut open = Vec::new();
    while let Some(client) = soon(clients.join_next()).await {
        match client.unwrap() {
            ((101, None), client) => {
                upgraded += 1;
                open.push(client);
            }
            ((503, Some(after)), _) => sent_away.push(after),
            (other, _) => panic!("{other:?}"),
        }
    }
    // Four at once, then 40 a second; the whole of it lasts some seconds at most.
    assert!((40..=300).contains(&upgraded), "{upgraded}");
    assert_eq!(upgraded + sent_away.len(), 400);
    let (least, most) = (sent_away.iter().min().unwrap(), sent_away.iter().max().unwrap());
    assert!(*least >= 1 && *most > 5 && most - least >= 4, "{least} to {most}");
    assert_eq!(handshakes(&app, "limited").await, sent_away.len() as f64);
    assert_eq!(handshakes(&app, "upgraded").await, upgraded as f64);
    app.stop().await;
}

#[tokio::test]
async fn silent_and_trickling_clients_are_cut_by_the_deadline_while_honest_ones_are_served() {
    const SILENT: usize = 3000;
    let (app, node) = with("limits: { head_time: 2s, connections: 8000 }\n", "").await;
    let _nodes = serve(node);
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut client = connect_client(&app).await;
        if number % 3 == 1 {
            client.send("GET /chat HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
        }
        silent.push(client);
    }
    for _ in 0..50 {
        let mut honest = connect_client(&app).await;
        honest.send(UPGRADE_REQUEST).await;
        assert!(honest.read_head().await.starts_with("HTTP/1.1 101 "));
    }
    let mut late = 0;
    for (number, mut client) in silent.into_iter().enumerate() {
        // One byte more now and then does not buy time.
        let _ = client.0.write_all(if number % 3 == 1 { b"x" } else { b"" }).await;
        let mut rest = Vec::new();
        let _ = soon(client.0.read_to_end(&mut rest)).await;
        late += usize::from(rest.starts_with(b"HTTP/1.1 408 "));
    }
    assert!(late > 0 && late <= SILENT / 3 + 1, "{late}");
    app.stop().await;
}

#[tokio::test]
async fn a_body_that_trickles_gets_408_and_blames_no_node() {
    let (app, node) =
        with("limits: { keep_alive: 300ms }\n", "    passive: { failures: 1, eject: 1h }\n").await;
    let mut slow = connect_client(&app).await;
    slow.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    at_node.read_head().await;
    let trickle = async {
        while slow.0.write_all(b"x").await.is_ok() {
            let mut some = [0; 4096];
            let read = tokio::time::timeout(Duration::from_millis(20), slow.0.read(&mut some)).await;
            if let Ok(read) = read {
                return String::from_utf8_lossy(&some[..read.unwrap()]).into_owned();
            }
        }
        String::new()
    };
    let told = soon(trickle).await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    assert_eq!(sample(&app, "mainstay_node_state", ("state", "up")).await, 1.0);
    app.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_cut() {
    let (app, node) = with("limits: { keep_alive: 300ms }\n", "").await;
    let mut idle = connect_client(&app).await;
    idle.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    at_node.read_head().await;
    at_node.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    // What the kernels between hold is taken; then the balancer must let go of both sides.
    let mut sent = 0_usize;
    let part = vec![0; 1 << 20];
    let cut = async {
        while at_node.0.write_all(&part).await.is_ok() {
            sent += part.len();
            assert!(sent < 1_000_000_000, "somebody takes it");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cut).await.expect("the answer is kept for ever");
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_its_node_is_dialled_is_noticed_at_once() {
    // A listener whose queue is full: the dial neither fails nor ends.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued = TcpStream::connect(address).await.unwrap();
    let text = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\npools:\n  chat:\n    health: null\n\
         \x20   nodes: [{{ id: ws1, address: \"{address}\" }}]\n    timeouts: {{ connect: 1h, handshake: 1h }}\n"
    );
    let app = run(&text).await;
    for early in [vec![], client_frame(1, b"early")] {
        let before = handshakes(&app, "failed").await;
        let mut leaving = connect_client(&app).await;
        leaving.send([UPGRADE_REQUEST.as_bytes(), &early].concat()).await;
        not_soon(leaving.0.read_u8()).await;
        drop(leaving);
        Scrape::until(&app, |scrape| {
            let of = |sample: &&crate::scrape::Sample| {
                sample.name == "mainstay_handshakes_total"
                    && sample.labels.get("result").is_some_and(|result| result == "failed")
            };
            scrape.samples.iter().filter(of).map(|sample| sample.value).sum::<f64>() > before
        })
        .await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_page_of_a_foreign_site_gets_403_and_no_node_hears_of_it() {
    let routes = "routes:\n  - { path: /chat, pool: chat, \
                  origins: [\"https://example.com\", \"https://*.example.org\", \"null\"] }\n\
                  \x20 - { pool: chat, origins: [\"https://example.com\"] }\n";
    let (app, node) = with(routes, "").await;
    let of = async |request: &str, origins: &[&str]| {
        let fields: String = origins.iter().map(|origin| format!("Origin: {origin}\r\n")).collect();
        let mut page = connect_client(&app).await;
        page.send(request.replace("\r\n\r\n", &format!("\r\n{fields}\r\n"))).await;
        page
    };
    let elsewhere = UPGRADE_REQUEST.replace("/chat", "/other");
    for (request, origins) in [
        (UPGRADE_REQUEST, &["https://evil.example"][..]),
        (UPGRADE_REQUEST, &["http://example.com"]),
        (UPGRADE_REQUEST, &["https://example.org"]),
        (UPGRADE_REQUEST, &["https://example.com", "https://example.com"]),
        (&elsewhere, &["null"]),
        (UPGRADE_REQUEST, &[""]),
    ] {
        let text = answer(of(request, origins).await).await;
        assert!(text.starts_with("HTTP/1.1 403 "), "{origins:?}: {text}");
    }
    not_soon(node.accept()).await;
    assert_eq!(handshakes(&app, "refused").await, 6.0);
    for origins in [&["https://EXAMPLE.com:443"][..], &["https://a.example.org"], &["null"], &[]] {
        let mut page = of(UPGRADE_REQUEST, origins).await;
        let mut at_node = accept_request(&node).await;
        at_node.send(SWITCHING_PROTOCOLS).await;
        assert!(page.read_head().await.starts_with("HTTP/1.1 101 "), "{origins:?}");
    }
    // For a plain request the browser asks the node itself (CORS).
    let mut page = of("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", &["https://evil.example"]).await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    assert!(at_node.read_head().await.contains("origin: https://evil.example\r\n"));
    at_node.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(page.read_head().await.starts_with("HTTP/1.1 204 "));
    app.stop().await;
}

#[tokio::test]
async fn trailers_that_frame_or_route_do_not_reach_the_node() {
    let (app, node) = with("", "").await;
    let mut client = connect_client(&app).await;
    client
        .send(
            "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
             Trailer: x-sum, host, cookie, authorization, x-forwarded-for, content-length\r\n\r\n\
             2\r\nhi\r\n0\r\nX-Sum: 7\r\nHost: evil\r\nCookie: a=b\r\nAuthorization: x\r\nX-Forwarded-For: 1.1.1.1\r\n\
             Content-Length: 5\r\nTransfer-Encoding: chunked\r\nUnannounced: 1\r\n\r\n",
        )
        .await;
    let mut at_node = RawStream(soon(node.accept()).await.unwrap().0);
    let head = at_node.read_head().await;
    assert!(head.contains("trailer: x-sum\r\n"), "{head}");
    let body = at_node.read_head().await;
    assert_eq!(body.to_lowercase(), "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
    at_node.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 204 "));
    app.stop().await;
}

#[tokio::test]
async fn too_many_headers_and_too_large_a_head_are_431() {
    let (app, node) = with("", "").await;
    for fields in ["X: 1\r\n".repeat(101), format!("X: {}\r\n", "x".repeat(20_000))] {
        let mut client = connect_client(&app).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
        let text = answer(client).await;
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    }
    not_soon(node.accept()).await;
    app.stop().await;
}

#[tokio::test]
async fn a_reload_brings_other_limits_and_what_is_counted_stays() {
    let (app, node) = with("limits: { connections: 3 }\n", "").await;
    let _nodes = serve(node);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = connect_client(&app).await;
        client.send(UPGRADE_REQUEST).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        held.push(client);
    }
    let mut config = (*app.reload().config()).clone();
    config.limits.connections = Some(2);
    soon(app.reload().apply(config)).await.unwrap();
    assert_eq!(told(&answer(connect_client(&app).await).await).0, 503);
    app.stop().await;
}
