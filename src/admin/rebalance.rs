//! `/api/pools/{pool}/rebalance`: begins a rebalance, and shows its plan and progress.

use std::time::SystemTime;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::context::AdminContext;
use super::response::{self, AdminResponse};
use crate::config::{self, show_duration};
use crate::control::rebalance::{RebalanceError, RebalancePlan, RebalanceProgress};
use crate::log;

/// The plan of a rebalance that was ordered.
#[derive(Debug, Serialize)]
pub(super) struct RebalanceResponse {
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
pub(super) struct RebalanceStatus {
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
    fn new(pool: &str, rule: &config::Rebalance, plan: &RebalancePlan) -> Self {
        let nodes = plan.nodes.iter().map(|share| NodeMoves {
            id: share.node.to_string(),
            connections: share.tunnels,
            share: share.share,
            moves: share.surplus,
        });
        let config::Rebalance { over, tolerance, quiet_first } = *rule;
        Self {
            pool: pool.to_owned(),
            over: show_duration(&over),
            tolerance,
            quiet_first,
            moves: plan.moves(),
            nodes: nodes.collect(),
        }
    }
}

impl From<RebalanceProgress> for RebalanceStatus {
    fn from(progress: RebalanceProgress) -> Self {
        let RebalanceProgress { planned, closed, deadline } = progress;
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
    match context.reload.rebalancer().order(pool, &wish) {
        Ok((settings, plan)) => {
            let plan = RebalanceResponse::new(pool, &settings, &plan);
            let status = if plan.moves > 0 { StatusCode::ACCEPTED } else { StatusCode::OK };
            response::json(status, &plan)
        }
        Err(fault) => {
            let status = match fault {
                RebalanceError::NoPool(..) => StatusCode::NOT_FOUND,
                RebalanceError::InvalidOrder(_) => StatusCode::BAD_REQUEST,
                RebalanceError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                RebalanceError::TakenOver => StatusCode::CONFLICT,
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
