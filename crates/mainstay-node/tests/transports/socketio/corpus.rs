//! What Node.js answered on the Socket.IO level, replayed against our server: bodies, frames and closes equal.

use std::time::Duration;

use mainstay_node::engine_io::EngineSettings;
use serde_json::Value;
use socketio_redis::memory::MemoryAdapter;

use super::{Node, Wanted};
use crate::wire;

/// Cases that need Socket.IO; the others are replayed against the Engine.IO server alone.
fn is_ours(case: &Value) -> bool {
    let name = case["case"].as_str().unwrap();
    let whole = ["polling.session", "polling.server-disconnect", "polling.gzip", "polling.jsonp"];
    let others = ["ws.cookie", "ws.heartbeat", "ws.heartbeat-timeout"];
    let is_level = name.starts_with("ws.") || name.starts_with("eio3.") || whole.contains(&name);
    is_level && !others.contains(&name) && matches!(case["kind"].as_str(), Some("http" | "ws"))
}

/// The recorder's settings for a case.
fn wanted(name: &str) -> Wanted {
    let recorded = EngineSettings { max_payload: 1_000_000, idle: None, ..EngineSettings::default() };
    match name {
        "ws.connect-timeout" => Wanted {
            engine: EngineSettings { ping_interval: Duration::from_millis(300), ..recorded },
            connect_timeout: Duration::from_millis(400),
            ..Wanted::default()
        },
        _ if name.starts_with("eio3.") => {
            Wanted { engine: EngineSettings { revision_3: true, ..recorded }, ..Wanted::default() }
        }
        _ => Wanted { engine: recorded, ..Wanted::default() },
    }
}

#[tokio::test]
async fn what_nodes_socket_io_answered_is_answered_here() {
    let cases: Vec<Value> = wire::cases().into_iter().filter(is_ours).collect();
    let mut faults = Vec::new();
    for case in &cases {
        let name = case["case"].as_str().unwrap();
        let node = Node::start(&MemoryAdapter::new(None), wanted(name)).await;
        if let Err(fault) = wire::replay(case, node.listening.address).await {
            faults.push(format!("{name}: {fault}"));
        }
    }
    assert!(faults.is_empty(), "{} of {} differ:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert!(cases.len() > 45, "{}", cases.len());
}
