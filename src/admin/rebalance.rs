//! `/api/pools/{pool}/rebalance`: begins a rebalance, and shows its plan and progress.

use std::time::SystemTime;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::context::AdminContext;
use super::response::{self, AdminResponse};
use crate::config::{self, show_duration};
use crate::control::rebalance::{Outlook, Progress, RebalanceFault};
use crate::log;

/// The plan of a rebalance that was ordered.
#[derive(Debug, Serialize)]
pub struct RebalanceResponse {
    pool: String,
    over: String,
    tolerance: f64,
    quiet_first: bool,
    /// The most tunnels that are closed; 0 where no node is above the tolerance, and nothing was begun.
    moves: u32,
    /// Those that are up.
    nodes: Vec<NodeMoves>,
}

#[derive(Debug, Serialize)]
struct NodeMoves {
    id: String,
    /// Live tunnels of this balancer.
    connections: u32,
    /// What it should have, by weight.
    share: u32,
    /// The most of its tunnels that are closed.
    moves: u32,
}

/// How far the rebalance of a pool is.
#[derive(Debug, Serialize)]
pub struct RebalanceStatus {
    /// The most tunnels that are closed.
    planned: u32,
    /// Those that were told to close so far.
    closed: u32,
    /// Those that may still be: fewer, when clients leave or move by themselves.
    left: u32,
    /// When the last of them is told to, at the latest.
    deadline: String,
}

impl RebalanceResponse {
    fn new(pool: &str, rule: &config::Rebalance, outlook: &Outlook) -> Self {
        let nodes = outlook.stands.iter().map(|stand| NodeMoves {
            id: stand.node.to_string(),
            connections: stand.live,
            share: stand.share,
            moves: stand.surplus,
        });
        let config::Rebalance { over, tolerance, quiet_first } = *rule;
        Self {
            pool: pool.to_owned(),
            over: show_duration(&over),
            tolerance,
            quiet_first,
            moves: outlook.moves(),
            nodes: nodes.collect(),
        }
    }
}

impl From<Progress> for RebalanceStatus {
    fn from(progress: Progress) -> Self {
        let Progress { planned, closed, deadline } = progress;
        let left = if deadline < SystemTime::now() { 0 } else { planned.saturating_sub(closed) };
        Self { planned, closed, left, deadline: log::format_time(deadline) }
    }
}

/// The pool of a path; `None` when it is another path.
pub(super) fn parse_path(path: &str) -> Option<&str> {
    let pool = path.strip_prefix("/api/pools/")?.strip_suffix("/rebalance")?;
    (!pool.is_empty() && !pool.contains('/')).then_some(pool)
}

/// Begins a rebalance.
pub(super) fn begin(pool: &str, body: &[u8], context: &AdminContext) -> AdminResponse {
    let wish = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    match context.reload.rebalances().order(pool, &wish) {
        Ok((rule, outlook)) => {
            let plan = RebalanceResponse::new(pool, &rule, &outlook);
            let status = if plan.moves > 0 { StatusCode::ACCEPTED } else { StatusCode::OK };
            response::json(status, &plan)
        }
        Err(fault) => {
            let status = match fault {
                RebalanceFault::NoPool(..) => StatusCode::NOT_FOUND,
                RebalanceFault::Wish(_) => StatusCode::BAD_REQUEST,
                RebalanceFault::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                RebalanceFault::TakenOver => StatusCode::CONFLICT,
            };
            response::error(status, &fault.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_pool() {
        assert_eq!(parse_path("/api/pools/chat/rebalance"), Some("chat"));
        for path in [
            "/api/pools//rebalance",
            "/api/pools/a/b/rebalance",
            "/api/pools/chat/rebalance/",
            "/api/pools/rebalance",
        ] {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }
}
