//! A node that is drained: by an operator, by its own word; what leaves, what stays, and what is said of it.

use std::time::Duration;

use mainstay::app::App;
use mainstay::control::drain::{resume, snapshots};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::admin::{Answer, asks, gets, raw};
use crate::play::{REQUEST, Raw, YES, asked, masked, not_soon, plain, resolved, soon};

/// Two nodes behind a balancer; a client names its node in the cookie `io`.
struct Pair {
    app: App,
    nodes: [TcpListener; 2],
}

const NAMES: [&str; 2] = ["one", "two"];

async fn bound() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn config(nodes: &[TcpListener; 2], pool: &str) -> String {
    let node =
        |at: usize| format!("{{ id: {}, address: \"{}\" }}", NAMES[at], nodes[at].local_addr().unwrap());
    let health = if pool.contains("health:") { "" } else { "health: null, " };
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\npools: {{ chat: {{ nodes: [{}, {}], \
         affinity: [cookie: {{ name: io, set_by: node }}], {health}{pool} }} }}\n",
        node(0),
        node(1)
    )
}

impl Pair {
    async fn set(pool: &str) -> Self {
        let nodes = [bound().await, bound().await];
        let app = soon(App::start(&resolved(&config(&nodes, pool)))).await.unwrap();
        Self { app, nodes }
    }

    /// A client that names a node, and the connection at the node that it comes to.
    async fn tunnel(&self, named: usize, comes_to: usize) -> (Raw, Raw) {
        let mut client = self.client(named).await;
        let mut node = asked(&self.nodes[comes_to]).await;
        node.send(YES).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, node)
    }

    async fn client(&self, named: usize) -> Raw {
        let mut client = Raw(soon(TcpStream::connect(&self.app.listeners()[0])).await.unwrap());
        let cookie = format!("\r\nCookie: io={}\r\n\r\n", NAMES[named]);
        client.send(REQUEST.replace("\r\n\r\n", &cookie)).await;
        client
    }

    async fn tells(&self, path: &str, body: &str) -> Answer {
        tells(&self.app, path, body).await
    }

    /// A node as `/api/status` shows it.
    async fn status(&self, node: usize) -> Value {
        gets(&self.app, "/api/status").await["pools"][0]["nodes"][node].clone()
    }

    /// Until that is so.
    async fn sees(&self, node: usize, is_so: impl Fn(&Value) -> bool) -> Value {
        soon(async {
            loop {
                let status = self.status(node).await;
                if is_so(&status) {
                    return status;
                }
            }
        })
        .await
    }

    async fn metrics(&self) -> String {
        let mut admin = Raw(soon(TcpStream::connect(self.app.admin().unwrap())).await.unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        String::from_utf8(admin.rest().await).unwrap()
    }
}

async fn tells(app: &App, path: &str, body: &str) -> Answer {
    let length = body.len();
    let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length:";
    raw(app, format!("POST /api/pools/{path} {head} {length}\r\n\r\n{body}")).await
}

async fn carries((client, node): &mut (Raw, Raw)) {
    client.send(masked(1, b"up")).await;
    node.expect(&masked(1, b"up")).await;
    node.send(plain(1, b"down")).await;
    client.expect(&plain(1, b"down")).await;
}

/// Both sides hear a Close with this code, and answer it.
async fn leaves((mut client, mut node): (Raw, Raw), code: u16) {
    assert_eq!((client.close_code().await, node.close_code().await), (code, code));
    client.send(masked(8, &code.to_be_bytes())).await;
    node.send(plain(8, &code.to_be_bytes())).await;
    client.gone().await;
    node.gone().await;
}

