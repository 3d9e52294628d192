//! `/api/pools/{pool}/nodes/{node}/…`: drains and undrains one node.

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::context::AdminContext;
use super::response::{self, AdminResponse};
use super::status::{DrainStatus, drain_status};
use crate::proxy::ProxyContext;
use crate::proxy::drain::{DrainChange, DrainError, cancel_drain, order_drain};

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Its tunnels are closed, and it gets no new ones.
    Drain,
    /// The drain is cancelled.
    Undrain,
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeAction<'a> {
    pool: &'a str,
    node: &'a str,
    operation: Operation,
}

/// The node after the action.
#[derive(Debug, Serialize)]
pub(super) struct NodeActionResponse {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// `up`, `down`, `draining` or `removed`.
    pub state: &'static str,
    /// Its drain; `None` when there is none.
    pub drain: Option<DrainStatus>,
    /// What an operator should know about it.
    pub warnings: Vec<String>,
}

impl NodeActionResponse {
    fn new(proxy: &ProxyContext, change: DrainChange) -> Self {
        let DrainChange { upstream, warnings } = change;
        Self {
            pool: upstream.meter.pool.to_string(),
            node: upstream.node.id.to_string(),
            state: upstream.load(proxy.now()).state.as_str(),
            drain: drain_status(&upstream),
            warnings,
        }
    }
}

/// The action of a path; `None` when it is another path.
pub(super) fn parse_path(path: &str) -> Option<NodeAction<'_>> {
    let mut parts = path.strip_prefix("/api/pools/")?.split('/');
    let (pool, nodes, node, operation) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let operation = match operation {
        "drain" => Operation::Drain,
        "undrain" => Operation::Undrain,
        _ => return None,
    };
    (nodes == "nodes" && parts.next().is_none()).then_some(NodeAction { pool, node, operation })
}

/// Performs the action.
pub(super) async fn perform(action: NodeAction<'_>, body: &[u8], context: &AdminContext) -> AdminResponse {
    let wish = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    let (proxy, NodeAction { pool, node, operation }) = (context.proxy(), action);
    let change = match operation {
        Operation::Drain => order_drain(proxy, pool, node, &wish).await,
        Operation::Undrain if wish == json!({}) => cancel_drain(proxy, pool, node),
        Operation::Undrain => {
            let what = "an undrain takes no body; leave it out, or send `{}`";
            return response::error(StatusCode::BAD_REQUEST, what);
        }
    };
    let status = if operation == Operation::Drain { StatusCode::ACCEPTED } else { StatusCode::OK };
    match change {
        Ok(change) => response::json(status, &NodeActionResponse::new(proxy, change)),
        Err(error) => response::error(error_status(&error), &error.to_string()),
    }
}

fn error_status(error: &DrainError) -> StatusCode {
    match error {
        DrainError::NoPool(..) | DrainError::NoNode(..) => StatusCode::NOT_FOUND,
        DrainError::InvalidOrder(_) => StatusCode::BAD_REQUEST,
        DrainError::AsksItself(_) | DrainError::TakenOver => StatusCode::CONFLICT,
        DrainError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_pool_one_node_and_one_action() {
        let action = |operation| Some(NodeAction { pool: "chat", node: "ws1", operation });
        assert_eq!(parse_path("/api/pools/chat/nodes/ws1/drain"), action(Operation::Drain));
        assert_eq!(parse_path("/api/pools/chat/nodes/ws1/undrain"), action(Operation::Undrain));
        for path in [
            "/api/pools/chat/nodes/ws1",
            "/api/pools/chat/nodes/ws1/drain/",
            "/api/pools/chat/node/ws1/drain",
            "/api/pools/chat/nodes/ws1/kill",
            "/api/pool/chat/nodes/ws1/drain",
        ] {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }
}
