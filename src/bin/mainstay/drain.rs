//! `mainstay drain` and `mainstay undrain`: a node is emptied, and how far that is.
//!
//! The balancer drains by itself: whoever only watches may go, and come back.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::Args;
use http::Method;
use serde_json::{Map, Value};
use tokio::{runtime, time};

use mainstay::admin::client::Client;
use mainstay::pool::NodeId;

use crate::remote::Remote;
use crate::{Failure, show, table};

/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// What is wished.
#[derive(Args)]
pub struct Wish {
    /// The node
    #[arg(value_name = "POOL/NODE")]
    node: NodePath,
    /// The closes are spread over this time, such as 60s or 5m [default: the pool's]
    #[arg(long, value_name = "TIME")]
    over: Option<String>,
    /// The close code: 1012, 1001, 1013 or 3000 to 4999 [default: the pool's]
    #[arg(long)]
    code: Option<u16>,
    /// The close reason, at most 123 bytes [default: the pool's]
    #[arg(long)]
    reason: Option<String>,
    /// Begin it and do not watch; ending a command that watches does not end the drain either
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    remote: Remote,
}

/// A node of a pool, as it is written on the command line.
#[derive(Debug, Clone)]
pub struct NodePath {
    pool: NodeId,
    node: NodeId,
}

impl FromStr for NodePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pool, node) = text.split_once('/').ok_or("write it as POOL/NODE, like chat/ws1")?;
        Ok(Self { pool: pool.parse()?, node: node.parse()? })
    }
}

impl NodePath {
    fn path(&self, deed: &str) -> String {
        format!("/api/pools/{}/nodes/{}/{deed}", self.pool, self.node)
    }

    /// This node in the answer of `/api/status`.
    fn find<'a>(&self, status: &'a Value) -> Option<&'a Value> {
        let named = |list: &'a Value, key: &str, name: &str| {
            list.as_array()?.iter().find(|item| item[key].as_str() == Some(name))
        };
        let pool = named(&status["pools"], "name", self.pool.as_str())?;
        named(&pool["nodes"], "id", self.node.as_str())
    }

    fn said(&self, what: &str) -> String {
        format!("{}/{}: {what}\n", self.pool, self.node)
    }
}

/// `mainstay drain`
pub fn drain(wish: &Wish) -> Result<(), Failure> {
    let client = wish.remote.client().map_err(|failure| wish.remote.failed(failure))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let begun = client.ask_with(Method::POST, &wish.node.path("drain"), Some(&wish.body())).await?;
        // One that had a few may have lost them by now.
        let is_empty = ["left", "closed"].iter().all(|count| begun["drain"][count] == 0);
        let said = |begun: &Value| match is_empty {
            true => wish.node.said(EMPTY),
            false => wish.node.said(&progress(&begun["drain"])),
        };
        wish.remote.show(&begun, |begun| warnings(begun) + &said(begun))?;
        if wish.detach || is_empty { Ok(()) } else { watch(wish, &client, &begun["drain"]).await }
    });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    outcome.map_err(|failure| wish.remote.failed(failure))
}

/// Of a node without tunnels.
const EMPTY: &str = "nothing to do, it has no tunnels; it takes no clients until `mainstay undrain`";

/// `mainstay undrain`
pub fn undrain(node: &NodePath, remote: &Remote) -> Result<(), Failure> {
    let state = |answer: &Value| warnings(answer) + &node.said(&table::text(&answer["state"]));
    remote.tell(Method::POST, &node.path("undrain"), state)
}

/// Shows each step until nobody is left.
async fn watch(wish: &Wish, client: &Client, begun: &Value) -> Result<(), Failure> {
    let mut shown = begun.clone();
    while shown["left"] != 0 {
        time::sleep(PAUSE).await;
        let status = client.ask(Method::GET, "/api/status").await?;
        let Some(node) = wish.node.find(&status) else {
            let what = "taken out of the config; its tunnels leave with that";
            return show(&wish.node.said(what));
        };
        let drain = &node["drain"];
        if drain.is_null() {
            let what = format!("the drain of {}/{} was taken back", wish.node.pool, wish.node.node);
            return Err(Failure::Otherwise(what));
        }
        if (&drain["left"], &drain["deadline"]) != (&shown["left"], &shown["deadline"]) {
            shown = drain.clone();
            wish.remote.show(drain, |drain| wish.node.said(&progress(drain)))?;
        }
    }
    wish.remote.show(&shown, |_| wish.node.said("drained; it takes no clients until `mainstay undrain`"))
}

impl Wish {
    fn body(&self) -> Value {
        let mut body = Map::new();
        let texts = [("over", &self.over), ("reason", &self.reason)];
        body.extend(texts.into_iter().filter_map(|(key, text)| Some((key.into(), text.clone()?.into()))));
        body.extend(self.code.map(|code| ("code".into(), code.into())));
        Value::Object(body)
    }
}

fn warnings(answer: &Value) -> String {
    let warnings = answer["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().map(|warning| format!("warning: {}\n", table::text(warning))).collect()
}

/// `120 left, 30 closed, 28s to go`
fn progress(drain: &Value) -> String {
    let (left, closed) = (table::text(&drain["left"]), table::text(&drain["closed"]));
    let deadline = drain["deadline"].as_str().and_then(|at| humantime::parse_rfc3339(at).ok());
    let rest = deadline.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
    let rest = rest.map_or("-".into(), |rest| {
        humantime::format_duration(Duration::from_secs(rest.as_secs())).to_string()
    });
    format!("{left} left, {closed} closed, at most {rest} to go")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_written_with_its_pool() {
        let path: NodePath = "chat/ws1".parse().unwrap();
        assert_eq!(path.path("drain"), "/api/pools/chat/nodes/ws1/drain");
        for text in ["ws1", "chat/", "/ws1", "chat/a b", "chat/ws1/drain"] {
            assert!(text.parse::<NodePath>().is_err(), "{text}");
        }
        let status = json!({ "pools": [{ "name": "chat", "nodes": [{ "id": "ws1", "drain": null }] }] });
        assert!(path.find(&status).is_some());
        assert!("chat/ws2".parse::<NodePath>().unwrap().find(&status).is_none());
    }

    #[test]
    fn progress_is_one_line_even_of_another_version() {
        let line = progress(&json!({ "left": 3, "closed": 4, "deadline": "2020-01-01T00:00:00Z" }));
        assert_eq!(line, "3 left, 4 closed, at most 0s to go");
        assert_eq!(progress(&json!({})), "- left, - closed, at most - to go");
    }
}