#[tokio::test]
async fn a_drained_node_loses_its_tunnels_and_gets_no_new_session_until_it_is_undrained() {
    let pair = Pair::set("drain: { code: 1001 }").await;
    let (leaving, mut stays) = (pair.tunnel(0, 0).await, pair.tunnel(1, 1).await);
    let answer =
        pair.tells("chat/nodes/one/drain", r#"{"over":"0s","code":1012,"reason":"new release"}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let body = &answer.body;
    assert_eq!(
        (&body["pool"], &body["node"], &body["state"]),
        (&json!("chat"), &json!("one"), &json!("draining"))
    );
    assert_eq!(body["warnings"], json!([]));
    assert!(humantime::parse_rfc3339(body["drain"]["deadline"].as_str().unwrap()).is_ok(), "{body}");
    leaves(leaving, 1012).await;
    let drained = pair.sees(0, |node| node["drain"]["left"] == 0).await;
    assert_eq!((&drained["state"], &drained["drain"]["closed"]), (&json!("draining"), &json!(1)));
    let metrics = pair.metrics().await;
    for line in [
        "mainstay_drain_left{pool=\"chat\",node=\"one\"} 0\n",
        "mainstay_drain_closed{pool=\"chat\",node=\"one\"} 1\n",
        "mainstay_closes_total{pool=\"chat\",node=\"one\",side=\"balancer\",code=\"1012\"} 1\n",
        "mainstay_node_state{pool=\"chat\",node=\"one\",state=\"draining\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    assert!(metrics.contains("mainstay_drain_deadline_seconds{pool=\"chat\",node=\"one\"} 1"), "{metrics}");
    assert!(!metrics.contains("mainstay_drain_left{pool=\"chat\",node=\"two\"}"), "{metrics}");
    // Its client comes back, and is placed elsewhere.
    let mut moved = pair.tunnel(0, 1).await;
    carries(&mut moved).await;
    carries(&mut stays).await;
    let undrained = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!((undrained.status, &undrained.body["state"]), (200, &json!("up")));
    assert_eq!(undrained.body["drain"], Value::Null);
    let mut back = pair.tunnel(0, 0).await;
    carries(&mut back).await;
    assert!(!pair.metrics().await.contains("mainstay_drain_left{"));
    pair.app.stop().await;
}

#[tokio::test]
async fn i11_a_client_that_never_answers_is_gone_by_the_deadline_of_the_drain() {
    let pair = Pair::set("drain: { over: 0s }").await;
    let (mut client, mut node) = pair.tunnel(0, 0).await;
    assert_eq!(pair.tells("chat/nodes/one/drain", "").await.status, 202);
    assert_eq!((client.close_code().await, node.close_code().await), (1012, 1012));
    client.gone().await;
    let done = pair.sees(0, |node| node["drain"]["left"] == 0).await;
    assert_eq!(done["drain"]["closed"], 1);
    pair.app.stop().await;
}

#[tokio::test]
async fn a_session_on_its_way_when_the_drain_begins_arrives_and_leaves_with_the_others() {
    let pair = Pair::set("drain: { over: 0s }").await;
    let mut client = pair.client(0).await;
    let mut node = asked(&pair.nodes[0]).await;
    let begun = pair.tells("chat/nodes/one/drain", "").await;
    assert_eq!(begun.body["drain"]["left"], 1, "who is on the way is left, too");
    node.send(YES).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    leaves((client, node), 1012).await;
    pair.sees(0, |node| node["drain"]["left"] == 0 && node["drain"]["closed"] == 1).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn an_undrain_keeps_those_who_have_not_been_told_to_leave_and_a_second_drain_replaces_the_first() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        tunnels.push(pair.tunnel(0, 0).await);
    }
    let first = pair.tells("chat/nodes/one/drain", "").await;
    assert_eq!(pair.tells("chat/nodes/one/undrain", "{}").await.status, 200);
    let mut kept = Vec::new();
    for (client, node) in tunnels {
        // The first of an hour is told at once, the others are not.
        if tokio::time::timeout(Duration::from_millis(1), client.0.peek(&mut [0])).await.is_err() {
            kept.push((client, node));
        }
    }
    assert!(kept.len() >= 19, "{} are left", kept.len());
    for tunnel in &mut kept {
        carries(tunnel).await;
    }
    let again = pair.tells("chat/nodes/one/drain", "").await;
    let sooner = pair.tells("chat/nodes/one/drain", r#"{"over":"0s","code":4001}"#).await;
    let at = |answer: &Answer| {
        humantime::parse_rfc3339(answer.body["drain"]["deadline"].as_str().unwrap()).unwrap()
    };
    assert!(at(&first) <= at(&again) && at(&sooner) < at(&first));
    let mut codes = Vec::new();
    for (mut client, _) in kept {
        codes.push(client.close_code().await);
    }
    let of_the_first = codes.iter().filter(|code| **code == 1012).count();
    assert!(of_the_first <= 1 && codes.iter().all(|code| [1012, 4001].contains(code)), "{codes:?}");
    pair.sees(0, |node| node["drain"]["left"] == 0).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn a_drain_survives_a_reload_that_names_the_node_and_ends_with_one_that_does_not() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let mut tunnels = vec![pair.tunnel(0, 0).await, pair.tunnel(0, 0).await, pair.tunnel(0, 0).await];
    pair.tells("chat/nodes/one/drain", r#"{"over":"50m"}"#).await;
    let before = pair.status(0).await;
    let text = config(&pair.nodes, "drain: { over: 30m }, balance: random_two");
    soon(pair.app.reload().apply(resolved(&text))).await.unwrap();
    let after = pair.status(0).await;
    assert_eq!(
        (&after["state"], &after["drain"]["deadline"]),
        (&json!("draining"), &before["drain"]["deadline"])
    );
    let _elsewhere = pair.tunnel(0, 1).await;
    // Taken out with a window of its own: who was not told to leave is told over what is left of it.
    let text = text.replacen(
        &format!("{{ id: one, address: \"{}\" }}, ", pair.nodes[0].local_addr().unwrap()),
        "",
        1,
    );
    soon(pair.app.reload().apply(resolved(&text))).await.unwrap();
    let metrics = pair.metrics().await;
    assert!(
        metrics.contains("mainstay_node_state{pool=\"chat\",node=\"one\",state=\"removed\"} 1\n"),
        "{metrics}"
    );
    let mut still = 0;
    for (client, _) in &mut tunnels {
        still += usize::from(
            tokio::time::timeout(Duration::from_millis(1), client.0.peek(&mut [0])).await.is_err(),
        );
    }
    assert!((1..=3).contains(&still), "{still}");
    // Named again: it is no longer drained.
    soon(pair.app.reload().apply(resolved(&config(&pair.nodes, "drain: { over: 30m }")))).await.unwrap();
    assert_eq!(
        (&pair.status(0).await["state"], &pair.status(0).await["drain"]),
        (&json!("up"), &Value::Null)
    );
    pair.app.stop().await;
}

#[tokio::test]
async fn what_cannot_be_drained_is_said_with_what_there_is() {
    let pair = Pair::set("drain: { over: 0s }").await;
    for (path, body, status, said) in [
        ("chta/nodes/one/drain", "", 404, "there is no pool `chta`; the pools are: chat"),
        (
            "chat/nodes/three/drain",
            "",
            404,
            "there is no node `three` in the pool chat; its nodes are: one, two",
        ),
        ("chat/nodes/three/undrain", "", 404, "its nodes are: one, two"),
        ("chat/nodes/one/drain", r#"{"over":"soon"}"#, 400, "over: \"soon\" is not a time"),
        ("chat/nodes/one/drain", r#"{"code":1000}"#, 400, "codes after which clients come back"),
        ("chat/nodes/one/drain", r#"{"for":"1s"}"#, 400, "the keys are: over, code, reason"),
        ("chat/nodes/one/drain", "over=1s", 400, "no JSON object"),
        ("chat/nodes/one/undrain", r#"{"over":"1s"}"#, 400, "takes no body"),
        ("chat/nodes/one/kill", "", 404, "nothing at this path"),
    ] {
        let answer = pair.tells(path, body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        assert!(answer.error().contains(said), "{path} {body}: {}", answer.error());
    }
    let get = asks(&pair.app, "GET", "/api/pools/chat/nodes/one/drain", "").await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    assert_eq!(
        (&pair.status(0).await["state"], &pair.status(0).await["drain"]),
        (&json!("up"), &Value::Null)
    );
    // The last one that is up may be drained; that is said.
    let two = pair.tells("chat/nodes/two/drain", "").await;
    assert_eq!((two.status, &two.body["warnings"]), (202, &json!([])));
    let last = pair.tells("chat/nodes/one/drain", "").await;
    assert_eq!(last.status, 202);
    let warning = last.body["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("one was the last node of chat that took clients"), "{warning}");
    pair.app.stop().await;
}

/// Answers the next probe of a node.
async fn answer_probe(node: &TcpListener, state: &str) {
    let mut probe = Raw(soon(node.accept()).await.unwrap().0);
    assert!(probe.head().await.starts_with("GET /health HTTP/1.1\r\n"));
    probe.send(format!("HTTP/1.1 200 OK\r\nX-Mainstay-State: {state}\r\nContent-Length: 0\r\n\r\n")).await;
}

#[tokio::test]
async fn a_node_that_asks_for_it_in_its_health_is_drained_as_its_pool_says_until_it_says_otherwise() {
    let nodes = [bound().await, bound().await];
    let pool = "health: { interval: 20ms, timeout: 9s, rise: 1 }, drain: { over: 0s, code: 3333 }";
    let config = resolved(&config(&nodes, pool));
    let (app, ..) =
        tokio::join!(App::start(&config), answer_probe(&nodes[0], "well"), answer_probe(&nodes[1], "well"));
    let pair = Pair { app: app.unwrap(), nodes };
    // A handshake and a probe come to the same listener: whoever asks for the chat is the client.
    let mut client = pair.client(0).await;
    let mut node = soon(async {
        loop {
            let mut met = Raw(pair.nodes[0].accept().await.unwrap().0);
            if met.head().await.starts_with("GET /chat ") {
                break met;
            }
            met.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    node.send(YES).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    answer_probe(&pair.nodes[0], "draining").await;
    leaves((client, node), 3333).await;
    let drained = pair.sees(0, |node| node["drain"]["left"] == 0).await;
    assert_eq!(drained["state"], "draining");
    let undrain = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!(undrain.status, 409);
    assert!(undrain.error().contains("the node one asks for its drain itself"), "{}", undrain.error());
    // An operator's order beside it does not end with the node's word, and the other way round.
    assert_eq!(pair.tells("chat/nodes/one/drain", "").await.status, 202);
    answer_probe(&pair.nodes[0], "draining").await;
    let both = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!((both.status, &both.body["state"]), (200, &json!("draining")));
    assert!(both.body["warnings"][0].as_str().unwrap().contains("its drain goes on"), "{}", both.body);
    answer_probe(&pair.nodes[0], "well").await;
    pair.sees(0, |node| node["state"] == "up" && node["drain"].is_null()).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn a_drain_that_meets_the_end_of_the_process_yields_to_it() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let (mut client, mut node) = pair.tunnel(0, 0).await;
    let (mut second, mut second_node) = pair.tunnel(0, 0).await;
    pair.tells("chat/nodes/one/drain", "").await;
    let ends = async {
        let mut codes = Vec::new();
        for side in [&mut client, &mut node, &mut second, &mut second_node] {
            codes.push(side.close_code().await);
        }
        codes
    };
    let (codes, ()) = tokio::join!(ends, soon(pair.app.stop()));
    // The first of the hour was told by the drain, the other by the end.
    assert_eq!(codes.iter().filter(|code| **code == 1001).count(), 2, "{codes:?}");
}

/// A request of the Socket.IO session `sid`, by polling, of a client of the first node.
async fn polls(pair: &Pair, sid: &str) -> Raw {
    let mut client = Raw(soon(TcpStream::connect(&pair.app.listeners()[0])).await.unwrap());
    let target = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a.example\r\nCookie: io=one\r\n\r\n")).await;
    client
}

#[tokio::test]
async fn a_polling_session_stays_until_its_time_in_the_window_and_a_plain_request_moves_at_once() {
    let pair = Pair::set("drain: { over: 1h }").await;
    pair.tells("chat/nodes/one/drain", "").await;
    // Of an hour hardly anything has passed: the sessions that are there stay.
    let _staying = polls(&pair, "lv_VI97HAXpY6yYWAAAB").await;
    soon(pair.nodes[0].accept()).await.unwrap();
    let mut plain = Raw(soon(TcpStream::connect(&pair.app.listeners()[0])).await.unwrap());
    plain.send("GET /page HTTP/1.1\r\nHost: a.example\r\nCookie: io=one\r\n\r\n").await;
    soon(pair.nodes[1].accept()).await.unwrap();
    pair.tells("chat/nodes/one/drain", r#"{"over":"0s"}"#).await;
    let _moving = polls(&pair, "lv_VI97HAXpY6yYWAAAB").await;
    soon(pair.nodes[1].accept()).await.unwrap();
    not_soon(pair.nodes[0].accept()).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn a_drain_goes_on_in_another_process_as_it_was_wanted() {
    let pair = Pair::set("drain: { over: 1h }").await;
    let (client, node) = pair.tunnel(0, 0).await;
    pair.tells("chat/nodes/one/drain", r#"{"over":"40m","code":4321,"reason":"v8"}"#).await;
    drop((client, node));
    pair.sees(0, |node| node["drain"]["closed"] == 1).await;
    let snapshots = snapshots(pair.app.reload().front());
    assert_eq!(snapshots.len(), 1);
    let snapshot = &snapshots[0];
    assert_eq!((snapshot.pool.as_str(), snapshot.node.as_str(), snapshot.is_ordered), ("chat", "one", true));
    assert_eq!((snapshot.order.code, snapshot.so_far.closed), (4321, 1));
    let other = soon(App::start(&resolved(&config(&pair.nodes, "drain: { over: 1h }")))).await.unwrap();
    let other = Pair { app: other, nodes: pair.nodes };
    assert!(resume(other.app.reload().front(), snapshot));
    let status = other.status(0).await;
    assert_eq!((&status["state"], &status["drain"]["closed"]), (&json!("draining"), &json!(1)));
    let deadline = humantime::parse_rfc3339(status["drain"]["deadline"].as_str().unwrap()).unwrap();
    let left = deadline.duration_since(std::time::SystemTime::now()).unwrap();
    assert!((Duration::from_secs(30 * 60)..=Duration::from_secs(41 * 60)).contains(&left), "{left:?}");
    let mut gone = snapshot.clone();
    gone.node = "three".into();
    assert!(!resume(other.app.reload().front(), &gone));
    assert_eq!(other.tells("chat/nodes/one/undrain", "").await.status, 200);
    pair.app.stop().await;
    other.app.stop().await;
}
