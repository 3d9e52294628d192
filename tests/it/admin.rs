//! The admin API as its contract has it: each endpoint by name and shape.

use std::collections::BTreeSet;
use std::path::Path;

use mainstay::app::App;
use mainstay::config;
use mainstay::control::load::load;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::{Harness, RawStream, accept_request, client_frame, connect_client, node_frame, soon};

/// What came back.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
        line.split_once(": ").map(|(_, value)| value)
    }

    pub fn error(&self) -> &str {
        assert!(self.body["faults"].is_array(), "{}", self.body);
        self.body["error"].as_str().unwrap()
    }
}

/// Sends these bytes, and gives the one answer.
pub async fn raw(app: &App, request: impl AsRef<[u8]>) -> Answer {
    let mut admin = RawStream(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
    admin.send(request).await;
    let text = String::from_utf8(admin.read_to_end().await).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
    Answer { status, head: head.to_owned(), body }
}

/// Asks with these header lines.
pub async fn asks(app: &App, method: &str, path: &str, headers: &str) -> Answer {
    raw(app, format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"))
        .await
}

pub async fn gets(app: &App, path: &str) -> Value {
    let answer = asks(app, "GET", path, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
    answer.body
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

/// Asks for sessions until there are so many: a client may hear 101 a moment before its tunnel is adopted.
async fn sessions(app: &App, query: &str, count: usize) -> Vec<Value> {
    soon(async {
        loop {
            let page = gets(app, &format!("/api/sessions?{query}")).await;
            let sessions = page["sessions"].as_array().unwrap();
            if sessions.len() == count {
                return sessions.clone();
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_status_names_the_process_its_pools_and_its_nodes() {
    let harness = Harness::start("").await;
    let _tunnel = harness.open_tunnel().await;
    sessions(&harness.app, "", 1).await;
    let status = gets(&harness.app, "/api/status").await;
    let expected =
        ["version", "pid", "started_at", "generation", "phase", "listeners", "tunnels", "pools", "totals"];
    assert_eq!(keys(&status), BTreeSet::from(expected));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], std::process::id());
    assert_eq!((&status["generation"], &status["phase"]), (&json!(1), &json!("serving")));
    assert_eq!(status["listeners"], json!(harness.app.listeners()));
    assert_eq!(status["totals"], json!({ "pools": 1, "nodes": 1, "up": 1, "connections": 1 }));
    assert!(humantime::parse_rfc3339(status["started_at"].as_str().unwrap()).is_ok());
    let pool = &status["pools"][0];
    assert_eq!((&pool["name"], pool["nodes"].as_array().unwrap().len()), (&json!("chat"), 1));
    assert_eq!(
        pool["nodes"][0],
        json!({
            "id": "ws1",
            "address": harness.node.local_addr().unwrap().to_string(),
            "state": "up",
            "weight": 1,
            "connections": 1,
            "max_connections": null,
            "utilization": null,
            "health": { "last_probe": null, "share": 1.0, "ejected": null },
            "load": null,
            "release": null,
            "drain": null,
        })
    );
}

#[tokio::test]
async fn a_node_under_status_has_what_its_last_probe_brought() {
    let node = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\naccess_log: {{ format: off }}\n\
         shutdown: {{ drain: 1s }}\npools:\n  chat:\n    nodes:\n      - {{ id: ws1, address: \"{}\", release: v1 }}\n      \
         - {{ id: ws2, address: \"{}\", release: v2 }}\n    health: {{ interval: 1h }}\n",
        node.local_addr().unwrap(),
        gone.local_addr().unwrap()
    );
    drop(gone);
    let probed = async {
        let mut probe = RawStream(soon(node.accept()).await.unwrap().0);
        assert!(probe.read_head().await.starts_with("GET /health HTTP/1.1\r\n"));
        probe.send("HTTP/1.1 200 OK\r\nX-Mainstay-Load: 12/48\r\nX-Mainstay-Release: v7\r\nContent-Length: 0\r\n\r\n").await;
    };
    let (app, ()) = tokio::join!(app_of(&text, &|_| Err(std::io::ErrorKind::NotFound.into())), probed);
    let status = gets(&app, "/api/status").await;
    let [one, two] = &status["pools"][0]["nodes"].as_array().unwrap()[..] else { panic!("{status}") };
    assert_eq!((&one["release"], &one["utilization"]), (&json!("v7"), &json!(0.25)));
    assert_eq!(one["load"], json!({ "connections": 12, "max_connections": 48 }));
    let probe = &one["health"]["last_probe"];
    assert_eq!((&probe["ok"], &probe["fault"]), (&json!(true), &Value::Null));
    assert!(humantime::parse_rfc3339(probe["at"].as_str().unwrap()).is_ok());
    assert_eq!((&two["state"], &two["release"]), (&json!("down"), &json!("v2")));
    assert_eq!(two["health"]["last_probe"]["fault"], "connection refused");
    app.stop().await;
}

async fn app_of(text: &str, read: config::ReadFile<'_>) -> App {
    let config = config::resolve("it", text.as_bytes(), &|_| None, read);
    soon(App::start(&config.unwrap_or_else(|faults| panic!("{faults}")))).await.unwrap()
}

#[tokio::test]
async fn a_session_is_shown_with_all_that_the_contract_names() {
    let harness = Harness::start("").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    let before = sessions(&harness.app, "", 1).await;
    assert_eq!((&before[0]["last_message_at"], &before[0]["round_trip"]), (&Value::Null, &Value::Null));
    client.send(client_frame(1, b"hello")).await;
    node.expect(&client_frame(1, b"hello")).await;
    node.send(node_frame(2, b"you")).await;
    client.expect(&node_frame(2, b"you")).await;
    let session = &sessions(&harness.app, "pool=chat&node=ws1&limit=1", 1).await[0];
    let expected = [
        "id",
        "client",
        "pool",
        "node",
        "route",
        "generation",
        "opened_at",
        "affinity",
        "bytes",
        "messages",
        "last_message_at",
        "round_trip",
        "closing",
    ];
    assert_eq!(keys(session), BTreeSet::from(expected));
    assert_eq!(session["id"], before[0]["id"]);
    assert!(session["id"].as_str().is_some_and(|id| id.len() == 16), "{session}");
    assert_eq!((&session["client"], &session["generation"]), (&json!("127.0.0.1"), &json!(1)));
    assert_eq!((&session["pool"], &session["node"]), (&json!("chat"), &json!("ws1")));
    assert_eq!(
        (&session["bytes"], &session["messages"]),
        (&json!({ "in": 11, "out": 5 }), &json!({ "in": 1, "out": 1 }))
    );
    assert_eq!(keys(&session["affinity"]), BTreeSet::from(["source", "outcome"]));
    for time in ["opened_at", "last_message_at"] {
        assert!(humantime::parse_rfc3339(session[time].as_str().unwrap()).is_ok(), "{session}");
    }
}

#[tokio::test]
async fn pages_have_each_session_once() {
    let harness = Harness::start("").await;
    let mut tunnels = Vec::new();
    for _ in 0..5 {
        tunnels.push(harness.open_tunnel().await);
    }
    sessions(&harness.app, "", 5).await;
    let (mut seen, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = gets(&harness.app, &format!("/api/sessions?limit=2&after={after}")).await;
        assert_eq!(keys(&page), BTreeSet::from(["sessions", "next"]));
        pages += 1;
        seen.extend(
            page["sessions"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()),
        );
        match &page["next"] {
            Value::Null => break,
            next => after = next.as_str().unwrap().to_owned(),
        }
    }
    assert_eq!((pages, seen.len()), (3, 5));
    assert!(seen.is_sorted_by(|one, other| one < other), "{seen:?}");
}

#[tokio::test]
async fn a_query_that_is_wrong_is_400_with_words() {
    let harness = Harness::start("").await;
    for (query, said) in [
        ("pol=chat", "the keys are"),
        ("limit=0", "from 1 to 1000"),
        ("limit=many", "from 1 to 1000"),
        ("pool=chta", "the pools are: chat"),
        ("node=ws9", "no node `ws9`"),
        ("pool=%ff", "percent-encoded"),
        ("after=xyz", "`next` of a page"),
        ("pool=a&pool=b", "twice"),
    ] {
        let answer = asks(&harness.app, "GET", &format!("/api/sessions?{query}"), "").await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.error().contains(said), "{query}: {}", answer.error());
    }
    assert_eq!(gets(&harness.app, "/api/sessions").await, json!({ "sessions": [], "next": null }));
}

#[tokio::test]
async fn a_deleted_session_is_closed_with_1012_on_both_sides_and_no_other_is() {
    let harness = Harness::start("").await;
    let (mut client, mut node) = harness.open_tunnel().await;
    let id = sessions(&harness.app, "", 1).await[0]["id"].as_str().unwrap().to_owned();
    let (mut other_client, mut other_node) = harness.open_tunnel().await;
    sessions(&harness.app, "", 2).await;
    let answer = asks(&harness.app, "DELETE", &format!("/api/sessions/{id}"), "").await;
    assert_eq!((answer.status, &answer.body), (202, &json!({ "closing": id })));
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1012, 1012));
    client.send(client_frame(8, &1012u16.to_be_bytes())).await;
    node.send(node_frame(8, &1012u16.to_be_bytes())).await;
    client.wait_closed().await;
    sessions(&harness.app, "", 1).await;
    other_client.send(client_frame(1, b"still here")).await;
    other_node.expect(&client_frame(1, b"still here")).await;
    for unknown in [id.as_str(), "0000000000000000", "x", "", "../status", "%2e%2e"] {
        let answer = asks(&harness.app, "DELETE", &format!("/api/sessions/{unknown}"), "").await;
        assert_eq!(answer.status, 404, "{unknown}");
        assert!(answer.error().contains("no such session"));
    }
}

#[tokio::test]
async fn the_effective_config_has_every_default_and_no_secret() {
    let harness = Harness::start("").await;
    let config = gets(&harness.app, "/api/config").await;
    let expected =
        ["listeners", "admin", "trusted_proxies", "limits", "access_log", "shutdown", "pools", "routes"];
    assert!(keys(&config).is_superset(&BTreeSet::from(expected)), "{config}");
    let pool = &config["pools"]["chat"];
    assert_eq!((&pool["nodes"][0]["id"], &pool["health"]), (&json!("ws1"), &Value::Null));
    assert_eq!((&pool["timeouts"]["idle"], &pool["drain"]["code"]), (&json!("1h"), &json!(1012)));
    let text = config.to_string();
    let again = config::resolve("again", text.as_bytes(), &|_| None, &|path| std::fs::read(path));
    assert_eq!(again.unwrap().pools[0].name.as_ref(), "chat");
}

/// A balancer whose config is a file in `directory`.
pub async fn app_in(directory: &Path, text: &str) -> App {
    let path = directory.join("balancer.yaml");
    std::fs::write(&path, text).unwrap();
    let config = load(&path).unwrap_or_else(|faults| panic!("{faults}"));
    soon(App::start_from(&path, &config)).await.unwrap()
}

pub fn config_with(admin: &str, nodes: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {admin}\naccess_log: {{ format: off }}\n\
         shutdown: {{ drain: 1s }}\npools:\n  chat:\n    nodes: [{nodes}]\n    health: null\n"
    )
}

#[tokio::test]
async fn a_reload_says_every_change_or_every_fault() {
    let directory = tempfile::tempdir().unwrap();
    let node = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ws1 = format!("{{ id: ws1, address: \"{}\" }}", node.local_addr().unwrap());
    let admin = "{ address: \"127.0.0.1:0\" }";
    let app = app_in(directory.path(), &config_with(admin, &ws1)).await;
    let path = directory.path().join("balancer.yaml");
    let mut tunnel = connect_client(&app).await;
    tunnel.send(crate::harness::UPGRADE_REQUEST).await;
    let mut at_node = accept_request(&node).await;
    at_node.send(crate::harness::SWITCHING_PROTOCOLS).await;
    tunnel.read_head().await;

    let same = asks(&app, "POST", "/api/reload", "").await;
    assert_eq!((same.status, &same.body), (200, &json!({ "changes": [] })));

    let more = config_with(admin, &format!("{ws1}, {{ id: ws2, address: \"127.0.0.1:1\" }}"));
    std::fs::write(&path, &more).unwrap();
    soon(async {
        // The watch of the file may have been faster.
        while gets(&app, "/api/status").await["generation"] != 2 {
            let answer = asks(&app, "POST", "/api/reload", "").await;
            assert_eq!((answer.status, keys(&answer.body)), (200, BTreeSet::from(["changes"])));
        }
    })
    .await;
    assert_eq!(gets(&app, "/api/config").await["pools"]["chat"]["nodes"][1]["id"], "ws2");

    std::fs::write(&path, more.replace("drain: 1s", "drian: 1s, drain: soon")).unwrap();
    let bad = asks(&app, "POST", "/api/reload", "Content-Length: 0\r\n").await;
    assert_eq!(bad.status, 422);
    assert!(bad.error().contains("stays in effect"), "{}", bad.error());
    let faults = bad.body["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{}", bad.body);
    for fault in faults {
        assert_eq!(keys(fault), BTreeSet::from(["file", "line", "column", "message"]));
        assert_eq!((&fault["file"], &fault["line"]), (&json!(path.display().to_string()), &json!(4)));
    }
    assert_eq!(gets(&app, "/api/status").await["generation"], 2);
    tunnel.send(client_frame(1, b"through all of it")).await;
    at_node.expect(&client_frame(1, b"through all of it")).await;
    app.stop().await;
}
