//! A node that an operator drains: what leaves, what stays, and what is said of it.

mod others;

use std::time::Duration;

use mainstay::app::App;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::admin::{Answer, asks, gets, raw};
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, assert_closes, assert_relays, resolve,
    soon,
};

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
        let app = soon(App::start(&resolve(&config(&nodes, pool)))).await.unwrap();
        Self { app, nodes }
    }

    /// A client that names a node, and the connection at the node that it comes to.
    async fn tunnel(&self, named: usize, comes_to: usize) -> (RawStream, RawStream) {
        let mut client = self.client(named).await;
        let mut node = accept_request(&self.nodes[comes_to]).await;
        node.send(SWITCHING_PROTOCOLS).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        (client, node)
    }

    async fn client(&self, named: usize) -> RawStream {
        let mut client = RawStream(soon(TcpStream::connect(&self.app.listeners()[0])).await.unwrap());
        let cookie = format!("\r\nCookie: io={}\r\n\r\n", NAMES[named]);
        client.send(UPGRADE_REQUEST.replace("\r\n\r\n", &cookie)).await;
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
        let mut admin = RawStream(soon(TcpStream::connect(self.app.admin().unwrap())).await.unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        String::from_utf8(admin.read_to_end().await).unwrap()
    }
}

async fn tells(app: &App, path: &str, body: &str) -> Answer {
    let length = body.len();
    let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length:";
    raw(app, format!("POST /api/pools/{path} {head} {length}\r\n\r\n{body}")).await
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
    assert_closes(leaving, 1012).await;
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
    assert_relays(&mut moved).await;
    assert_relays(&mut stays).await;
    let undrained = pair.tells("chat/nodes/one/undrain", "").await;
    assert_eq!((undrained.status, &undrained.body["state"]), (200, &json!("up")));
    assert_eq!(undrained.body["drain"], Value::Null);
    let mut back = pair.tunnel(0, 0).await;
    assert_relays(&mut back).await;
    assert!(!pair.metrics().await.contains("mainstay_drain_left{"));
    pair.app.stop().await;
}

#[tokio::test]
async fn i11_a_client_that_never_answers_is_gone_by_the_deadline_of_the_drain() {
    let pair = Pair::set("drain: { over: 0s }").await;
    let (mut client, mut node) = pair.tunnel(0, 0).await;
    assert_eq!(pair.tells("chat/nodes/one/drain", "").await.status, 202);
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1012, 1012));
    client.wait_closed().await;
    let done = pair.sees(0, |node| node["drain"]["left"] == 0).await;
    assert_eq!(done["drain"]["closed"], 1);
    pair.app.stop().await;
}

#[tokio::test]
async fn a_session_on_its_way_when_the_drain_begins_arrives_and_leaves_with_the_others() {
    let pair = Pair::set("drain: { over: 0s }").await;
    let mut client = pair.client(0).await;
    let mut node = accept_request(&pair.nodes[0]).await;
    let begun = pair.tells("chat/nodes/one/drain", "").await;
    assert_eq!(begun.body["drain"]["left"], 1, "who is on the way is left, too");
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    assert_closes((client, node), 1012).await;
    pair.sees(0, |node| node["drain"]["left"] == 0 && node["drain"]["closed"] == 1).await;
    pair.app.stop().await;
}

#[tokio::test]
async fn an_undrain_keeps_the_tunnels_that_are_still_open_and_a_second_drain_replaces_the_first() {
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
        assert_relays(tunnel).await;
    }
    let again = pair.tells("chat/nodes/one/drain", "").await;
    let sooner = pair.tells("chat/nodes/one/drain", r#"{"over":"0s","code":4001}"#).await;
    let at = |answer: &Answer| {
        humantime::parse_rfc3339(answer.body["drain"]["deadline"].as_str().unwrap()).unwrap()
    };
    assert!(at(&first) <= at(&again) && at(&sooner) < at(&first));
    let mut codes = Vec::new();
    for (mut client, _) in kept {
        codes.push(client.read_close_code().await);
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
    soon(pair.app.reload().apply(resolve(&text))).await.unwrap();
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
    soon(pair.app.reload().apply(resolve(&text))).await.unwrap();
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
    soon(pair.app.reload().apply(resolve(&config(&pair.nodes, "drain: { over: 30m }")))).await.unwrap();
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
