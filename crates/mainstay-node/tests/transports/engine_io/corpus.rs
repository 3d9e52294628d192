//! What Node.js answered on the Engine.IO level, replayed against our server: bodies, headers, frames and closes equal.

use std::sync::Arc;
use std::time::Duration;

use mainstay_core::origin::Origins;
use mainstay_node::engine_io::{Cors, EngineServer, EngineSettings};
use serde_json::Value;
use tokio::sync::mpsc;

use super::stand_in::StandIn;
use crate::listening::Listening;
use crate::wire;

/// Cases in which we differ, and mean to.
const DIFFERENT: [&str; 2] = [
    // Node completes the upgrade and then writes an HTTP answer into it; here it is a clean 400.
    "error.ws-unsupported-protocol",
    // The client's script is not part of a node.
    "path",
];

/// Cases on the level of Engine.IO, but for the three upgrades, which have tests of their own.
fn is_ours(case: &Value) -> bool {
    let name = case["case"].as_str().unwrap();
    let begins = ["polling.", "error.", "ws.invalid.eio-", "ws.message-", "ws.heartbeat", "cors.", "limits."];
    let whole = [
        "ws.handshake",
        "ws.connect-and-echo",
        "ws.server-disconnect",
        "ws.server-kick",
        "ws.binary-echo",
        "ws.cookie",
    ];
    let is_level = begins.iter().any(|begin| name.starts_with(begin)) || whole.contains(&name);
    (is_level || name.starts_with("eio3.polling.")) && !DIFFERENT.contains(&name)
}

/// The recorder's settings for a case.
fn settings(name: &str) -> EngineSettings {
    let recorded = EngineSettings { max_payload: 1_000_000, idle: None, ..EngineSettings::default() };
    let is_quick = ["ws.heartbeat", "polling.heartbeat", "cors.", "limits.", "ws.cookie"];
    if name.starts_with("eio3.") {
        return EngineSettings { revision_3: true, ..recorded };
    }
    if !is_quick.iter().any(|begin| name.starts_with(begin)) {
        return recorded;
    }
    let cors =
        Cors { origins: Origins::new(vec!["https://app.example".parse().unwrap()]), credentials: true };
    EngineSettings {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        max_payload: 1000,
        cors: Some(cors),
        cookie: Some("io".into()),
        ..recorded
    }
}

#[tokio::test]
async fn what_node_answered_is_answered_here() {
    let cases: Vec<Value> = wire::cases().into_iter().filter(is_ours).collect();
    let mut faults = Vec::new();
    for case in &cases {
        let name = case["case"].as_str().unwrap();
        let (opened, _sessions) = mpsc::unbounded_channel();
        let server = EngineServer::new(settings(name), Arc::new(StandIn(opened)));
        let listening = Listening::start(server).await;
        if let Err(fault) = wire::replay(case, listening.address).await {
            faults.push(format!("{name}: {fault}"));
        }
    }
    assert!(faults.is_empty(), "{} of {} differ:\n{}", faults.len(), cases.len(), faults.join("\n"));
    // With the three upgrades 46 of the 83; the others are about Socket.IO.
    assert_eq!(cases.len(), 43);
}
