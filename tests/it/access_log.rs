//! The access log of a running balancer: its fields by name, and the trace that it shares with the nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{
    Harness, RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, client_frame, node_frame, soon,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn parent() -> String {
    format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n")
}

async fn start_with_log(path: &Path, format: &str) -> Harness {
    Harness::with_access_log(&format!("{{ format: {format}, path: \"{}\" }}", path.display()), "").await
}

/// A request with these fields at the end of its head.
fn with_fields(request: &str, fields: &str) -> String {
    request.strip_suffix("\r\n").unwrap().to_owned() + fields + "\r\n"
}

/// The fields of this name in a head.
fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// Runs one session from `request` to a Close from the client; gives the head that the node saw.
async fn run_session(harness: &Harness, request: &str) -> String {
    let mut client = harness.connect().await;
    client.send(request).await;
    let mut node = RawStream(soon(harness.node.accept()).await.unwrap().0);
    let head = node.read_head().await;
    node.send([SWITCHING_PROTOCOLS.as_bytes(), &node_frame(1, b"hi")].concat()).await;
    client.read_head().await;
    client.send([client_frame(2, b"binary"), client_frame(8, &1000u16.to_be_bytes())].concat()).await;
    client.expect(&node_frame(1, b"hi")).await;
    node.expect(&client_frame(2, b"binary")).await;
    assert_eq!(node.read_close_code().await, 1000);
    drop(node);
    client.wait_closed().await;
    head
}

#[tokio::test]
async fn the_two_lines_of_a_session_have_these_fields_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness = start_with_log(&path, "json").await;
    let request = UPGRADE_REQUEST.replace("GET /chat ", "GET /chat/secret?token=secret ");
    run_session(
        &harness,
        &with_fields(&request, &format!("Cookie: a=secret\r\nX-Id: secret\r\n{}", parent())),
    )
    .await;
    soon(harness.app.stop()).await;
    let log = fs::read_to_string(path).unwrap();
    assert!(!log.contains("secret"), "of a request, only the client's address is written down: {log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [open, close] = &lines[..] else { panic!("{log}") };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let both = ["event", "time", "id", "client", "route", "pool", "node", "affinity", "trace_id"];
    let end = ["side", "code", "why", "duration", "bytes", "messages"];
    assert_eq!(keys(open), both.map(str::to_owned).into());
    assert_eq!(keys(close), both.iter().chain(&end).map(|key| key.to_string()).collect());
    for key in both.iter().filter(|key| !["event", "time"].contains(key)) {
        assert_eq!(open[key], close[key], "{key}");
    }
    assert_eq!((&open["event"], &close["event"]), (&"open".into(), &"close".into()));
    assert_eq!((&close["client"], &close["route"]), (&"127.0.0.1".into(), &"*".into()));
    assert_eq!((&close["pool"], &close["node"]), (&"chat".into(), &"ws1".into()));
    assert_eq!(close["affinity"], serde_json::json!({ "source": "none", "outcome": "placed" }));
    assert_eq!(close["trace_id"], TRACE);
    assert_eq!(
        (&close["side"], &close["code"], &close["why"]),
        (&"client".into(), &1000.into(), &"closed".into())
    );
    assert_eq!(close["messages"], serde_json::json!({ "in": 1, "out": 1 }));
    // A frame of 6 and one of 2 bytes with headers of 6, and one of 2 bytes with a header of 2.
    assert_eq!(close["bytes"], serde_json::json!({ "in": 20, "out": 4 }));
    assert!(close["duration"].as_f64().unwrap() >= 0.0);
    assert_eq!(open["id"].as_str().unwrap().len(), 16);
    assert!(open["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn text_lines_say_the_same_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness = start_with_log(&path, "text").await;
    run_session(&harness, &with_fields(UPGRADE_REQUEST, &parent())).await;
    soon(harness.app.stop()).await;
    let log = fs::read_to_string(path).unwrap();
    let keys = |line: &str| -> Vec<String> {
        line.split(' ').skip(2).map(|pair| pair.split_once('=').unwrap().0.to_owned()).collect()
    };
    let [open, close] = log.lines().collect::<Vec<_>>()[..] else { panic!("{log}") };
    let both = ["id", "client", "route", "pool", "node", "affinity", "outcome", "trace_id"];
    let end = ["side", "code", "why", "duration", "bytes_in", "bytes_out", "messages_in", "messages_out"];
    assert_eq!(keys(open), both);
    assert_eq!(keys(close), [both, end].concat());
    assert!(
        open.contains(" open id=") && close.contains(&format!(" trace_id={TRACE} side=client code=1000 "))
    );
}

#[tokio::test]
async fn a_trace_is_passed_on_or_made_and_node_and_log_hear_the_same_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let harness = start_with_log(&path, "json").await;
    let state = "tracestate: rojo=1\r\n";
    let mut traces = Vec::new();
    for (sent, is_kept) in [
        (parent() + state, true),
        (state.to_owned(), false),
        (parent() + &parent() + state, false),
        (parent().replace("00-4", "00-X") + state, false),
        (parent() + state + "Connection: traceparent, tracestate\r\n", true),
    ] {
        let head = run_session(&harness, &with_fields(UPGRADE_REQUEST, &sent)).await;
        let parents = fields(&head, "traceparent");
        let [parent] = parents[..] else { panic!("{head}") };
        assert_eq!(parent.contains(TRACE), is_kept, "{sent}{head}");
        assert_eq!(fields(&head, "tracestate"), if is_kept { vec!["rojo=1"] } else { vec![] }, "{head}");
        assert!(parent.starts_with("00-") && parent.len() == 55, "{parent}");
        traces.push(parent[3..35].to_owned());
    }
    soon(harness.app.stop()).await;
    let log = fs::read_to_string(path).unwrap();
    let logged: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["event"] == "open")
        .map(|line| line["trace_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(logged, traces);
    assert_eq!(traces.iter().collect::<BTreeSet<_>>().len(), 4, "each that was made is another");
}

#[tokio::test]
async fn a_plain_request_carries_a_trace_as_well() {
    let harness = Harness::start("").await;
    for (sent, is_kept) in [(parent(), true), (String::new(), false)] {
        let mut client = harness.connect().await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{sent}\r\n")).await;
        let mut node = RawStream(soon(harness.node.accept()).await.unwrap().0);
        let head = node.read_head().await;
        assert_eq!(fields(&head, "traceparent").len(), 1, "{head}");
        assert_eq!(head.contains(TRACE), is_kept, "{head}");
    }
}
