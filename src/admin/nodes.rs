//! `/api/pools/{pool}/nodes/{node}/…`: what is done to one node, and what is answered.

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::View;
use super::answer::{self, Answer};
use super::status::DrainStatus;
use crate::proxy::drain::DrainError;

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Everybody moves off, and nobody new comes.
    Drain,
    /// That is taken back.
    Undrain,
}

/// What a node that was drained, or is no longer, looks like.
#[derive(Debug, Serialize)]
pub struct NodeAnswer {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// `up`, `down`, `draining` or `removed`.
    pub state: &'static str,
    /// Its drain; `None` when nobody wants one.
    pub drain: Option<DrainStatus>,
    /// What is unwise about it, or to be known.
    pub warnings: Vec<String>,
}

/// What is said of the node, or why nothing was done.
pub type Said = Result<NodeAnswer, DrainError>;

/// The pool, the node and the deed of a path; `None` when it is another.
pub(super) fn deed(path: &str) -> Option<(&str, &str, Deed)> {
    let mut parts = path.strip_prefix("/api/pools/")?.split('/');
    let (pool, nodes, node, deed) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let deed = match deed {
        "drain" => Deed::Drain,
        "undrain" => Deed::Undrain,
        _ => return None,
    };
    (nodes == "nodes" && parts.next().is_none()).then_some((pool, node, deed))
}

/// Does it.
pub(super) async fn carry_out((pool, node, deed): (&str, &str, Deed), body: &[u8], view: &View) -> Answer {
    let wish = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    let done = match deed {
        Deed::Drain => (view.drain)(pool.to_owned(), node.to_owned(), wish).await,
        Deed::Undrain if wish == json!({}) => (view.undrain)(pool.to_owned(), node.to_owned()),
        Deed::Undrain => {
            let what = "an undrain takes no body; leave it out, or send `{}`";
            return answer::error(StatusCode::BAD_REQUEST, what);
        }
    };
    match done {
        Ok(node) if deed == Deed::Drain => answer::json(StatusCode::ACCEPTED, &node),
        Ok(node) => answer::json(StatusCode::OK, &node),
        Err(fault) => answer::error(status(&fault), &fault.to_string()),
    }
}

fn status(fault: &DrainError) -> StatusCode {
    match fault {
        DrainError::NoPool(..) | DrainError::NoNode(..) => StatusCode::NOT_FOUND,
        DrainError::Wish(_) => StatusCode::BAD_REQUEST,
        DrainError::AsksItself(_) | DrainError::TakenOver => StatusCode::CONFLICT,
        DrainError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_pool_one_node_and_one_deed() {
        assert_eq!(deed("/api/pools/chat/nodes/ws1/drain"), Some(("chat", "ws1", Deed::Drain)));
        assert_eq!(deed("/api/pools/chat/nodes/ws1/undrain"), Some(("chat", "ws1", Deed::Undrain)));
        for path in [
            "/api/pools/chat/nodes/ws1",
            "/api/pools/chat/nodes/ws1/drain/",
            "/api/pools/chat/node/ws1/drain",
            "/api/pools/chat/nodes/ws1/kill",
            "/api/pool/chat/nodes/ws1/drain",
        ] {
            assert_eq!(deed(path), None, "{path}");
        }
    }
}
