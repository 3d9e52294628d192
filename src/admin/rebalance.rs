//! `/api/pools/{pool}/rebalance`: what is to move, and how far that is.

use std::time::SystemTime;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::View;
use super::answer::{self, Answer};
use crate::config::{self, show_duration};
use crate::control::rebalance::{Outlook, Progress, RebalanceFault};
use crate::log;

/// What a rebalance that was asked for is going to do.
#[derive(Debug, Serialize)]
pub struct Plan {
    pool: String,
    over: String,
    tolerance: f64,
    quiet_first: bool,
    /// The most tunnels that are closed; 0 where no node is above the tolerance, and nothing was begun.
    moves: u32,
    /// Those that are up.
    nodes: Vec<NodePlan>,
}

#[derive(Debug, Serialize)]
struct NodePlan {
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

/// What is said of it, or why it was not begun.
pub type Said = Result<Plan, RebalanceFault>;

impl Plan {
    /// Of this pool.
    pub fn new(pool: &str, rule: &config::Rebalance, outlook: &Outlook) -> Self {
        let nodes = outlook.stands.iter().map(|stand| NodePlan {
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
        Self { planned, closed, left, deadline: log::time(deadline) }
    }
}

/// The pool of a path; `None` when it is another path.
pub(super) fn pool(path: &str) -> Option<&str> {
    let pool = path.strip_prefix("/api/pools/")?.strip_suffix("/rebalance")?;
    (!pool.is_empty() && !pool.contains('/')).then_some(pool)
}

/// Begins it.
pub(super) fn begin(pool: &str, body: &[u8], view: &View) -> Answer {
    let wish = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    match (view.rebalance)(pool.to_owned(), wish) {
        Ok(plan) if plan.moves > 0 => answer::json(StatusCode::ACCEPTED, &plan),
        Ok(plan) => answer::json(StatusCode::OK, &plan),
        Err(fault) => {
            let status = match fault {
                RebalanceFault::NoPool(..) => StatusCode::NOT_FOUND,
                RebalanceFault::Wish(_) => StatusCode::BAD_REQUEST,
                RebalanceFault::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                RebalanceFault::TakenOver => StatusCode::CONFLICT,
            };
            answer::error(status, &fault.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_pool() {
        assert_eq!(pool("/api/pools/chat/rebalance"), Some("chat"));
        for path in [
            "/api/pools//rebalance",
            "/api/pools/a/b/rebalance",
            "/api/pools/chat/rebalance/",
            "/api/pools/rebalance",
        ] {
            assert_eq!(pool(path), None, "{path}");
        }
    }
}
